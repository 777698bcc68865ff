"""What several export formats need: the checked plan, where it came from, and files written together."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from planner.errors import ExportError
from planner.experts_plan import ExpertPlacement
from planner.files import canonical_json, write_atomically, write_text
from planner.plan import ExpertsDocument, PlanDocument


def checked_plan(document: ExpertsDocument) -> ExpertPlacement:
    """The plan, in which every expert of every layer has a slot; ExportError otherwise."""
    plan = document.plan
    if plan is None:
        raise ExportError(f"the document holds no plan (status {document.outcome.status})")
    experts = set(range(plan.num_experts))
    for layer, row in zip(plan.layer_ids, plan.physical_to_logical, strict=True):
        if unknown := set(row) - experts:
            raise ExportError(f"layer {layer} names expert {min(unknown)}, but the plan has {plan.num_experts} experts")
        if missing := experts - set(row):
            raise ExportError(f"layer {layer} has no slot for expert {min(missing)}; an engine would crash on it")
    return plan


def refuse_lp(plan: ExpertPlacement, engine: str) -> None:
    """ExportError for a plan that counts on the LP split; without replicas there is nothing to split."""
    if plan.split == "lp" and plan.num_slots > plan.num_experts:
        raise ExportError(
            f"{engine} shares a replicated expert's tokens evenly, but this plan was made for the per-batch "
            "LP (split: lp) and is poor without it; plan again with split: even, or export to sglang"
        )


def device_slots(plan: ExpertPlacement, row: Sequence[int]) -> list[list[int]]:
    """One row of experts cut into the slots of each GPU."""
    per_gpu = plan.num_slots // plan.num_gpus
    return [list(row[start : start + per_gpu]) for start in range(0, plan.num_slots, per_gpu)]


def comments(document: PlanDocument, to: str, path: str, *more: str) -> str:
    """Comment lines: version, hashes of plan and instance, command, and more. A line break in a name ends none."""
    lines = (
        f"made by gpuplan {document.gpuplan_version}, plan sha256 {plan_sha256(document)}",
        f"instance {document.instance.name}, sha256 {document.instance.sha256}",
        f"command: gpuplan export PLAN --to {to} -o {shlex.quote(path)}",
        *more,
    )
    return "".join(f"# {_printable(line)}\n" for line in lines)


def plan_sha256(document: PlanDocument) -> str:
    """Hash of what is planned, without how it was found: equal for equal plans, also when versions add keys."""
    plan = None if document.plan is None else document.plan.model_dump(mode="json", exclude_defaults=True)
    return hashlib.sha256(canonical_json(plan).encode()).hexdigest()


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)


def json_text(head: Mapping[str, object], key: str, rows: Iterable[object]) -> str:
    """A JSON object: the entries of `head`, then `key` with a list that has one line a row."""
    entries = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in head.items()]
    body = ",\n".join(f"    {json.dumps(row)}" for row in rows)
    entries.append(f"  {json.dumps(key)}: " + (f"[\n{body}\n  ]" if body else "[]"))
    return "{\n" + ",\n".join(entries) + "\n}\n"


def write_with_flags(path: str, text: str, header: str, flags: Sequence[str]) -> None:
    """Write a file and, beside it, `<stem>.flags.txt` with the launch flags.

    Standard output gets the file alone. Neither file is replaced when writing one of them fails.
    """
    if path == "-":
        write_text(path, text)
        return

    def write(temporary: str) -> None:
        Path(temporary).write_text(f"{header}{shlex.join(flags)}\n", encoding="utf-8")
        write_text(path, text)

    write_atomically(Path(path).parent / f"{Path(path).stem}.flags.txt", write)
