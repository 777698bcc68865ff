"""Pods: GPU allocated, tiers and powered GPUs with proven gaps, beside the default scheduler and FGD in the same run.

    python -m benchmarks.pods [--short] [--json] [--case NAME]

Workloads are sampled from the openb trace with replacement until they ask for so much of the cluster's GPUs, as FGD's
authors do. Everything is placed at once, with all pods known: an online scheduler, which is beside it, knows less.
CPU seconds are of this process; the wall clock of a busy machine says little.
"""

from __future__ import annotations

import csv
import random
import resource
import runpy
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.common import Row, data_folder, main
from benchmarks.pods_running import moves, rooms
from benchmarks.priority_matters import rows
from formulations import load_problem
from formulations.base import solve
from formulations.outcome import Outcome, SolveOptions
from formulations.pod_packing.baseline import fgd, kube_default
from formulations.pod_packing.formulation import POD_PACKING
from formulations.pod_packing.objective import price
from formulations.pod_packing.problem import PodsProblem
from formulations.pod_packing.reading import problem_of
from planner.descriptions.pods import PodsInstance
from planner.kubernetes.snapshot import Snapshot
from planner.pods_plan import PodsPlan, Tier
from planner.readers.openb import read_openb_nodes, read_openb_pods

SECONDS = 30.0
GENERATE = Path(__file__).resolve().parents[1] / "instances" / "pods" / "generate.py"
NODES, PODS = "openb_node_list_gpu_node.csv", "openb_pod_list_{}.csv"


def openb(
    trace: str, *, demand: float | None, num_nodes: int | None = None, objective: str = "allocation", seed: int = 0
) -> PodsProblem:
    """The trace on its cluster (or so many of its nodes, drawn at random); demand : of the GPUs; None is the trace."""
    folder = data_folder("pods") / "openb"
    nodes = read_openb_nodes(folder / NODES)
    pods = read_openb_pods(folder / PODS.format(trace))
    rng = random.Random(seed)
    if num_nodes is not None:
        # In the order of names: FGD's tie rule goes by it.
        nodes = tuple(sorted(rng.sample(nodes, num_nodes), key=lambda node: node.name))
    if demand is not None:
        wanted, asked, drawn = demand * 1000 * sum(node.gpus for node in nodes), 0, []
        while asked < wanted:
            pod = rng.choice(pods)
            drawn.append(replace(pod, name=f"default/{len(drawn)}"))
            asked += pod.gpus * pod.gpu_milli
        pods = tuple(drawn)
    instance = PodsInstance.model_validate(
        {"name": trace, "nodes": NODES, "pods": PODS.format(trace), "objective": objective}
    )
    return problem_of(Snapshot(nodes=nodes, pods=pods), instance)


def planned(
    problem: PodsProblem, seconds: float = SECONDS, relative_gap: float | None = None
) -> tuple[Outcome[PodsPlan], float]:
    """The checked plan and CPU seconds."""
    started = time.process_time()
    outcome = solve(POD_PACKING, problem, SolveOptions(time_limit_s=seconds, relative_gap=relative_gap))
    return outcome, time.process_time() - started


def _share(problem: PodsProblem, plan: PodsPlan) -> float:
    return 100 * price(problem, plan).terms["gpu_allocated_fraction"]


def _tiers(outcome: Outcome[PodsPlan]) -> tuple[Tier, ...]:
    assert outcome.plan is not None
    return outcome.plan.tiers


def _allocation(case: str, problem: PodsProblem, published: float | None = None) -> Iterator[Row]:
    outcome, cpu_s = planned(problem)
    (tier,) = _tiers(outcome)
    gpus = float(problem.gpus.sum())
    assert tier.bound is not None
    ours = 100 * tier.value / gpus
    yield Row(case, "GPUs allocated", ours, _share(problem, kube_default(problem)), "kube-default", "%", "higher")
    yield Row(case, "GPUs allocated", ours, _share(problem, fgd(problem)), "fgd, this run", "%", "higher")
    if published is not None:
        yield Row(case, "GPUs allocated", ours, published, "FGD as published, online", "%", "higher")
    yield Row(case, "GPUs allocated", ours, 100 * tier.bound / gpus, "our bound", "%", "higher")
    yield Row(case, "proven gap", 100 * (tier.bound - tier.value) / gpus, 0.1, "asked", "points", "lower")
    yield Row(case, "CPU", cpu_s, SECONDS, "asked", "s", "lower")


def traces(short: bool) -> Iterator[Row]:
    """130 % demand on 1,213 nodes, the traces of the FGD paper; and the trace as it is."""
    published = {}
    with open(data_folder("pods") / "openb" / "fgd_published_alloc.csv", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["sc_policy"].endswith("FGD"):
                published[row["workload"].removeprefix("openb_pod_list_")] = float(row["alloc_pct_at_130_mean"])
    for trace in ("default",) if short else ("default", "gpushare40", "multigpu20"):
        yield from _allocation(f"openb {trace}, 130 %", openb(trace, demand=1.3), published.get(trace))
    if not short:
        yield from _allocation("openb default, as it is", openb("default", demand=None))


def sizes(short: bool) -> Iterator[Row]:
    """130 % demand on some nodes of the cluster."""
    for num_nodes in (32,) if short else (8, 32, 100, 300):
        for seed in range(1 if short else 2):
            problem = openb("default", demand=1.3, num_nodes=num_nodes, seed=seed)
            yield from _allocation(f"openb, {num_nodes} nodes, seed {seed}", problem)


def tiers(short: bool) -> Iterator[Row]:
    """Most pods by priority, LS before Burstable before BE, on the trace as it is."""
    problem = openb(
        "default", demand=None if not short else 1.0, num_nodes=100 if short else None, objective="priority"
    )
    outcome, cpu_s = planned(problem)
    rule = price(problem, kube_default(problem)).terms
    case = "openb, tiers" + (", 100 nodes" if short else "")
    for tier in _tiers(outcome):
        level = tier.name.rpartition(" ")[2]
        yield Row(case, tier.name, tier.value, rule[f"placed_by_priority[{level}]"], "kube-default", "pods", "higher")
        yield Row(case, tier.name, tier.value, tier.bound, "our bound", "pods", "higher")
    yield Row(case, "CPU", cpu_s, SECONDS, "asked", "s", "lower")


def consolidate(short: bool) -> Iterator[Row]:
    """Fewest powered GPUs that run everything."""
    for demand in (0.6,) if short else (0.4, 0.6, 0.8):
        num_nodes = 100 if short else None
        problem = openb("default", demand=demand, num_nodes=num_nodes, objective="consolidate")
        outcome, cpu_s = planned(problem)
        case = f"openb, consolidate {demand:.0%}" + (", 100 nodes" if short else "")
        if outcome.plan is None:
            yield Row(case, "powered", float("nan"), None, f"no plan: {outcome.status}", "GPUs", "lower")
            continue
        (tier,) = _tiers(outcome)
        rule = price(problem, kube_default(problem)).terms["gpus_powered"]
        yield Row(case, "powered", tier.value, rule, "kube-default", "GPUs", "lower")
        yield Row(case, "powered", tier.value, tier.bound, "our bound", "GPUs", "lower")
        yield Row(case, "CPU", cpu_s, 10.0, "asked", "s", "lower")


def scale(short: bool) -> Iterator[Row]:
    """5,000 nodes, 50,000 pods of 200 classes with selectors, taints, spread and gangs, made by instances/pods; and
    with many classes of at most one pod a node, whose bound knows less. Searches end at a gap of 0.1 %."""
    shared = runpy.run_path(str(GENERATE))["shared"]
    size = (500, 5_000, 100) if short else (5_000, 50_000, 200)
    for case, apart in (("selectors, spread, gangs", False), ("and one pod a node", True)):
        text = shared("shared", *size, seed=7, apart=apart)
        with TemporaryDirectory() as folder:
            path = Path(folder) / "shared.yaml"
            path.write_text(text, encoding="utf-8")
            problem = load_problem(path)
        assert isinstance(problem, PodsProblem)
        outcome, cpu_s = planned(problem, seconds=60.0, relative_gap=0.001)
        (tier,) = _tiers(outcome)
        assert tier.gap is not None
        name = f"{size[0]:,} nodes, {case}"
        yield Row(name, "GPUs allocated", tier.value, tier.bound, "our bound", "GPUs", "higher")
        yield Row(
            name, "gap", 100 * tier.gap, None if apart else 0.2, "not promised" if apart else "asked", "%", "lower"
        )
        yield Row(name, "CPU", cpu_s, 60.0, "asked", "s", "lower")
        if not apart:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            yield Row(name, "peak memory", peak, 1024.0, "asked", "MiB", "lower")


CASES = {
    "traces": traces,
    "sizes": sizes,
    "tiers": tiers,
    "consolidate": consolidate,
    "scale": scale,
    "priority_matters": rows,
    "moves": moves,
    "headroom": rooms,
}

if __name__ == "__main__":
    main("pods", CASES)
