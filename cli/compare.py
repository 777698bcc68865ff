"""`gpuplan compare`: plans side by side, and what changes from one to the next."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.command import ExitCode, tell
from cli.options import (
    GapOption,
    JsonOption,
    MethodOption,
    QuietOption,
    SeedOption,
    ThreadsOption,
    WorkLimitOption,
)

if TYPE_CHECKING:
    from planner.plan import PlanDocument


WHAT_IF = "What if"
#: Plans that are counts: what is counted, the plan's rows of it, and what names a row.
COUNTED = {"fleet": ("instances", "allocation", "offer"), "parallel": ("workers", "workers", "name")}


def compare(
    plans: Annotated[
        list[str], typer.Argument(metavar="PLAN.json...", help="two or more plan documents; or one instance with --set")
    ],
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE[;...]",
            help="solve the instance with this changed, too: cluster.nodes.0.count=12; several keys of one variation "
            "are joined by ; and each --set is a variation",
            rich_help_panel=WHAT_IF,
        ),
    ] = None,
    time_limit: Annotated[
        float | None, typer.Option(metavar="S", help="seconds of search, each; default: 30", rich_help_panel=WHAT_IF)
    ] = None,
    work_limit: WorkLimitOption = None,
    seed: SeedOption = 0,
    threads: ThreadsOption = None,
    gap: GapOption = None,
    method: MethodOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Put plans side by side, or an instance and what-if variations of it, and count the moves between them.

    Objective, bound, gap, terms and metrics of each plan, and what changes from each to the next: replicas of
    experts that move, instances of a fleet or serving workers that are added or dropped, pods on other nodes, workers
    and nodes of a deployment. With --set the instance and each variation are solved, and every variation is held
    against the instance as it is.

    Exit codes: 0, 2 usage, 3 or 5 where neither the instance nor a variation has a plan, 7 bad files.
    """
    from cli.solving import print_json
    from planner.errors import OptionError
    from planner.plan import read_document

    if change:
        from cli.what_if import Search, labels, solved

        if len(plans) != 1:
            raise OptionError(f"--set varies one instance, and {len(plans)} files are given")
        search = Search(30.0 if time_limit is None else time_limit, work_limit, seed, threads, gap, method)
        names = labels(change)
        documents = solved(plans[0], change, search, quiet)
        pairs = [((names[0], documents[0]), one) for one in zip(names[1:], documents[1:], strict=True)]
    else:
        if any(one is not None for one in (time_limit, work_limit, threads, gap, method)) or seed:
            raise OptionError("options of a search are for --set: plans are compared as they are")
        if len(plans) < 2:
            raise OptionError("give at least two plans to compare, or an instance with --set KEY=VALUE")
        names, documents = plans, [read_document(path) for path in plans]
        if len({document.instance.sha256 for document in documents}) > 1:
            tell("warning: the plans answer different instances; their objectives are not comparable")
        pairs = list(pairwise(zip(names, documents, strict=True)))
    moves = [{"from": one, "to": two, **_changes(before, after)} for (one, before), (two, after) in pairs]
    if as_json:
        summaries = [
            {"path": name, **document.model_dump(mode="json", exclude={"plan"})}
            for name, document in zip(names, documents, strict=True)
        ]
        print_json({"plans": summaries, "moves": moves})
    else:
        _print(names, documents, moves)
    if not change or any(document.plan is not None for document in documents):
        return ExitCode.OK
    return ExitCode.INFEASIBLE if documents[0].outcome.status == "infeasible" else ExitCode.NO_PLAN


def _changes(before: PlanDocument, after: PlanDocument) -> dict[str, Any]:
    """What a change from one plan to the next takes; `why` says why it cannot be told."""
    if before.kind_name != after.kind_name:
        return {"why": f"one is a plan of {before.kind_name}, the other of {after.kind_name}"}
    if before.kind_name == "experts":
        return _moves(before, after)
    if before.kind_name == "pods":
        return _pods(before, after)
    if before.kind_name == "deploy":
        return _deployments(before, after)
    if before.kind_name not in COUNTED:
        return {"why": f"nothing is counted between plans of {before.kind_name}"}
    return _counts(before, after)


def _counts(before: PlanDocument, after: PlanDocument) -> dict[str, Any]:
    """Instances or workers to add (+) and to drop (-), by name; of hourly plans, in the most expensive hour."""
    from collections import Counter

    what, rows, label = COUNTED[before.kind_name]

    counts: list[Counter[str]] = []
    for document in (before, after):
        plan: Any = document.plan
        if plan is None:
            return {what: None, "why": "a document holds no plan"}
        found = Counter[str]()
        for row in getattr(plan, rows):
            found[getattr(row, label)] += row.count
        counts.append(found)
    one, two = counts
    changed = {name: two[name] - one[name] for name in {**one, **two} if two[name] != one[name]}
    return {what: changed, "why": None}


def _moves(before: PlanDocument, after: PlanDocument) -> dict[str, Any]:
    """Replicas to load to go from one placement to the next, and their bytes where known."""
    from planner.cost.expert_parallel import moved_replicas

    one: Any = before.plan
    two: Any = after.plan
    if one is None or two is None:
        return {"replicas": None, "bytes": None, "why": "a document holds no plan"}
    for what in ("num_gpus", "num_slots", "layer_ids", "num_experts"):
        if getattr(one, what) != getattr(two, what):
            return {"replicas": None, "bytes": None, "why": f"the plans differ in {what}"}
    if any(max(map(max, plan.physical_to_logical)) >= plan.num_experts for plan in (one, two)):
        return {"replicas": None, "bytes": None, "why": "a plan names experts that do not exist"}
    replicas = int(moved_replicas(two.array, one.array, two.num_experts, two.num_gpus).sum())
    expert_bytes = _expert_bytes(after) or _expert_bytes(before)
    return {
        "replicas": replicas,
        "bytes": None if expert_bytes is None else replicas * expert_bytes,
        "why": None,
    }


def _pods(before: PlanDocument, after: PlanDocument) -> dict[str, Any]:
    """Pods that are on another node, that only one of the plans places, by which."""
    one: Any = before.plan
    two: Any = after.plan
    if one is None or two is None:
        return {"pods": None, "why": "a document holds no plan"}
    old, new = ({row.pod: row.node for row in plan.placements} for plan in (one, two))
    moved = sum(new[pod] != node for pod, node in old.items() if pod in new)
    changed = {"elsewhere": moved, "placed": len(new.keys() - old.keys()), "no place": -len(old.keys() - new.keys())}
    return {"pods": {name: count for name, count in changed.items() if count}, "why": None}


def _deployments(before: PlanDocument, after: PlanDocument) -> dict[str, Any]:
    """Workers by service, kind and node that start (+) and stop (-), and nodes to add and to give back."""
    from collections import Counter

    counts: list[tuple[Counter[tuple[str, str, str]], Counter[str]]] = []
    for document in (before, after):
        plan: Any = document.plan
        if plan is None:
            return {"workers": None, "nodes": None, "why": "a document holds no plan"}
        workers = Counter((pod.service, pod.worker, pod.node) for pod in plan.pods if pod.part == 0)
        nodes = Counter({str(row.offer or row.node): row.count for row in plan.nodes})
        counts.append((workers, nodes))
    (old, old_nodes), (new, new_nodes) = counts
    told = {"stay": (old & new).total(), "start": (new - old).total(), "stop": -(old - new).total()}
    changed = {name: new_nodes[name] - old_nodes[name] for name in {**old_nodes, **new_nodes}}
    return {"workers": told, "nodes": {name: count for name, count in changed.items() if count}, "why": None}


def _expert_bytes(document: PlanDocument) -> float | None:
    """Bytes of one expert of one layer, from the memory that the cost model found for all on a GPU."""
    plan: Any = document.plan
    verdict = document.verdict
    if plan is None or verdict is None:
        return None
    for metric in verdict.metrics:
        if metric.name == "expert_memory_per_gpu":
            return metric.value / (plan.num_slots // plan.num_gpus * len(plan.layer_ids))
    return None


def _print(plans: list[str], documents: list[PlanDocument], moves: list[dict[str, Any]]) -> None:
    from cli.render import console, number, percent, printable, quantity, table
    from planner.units import format_bytes

    rows: list[tuple[str, ...]] = []

    def add(name: str, cell: Callable[[PlanDocument], str]) -> None:
        rows.append((name, *(printable(cell(document)) for document in documents)))

    add("instance", lambda document: document.instance.name)
    add("method", lambda document: document.outcome.method)
    add("status", lambda document: document.outcome.status)
    add("objective", lambda document: number(document.outcome.objective))
    add("bound", lambda document: number(document.outcome.bound))
    add("gap", lambda document: percent(document.outcome.gap))
    for name in dict.fromkeys(name for document in documents for name in document.outcome.terms):
        values = [document.outcome.terms.get(name) for document in documents]
        rows.append((name, *("-" if value is None else quantity(name, value) for value in values)))
    metrics = [
        {metric.name: metric for metric in document.verdict.metrics} if document.verdict else {}
        for document in documents
    ]
    for name in dict.fromkeys(name for found in metrics for name in found):
        cells = (quantity(name, found[name].value, found[name].unit) if name in found else "-" for found in metrics)
        rows.append((printable(name), *cells))
    out = console()
    out.print(table(("", *plans), rows))
    for move in moves:
        if move["why"] is not None:
            text = f"moves cannot be counted: {move['why']}"
        elif "nodes" in move:
            told = move["workers"]
            nodes = ", ".join(f"{count:+d} {printable(name)}" for name, count in move["nodes"].items())
            text = f"{told['stay']} workers stay, {told['start']} start, {-told['stop']} stop"
            text += f"; {nodes or 'the same nodes'}"
        elif what := next((name for name in (*(one for one, *_ in COUNTED.values()), "pods") if name in move), None):
            changed = ", ".join(f"{count:+d} {printable(name)}" for name, count in move[what].items())
            text = changed or f"the same {what}"
        else:
            size = "" if move["bytes"] is None else f", {format_bytes(move['bytes'])}"
            text = f"{move['replicas']} replicas move{size}"
        out.print(f"{move['from']} -> {move['to']}: {text}", soft_wrap=True)
