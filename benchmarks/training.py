"""Training plans and their pieces: `python -m benchmarks.training [--short] [--json] [--case NAME]`.

References are stored answers of other planners to the same inputs, and the CPU they took where it was recorded.
"""

from __future__ import annotations

import csv
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import training_layers, training_mixed, training_search
from benchmarks.common import Row, data_folder, main
from benchmarks.metis_estimator import MetisEstimator, in_proportion, metis_plans
from formulations.backends import load_ortools_first
from formulations.outcome import SolveOptions
from formulations.parallelism.training import layer_strategies, rank_mapping, shares, uneven_stages
from formulations.parallelism.training.schedule import cpsat, zero_bubble
from formulations.parallelism.training.schedule import problem as pipeline
from formulations.parallelism.training.schedule.baseline import joined, one_forward_one_backward
from formulations.parallelism.training.schedule.bound import period_bound_s
from formulations.parallelism.training.schedule.check import check as check_schedule
from formulations.parallelism.training.sequences import groups as sequence_groups
from formulations.parallelism.training.sequences.check import check as check_groups
from formulations.parallelism.training.sequences.packing import one_degree
from formulations.parallelism.training.sequences.problem import SequenceProblem, makespan

#: Switches below this are tie-breakers between strategies of one layout in Galvatron's tables, seconds.
TIE_BREAKER_S = 1e-6
#: Seconds of Pipette's annealing in the stored answers, and the third of it that is ours.
ANNEALING_S, OURS_S = 12.0, 4.0
#: Messages of the stored mapping costs, which they reproduce to the last digit: activations; gradients of all layers,
#: of which a stage has its share; those of the embedding, on the first and the last stage.
ACTIVATION_BYTES, LAYER_GRADIENT_BYTES, EMBEDDING_GRADIENT_BYTES = 2.0**26, 2.0**31, 50 * 2.0**20


def stored(name: str) -> Any:
    """A stored JSON file of other planners' inputs and answers."""
    return json.loads((data_folder("training") / name).read_text(encoding="utf-8"))


def warm_up() -> None:
    """Load the solver's library, so that it does not count for the first instance."""
    load_ortools_first()
    from ortools.math_opt.python import mathopt  # noqa: F401
    from ortools.sat.python import cp_model  # noqa: F401


def galvatron_layers(short: bool) -> Iterator[Row]:
    """The 134 inner problems of Galvatron's own case, priced by its own times and switching table."""
    warm_up()
    reference = "Galvatron's dynamic program, stored"
    differ, worse, better, cpu_s, peer_cpu_s = 0, 0, 0, 0.0, 0.0
    ratios: list[float] = []
    instances = stored("galvatron_dp_instances.json")["instances"]
    for instance in instances:
        asked = layer_problem(instance)
        started_s = time.process_time()
        found = layer_strategies.choose(asked)
        cpu_s += time.process_time() - started_s
        peer_cpu_s += instance["dp_cpu_s"]
        peer_s = instance["dp_time_s"]
        differ += (found.plan is None) != (peer_s is None)
        if found.plan is None or peer_s is None:
            continue
        assert not layer_strategies.check(asked, found.plan)
        chosen = [block.strategy for block in found.plan.blocks for _ in range(block.layers)]
        switch_s = np.array(instance["switch_s"])
        ours_s = instance["other_time_s"] + sum(instance["time_s"][s] for s in chosen)
        ours_s += float(switch_s[chosen[:-1], chosen[1:]].sum())
        ratios.append(ours_s / peer_s)
        worse, better = worse + (ratios[-1] > 1 + 1e-6), better + (ratios[-1] < 1 - 1e-6)
    case = f"{len(instances)} inner problems of Galvatron"
    yield Row(case, "feasible in one, not in the other", differ, 0.0, reference, "count", "lower")
    yield Row(case, "slower than the peer's", worse, 0.0, reference, "count", "lower")
    yield Row(case, "faster than the peer's", better, 0.0, reference, "count", "higher")
    yield Row(case, "time / peer's, mean", float(np.mean(ratios)), 1.0, reference, "ratio", "lower")
    yield Row(case, "time / peer's, highest", max(ratios), 1.0, reference, "ratio", "lower")
    yield Row(case, "CPU of all", cpu_s, peer_cpu_s, reference + " (C++)", "CPU s", "lower")


def layer_problem(instance: dict[str, Any]) -> layer_strategies.LayerProblem:
    """An inner problem with its strategies grouped into families: those between which switching costs nothing."""
    switch_s = np.array(instance["switch_s"])
    family: npt.NDArray[np.int64] = np.unique(switch_s < TIE_BREAKER_S, axis=0, return_inverse=True)[1].ravel()
    size = int(family.max()) + 1
    between = np.array([[switch_s[np.ix_(family == a, family == b)].max() for b in range(size)] for a in range(size)])
    np.fill_diagonal(between, 0.0)
    return layer_strategies.LayerProblem(
        layers=np.array([instance["layers"]]),
        time_s=np.array([instance["time_s"]]),
        memory_bytes=np.array([instance["mem_mb"]]) * 1024.0**2,
        family=family,
        switch_s=between,
        capacity_bytes=instance["cap_mb"] * 1024.0**2,
    )


def flexsp_sequences(short: bool) -> Iterator[Row]:
    """FlexSP's micro-batches of different lengths, priced by its own cost model with the true lengths."""
    warm_up()
    data = stored("flexsp_cases.json")
    reference = "FlexSP's answer, stored"
    worse = better = 0
    for number, case in enumerate(data["cases"]):
        asked = sequence_problem(data["costmodel"], case)
        started_s, started_cpu_s = time.perf_counter(), time.process_time()
        found = sequence_groups.choose(asked)
        spent_s, spent_cpu_s = time.perf_counter() - started_s, time.process_time() - started_cpu_s
        assert found.plan is not None
        assert found.bound is not None
        assert not check_groups(asked, found.plan)
        ours, theirs = makespan(asked, found.plan), case["flexsp_true"]
        worse, better = worse + (ours > theirs * (1 + 1e-9)), better + (ours < theirs * (1 - 1e-9))
        name = f"batch {number}: {case['nseq']} sequences, {case['N']} GPUs"
        yield Row(name, "slowest group / peer's", ours / theirs, 1.0, reference, "ratio", "lower")
        yield Row(name, "slowest group", ours, found.bound.value, "our bound", "ms", "lower")
        plain = one_degree(asked).packing
        if plain is not None:
            yield Row(name, "slowest group", ours, plain.makespan, "one degree, longest first", "ms", "lower")
        yield Row(name, "time", spent_s, case["flexsp_s"], reference, "s", "lower")
        yield Row(name, "CPU", spent_cpu_s, None, "-", "CPU s", "lower")
    yield Row("7 batches of FlexSP", "worse than the peer's", worse, 0.0, reference, "count", "lower")
    yield Row("7 batches of FlexSP", "better than the peer's", better, 0.0, reference, "count", "higher")


def sequence_problem(model: dict[str, Any], case: dict[str, Any]) -> SequenceProblem:
    """A micro-batch by FlexSP's cost model: attention, dense part and all-to-all of each sequence, in milliseconds.

    Source: galvatron/flexsp_solver/solver.py, branch flexsp of AFDWang/Hetu-Galvatron.
    """
    tokens, devices = np.array(case["lens"]), case["N"]
    degrees = np.array([1, *(int(d) for d in model["a2a_gbps"] if int(d) <= devices)])
    compute = (model["alpha1"] * tokens[:, None] ** 2.0 + model["alpha2"] * tokens[:, None]) / degrees
    # Four all-to-alls of 16-bit activations forward and four backward; one device has none. MB / (GB/s) is ms.
    speed = np.array([np.inf, *(model["a2a_gbps"][str(d)] for d in degrees[1:])])
    sent_mb = 4 * 2 * model["layers"] * model["hidden"] * tokens[:, None] * 2 / 1024**2 / degrees
    states_mb = model["param_b"] * 16 / devices * 1024
    return SequenceProblem(
        tokens=tokens,
        degrees=degrees,
        sequence_s=compute + sent_mb / speed,
        group_s=np.full(degrees.size, model["beta1"]),
        num_devices=devices,
        tokens_per_device=float(int((model["mem_gb"] * 1024 - states_mb) / model["act_mb_per_token"])),
    )


def pipette_mapping(short: bool) -> Iterator[Row]:
    """Measured bandwidth between 16 nodes: priced as Pipette does (first stages' ring), and on every stage."""
    reference = "Pipette's annealing, stored"
    matrices = stored("pipette_bandwidth_16nodes.json")["snapshots"]
    with (data_folder("training") / "pipette_mapping.csv").open(encoding="utf-8") as file:
        answers = list(csv.DictReader(file))
    options = SolveOptions(time_limit_s=OURS_S)
    worse = 0
    for answer in answers[:: 2 if short else 1]:
        bandwidth = np.array(matrices[f"time_0/{answer['snapshot']}"]["bandwidth_MBps"]) * 1e6
        first, every = mapping_problems(bandwidth, int(answer["pipelines"]), int(answer["stages"]))
        plain_ms = 1e3 * rank_mapping.seconds(first, rank_mapping.in_order(first))
        assert abs(plain_ms - float(answer["identity_ms"])) < 1e-6, "the stored costs are priced another way"
        started_cpu_s = time.process_time()
        found = rank_mapping.choose(first, options)
        cpu_s = time.process_time() - started_cpu_s
        assert found.plan is not None
        assert found.bound is not None
        assert not rank_mapping.check(first, found.plan)
        ours_ms = 1e3 * rank_mapping.seconds(first, found.plan)
        annealed_ms = float(answer["sa_ms"])
        worse += ours_ms > annealed_ms * (1 + 1e-9)
        case = f"matrix {answer['snapshot']}: {answer['pipelines']} pipelines x {answer['stages']}"
        yield Row(case, "first rings / peer's", ours_ms / annealed_ms, 1.0, reference, "ratio", "lower")
        yield Row(case, "first rings", ours_ms, 1e3 * found.bound.value, "our bound", "ms", "lower")
        yield Row(case, "first rings", ours_ms, plain_ms, "nodes in order", "ms", "lower")
        yield Row(case, "CPU", cpu_s, ANNEALING_S, reference, "CPU s", "lower")
        best = rank_mapping.choose(every, options)
        assert best.plan is not None
        assert best.bound is not None
        ours_ms = 1e3 * rank_mapping.seconds(every, best.plan)
        blind_ms = 1e3 * rank_mapping.seconds(every, found.plan)
        yield Row(case, "every ring", ours_ms, blind_ms, "best for the first rings alone", "ms", "lower")
        yield Row(case, "every ring", ours_ms, 1e3 * best.bound.value, "our bound", "ms", "lower")
    yield Row("all of them", "worse than the annealing", worse, 0.0, reference, "count", "lower")


def mapping_problems(
    bandwidth: npt.NDArray[np.float64], pipelines: int, stages: int
) -> tuple[rank_mapping.MappingProblem, rank_mapping.MappingProblem]:
    """One mapping priced as Pipette does, with the ring of the first stages alone, and with all rings."""
    share = np.full(stages, LAYER_GRADIENT_BYTES / stages)
    share[[0, -1]] += EMBEDDING_GRADIENT_BYTES
    first = np.where(np.arange(stages) == 0, share, 0.0)
    every = rank_mapping.MappingProblem(
        bandwidth_bytes_per_s=bandwidth,
        pipelines=pipelines,
        stages=stages,
        activation_bytes=ACTIVATION_BYTES,
        gradient_bytes=share,
    )
    return replace(every, gradient_bytes=first), every


def zero_bubble_schedules(short: bool) -> Iterator[Row]:
    """The 14 cases that were polished before, then the paper's profiles under the rule."""
    warm_up()
    with (data_folder("training") / "zero_bubble_schedules.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    greedy, polished = "the authors' greedy, stored", "CP-SAT of 15-18 s, stored"
    worse = better = proven = 0
    for row in rows:
        if row["set"] == "paper" or row["schedule"].startswith("cp-sat"):
            continue
        same = [other for other in rows if all(other[name] == row[name] for name in CASE_FIELDS)]
        before = next(float(other["time"]) for other in same if other["schedule"].startswith("cp-sat"))
        asked = schedule_problem(row)
        started_cpu_s = time.process_time()
        found = cpsat.choose(asked, SolveOptions(time_limit_s=3.0 if short else 15.0))
        cpu_s = time.process_time() - started_cpu_s
        assert found.plan is not None
        assert found.bound is not None
        assert not check_schedule(asked, found.plan)
        ours, theirs = pipeline.span_s(asked, found.plan), float(row["time"])
        worse, better = worse + (ours > theirs), better + (ours < theirs)
        proven += found.status == "optimal"
        case = f"{row['model_or_case']} p{row['p']} m{row['m']} {row['mem_limit_in_p_units']}p"[:34]
        yield Row(case, "period", ours, theirs, greedy, "ticks", "lower")
        yield Row(case, "period", ours, before, polished, "ticks", "lower")
        yield Row(case, "period", ours, found.bound.value, "our bound", "ticks", "lower")
        yield Row(case, "CPU", cpu_s, None, "-", "CPU s", "lower")
    yield Row("14 cases", "longer than the greedy", worse, 0.0, greedy, "count", "lower")
    yield Row("14 cases", "shorter than the greedy", better, 4.0, "asked", "count", "higher")
    yield Row("14 cases", "proven optimal", proven, None, "-", "count", "higher")
    for row in rows:
        if row["set"] != "paper" or (short and int(row["p"]) * int(row["m"]) > 1024):
            continue
        asked = schedule_problem(row)
        plan = joined(asked, one_forward_one_backward(asked))
        if row["schedule"] != "1f1b":
            found_plan = zero_bubble.zero_bubble(asked)
            assert found_plan is not None
            plan = found_plan
        case = f"{row['model_or_case']} p{row['p']} m{row['m']} {row['schedule']}"[:34]
        ours = pipeline.span_s(asked, plan)
        yield Row(case, "period / stored", ours / float(row["time"]), 1.0, "the authors' scheduler", "ratio", "lower")
        yield Row(case, "period / bound", ours / period_bound_s(asked), 1.0, "our bound", "ratio", "lower")


#: Columns that tell cases of the schedule table apart.
CASE_FIELDS = ("set", "model_or_case", "p", "m", "mem_limit_in_p_units")
#: Relative speed of the stages in the uneven cases.
STAGES = {
    "last stage 1.3x": (1.0, 1.0, 1.0, 1.3),
    "two GPU classes 1,1,1.6,1.6": (1.0, 1.0, 1.6, 1.6),
    "slow first": (1.5, 1.0, 1.0, 1.0),
    "last 1.3x": (*[1.0] * 7, 1.3),
    "alternating 1,1.4": (1.0, 1.4) * 4,
}


def schedule_problem(row: dict[str, str]) -> pipeline.ScheduleProblem:
    """A case of the table; its times are ticks, whole after rounding, its bytes units of its own."""
    devices = int(row["p"])
    factor = np.array(STAGES.get(row["model_or_case"], (1.0,) * devices))
    ticks = [float(row[name].removesuffix("*prof")) for name in ("t_f", "t_b", "t_w")]
    return pipeline.ScheduleProblem(
        device=np.arange(devices),
        pass_s=np.round(np.outer(ticks, factor)),
        send_s=np.full(devices - 1, float(row["t_comm"])),
        until_backward_bytes=np.full(devices, -float(row["mem_b"])),
        until_weight_bytes=np.full(devices, -float(row["mem_w"])),
        capacity_bytes=np.full(devices, float(row["mem_limit_in_p_units"]) * devices * float(row["mem_f"])),
        micro_batches=int(row["m"]),
    )


def metis_stages(short: bool) -> Iterator[Row]:
    """4 T4 and 12 A100: both orders of types, every number of micro-batches; priced by Metis's own estimator."""
    data = stored("metis_case.json")
    estimator = MetisEstimator(data)
    for plan in metis_plans(data)[:10]:
        assert abs(estimator.step_ms(*plan[1:]) - plan[0]) < 1e-6, "the estimator is not the peer's"
    started_cpu_s = time.process_time()
    asked = [
        (order, micro, *estimator.problem(order, micro))
        for order in permutations(("T4", "A100"))
        for micro in (1, 2, 4, 8, 16, 32, 64, 128)
    ]
    asked = [one for one in asked if one[2]]
    place, found = uneven_stages.choose_among([one[3] for one in asked])
    cpu_s = time.process_time() - started_cpu_s
    order, micro, names, problem = asked[place]
    assert found.plan is not None
    assert found.bound is not None
    assert not uneven_stages.check(problem, found.plan)
    stages = found.plan.stages
    chosen = [names[stage.option] for stage in stages]
    print(f"order {order}, {micro} micro-batches, (device, dp, tp) {chosen}, layers {stages}", file=sys.stderr)
    cuts = [0, *(stage.last for stage in stages)]
    groups = [dp * tp for _, dp, tp in chosen]
    ours_ms = estimator.step_ms(order, groups, [(dp, tp) for _, dp, tp in chosen], micro, cuts)
    case = "4 T4 + 12 A100, 10 layers"
    yield Row(case, "step", ours_ms, metis_plans(data)[0][0], "Metis's best of 294, stored", "ms", "lower")
    yield Row(case, "step", ours_ms, data["exact_dp_best_cost"], "a prototype's program, stored", "ms", "lower")
    yield Row(
        case, "step by our own price", 1e3 * (found.claimed or 0.0), 1e3 * found.bound.value, "our bound", "ms", "lower"
    )
    yield Row(case, "CPU", cpu_s, 6.5, "Metis, stored", "CPU s", "lower")


def unequal_shares(short: bool) -> Iterator[Row]:
    """One data-parallel group of all 16 GPUs: sequences by speed, as Metis's balancer rounds them, and as we share."""
    estimator = MetisEstimator(stored("metis_case.json"))
    kinds = [kind for kind, count in estimator.GPUS.items() for _ in range(count)]
    unit_s = np.array([estimator.layer_ms(kind, 1, 1).sum() for kind in kinds]) / 1e3
    for batch in (24, 40, 64, 128):
        problem = shares.ShareProblem(
            unit_s=unit_s,
            fixed_s=np.zeros(unit_s.size),
            unit_bytes=np.zeros(unit_s.size),
            capacity_bytes=np.ones(unit_s.size),
            units=batch,
        )
        found = shares.choose(problem)
        assert found.plan is not None
        assert not shares.check(problem, found.plan)
        ours_s = shares.slowest_s(problem, found.plan)
        by_speed = in_proportion(batch, 1.0 / unit_s)
        plain_s = shares.slowest_s(problem, shares.even(problem))
        yield Row(
            f"{batch} sequences", "slowest GPU", ours_s, float((unit_s * by_speed).max()), "Metis's rule", "s", "lower"
        )
        yield Row(f"{batch} sequences", "slowest GPU", ours_s, plain_s, "equal parts", "s", "lower")


CASES = {
    "galvatron": galvatron_layers,
    "flexsp": flexsp_sequences,
    "pipette": pipette_mapping,
    "zero_bubble": zero_bubble_schedules,
    "metis": metis_stages,
    "shares": unequal_shares,
    "mixed": training_mixed.mixed,
    "calculon": training_search.calculon,
    "configurations": training_search.configurations,
    "scale": training_search.scale,
    "layers": training_layers.layers,
    "networks": training_layers.networks,
}

if __name__ == "__main__":
    main("training", CASES)
