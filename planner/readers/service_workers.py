"""Tables of workers by service and request size (CSV): what a worker of so many GPUs serves within the service's SLO.

Columns: worker, service, device, role (A or both, P or prefill, D or decode), gpus, input_tokens, output_tokens,
requests_per_s (of one worker in its role, at full utilisation; 0: not within the SLO). A worker has one row for each
size. Optional: instance (rows of other instances are left out), model, tp, pp, dp, moe_tp, moe_ep, expert_slots.
Other columns are ignored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from planner.readers.csv_table import Findings, read_csv_table

REQUIRED = ("worker", "service", "device", "role", "gpus", "input_tokens", "output_tokens", "requests_per_s")
#: As the deploy tables write them, and in words.
ROLES = {"A": "both", "P": "prefill", "D": "decode", "both": "both", "prefill": "prefill", "decode": "decode"}
SIZES = {
    "tp": "tensor_parallel_size",
    "pp": "pipeline_parallel_size",
    "dp": "data_parallel_size",
    "moe_tp": "expert_tensor_parallel_size",
    "moe_ep": "expert_parallel_size",
    "expert_slots": "expert_slots",
}
MOST_GPUS = 65_536
MOST_TOKENS = 1 << 24
MOST_RATE_PER_S = 1e8


@dataclass(frozen=True, slots=True)
class ServiceWorker:
    """One kind of worker of one service. rates : requests a second by (input, output) tokens."""

    name: str
    service: str
    device: str
    role: str
    gpus: int
    sizes: Mapping[str, int]
    rates: Mapping[tuple[int, int], float] = field(default_factory=dict)


def read_service_workers(path: str | Path, instance: str | None = None) -> tuple[ServiceWorker, ...]:
    """Workers in the order of the table; of those that name an instance, only the rows of this one.

    Raises DescriptionError with every problem and its line.
    """
    table = read_csv_table(path, REQUIRED)
    findings = Findings(str(path))
    rates: dict[tuple[str, str], dict[tuple[int, int], float]] = {}
    said: dict[tuple[str, str], ServiceWorker] = {}
    lines: dict[tuple[str, str, int, int], int] = {}
    for line, cells in table.rows():
        if instance is not None and cells.get("instance", instance).strip() != instance:
            continue
        row = _row(findings, line, cells)
        if row is None:
            continue
        worker, size, rate = row
        key = worker.service, worker.name
        if said.setdefault(key, worker) != worker:
            findings.tell(line, f"worker {worker.name!r} of {worker.service} differs from its first row")
        at = lines.setdefault((*key, *size), line)
        if at != line:
            findings.tell(line, f"worker {worker.name!r} of {worker.service} has this size on line {at} already")
        rates.setdefault(key, {})[size] = rate
    findings.refuse()
    return tuple(
        ServiceWorker(one.name, one.service, one.device, one.role, one.gpus, one.sizes, rates[key])
        for key, one in said.items()
    )


def _row(
    findings: Findings, line: int, cells: Mapping[str, str]
) -> tuple[ServiceWorker, tuple[int, int], float] | None:
    problems: list[str] = []

    def number(column: str, most: float, whole: bool) -> float:
        text = cells[column].strip()
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        least = 1 if whole else 0
        if not (least <= value <= most and (not whole or value.is_integer())):
            kind = f"a whole number of 1 to {most:g}" if whole else f"a number of 0 to {most:g}"
            problems.append(f"{column} is {text[:40]!r}, not {kind}")
            return math.nan
        return value

    words = {column: cells[column].strip() for column in ("worker", "service", "device", "role")}
    problems += [f"{column} is empty" for column, text in words.items() if not text]
    if words["role"] and words["role"] not in ROLES:
        problems.append(f"role is {words['role'][:40]!r}, not one of {', '.join(ROLES)}")
    gpus = number("gpus", MOST_GPUS, True)
    size = number("input_tokens", MOST_TOKENS, True), number("output_tokens", MOST_TOKENS, True)
    rate = number("requests_per_s", MOST_RATE_PER_S, False)
    sizes = {name: number(column, MOST_GPUS, True) for column, name in SIZES.items() if cells.get(column, "").strip()}
    for problem in problems:
        findings.tell(line, problem)
    if problems:
        return None
    told = {name: int(value) for name, value in sizes.items()}
    worker = ServiceWorker(words["worker"], words["service"], words["device"], ROLES[words["role"]], int(gpus), told)
    return worker, (int(size[0]), int(size[1])), rate
