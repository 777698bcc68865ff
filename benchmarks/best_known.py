"""Keep the best known plan of every shipped instance: `python -m benchmarks.best_known [--seconds S] [--problem NAME]`.

Writes instances/<problem>/<name>.best.json, a plan document, where a plan is better or a bound higher than what is
there; the outcome in it says how the plan was found.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from formulations import SolveOptions, check_document, load_problem, plan
from formulations.kinds import Problem
from planner import DescriptionError, read_document
from planner.errors import OptionError
from planner.files import to_json, write_text
from planner.plan import PlanDocument

INSTANCES = Path(__file__).resolve().parents[1] / "instances"
#: Methods of each problem that find the best plans and bounds.
METHODS = {
    "experts": ("local-search", "cp-sat", "milp"),
    "fleet": ("highs", "scip"),
    "parallel": ("highs", "scip"),
    "layers": ("highs", "scip"),
    "windows": ("highs", "scip"),
    "training": ("enumeration",),
    "pods": ("auto", "repair"),
    "deploy": ("highs",),
}


def known(path: Path, problem: Problem) -> PlanDocument | None:
    """The stored plan; None where there is none, or where it no longer holds: predictions of workers change."""
    try:
        document = read_document(path)
        return document if check_document(document, problem).feasible else None
    except (DescriptionError, OptionError):
        return None


def unserved(document: PlanDocument) -> list[float]:
    """Goals of a fleet that go before its cost."""
    tiers = getattr(document.plan, "tiers", ())
    return [round(tier.value, 6) for tier in tiers if getattr(tier, "goal", "").startswith("unserved")]


def better(fresh: PlanDocument, old: PlanDocument | None) -> PlanDocument | None:
    """The document to keep when it differs from `old`: the lower objective, with the higher bound of both."""
    if fresh.outcome.objective is None or fresh.outcome.bound is None:
        return None
    if old is None or old.instance.sha256 != fresh.instance.sha256:
        return fresh
    assert old.outcome.objective is not None
    assert old.outcome.bound is not None
    if unserved(fresh) != unserved(old):
        return fresh if unserved(fresh) < unserved(old) else None
    # Objectives and bounds may be negative: throughput is.
    slack = 1e-9 * abs(old.outcome.objective)
    best = fresh if fresh.outcome.objective < old.outcome.objective - slack else old
    other = old if best is fresh else fresh
    assert best.outcome.bound is not None
    assert other.outcome.bound is not None
    if other.outcome.bound <= best.outcome.bound + slack:
        return best if best is fresh else None
    assert best.outcome.objective is not None
    gap = max(0.0, (best.outcome.objective - other.outcome.bound) / abs(best.outcome.objective))
    # The plan stands on the other run's bound; `optimal` only when they meet.
    status = "optimal" if gap <= 1e-6 else best.outcome.status
    changes = {"bound": other.outcome.bound, "bound_name": other.outcome.bound_name, "gap": gap, "status": status}
    return best.model_copy(update={"outcome": best.outcome.model_copy(update=changes)})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.best_known")
    parser.add_argument("--seconds", type=float, default=60.0, help="time limit of each method")
    parser.add_argument("--problem", choices=METHODS, help="instances of this problem alone")
    options = parser.parse_args()
    for path in sorted(INSTANCES.glob(f"{options.problem or '*'}/*.yaml")):
        target = path.with_suffix(".best.json")
        problem = load_problem(path)
        for method in METHODS[problem.kind]:
            limits = SolveOptions(time_limit_s=options.seconds, work_limit=5_000_000, method=method)
            if method != "local-search":
                limits = SolveOptions(time_limit_s=options.seconds, method=method)
            try:
                fresh = plan(problem, options=limits)
            except OptionError as refused:
                print(f"{path.stem:24} {method:14} {refused}")
                continue
            outcome = fresh.outcome
            kept = better(fresh, known(target, problem))
            print(f"{path.stem:24} {method:14} {outcome.objective} bound {outcome.bound} {'kept' if kept else ''}")
            if kept is not None:
                write_text(target, to_json(kept))


if __name__ == "__main__":
    main()
