"""VM rescheduling: clusters of VMR2L's size (EuroSys'25), made here, for its data is not public.

Machines of two NUMA nodes, 88 cores and 256 GiB together; VMs of 2 to 64 cores, the larger ones over both NUMA nodes.
They arrive and depart at random for a while, each to the NUMA node with least cores left that are enough, so that the
cluster is as fragmented as one in use. Fragment rate: free cores of NUMA nodes beyond multiples of 16, of free cores.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.common import Row, main
from formulations.base import solve
from formulations.outcome import SolveOptions
from formulations.pod_packing.formulation import POD_PACKING
from formulations.pod_packing.objective import price
from formulations.pod_packing.problem import PodsProblem
from formulations.pod_packing.reading import read_problem
from planner.descriptions.pods import PodsInstance

#: Cores and GiB of one NUMA node, and of VMs with their share of arrivals; VMs above 16 cores are on both NUMA nodes.
CORES, GIB = 44, 128
KINDS = (
    (2, 4, 0.2), (2, 8, 0.1), (4, 8, 0.2), (4, 16, 0.1), (8, 16, 0.14), (8, 32, 0.08), (16, 32, 0.08), (16, 64, 0.04),
    (32, 64, 0.04), (64, 128, 0.02),
)  # fmt: skip
#: Fullness that arrivals keep, departures in VMs of the cluster, and seconds of the published MIP and of VMR2L.
FULL, TURNOVER, PUBLISHED_MIP_S, VALID_S = 0.88, 2.0, 3000.0, 5.0


def instance(num_nodes: int, moves: int, seed: int, name: str = "vms") -> dict[str, Any]:
    """The instance in its written form."""
    rng = random.Random(seed)
    free = [[CORES, GIB, CORES, GIB] for _ in range(num_nodes)]
    there: list[tuple[int, int, tuple[int, ...]]] = []

    def change(kind: int, node: int, at: tuple[int, ...], sign: int) -> None:
        cores, gib, _ = KINDS[kind]
        for h in at:
            free[node][2 * h] -= sign * cores // len(at)
            free[node][2 * h + 1] -= sign * gib // len(at)

    def arrive() -> bool:
        (kind,) = rng.choices(range(len(KINDS)), [share for *_, share in KINDS])
        cores, gib, _ = KINDS[kind]
        ways: tuple[tuple[int, ...], ...] = ((0, 1),) if cores > 16 else ((0,), (1,))
        fitting = [
            (free[node][2 * at[0]], node, at)
            for node in range(num_nodes)
            for at in ways
            if all(free[node][2 * h] * len(at) >= cores and free[node][2 * h + 1] * len(at) >= gib for h in at)
        ]
        if not fitting:
            return False
        _, node, at = min(fitting)
        change(kind, node, at, 1)
        there.append((kind, node, at))
        return True

    def used() -> int:
        return sum(2 * CORES - cores[0] - cores[2] for cores in free)

    wanted = FULL * 2 * CORES * num_nodes
    while used() < wanted and arrive():
        pass
    for _ in range(int(TURNOVER * len(there))):
        kind, node, at = there.pop(rng.randrange(len(there)))
        change(kind, node, at, -1)
        while used() < wanted and arrive():
            pass
    nodes = [{"name": "pm", "count": num_nodes, "cpu": 2 * CORES, "memory": f"{2 * GIB}Gi", "numa": 2}]
    pods = [
        {
            "name": f"vm{index}", "cpu": KINDS[kind][0], "memory": f"{KINDS[kind][1]}Gi", "numa": len(at),
            "node": f"pm-{node}" if num_nodes > 1 else "pm", "numa_nodes": list(at),
        }
        for index, (kind, node, at) in enumerate(there)
    ]  # fmt: skip
    return {
        "problem": "pods", "name": name, "objective": "fragments", "moves": {"allowed": True, "max": moves},
        "nodes": nodes, "pods": pods,
    }  # fmt: skip


def problem(num_nodes: int, moves: int, seed: int) -> PodsProblem:
    """The arrays of a generated instance."""
    return read_problem(PodsInstance.model_validate(instance(num_nodes, moves, seed)))


def rate(one: PodsProblem, method: str, seconds: float) -> tuple[float, float, float, float]:
    """Fragment rate, its bound, moves, and seconds of CPU."""
    started = time.process_time()
    outcome = solve(POD_PACKING, one, SolveOptions(time_limit_s=seconds, method=method))
    cpu_s = time.process_time() - started
    assert outcome.plan is not None
    assert outcome.objective is not None
    found = outcome.objective.measures
    bound = 0.0 if outcome.bound is None else outcome.bound.value / found["free_cores"]
    return found["fragment_rate"], bound, float(len({move.pod for move in outcome.plan.moves})), cpu_s


def standing(one: PodsProblem) -> float:
    """The fragment rate before any move."""
    from formulations.pod_packing.numa.baseline import plan_of

    assert one.numa is not None
    return price(one, plan_of(one, one.numa, {})).measures["fragment_rate"]


def rows(short: bool) -> Iterator[Row]:
    """Fragment rate before, after single moves, after the plan, and what no plan can pass."""
    for nodes, moves, seconds in (
        ((40, 10, 5.0),) if short else ((279, 25, VALID_S), (279, 50, VALID_S), (279, 50, 30.0))
    ):
        one = problem(nodes, moves, 0)
        case = f"{nodes} machines, {len(one.pod_names)} VMs, {moves} moves, {seconds:g} s"
        before, (plain, _, _, _) = standing(one), rate(one, "single-moves", seconds)
        ours, bound, moved, cpu_s = rate(one, "auto", seconds)
        yield Row(case, "fragment rate", 100 * ours, 100 * before, "before", "%", "lower")
        yield Row(case, "fragment rate", 100 * ours, 100 * plain, "single moves", "%", "lower")
        yield Row(case, "fragment rate", 100 * ours, 100 * bound, "bound", "%", "lower")
        yield Row(case, "VMs moved", moved, moves, "limit", "VMs", "lower")
        yield Row(case, "CPU", cpu_s, PUBLISHED_MIP_S, "published MIP, about", "s", "lower")


if __name__ == "__main__":
    main("rescheduling", {"fragments": rows})
