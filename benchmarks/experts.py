"""Expert placement on real counts and traces: quality against EPLB, bounds and ceilings; speed against plain loops.

    python -m benchmarks.experts [--short] [--json] [--case NAME]

`--short` takes every tenth layer and fewer workloads; the held-out tables take every third layer, or every tenth.
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from benchmarks.common import Row, data_folder, main, seconds
from formulations.base import solve
from formulations.expert_placement.baseline import eplb_global
from formulations.expert_placement.bounds import load_bound
from formulations.expert_placement.descent import descend
from formulations.expert_placement.formulation import EXPERT_PLACEMENT
from formulations.expert_placement.posterior import scenarios_with_sample
from formulations.expert_placement.problem import CommunicationModel, ExpertPlacementProblem
from formulations.expert_placement.validation import HeldOut, leave_out, mean_balancedness
from formulations.expert_placement.workspace import Workspace, greedy_start
from formulations.outcome import Budget, SolveOptions
from planner.cost.expert_parallel import balancedness, gpu_load, simulate_chain
from planner.topology import hop_costs
from planner.workload import FloatArray, IntArray, RoutingTrace

OPTIONS = SolveOptions(time_limit_s=30, num_threads=2)
TOP_K = 8  # DeepSeek-V3, config.json num_experts_per_tok


def deepseek(short: bool) -> tuple[list[str], FloatArray]:
    """Names and counts [workloads, layers, experts] of the recorded DeepSeek-V3 workloads, dense rows dropped."""
    files = sorted((data_folder("experts") / "deepseek_v3_sglang").glob("*.json"))
    counts = np.array([json.loads(file.read_text())["logical_count"] for file in files], dtype=np.float64)
    counts = counts[:, counts.sum(axis=(0, 2)) > 0]
    return [file.stem for file in files], counts[:, ::10] if short else counts


def problem_of(counts: FloatArray, gpus: int, slots: int, **more: object) -> ExpertPlacementProblem:
    return ExpertPlacementProblem.from_arrays(counts, num_gpus=gpus, num_slots=slots, **more)  # type: ignore[arg-type]


def plan_rows(problem: ExpertPlacementProblem, options: SolveOptions = OPTIONS) -> IntArray:
    outcome = solve(EXPERT_PLACEMENT, problem, options)
    assert outcome.plan is not None, outcome.stop
    return outcome.plan.array


def by_layer(problem: ExpertPlacementProblem, rows: IntArray) -> FloatArray:
    return balancedness(gpu_load(problem.load, rows, problem.speed, problem.split), problem.speed)[0]


def in_sample(short: bool) -> Iterator[Row]:
    """One workload at a time: how even can it be made?"""
    _, counts = deepseek(short)
    for gpus, slots in ((32, 288), (144, 432)):
        ours, rule, below, spent = [], [], 0, 0.0
        for one in counts[::4] if short else counts:
            problem = problem_of(one, gpus, slots)
            started = time.perf_counter()
            rows = plan_rows(problem)
            spent = max(spent, time.perf_counter() - started)
            mine, theirs = by_layer(problem, rows), by_layer(problem, eplb_global(problem.load[0], gpus, slots))
            ours.append(mine.mean())
            rule.append(theirs.mean())
            below += int((mine < theirs - 1e-12).sum())
        case = f"in sample EP{gpus}/{slots}"
        yield Row(case, "balancedness, worst workload", min(ours), min(rule), "EPLB global", "ratio", "higher")
        yield Row(case, "layers below EPLB", below, 0, "EPLB global", "count", "lower")
        yield Row(case, "slowest whole-model plan", spent, OPTIONS.time_limit_s, "time limit", "s", "lower")


def two_slots(short: bool) -> Iterator[Row]:
    """Two slots a GPU: the slot budget is the limit, and the pairing LP shows how much."""
    _, counts = deepseek(False)
    layers = slice(None, None, 20 if short else 4)
    for gpus, slots in ((144, 288), (320, 640)):
        problem = problem_of(counts[0, layers][:3] if gpus == 320 else counts[0, layers], gpus, slots)
        outcome = solve(EXPERT_PLACEMENT, problem, replace(OPTIONS, time_limit_s=120))
        assert outcome.plan is not None
        assert outcome.bound is not None
        mine = by_layer(problem, outcome.plan.array).mean()
        rule = by_layer(problem, eplb_global(problem.load[0], gpus, slots)).mean()
        ceiling = problem.mean_gpu_load[0].sum() / outcome.bound.value
        case = f"two slots EP{gpus}/{slots}"
        yield Row(case, "balancedness", mine, rule, "EPLB global", "ratio", "higher")
        total = problem.mean_gpu_load[0].sum() / outcome.objective.total if outcome.objective else 0.0
        name = f"bound ({outcome.bound.name})"
        yield Row(case, "mean load / hottest, summed", total, ceiling, name, "ratio", "higher")


def _held_out_rows(case: str, rows: list[HeldOut]) -> Iterator[Row]:
    mean = float(np.mean([row.plan for row in rows]))
    rule = float(np.mean([row.baseline for row in rows]))
    yield Row(case, f"balancedness, mean of {len(rows)}", mean, rule, "EPLB on summed counts", "ratio", "higher")
    worst = min(rows, key=lambda row: row.plan)
    yield Row(case, f"worst: {worst.name}", worst.plan, worst.baseline, "EPLB on summed counts", "ratio", "higher")
    if all(row.hindsight is not None for row in rows):
        ceiling = float(np.mean([row.hindsight for row in rows if row.hindsight is not None]))
        yield Row(case, "balancedness against the ceiling", mean, ceiling, "fitted with hindsight", "ratio", "higher")


def held_out(short: bool) -> Iterator[Row]:
    """Workloads the plan was not fitted to: each in turn (same phase), and whole clusters with phases mixed."""
    names, counts = deepseek(short)
    counts = counts if short else counts[:, ::3]
    phases = [[k for k, name in enumerate(names) if name.startswith(phase)] for phase in ("decode", "prefill")]
    for gpus, slots in ((32, 288), (72, 288), (144, 432)):
        for split in ("even", "lp"):
            case = f"held out EP{gpus}/{slots} {split}"
            rows: list[HeldOut] = []
            for phase in phases:
                named = tuple(names[k] for k in phase)
                problem = problem_of(counts[phase], gpus, slots, split=split, scenario_names=named)
                rows += leave_out(problem, OPTIONS, hindsight=not short)
            yield from _held_out_rows(f"{case}, one", rows)
            alone = [row for row in rows if row.name != "decode_in1800out100"]
            mean = float(np.mean([row.plan for row in alone]))
            note = "with the one that has no relative"
            yield Row(f"{case}, one", "without decode_in1800out100", mean, float(np.mean([r.plan for r in rows])), note,
                      "ratio", "higher")  # fmt: skip
            mixed = problem_of(counts, gpus, slots, split=split, scenario_names=tuple(names))
            yield from _held_out_rows(f"{case}, one, mixed", leave_out(mixed, OPTIONS, hindsight=False))
            yield from _held_out_rows(f"{case}, cluster", leave_out(mixed, OPTIONS, "cluster", hindsight=False))


def adaptation(short: bool) -> Iterator[Row]:
    """A few tokens of a new workload, whose whole cluster was never seen: posterior against EPLB on the sample."""
    from formulations.expert_placement.validation import clusters

    names, counts = deepseek(True)
    rng = np.random.default_rng(0)
    mixed = problem_of(counts, 32, 288)
    label = clusters(mixed)
    held = (1, 3, 5) if short else range(len(names))
    for split in ("even",) if short else ("even", "lp"):
        for tokens in (1_024, 4_096) if short else (0, 256, 1_024, 4_096, 16_384):
            ours, rule = [], []
            for k in held:
                others = replace(mixed, split=split).with_scenarios(np.flatnonzero(label != label[k]).tolist())
                share = counts[k] / counts[k].sum(axis=1, keepdims=True)
                sample = np.stack([rng.multinomial(tokens * TOP_K, row) for row in share]).astype(np.float64)
                problem = others
                if tokens:
                    load, weight = scenarios_with_sample(others.load, others.weight, sample, tokens)
                    problem = others.with_load(load, weight, tuple(f"s{i}" for i in range(len(load))))
                ours.append(mean_balancedness(problem, plan_rows(problem), mixed.load[k]))
                known = sample if tokens else np.tensordot(others.weight, others.load, axes=1)
                rule.append(mean_balancedness(problem, eplb_global(known, 32, 288), mixed.load[k]))
            name = "EPLB on the sample" if tokens else "EPLB on summed counts"
            case = f"adaptation EP32/288 {split}"
            yield Row(case, f"{tokens} tokens", float(np.mean(ours)), float(np.mean(rule)), name, "ratio", "higher")


def planted_trace(
    experts: int, layers: int, gpus: int, stay: float, tokens: int, seed: int
) -> tuple[RoutingTrace, IntArray]:
    """A trace in which a token stays in its hidden group of experts with chance `stay`; the groups, [L, E]."""
    rng = np.random.default_rng(seed)
    part = np.stack([rng.permutation(experts) // (experts // gpus) for _ in range(layers)])
    ids = np.zeros((tokens, layers, 1), dtype=np.int16)
    ids[:, 0, 0] = rng.integers(experts, size=tokens)
    for layer in range(1, layers):
        group = part[layer - 1][ids[:, layer - 1, 0]]
        members = np.argsort(part[layer], kind="stable").reshape(gpus, -1)
        inside = members[group, rng.integers(experts // gpus, size=tokens)]
        ids[:, layer, 0] = np.where(rng.random(tokens) < stay, inside, rng.integers(experts, size=tokens))
    return RoutingTrace(experts=ids), part


def chain_problem(
    trace: RoutingTrace, experts: int, gpus: int, per_node: int, slots: int, weight: float, inter: float = 8.0
) -> ExpertPlacementProblem:
    cost, intra, inter = hop_costs(gpus, per_node, 1.0, inter)
    comm = CommunicationModel(model="chain", weight=weight, cost=cost, intra_node_cost=intra, inter_node_cost=inter)
    counts = trace.counts(experts)
    return problem_of(counts, gpus, slots, gpus_per_node=per_node, trace=trace, communication=comm)


def planted(short: bool) -> Iterator[Row]:
    """Traces with a known best placement."""
    for experts, layers, gpus in ((8, 32, 4), (64, 24, 8)):
        trace, part = planted_trace(experts, layers, gpus, 0.6, 20_000, 0)
        problem = chain_problem(trace, experts, gpus, gpus, experts, 100.0)
        mine = simulate_chain(plan_rows(problem), trace, experts, gpus, gpus)[0].mean()
        hidden = np.argsort(part, axis=1, kind="stable")
        best = simulate_chain(hidden, trace, experts, gpus, gpus)[0].mean()
        case = f"planted {experts} x {layers}, {gpus} GPUs"
        yield Row(case, "crossings", float(mine), float(best), "planted placement", "fraction", "lower")


def gpt_oss(short: bool) -> Iterator[Row]:
    """gpt-oss-20b, documents held out in five folds: crossings and balance of joint plans on unseen documents."""
    folder = data_folder("experts")
    experts = np.load(folder / "gptoss20b_topk_trace.npy").astype(np.int16)
    documents = np.load(folder / "gptoss20b_topk_trace_doc.npy").astype(np.int64)
    folds = np.array_split(np.random.default_rng(1).permutation(np.unique(documents)), 5)
    cases = [
        ("EP4/32 communication alone", 4, 4, 32, 100.0),
        ("EP4/32 joint", 4, 4, 32, 3.0),
        ("EP4/32 mostly balance", 4, 4, 32, 0.5),
        ("EP4/48 joint", 4, 4, 48, 5.0),
        ("EP8/32, two nodes, joint", 8, 4, 32, 0.6),
        ("EP8/48, two nodes, joint", 8, 4, 48, 0.6),
    ]
    for name, gpus, per_node, slots, weight in cases[:2] if short else cases:
        scores = []
        for fold in folds[:2] if short else folds:
            test = np.isin(documents, fold)
            seen, unseen = (RoutingTrace(experts=experts[part]) for part in (~test, test))
            problem = chain_problem(seen, 32, gpus, per_node, slots, weight)
            rows = plan_rows(problem)
            crossed, crossed_node, local = simulate_chain(rows, unseen, 32, gpus, per_node)
            fresh = problem_of(unseen.counts(32), gpus, slots)
            plain = plan_rows(replace(problem, communication=None))
            plain_crossed, plain_node, _ = simulate_chain(plain, unseen, 32, gpus, per_node)
            scores.append(
                (
                    crossed.mean(),
                    plain_crossed.mean(),
                    crossed_node.mean(),
                    plain_node.mean(),
                    by_layer(fresh, rows).mean(),
                    by_layer(fresh, plain).mean(),
                    (local.mean(axis=1) / local.max(axis=1)).mean(),
                )
            )
        mean = np.mean(scores, axis=0)
        note = "balance only"
        yield Row(name, "crossings, unseen documents", mean[0], mean[1], note, "fraction", "lower")
        if per_node < gpus:
            yield Row(name, "node crossings, unseen documents", mean[2], mean[3], note, "fraction", "lower")
        yield Row(name, "balancedness, even split", mean[4], mean[5], note, "ratio", "higher")
        yield Row(name, "balancedness, nearest, top-1", mean[6], None, "", "ratio", "higher")


def eplb_loops(load: FloatArray, gpus: int, slots: int) -> IntArray:
    """The EPLB rule for one layer as its users write it: plain loops over numpy scalars."""
    count = np.ones(load.size, dtype=np.int64)
    experts = list(range(load.size))
    for _ in range(slots - load.size):
        chosen = int(np.argmax(load / count))
        experts.append(chosen)
        count[chosen] += 1
    size = load[experts] / count[experts]
    level, filled = np.zeros(gpus), np.zeros(gpus, dtype=np.int64)
    result = np.zeros((gpus, slots // gpus), dtype=np.int64)
    for item in np.argsort(-size, kind="stable"):
        room = [gpu for gpu in range(gpus) if filled[gpu] < slots // gpus]
        gpu = min(room, key=level.__getitem__)
        result[gpu, filled[gpu]] = experts[item]
        level[gpu] += size[item]
        filled[gpu] += 1
    return result.ravel()


def speed(short: bool) -> Iterator[Row]:
    """Batched numpy descent (greedy start included, no compiled code) against the EPLB rule in loops, per layer."""
    _, counts = deepseek(False)
    wide = np.random.default_rng(0).lognormal(0, 0.8, (8, 512))
    cases = [(counts[0], 32, 288, 25), (counts[0], 72, 288, 60), (counts[0], 144, 432, 60), (wide, 1_024, 2_048, 25)]
    for one, gpus, slots, iterations in cases:
        problem = problem_of(one, gpus, slots)
        layers = problem.num_layers

        def ours(problem: ExpertPlacementProblem = problem, iterations: int = iterations) -> FloatArray:
            work = Workspace(problem=problem, options=OPTIONS, budget=Budget(60), move_price=0.0)
            rows, _ = greedy_start(work)
            rng = np.random.default_rng(0)
            start = (problem.load, problem.weight, problem.speed, rows, work.max_replicas, rng, work.budget)
            rows, price = descend(*start, iterations)
            return problem.mean_gpu_load[0] / price

        def rule(problem: ExpertPlacementProblem = problem, gpus: int = gpus, slots: int = slots) -> None:
            for load in problem.load[0, :4]:
                eplb_loops(load, gpus, slots)

        mine = seconds(ours) / layers * 1e3
        theirs = seconds(rule, 2) / min(4, layers) * 1e3
        case = f"speed EP{gpus}/{slots}, {layers} layers"
        yield Row(case, "greedy + descent per layer", mine, theirs, "EPLB in numpy loops", "ms", "lower")
        reached = eplb_global(problem.load[0], gpus, slots)
        yield Row(case, "its balancedness", float(ours().mean()), by_layer(problem, reached).mean(), "EPLB",
                  "ratio", "higher")  # fmt: skip


def scale(short: bool) -> Iterator[Row]:
    """512 experts on 256 GPUs with 768 slots; cost by number of layers, and memory."""
    spent = {}
    for layers in (4, 8) if short else (16, 32, 64):
        counts = np.random.default_rng(1).lognormal(0, 1.0, (layers, 512))
        problem = problem_of(counts, 256, 768)
        started = time.perf_counter()
        outcome = solve(EXPERT_PLACEMENT, problem, SolveOptions(time_limit_s=120, num_threads=2, work_limit=100_000))
        spent[layers] = time.perf_counter() - started
        assert outcome.plan is not None
        case = f"scale {layers} x 512 on 256 GPUs"
        yield Row(case, "time", spent[layers], 120, "limit", "s", "lower")
        yield Row(case, "balancedness", by_layer(problem, outcome.plan.array).mean(),
                  by_layer(problem, eplb_global(problem.load[0], 256, 768)).mean(), "EPLB", "ratio",
                  "higher")  # fmt: skip
    first, last = min(spent), max(spent)
    growth = (spent[last] / spent[first]) / (last / first)
    yield Row("scale", f"time per layer, {last} against {first}", growth, 1.0, "linear", "ratio", "lower")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    yield Row("scale", "peak memory of this process", peak, 2.0, "limit", "GiB", "lower")


def replanning(short: bool) -> Iterator[Row]:
    """From the plan of one workload to another under a cap on moves: balancedness kept and moves used."""
    _, counts = deepseek(short)
    old = plan_rows(problem_of(counts[0], 32, 288))
    total = None
    for cap in (None, 500, 100, 20, 0):
        scaled = None if cap is None else max(0, cap * counts.shape[1] // 58)
        problem = problem_of(counts[1], 32, 288, current=old, max_moves=scaled)
        outcome = solve(EXPERT_PLACEMENT, problem, OPTIONS)
        assert outcome.plan is not None
        assert outcome.objective is not None
        moved = outcome.objective.measures["moved_replicas"]
        total = moved if total is None else total
        case = f"replanning, moves <= {'any' if scaled is None else scaled}"
        before = mean_balancedness(problem, old, problem.load[0])
        yield Row(case, "balancedness", outcome.objective.measures["balancedness_mean"], before, "not moving", "ratio",
                  "higher")  # fmt: skip
        yield Row(case, "replicas moved", moved, total, "free replanning", "count", "lower")


def bounds(short: bool) -> Iterator[Row]:
    """How far the plans stand from what is provably possible, several scenarios at once."""
    names, counts = deepseek(True)
    for gpus, slots in ((32, 288), (72, 288)):
        problem = problem_of(counts, gpus, slots)
        outcome = solve(EXPERT_PLACEMENT, problem, OPTIONS)
        assert outcome.objective is not None
        floor = float((problem.weight @ load_bound(problem)[0]).sum())
        yield Row(f"bound EP{gpus}/{slots}, {len(names)} scenarios", "objective", outcome.objective.total, floor,
                  "lower bound (each scenario apart)", "layers", "lower")  # fmt: skip


CASES = {
    "in_sample": in_sample,
    "two_slots": two_slots,
    "held_out": held_out,
    "adaptation": adaptation,
    "planted": planted,
    "gpt_oss": gpt_oss,
    "speed": speed,
    "scale": scale,
    "replanning": replanning,
    "bounds": bounds,
}

if __name__ == "__main__":
    main("experts", CASES)
