"""One tiny plan: MoE layers 1 and 3 of 4 decoder layers, 4 experts in 6 slots on 2 GPUs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from planner.experts_plan import ExpertPlacement, Move
from planner.plan import ExpertsDocument, InstanceReference, OutcomeRecord

ROWS = [[2, 1, 0, 3, 0, 1], [3, 2, 1, 0, 3, 2]]
NO_REPLICAS = [[0, 2, 1, 3], [3, 1, 0, 2]]
LAYERS = (1, 3)
#: From [2, 3, 0, 1, 0, 1] in layer 1 and [3, 2, 1, 0, 3, 3] in layer 3 to ROWS.
MOVES = (
    Move(step=0, layer=1, slot=1, expert=1, replaces=3, from_gpu=1, to_gpu=0),
    Move(step=0, layer=1, slot=3, expert=3, replaces=1, from_gpu=0, to_gpu=1),
    Move(step=1, layer=3, slot=5, expert=2, replaces=3, from_gpu=0, to_gpu=1),
)


def placement(
    rows: Sequence[Sequence[int]] = ROWS,
    *,
    layer_ids: tuple[int, ...] = LAYERS,
    num_experts: int = 4,
    num_gpus: int = 2,
    num_decoder_layers: int = 4,
    split: Literal["even", "lp"] = "even",
) -> ExpertPlacement:
    return ExpertPlacement.from_array(
        np.array(rows), num_experts, num_gpus=num_gpus, gpus_per_node=num_gpus, layer_ids=layer_ids,
        num_decoder_layers=num_decoder_layers, split=split,
    )  # fmt: skip


def document(plan: ExpertPlacement | None, name: str = "tiny") -> ExpertsDocument:
    outcome = OutcomeRecord(
        status="infeasible" if plan is None else "feasible", stop="heuristic", objective=None,
        objective_unit="ratio", bound=None, gap=None, build_s=0, solve_s=0, solver="none", solver_version="0",
        method="none", seed=0, num_threads=1,
    )  # fmt: skip
    instance = InstanceReference(name=name, sha256="5ea1" * 16)
    return ExpertsDocument(problem="experts", instance=instance, gpuplan_version="0.1.0", outcome=outcome, plan=plan)


def with_moves(plan: ExpertPlacement) -> ExpertPlacement:
    return plan.model_copy(update={"moves": MOVES})


def flags_of(path: Path) -> str:
    """The flags of a companion file: what is left without its comments."""
    return "".join(line for line in path.read_text().splitlines(keepends=True) if not line.startswith("#"))


def parsed_by_table(argv: Sequence[str], table: Path) -> dict[str, str | None]:
    """Parse flags by an engine's table: unknown flags, wrong choices and missing values are errors."""
    known: dict[str, dict[str, Any]] = {
        name: flag for flag in json.loads(table.read_text())["flags"] for name in flag["flags"]
    }
    found: dict[str, str | None] = {}
    rest = list(argv)
    while rest:
        name = rest.pop(0)
        flag = known[name]
        if flag.get("nargs") == 0 or flag.get("type") == "flag":
            found[name] = None
            continue
        value = rest.pop(0)
        assert value not in known
        assert flag.get("choices") is None or value in flag["choices"]
        if flag["type"] == "int":
            int(value)
        found[name] = value
    return found
