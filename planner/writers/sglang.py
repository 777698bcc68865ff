"""`sglang`: the map of `--init-expert-location`, and the launch flags beside it.

SGLang passes the file's keys on as arguments, so that any key but `physical_to_logical_map` crashes it;
version, hash and flags go into a second file. Rows are all decoder layers: a dense one gets SGLang's own
default, expert j mod E in slot j.
"""

from __future__ import annotations

from planner.errors import OptionError
from planner.experts_plan import ExpertPlacement
from planner.plan import ExpertsDocument
from planner.writers.common import checked_plan, comments, json_text, write_with_flags


def write(document: ExpertsDocument, path: str) -> None:
    """Write `path`, which has to end in .json for SGLang to read it, and `<stem>.flags.txt`."""
    plan = checked_plan(document)
    if path != "-" and not (path.endswith(".json") and path.isprintable()):
        raise OptionError(f"SGLang takes a map from a file whose name ends in .json, not {path!r}")
    notes = ["flags of SGLang 0.5.23; the map has a row for every decoder layer, dense ones included"]
    if plan.split == "lp":
        notes.append("the lp dispatch works for the DeepSeek family of models only")
    flags = {
        "--ep-size": plan.num_gpus,
        "--ep-num-redundant-experts": plan.num_slots - plan.num_experts,
        **map_flags(plan, path),
    }
    write_with_flags(
        path,
        map_text(plan),
        comments(document, "sglang", path, *notes),
        [str(part) for flag in flags.items() for part in flag],
    )


def map_text(plan: ExpertPlacement) -> str:
    """The map that SGLang reads."""
    row_of = dict(zip(plan.layer_ids, plan.physical_to_logical, strict=True))
    default = [slot % plan.num_experts for slot in range(plan.num_slots)]
    return json_text(
        {}, "physical_to_logical_map", [row_of.get(layer, default) for layer in range(plan.num_decoder_layers)]
    )


def map_flags(plan: ExpertPlacement, path: str) -> dict[str, str]:
    """Flags with which it is read from a path."""
    return {
        "--init-expert-location": path,
        "--ep-dispatch-algorithm": "lp" if plan.split == "lp" else "static",
    }
