"""What a plan for pods says: tiers with their bounds, how full nodes are, and what has no place and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from cli.render import Part, number, percent, printable, table
from planner.plan import PlanDocument

#: Reasons that are printed; --json has every pod's.
MOST_REASONS = 8
#: Remedies that are printed.
MOST_REMEDIES = 12


def pods_answer(document: PlanDocument, problem: Any) -> Iterable[Part]:
    """Pods with a place, tiers with what is proven of each, and how full the nodes are."""
    plan: Any = document.plan
    terms = document.outcome.terms
    moved = {move.pod for move in plan.moves}
    fresh = sum(not one.running and one.pod not in moved for one in plan.placements)
    left = len(plan.unplaced) - len(plan.evictions)
    runs = len(plan.placements) - fresh
    without = f"{left} {'has' if left == 1 else 'have'} no place"
    yield "placed", f"{_pods(fresh, 'pending')}; {runs} {_s(runs, 'run')} already; {without}"
    if moved or plan.evictions:
        yield "moves", _moves(plan, len(moved))
    if plan.tiers:
        rows = [
            (
                printable(tier.name),
                number(tier.value),
                number(tier.bound),
                tier.unit,
                "proven" if tier.proven else percent(tier.gap),
            )
            for tier in plan.tiers
        ]
        yield table(("tier", "reached", "bound", "unit", "gap"), rows)
    if terms.get("gpu_milli_total"):
        used, total = terms["gpu_milli_allocated"] / 1000, terms["gpu_milli_total"] / 1000
        yield "GPUs", f"{used:.6g} of {total:.6g} allocated, {percent(used / total)}"
    if "fragment_rate" in terms:
        yield "fragment rate", f"{percent(terms['fragment_rate'])} of {terms['free_cores']:g} free cores"
    yield "nodes", f"{terms['nodes_used']:g} of {problem.num_nodes} in use"


def pods_details(document: PlanDocument, problem: Any) -> Iterable[Part]:
    """Why pods have no place, by reason."""
    plan: Any = document.plan
    reasons: Counter[str] = Counter(one.reason for one in plan.unplaced)
    first: dict[str, str] = {}
    for one in plan.unplaced:
        first.setdefault(one.reason, one.pod)
    for reason, count in reasons.most_common(MOST_REASONS):
        more = f" and {count - 1} more" if count > 1 else ""
        yield "no place", f"{printable(first[reason])}{more}: {printable(reason)}"
    if len(reasons) > MOST_REASONS:
        yield "no place", f"and {len(reasons) - MOST_REASONS} more reasons; --json has all"
    for remedy in plan.remedies[:MOST_REMEDIES]:
        yield "would help", _remedy(remedy)
    if len(plan.remedies) > MOST_REMEDIES:
        yield "would help", f"and {len(plan.remedies) - MOST_REMEDIES} more; --json has all"


def _remedy(remedy: Any) -> str:
    """For whom, unless the words say it."""
    text = printable(remedy.text)
    if remedy.way == "moves":
        return text
    more = f" and {len(remedy.pods) - 1} more" if len(remedy.pods) > 1 else ""
    return f"{printable(remedy.pods[0])}{more}: {text}"


def _moves(plan: Any, moved: int) -> str:
    """How many pods move in how many steps, and circles that had to be broken."""
    steps = max((move.arrives or move.step for move in plan.moves), default=0)
    gone = len(plan.evictions)
    text = f"{_pods(moved, 'running')} {_s(moved, 'move')}, in {steps} step{'' if steps == 1 else 's'}"
    text += f"; {gone} {'is' if gone == 1 else 'are'} evicted for good"
    spare = sum(move.way == "spare" for move in plan.moves)
    first = sum(move.way == "evict-first" for move in plan.moves)
    if spare or first:
        text += f"; circles broken by a spare place: {spare}, by stopping a pod before it starts again: {first}"
    return text


def _pods(count: int, kind: str) -> str:
    return f"{count} {kind} pod{'' if count == 1 else 's'}"


def _s(count: int, verb: str) -> str:
    return f"{verb}s" if count == 1 else verb
