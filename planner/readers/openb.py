"""openb CSV (Alibaba GPU trace v2023 and its variants) -> nodes and pods.

Nodes: sn, cpu_milli, memory_mib, gpu, model. Pods: name, cpu_milli, memory_mib, num_gpu, gpu_milli, and optionally
gpu_spec (models joined by |) and qos. Priorities by qos: LS and Guaranteed 3, Burstable 2, BE 1.
"""

from __future__ import annotations

from pathlib import Path

from planner.errors import DescriptionError, Finding
from planner.files import read_text
from planner.kubernetes.rules import HOSTNAME
from planner.kubernetes.snapshot import CPU, MEMORY, PODS, WHOLE_MILLI, Node, Pod
from planner.readers.csv_table import MAX_FINDINGS

QOS_PRIORITY = {"LS": 3, "Guaranteed": 3, "Burstable": 2, "BE": 1, "": 0}
NODE_COLUMNS = ("sn", "cpu_milli", "memory_mib", "gpu", "model")
POD_COLUMNS = ("name", "cpu_milli", "memory_mib", "num_gpu", "gpu_milli")
_MIB = 2**20
#: Pod slots of a node, which the trace does not tell: far above what it holds.
POD_SLOTS = 1000


def _rows(path: str | Path, needed: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
    import csv
    import io

    try:
        rows = list(csv.reader(io.StringIO(read_text(path))))
    except csv.Error as error:
        raise DescriptionError.single(path, f"is no CSV: {error}") from None
    header = rows[0] if rows else []
    missing = [column for column in needed if column not in header]
    if missing:
        raise DescriptionError.single(path, f"lacks the columns {', '.join(missing)}", 1)
    found, wrong = [], []
    for line, row in enumerate(rows[1:], start=2):
        if row and len(row) != len(header):
            wrong.append(Finding(str(path), f"has {len(row)} fields, the header has {len(header)}", line))
        elif row:
            found.append((line, dict(zip(header, row, strict=True))))
    if wrong:
        raise DescriptionError(wrong[:MAX_FINDINGS])
    return found


class _Row:
    """Whole numbers of a row, mistakes noted at their line."""

    def __init__(self, path: str | Path, line: int, fields: dict[str, str], findings: list[Finding]) -> None:
        self.path, self.line, self.fields, self.findings = path, line, fields, findings

    def whole(self, column: str, most: int) -> int:
        text = self.fields[column]
        if text.isascii() and text.isdecimal() and len(text) < 19 and int(text) <= most:
            return int(text)
        self.findings.append(
            Finding(str(self.path), f"{column} must be a whole number up to {most}, got {text[:40]!r}", self.line)
        )
        return 0


def is_openb(path: str | Path) -> bool:
    """Whether a file is named like one."""
    return Path(path).suffix.lower() == ".csv"


def read_openb_nodes(path: str | Path) -> tuple[Node, ...]:
    """Nodes of a node list. Raises DescriptionError with every bad row."""
    findings: list[Finding] = []
    nodes = []
    for line, fields in _rows(path, NODE_COLUMNS):
        row = _Row(path, line, fields, findings)
        amounts = {CPU: row.whole("cpu_milli", 2**40), MEMORY: row.whole("memory_mib", 2**23) * _MIB, PODS: POD_SLOTS}
        name, model = fields["sn"], fields["model"]
        labels = {HOSTNAME: name, **({"alibabacloud.com/gpu-card-model": model} if model else {})}
        nodes.append(Node(name=name, allocatable=amounts, gpus=row.whole("gpu", 1024), gpu_model=model, labels=labels))
    _refuse(path, findings, [node.name for node in nodes])
    return tuple(nodes)


def read_openb_pods(path: str | Path) -> tuple[Pod, ...]:
    """Pods of a pod list, all pending. Raises DescriptionError with every bad row."""
    findings: list[Finding] = []
    pods = []
    for line, fields in _rows(path, POD_COLUMNS):
        row = _Row(path, line, fields, findings)
        requests = {CPU: row.whole("cpu_milli", 2**40), MEMORY: row.whole("memory_mib", 2**23) * _MIB, PODS: 1}
        gpus, milli = row.whole("num_gpu", 1024), row.whole("gpu_milli", WHOLE_MILLI)
        if gpus > 1 and milli < WHOLE_MILLI:
            findings.append(Finding(str(path), f"takes {milli} thousandths of each of {gpus} devices", line))
        qos = fields.get("qos", "")
        if qos not in QOS_PRIORITY:
            findings.append(Finding(str(path), f"qos must be one of {', '.join(QOS_PRIORITY)}, got {qos[:40]!r}", line))
        pods.append(
            Pod(
                name=f"default/{fields['name']}",
                namespace="default",
                requests={key: amount for key, amount in requests.items() if amount},
                gpus=gpus if milli else 0,
                gpu_milli=milli if gpus else 0,
                gpu_models=tuple(sorted(filter(None, fields.get("gpu_spec", "").split("|")))),
                priority=QOS_PRIORITY.get(qos, 0),
            )
        )
    _refuse(path, findings, [pod.name for pod in pods])
    return tuple(pods)


def _refuse(path: str | Path, findings: list[Finding], names: list[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            findings.append(Finding(str(path), f"two rows are named {name!r}"))
        seen.add(name)
    if findings:
        raise DescriptionError(findings[:MAX_FINDINGS])
