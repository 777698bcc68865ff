"""Deployments: cost and proven gap of joint plans against the best known ones and bounds; CPU seconds and memory.

    python -m benchmarks.deploy [--short] [--json] [--case NAME]

CPU seconds are of this process. Every plan is checked and priced anew (`solve`). The references of the stored instances
are those stored with them; of the others, the gap that is wanted. See `deploy_instances` for what is real and made.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator

import numpy as np

from benchmarks import deploy_instances as instances
from benchmarks.common import Row, main
from formulations.base import solve
from formulations.deployment.cuts import CUTS, couplings
from formulations.gpu_fleet.formulation import GPU_FLEET
from formulations.gpu_fleet.problem import FleetProblem
from formulations.gpu_fleet.rows import instance_counts
from formulations.outcome import SolveOptions
from formulations.planning import plan
from planner.deploy_plan import DeployPlan

#: Seconds for each plan, and the gap at which it ends; short ones.
TWO_MINUTES, FIVE_MINUTES, SHORT_S = 115.0, 290.0, 30.0


def small(short: bool) -> Iterator[Row]:
    """The stored instances that are proven."""
    for name in ("startup", "six", "six8", "moe"):
        problem = instances.problem(instances.described(name))
        yield from _rows(name, problem, SHORT_S if short else 60.0, 0.0, _best_known(name))


def large(short: bool) -> Iterator[Row]:
    """Seven services at 234 requests/s."""
    problem = instances.problem(instances.described("large"))
    yield from _rows("large", problem, SHORT_S if short else TWO_MINUTES, 0.005, _best_known("large"))


def hundred(short: bool) -> Iterator[Row]:
    """A hundred services, all of a request on one worker, or prefill and decode apart too."""
    for roles, scale, told in (("A", 60.0, "both"), ("APD", 45.0, "both, prefill, decode")):
        problem = instances.many_services(0, roles, scale)
        yield from _rows(f"100 services, {told}", problem, SHORT_S if short else FIVE_MINUTES, 0.005)


def hours(short: bool) -> Iterator[Row]:
    """Days of "six", on demand and reserved; and of ten services on standing nodes, some rented in addition."""
    for periods in (6, 24):
        problem = instances.with_hours("six", periods)
        yield from _rows(f"six, {periods} periods", problem, SHORT_S if short else TWO_MINUTES, 0.01)
    if not short:
        # The standing nodes carry nearly all of the first; of the second, most of the peak is rented.
        for scale, name in ((1.5, ""), (4.0, ", more demand")):
            case = f"10 services, 40 standing nodes, 24 h{name}"
            yield from _rows(case, instances.standing(0, scale), TWO_MINUTES, 0.02)


def spare(short: bool) -> Iterator[Row]:
    """The loss of any one instance is survived."""
    yield from _rows("six, N+1", instances.with_spare("six"), SHORT_S if short else TWO_MINUTES, 0.01)


def stages(short: bool) -> Iterator[Row]:
    """The stored instances as deployments, to the pod: beside the stage-by-stage plan, and what each coupling pays."""
    for name in ("startup", "six", "six8", "moe", *(() if short else ("large",))):
        problem = instances.deployment(name)
        options = SolveOptions(time_limit_s=SHORT_S, relative_gap=0.005)
        document = plan(problem, options=options)
        assert document.verdict is not None
        assert document.baseline is not None
        cost = document.outcome.objective or np.nan
        yield Row(name, "checked plan", cost, document.baseline.objective, "stage by stage", "USD/h", "lower")
        yield Row(name, "broken rules", float(len(document.verdict.violations)), 0.0, "wanted", "", "lower")
        if short:
            continue
        assert isinstance(document.plan, DeployPlan)
        for one in couplings(problem, document.plan, CUTS, options):
            found = np.nan if one.usd_per_hour is None else one.usd_per_hour
            yield Row(name, "plan", cost, found, f"without {one.cut} ({one.status})", "USD/h", "lower")


def _best_known(name: str) -> float:
    return float(instances.stored()[name]["best_known_usd_per_hour"])


def _rows(case: str, problem: FleetProblem, limit_s: float, gap: float, known: float | None = None) -> Iterator[Row]:
    """The plan of a case; known : the best known cost. The search ends at the gap."""
    started, clock = time.process_time(), time.perf_counter()
    outcome = solve(GPU_FLEET, problem, SolveOptions(time_limit_s=limit_s, relative_gap=gap or None))
    cpu_s, wall_s = time.process_time() - started, time.perf_counter() - clock
    cost = np.nan if outcome.objective is None else outcome.objective.total
    bound = np.nan if outcome.bound is None else outcome.bound.value
    yield Row(case, "cost", cost, known or bound, "best known" if known else "our bound", "USD/h", "lower")
    found = np.nan if outcome.gap is None else outcome.gap
    yield Row(case, f"gap ({outcome.status}, {outcome.stop})", found, gap, "wanted", "fraction", "lower")
    if outcome.plan is not None:
        nodes = float(instance_counts(problem, outcome.plan).sum(axis=1).max())
        yield Row(case, "instances at most", nodes, None, "", "", "lower")
    yield Row(case, "CPU", cpu_s, None, "", "s", "lower")
    yield Row(case, "wall", wall_s, limit_s, "limit", "s", "lower")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    yield Row(case, "memory, highest so far", peak, 4.0, "wanted", "GiB", "lower")


CASES = {"small": small, "large": large, "hundred": hundred, "hours": hours, "spare": spare, "stages": stages}

if __name__ == "__main__":
    main("deploy", CASES)
