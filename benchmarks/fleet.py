"""Fleets: cost and proven gap against Mélange's sliced model, separate plans and simple policies; CPU seconds of both.

    python -m benchmarks.fleet [--short] [--json] [--case NAME]

CPU seconds are of the process and of the solver it starts (CBC); a peer that ran out of time is named as such, with its
bound. Throughput is the cost model's, prices are list prices: see `fleet_instances`.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks import fleet_instances as instances
from benchmarks.common import Row, main
from benchmarks.fleet_replay import replayed
from formulations import load_problem
from formulations.backends.linear import LinearModel, solve_linear_pulp
from formulations.base import solve
from formulations.gpu_fleet.formulation import GPU_FLEET
from formulations.gpu_fleet.melange import as_written
from formulations.gpu_fleet.problem import FleetProblem
from formulations.outcome import Budget, Outcome, SolveOptions, Status
from planner.fleet_plan import FleetPlan

#: Seconds for the sliced model as written, where it is compared by CPU.
PEER_S = 60.0
INSTANCES = Path(__file__).resolve().parents[1] / "instances" / "fleet"


@dataclass(frozen=True, slots=True)
class Timed:
    """A solved fleet: cost, proven gap, seconds of the wall and of the CPU."""

    outcome: Outcome[FleetPlan]
    cpu_s: float

    @property
    def cost(self) -> float:
        return np.inf if self.outcome.objective is None else self.outcome.objective.total

    @property
    def gap(self) -> float:
        return np.inf if self.outcome.gap is None else self.outcome.gap

    @property
    def wall_s(self) -> float:
        return self.outcome.build_s + self.outcome.solve_s


def cpu_seconds(action: Callable[[], object]) -> float:
    """User and system seconds of this process and of the children that ended."""
    before = os.times()
    action()
    return sum(os.times()[:4]) - sum(before[:4])


def timed(problem: FleetProblem, limit_s: float, gap: float | None = None, method: str = "highs") -> Timed:
    """Plan, checked and re-priced by `solve`."""
    found: list[Outcome[FleetPlan]] = []
    options = SolveOptions(time_limit_s=limit_s, relative_gap=gap, method=method)
    spent = cpu_seconds(lambda: found.append(solve(GPU_FLEET, problem, options)))
    return Timed(found[0], spent)


def melange(short: bool) -> Iterator[Row]:
    """Random instances and the examples of the Mélange repository: never costlier than any slice factor."""
    count = 4 if short else 100
    plans = [(problem, timed(problem, 20.0)) for problem in map(instances.random_grid, range(count))]
    case = f"melange, {count} random"
    for slices in (1, 4, 8):
        saving, dearer, late = [], 0, 0
        for problem, ours in plans:
            theirs = timed(problem, 20.0, method=f"melange-{slices}")
            late += int(theirs.outcome.stop.value == "time_limit")
            if np.isfinite(theirs.cost):
                dearer += int(ours.cost > theirs.cost * (1 + 1e-6))
                saving.append(1 - ours.cost / theirs.cost)
        name = f"S={slices}" + (f", {late} timed out" if late else "")
        yield Row(case, f"costlier than S={slices}", dearer, 0, name, "count", "lower")
        yield Row(case, f"mean saving over S={slices}", float(np.mean(saving)), 0, name, "fraction", "higher")
        yield Row(case, f"largest saving over S={slices}", max(saving), 0, name, "fraction", "higher")
    proven = sum(ours.outcome.status is Status.OPTIMAL for _, ours in plans)
    yield Row(case, "proven optimal", proven, count, "instances", "count", "higher")
    for name, problem in instances.published_examples().items():
        theirs = timed(problem, 20.0, method="melange-1")
        yield Row(f"melange, {name}", "cost", timed(problem, 20.0).cost, theirs.cost, "S=1", "USD/h", "lower")


def scaling(short: bool) -> Iterator[Row]:
    """Mélange's 10 x 6 grid on twelve GPUs, free and capped, against the model as written with 8 slices, in CBC."""
    base = instances.single_gpus()
    for rate in (16.0, 256.0) if short else (1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0):
        free = replace(base, rate=instances.grid_rates(base, "mixed_80sharegpt_20arxiv", rate))
        for capped in (False, True):
            problem = instances.capped(free) if capped else free
            case = f"scaling {rate:g} req/s{', caps' if capped else ''}"
            ours = timed(problem, PEER_S, 1e-3)
            limit_s = 8.0 if short else PEER_S
            written = as_written(problem, 8)
            cost, bound, late, cpu_s = sliced_as_written(written, limit_s)
            note = "S=8, CBC" + (f", timed out at {limit_s:g} s, bound {bound:.6g}" if late else "")
            yield Row(case, "cost", ours.cost, cost, note, "USD/h", "lower")
            yield Row(case, "proven gap", ours.gap, 1e-3, "asked", "fraction", "lower")
            yield Row(case, "CPU", ours.cpu_s, cpu_s, note, "s", "lower")
            yield Row(
                case, "CPU of theirs / ours", cpu_s / ours.cpu_s, 10.0 if capped else None, "target", "ratio", "higher"
            )


def sliced_as_written(written: LinearModel, limit_s: float) -> tuple[float | None, float, bool, float]:
    """Cost (None: nothing found), bound, whether time ran out, and CPU seconds, with CBC."""
    found = []
    options = SolveOptions(time_limit_s=limit_s, relative_gap=1e-3)
    spent = cpu_seconds(lambda: found.append(solve_linear_pulp(written, Budget(limit_s), options)[0]))
    late = found[0].stop.value == "time_limit"
    return found[0].objective, np.nan if found[0].bound is None else found[0].bound, late, spent


def within(case: str, problem: FleetProblem, limit_s: float, gap: float) -> Iterator[Row]:
    """Gap and seconds against what is asked."""
    ours = timed(problem, limit_s, gap)
    yield Row(case, "cost", ours.cost, None, "", "USD/h", "lower")
    yield Row(case, "proven gap", ours.gap, gap, "asked", "fraction", "lower")
    yield Row(case, "time", ours.wall_s, limit_s, "limit", "s", "lower")
    yield Row(case, "CPU", ours.cpu_s, limit_s, "limit", "s", "lower")


def large(short: bool) -> Iterator[Row]:
    """Fine grids, node shapes, hours and markets, and many models."""
    inputs = tuple(np.unique(np.geomspace(25, 16_000, 20).astype(int)).tolist())
    outputs = tuple(np.unique(np.geomspace(25, 2_000, 20).astype(int)).tolist())
    fine = instances.single_gpus(inputs, outputs)
    fine = replace(fine, rate=instances.smooth_rates(fine, 256.0))
    yield from within("large, 20 x 20 x 12, 256 req/s", fine, 10.0, 1e-3)
    yield from within("large, 6 models x 15 shapes", instances.six_models(4.0 if short else 16.0), 60.0, 0.01)
    for service in ("conversation",) if short else ("conversation", "coding"):
        for factor in (0.63,) if short else (0.63, 0.45):
            markets = [("reserved", factor), ("spot", 0.35)]
            for scale in (10.0,) if short else (1.0, 10.0):
                problem = instances.weekly(service, scale, markets, max_spot_share=0.5)
                yield from within(f"large, week of {service} x{scale:g}, {factor}", problem, 60.0, 0.01)
    if not short:
        problem = instances.many_models(50)
        case = f"large, 50 models x {problem.num_offers} offers"
        yield from within(case, problem, 300.0, 0.03)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        yield Row(case, "peak memory of this process", peak, 4.0, "limit", "GiB", "lower")


def sharing(short: bool) -> Iterator[Row]:
    """Six models on shared nodes against the sum of the best plans of each alone."""
    eights = tuple(name for name, (_, gpus) in instances.AWS_SHAPES.items() if gpus == 8)
    for name, shapes in (("all shapes", tuple(instances.AWS_SHAPES)), ("8-GPU nodes", eights)):
        for scale in (1.0,) if short else (1.0, 4.0, 16.0):
            joint = timed(instances.six_models(scale, shapes), 20.0 if short else 60.0, 0.01)
            apart = [timed(instances.six_models(scale, shapes, (m,)), 20.0, 1e-3) for m in range(6)]
            case = f"sharing, {name}, scale {scale:g}"
            separate = sum(one.cost for one in apart)
            note = f"separate plans, gap <= {max(one.gap for one in apart):.1%}"
            yield Row(case, "cost", joint.cost, separate, note, "USD/h", "lower")
            yield Row(case, "saving", 1 - joint.cost / separate, 0.2, "target", "fraction", "higher")
            yield Row(case, "proven gap of the shared plan", joint.gap, 0.01, "asked", "fraction", "lower")


def hours(short: bool) -> Iterator[Row]:
    """A week: a reserved base and on demand above it, against all reserved at the peak, or on demand by the hour."""
    shapes = [("conversation", 1.0), ("conversation", 0.1), ("coding", 1.0)]
    for service, scale in shapes[:1] if short else shapes:
        limit_s = 30.0 if short else 60.0
        joint = timed(instances.weekly(service, scale, [("reserved", 0.63)]), limit_s, 0.005)
        by_hour = timed(instances.weekly(service, scale), limit_s, 1e-3)
        busiest = instances.busiest(instances.weekly(service, scale))
        peak = timed(busiest, 20.0, 1e-3)
        reserved = 0.63 * peak.cost
        simple = min(reserved, by_hour.cost)
        note = "all reserved" if reserved < by_hour.cost else "on demand by the hour"
        case = f"hours, {service} x{scale:g}"
        yield Row(case, "cost", joint.cost, simple, f"better simple policy: {note}", "USD/h", "lower")
        yield Row(case, "saving", 1 - joint.cost / simple, 0.1, "target", "fraction", "higher")
        yield Row(case, "saving over on demand at the peak", 1 - joint.cost / peak.cost, None, "", "fraction", "higher")
        yield Row(case, "proven gap", joint.gap, 0.005, "asked", "fraction", "lower")


def paper(short: bool) -> Iterator[Row]:
    """Mélange's figures, as far as they can be reproduced: its throughput tables were never published.

    The figures of Arena and of a part of the mixed data (none of PubMed) give, for each rate, the cost of each single
    type over the mix's; counts follow. Whether a mix costs what the figure says can be checked to be a sum of whole
    GPUs, and to lie between the best single type and the fluid limit of one average size. The mix itself needs
    throughput by size, which counts do not give.
    """
    rows, case = instances.paper_rows(), "paper, Arena and mixed"
    off = [abs(instances.nearest_mix(row.usd_per_hour) / row.usd_per_hour - 1) for row in rows]
    yield Row(case, f"off a sum of whole GPUs, worst of {len(rows)}", max(off), 0.0, "digitised", "fraction",
              "lower")  # fmt: skip
    single = [row.usd_per_hour / min(row.single_usd_per_hour) for row in rows]
    yield Row(case, "their mix / best single type, worst", max(single), 1.0, "single type", "ratio", "lower")
    fluid = [instances.fluid_cost(row) / row.usd_per_hour for row in rows]
    yield Row(case, "one average size / their mix, mean", float(np.mean(fluid)), 1.0, "Mélange's USD/h",
              "ratio", "lower")  # fmt: skip


def spare(short: bool) -> Iterator[Row]:
    """Surviving the loss of any one instance by re-routing, against one spare for every offer in use."""
    base = instances.only_offers(instances.single_gpus(), range(8))
    for rate in (4.0, 16.0) if short else (4.0, 16.0, 64.0):
        plain = replace(base, rate=instances.grid_rates(base, "azure2023_conv", rate))
        plan = timed(plain, 20.0, 1e-3)
        survives = timed(replace(plain, spare_instances=1), 60.0, 1e-3)
        assert plan.outcome.plan is not None
        used = {row.offer for row in plan.outcome.plan.allocation}
        blanket = plan.cost + sum(float(plain.price[plain.offer_names.index(offer)]) for offer in used)
        case = f"spare, {rate:g} req/s"
        yield Row(case, "cost over no spare", survives.cost / plan.cost - 1, blanket / plan.cost - 1,
                  "a spare for each offer", "fraction", "lower")  # fmt: skip
        yield Row(case, "proven gap", survives.gap, 1e-3, "asked", "fraction", "lower")


def zones(short: bool) -> Iterator[Row]:
    """Surviving the loss of any one of three zones, against half of the demand in each for itself; shipped instance."""
    problem = shipped("zones")
    free = replace(problem, zone_names=(), zone_of_pool=None)
    limit_s = 20.0 if short else 60.0
    plan, survives = timed(free, limit_s, 1e-3), timed(problem, limit_s, 1e-3)
    blanket = 3 * timed(replace(free, rate=free.rate / 2), limit_s, 1e-3).cost
    yield Row("zones, 3 with slack", "cost over no spare", survives.cost / plan.cost - 1, blanket / plan.cost - 1,
              "half of all in each zone", "fraction", "lower")  # fmt: skip
    yield Row("zones, 3 with slack", "proven gap", survives.gap, 1e-3, "asked", "fraction", "lower")


def starts(short: bool) -> Iterator[Row]:
    """A day that repeats, with what starts cost, against each hour for itself at the same prices; shipped instance."""
    problem = shipped("day")
    limit_s = 20.0 if short else 60.0
    plan = timed(problem, limit_s, 0.01)
    apart = timed(replace(problem, start_cost=None, max_starts=None), limit_s, 0.01).outcome.plan
    assert apart is not None
    swinging = GPU_FLEET.objective(problem, apart).total
    yield Row("starts, day", "cost", plan.cost, swinging, "hours apart, their starts paid", "USD/h", "lower")
    yield Row("starts, day", "proven gap", plan.gap, 0.01, "asked", "fraction", "lower")
    yield Row("starts, day", "CPU", plan.cpu_s, 60.0, "asked", "s", "lower")


def shipped(name: str) -> FleetProblem:
    """An instance of the folder `instances/fleet`."""
    problem = load_problem(INSTANCES / f"{name}.yaml")
    assert isinstance(problem, FleetProblem)
    return problem


CASES = {
    "melange": melange,
    "scaling": scaling,
    "large": large,
    "sharing": sharing,
    "hours": hours,
    "paper": paper,
    "spare": spare,
    "zones": zones,
    "starts": starts,
    "replay": replayed,
}

if __name__ == "__main__":
    main("fleet", CASES)
