"""Tables of workers (CSV, one type a row) -> worker types: a user's own measurements, or another tool's predictions.

Columns: name, role (both, prefill, decode), device, num_gpus, requests_per_s, ttft_s, tpot_s. requests_per_s is of one
worker in its role. ttft_s may be empty for decode workers and tpot_s for prefill workers. Optional: tp, pp, dp, cp, ep,
max_batch_size, watts (of a worker at its rate). Other columns are ignored.

Impossible rows are refused: a latency of 0 that the role has, and sizes whose product is not num_gpus.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from math import prod
from pathlib import Path

from planner.parallel_plan import WorkerType
from planner.readers.csv_table import Findings, read_csv_table

REQUIRED = ("name", "role", "device", "num_gpus", "requests_per_s", "ttft_s", "tpot_s")
ROLES = ("both", "prefill", "decode")
SIZES = {
    "tp": "tensor_parallel_size",
    "pp": "pipeline_parallel_size",
    "dp": "data_parallel_size",
    "cp": "context_parallel_size",
    "ep": "expert_parallel_size",
    "max_batch_size": "max_batch_size",
}
#: Sizes whose product is the worker's GPUs.
GRID = frozenset({"tp", "pp", "dp", "cp"})
MOST_GPUS = 1_000_000


def read_workers(path: str | Path) -> tuple[WorkerType, ...]:
    """Read a table of workers; DescriptionError with all problems."""
    table = read_csv_table(path, REQUIRED)
    findings = Findings(str(path))
    made: list[WorkerType] = []
    lines: dict[str, int] = {}
    for line, cells in table.rows():
        worker = _worker(findings, line, cells)
        if worker is not None:
            if worker.name in lines:
                findings.tell(line, f"{worker.name!r} is the name of line {lines[worker.name]} already")
            lines[worker.name] = line
            made.append(worker)
    findings.refuse()
    return tuple(made)


def _worker(findings: Findings, line: int, cells: Mapping[str, str]) -> WorkerType | None:
    problems: list[str] = []

    def number(column: str, least: float, needed: bool) -> float | None:
        text = cells[column].strip()
        if not text and not needed:
            return None
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= least):
            problems.append(f"{column} is {text[:40]!r}, not a number of at least {least:g}")
        return value

    def whole(column: str) -> int | None:
        value = number(column, 1, True)
        if value is not None and math.isfinite(value) and not (value.is_integer() and value <= MOST_GPUS):
            problems.append(f"{column} is {cells[column][:40]!r}, not a whole number up to {MOST_GPUS}")
        return None if problems else int(value or 1)

    name, role, device = (cells[column].strip() for column in ("name", "role", "device"))
    if not name:
        problems.append("name is empty")
    if role not in ROLES:
        problems.append(f"role is {role[:40]!r}, not one of {', '.join(ROLES)}")
    if not device:
        problems.append("device is empty")
    rate = number("requests_per_s", 0, True)
    ttft = number("ttft_s", 0, role != "decode")
    tpot = number("tpot_s", 0, role != "prefill")
    sizes = {field: whole(column) for column, field in SIZES.items() if cells.get(column, "").strip()}
    watts = number("watts", 0, True) if cells.get("watts", "").strip() else None
    gpus = whole("num_gpus")
    for column, value, has in (("ttft_s", ttft, role != "decode"), ("tpot_s", tpot, role != "prefill")):
        if value == 0 and has and role in ROLES:
            problems.append(f"{column} is 0, but a {role} worker takes some time")
    if not problems and GRID & {column for column in SIZES if cells.get(column, "").strip()}:
        product = prod(sizes.get(SIZES[column]) or 1 for column in GRID)
        if product != gpus:
            problems.append(f"tp x pp x dp x cp is {product}, but num_gpus is {gpus}")
    for problem in problems:
        findings.tell(line, problem)
    if problems:
        return None
    return WorkerType.model_validate(
        {
            "name": name, "role": role, "device": device, "num_gpus": gpus, "requests_per_s": rate,
            "ttft_s": ttft, "tpot_s": tpot, "watts": watts, **sizes,
        }
    )  # fmt: skip
