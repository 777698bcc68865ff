"""`moves`: the ordered list of replicas to load, from the current placement to the plan; CSV or JSON."""

from __future__ import annotations

from planner.errors import ExportError
from planner.files import write_text
from planner.plan import ExpertsDocument
from planner.writers.common import checked_plan, json_text

COLUMNS = ("step", "layer", "expert", "from_gpu", "to_gpu", "slot", "replaces")
NOTE = (
    "Make the steps in order. Moves of one step happen together, through a staging buffer of one expert on "
    "each GPU involved: read every copy before any slot is overwritten. Layers are decoder layers; slots are "
    "counted over all GPUs."
)


def write(document: ExpertsDocument, path: str) -> None:
    """Write CSV when `path` ends in .csv, else JSON with a header; ExportError without a move list."""
    moves = checked_plan(document).moves
    if moves is None:
        raise ExportError("the plan lists no moves, as it starts from no placement in force; plan with current: FILE")
    rows = [{column: int(getattr(move, column)) for column in COLUMNS} for move in moves]
    if path.lower().endswith(".csv"):
        lines = [",".join(COLUMNS), *(",".join(map(str, row.values())) for row in rows)]
        write_text(path, "\n".join(lines) + "\n")
        return
    head = {
        "gpuplan_version": document.gpuplan_version,
        "instance": document.instance.model_dump(),
        "note": NOTE,
    }
    write_text(path, json_text(head, "moves", rows))
