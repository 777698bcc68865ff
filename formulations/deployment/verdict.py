"""The verdict on a deployment: its rules, how full workers and nodes are, and the cost model's word on every worker."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from formulations.deployment.check import check, check_alone
from formulations.deployment.problem import DeployProblem, Predicted
from formulations.deployment.rows import dearest
from formulations.gpu_fleet.verdict import judge as judge_fleet
from planner.cost.serving.judge import Load, evaluate_serving
from planner.cost.serving.predict import ServingPlans
from planner.cost.verdict import Metric, Verdict, Violation
from planner.deploy_plan import DeployedWorkers, DeployPlan

#: A prediction made twice may differ by rounding.
ROUNDING = 1e-6


def judge(problem: DeployProblem, plan: DeployPlan) -> Verdict:
    """Rules, cost, how full everything is, and latency and memory of each worker with each size that it serves."""
    broken = check(problem, plan)
    if broken:
        return Verdict(violations=tuple(broken))
    fleet = judge_fleet(problem.fleet, plan.fleet)
    metrics = [*_filling(plan), *fleet.metrics]
    for one in plan.experts:
        for name, value in one.imbalance.items():
            told = f"expert_imbalance[{one.service}, {one.worker}, {name}]"
            metrics.append(Metric(name=told, value=value, unit="busiest/mean", source="modelled"))
    violations: list[Violation] = []
    judged = 0
    for worker in plan.workers:
        predicted = problem.predicted.get((worker.service, worker.worker))
        if predicted is None:
            continue
        judged += 1
        for size in _sizes(plan, worker):
            found, wrong = _worker(predicted, worker, size)
            metrics += found
            violations += wrong
    untold = [f"{len(plan.workers) - judged} kinds of workers are from a table, whose latencies are not judged"]
    return Verdict(
        metrics=tuple(metrics),
        violations=tuple(violations),
        bottleneck=fleet.bottleneck,
        assumptions=(*fleet.assumptions, *(untold if judged < len(plan.workers) else ())),
    )


def _filling(plan: DeployPlan) -> Iterator[Metric]:
    """GPUs of the nodes in use, and the share of them in workers."""
    there = sum(row.count * row.gpus for row in plan.nodes)
    used = sum(len(pod.gpus) for pod in plan.pods)
    yield Metric(name="gpus_of_nodes", value=float(there), unit="count", source="modelled")
    yield Metric(name="gpus_in_workers", value=float(used), unit="count", source="modelled")


def _sizes(plan: DeployPlan, worker: DeployedWorkers) -> list[tuple[int, int]]:
    """Sizes of requests that a worker serves in the dearest hours."""
    rows = dearest(plan.fleet).assignment
    mine = [row for row in rows if (row.model, row.worker) == (worker.service, worker.worker) and row.fraction > 0]
    return list(dict.fromkeys((row.input_tokens, row.output_tokens) for row in mine))


def _worker(
    predicted: Predicted, worker: DeployedWorkers, size: tuple[int, int]
) -> tuple[list[Metric], list[Violation]]:
    """Latencies and memory of a worker that is full of one size, by the cost model; limits that these break."""
    model, told, slo = predicted.model, predicted.type, predicted.slo
    where = f"{worker.service}, {worker.worker}, {size[0]}/{size[1]}"
    if told.role == "prefill":
        return _prefill(predicted, where, size)
    load = Load(told.max_batch_size or 1, *size)
    limits = slo.model_copy(update={"percentile": None} | ({"ttft_s": None} if told.role == "decode" else {}))
    verdict = evaluate_serving(model, 0, load, limits if told.role == "both" else None)
    by_name = {one.name: one for one in verdict.metrics}
    tpot = by_name["tpot_s"]
    if told.role == "decode":
        # No prompts come between the tokens: a step of its batch alone.
        plans = ServingPlans.of([0], load.concurrency, *size)
        tokens = model.workers[0].tokens_per_step
        alone = float(np.asarray(model.predict(plans).step_s)[0]) / tokens
        tpot = Metric(name="tpot_s", value=alone, unit="s", source=tpot.source)
    kept = [tpot, by_name["memory_bytes"], *([by_name["ttft_s"]] if told.role == "both" else [])]
    wrong = [one.model_copy(update={"subject": where}) for one in verdict.violations if told.role == "both"]
    if told.role == "decode" and slo.tpot_s is not None and tpot.value > slo.tpot_s * (1 + ROUNDING):
        message = f"{where}: a token takes {tpot.value:.4g} s, the limit is {slo.tpot_s:g} s"
        wrong.append(Violation(rule="tpot_s", subject=where, message=message, amount=tpot.value, limit=slo.tpot_s))
    memory, usable = by_name["memory_bytes"].value, model.memory[0].usable_bytes
    if memory > usable * (1 + ROUNDING):
        message = f"{where}: {memory:.4g} bytes are needed on a GPU, {usable:.4g} are there"
        wrong.append(Violation(rule="memory", subject=where, message=message, amount=memory, limit=usable))
    return [one.model_copy(update={"name": f"{one.name}[{where}]"}) for one in kept], wrong


def _prefill(predicted: Predicted, where: str, size: tuple[int, int]) -> tuple[list[Metric], list[Violation]]:
    """A prompt alone, without its queue: what waits is in the rate that the worker is given."""
    model, told, slo = predicted.model, predicted.type, predicted.slo
    budget = np.full(1, float(told.max_num_batched_tokens or model.max_num_batched_tokens))
    zero, prompt = np.zeros(1, dtype=np.intp), np.full(1, float(size[0]))
    seconds = float(model.prefill_s(zero, prompt, np.ones(1), np.maximum(budget, 1.0))[0])
    metric = Metric(name=f"prefill_s[{where}]", value=seconds, unit="s", source="modelled")
    if slo.ttft_s is None or seconds <= slo.ttft_s * (1 + ROUNDING):
        return [metric], []
    message = f"{where}: a prompt alone takes {seconds:.4g} s, the limit is {slo.ttft_s:g} s"
    return [metric], [Violation(rule="ttft_s", subject=where, message=message, amount=seconds, limit=slo.ttft_s)]


def judge_alone(plan: DeployPlan) -> Verdict:
    """What needs no instance: nodes and pods are told once, and no device of a node is held twice."""
    assumption = "no instance given: prices, throughput, limits and free devices are not judged"
    return Verdict(violations=tuple(check_alone(plan)), assumptions=(assumption,))
