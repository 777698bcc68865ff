"""Serving plans: `python -m benchmarks.serving [--short] [--json] [--case NAME]`.

The peer is AIConfigurator 0.12.0: its own predictions as a candidate table, and its own rule of equal replicas.
"""

from __future__ import annotations

import csv
import gzip
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from benchmarks.common import Row, data_folder, main
from benchmarks.cost_model_serving import choices
from benchmarks.serving_deployments import deployments
from benchmarks.serving_drafts import drafts
from formulations import SolveOptions
from formulations.base import solve
from formulations.parallelism.baseline import best_uniform
from formulations.parallelism.formulation import PARALLELISM
from formulations.parallelism.pricing import DECODE_UTILISATION
from formulations.parallelism.problem import ParallelProblem
from formulations.parallelism.reading import ROLES
from planner.descriptions.parallel import ParallelInstance
from planner.parallel_plan import WorkerType

#: GPUs of the clusters, and limits of mean TTFT and TPOT, seconds.
CLUSTERS, LIMITS = (6, 8, 10, 12, 16, 20, 32), ((2.0, 0.030), (1.0, 0.020), (0.5, 0.050))
#: Sizes that are no power of two: replicas of the peer's rule leave GPUs over.
UNEVEN = (6, 10, 12, 20)
#: Share of its rate that a prefill worker is given. Source: AIConfigurator 0.12.0; documented.
PREFILL_UTILISATION = 0.90
#: What a first token takes on a prefill worker beside the prompt alone. Source: AIConfigurator 0.12.0; documented.
PREFILL_QUEUE = 1.8
#: Fields that two rows of one table have in common.
TABLE = ("model", "system", "backend", "isl", "osl")


def aic_grid(short: bool) -> Iterator[Row]:
    """The exact optimum against the peer's rule, both on the peer's own predictions; a cluster is one pool of GPUs."""
    gains: dict[int, list[float]] = defaultdict(list)
    solve_s: list[float] = []
    told_s: list[float] = []
    cpu_s: list[float] = []
    below = unproven = neither = ours_only = 0
    every_table = list(tables().values())
    for workers in every_table[:: 8 if short else 1]:
        for ttft_s, tpot_s in LIMITS:
            for gpus in CLUSTERS:
                problem = pool(workers, gpus, ttft_s, tpot_s)
                started_s = time.process_time()
                found = solve(PARALLELISM, problem, SolveOptions(time_limit_s=30.0))
                cpu_s.append(time.process_time() - started_s)
                rule = best_uniform(problem)
                solve_s.append(found.build_s + found.solve_s)
                told_s.append(solve_s[-1] + found.aside_s)
                unproven += found.status not in ("optimal", "infeasible")
                ours = 0.0 if found.plan is None else found.plan.requests_per_s
                theirs = 0.0 if rule is None else rule.requests_per_s
                below += ours < theirs * (1 - 1e-9)
                neither += not ours
                ours_only += ours > 0 and not theirs
                if theirs:
                    gains[gpus].append(100.0 * (ours / theirs - 1.0))
    every = [gain for found in gains.values() for gain in found]
    uneven = [gain for gpus in UNEVEN for gain in gains[gpus]]
    case, rule_name = f"{len(solve_s)} plans on peer's tables", "best uniform replicas, same table"
    yield Row(case, "below the rule", float(below), 0.0, rule_name, "count", "lower")
    yield Row(case, "not proven", float(unproven), 0.0, "asked", "count", "lower")
    yield Row(case, "no plan at these limits", float(neither), float(neither + ours_only), rule_name, "count", "lower")
    yield Row(case, "gain, mean", float(np.mean(every)), 0.0, rule_name, "%", "higher")
    yield Row(case, "gain, highest", max(every), 0.0, rule_name, "%", "higher")
    yield Row(case, "gain on 6, 10, 12, 20 GPUs, mean", float(np.mean(uneven)), 0.0, rule_name, "%", "higher")
    share = 100.0 * float(np.mean(np.array(uneven) > 1e-6))
    yield Row(case, "better on 6, 10, 12, 20 GPUs", share, None, "share of plans", "%", "higher")
    for gpus in CLUSTERS:
        yield Row(f"{gpus} GPUs", "gain, mean", float(np.mean(gains[gpus])), 0.0, rule_name, "%", "higher")
    yield Row(case, "solve, mean", float(np.mean(solve_s)), 1.0, "target", "s", "lower")
    yield Row(case, "solve, longest", max(solve_s), 1.0, "target", "s", "lower")
    for measure, seconds in (("with all that is told", told_s), ("the same in CPU time", cpu_s)):
        yield Row(case, f"{measure}, mean", float(np.mean(seconds)), None, "", "s", "lower")
        yield Row(case, f"{measure}, longest", max(seconds), None, "", "s", "lower")


def tables() -> Mapping[tuple[str, ...], list[WorkerType]]:
    """Worker types of each model, device, engine and lengths, from rows that fit into memory."""
    found: dict[tuple[str, ...], list[WorkerType]] = defaultdict(list)
    with gzip.open(
        data_folder("inference") / "aic_predictions_grid.csv.gz", "rt", encoding="utf-8", newline=""
    ) as file:
        for row in csv.DictReader(file):
            if row["oom"] == "0" and row["kv_oom"] == "0":
                found[tuple(row[name] for name in TABLE)] += _workers(row)
    return found


def _workers(row: Mapping[str, str]) -> Iterator[WorkerType]:
    """What a row is in each role, by the peer's factors on its rates.

    The grid has aggregated runs only: a decode worker's time per token is that of its row, so prompts slow it down that
    it would not have, and gains of disaggregation are smaller here than in the peer's own search.
    """
    gpus, ranks, batch, output = (int(row[name]) for name in ("gpus", "dp", "batch_per_dp_rank", "osl"))
    ttft_s, tpot_s = float(row["ttft_ms"]) / 1e3, float(row["tpot_ms"]) / 1e3
    shape = "-".join(row[name] for name in ("tp", "pp", "dp", "moe_tp", "moe_ep"))
    common = {
        "device": row["system"],
        "num_gpus": gpus,
        "tensor_parallel_size": int(row["tp"]),
        "pipeline_parallel_size": int(row["pp"]),
        "data_parallel_size": ranks,
        "expert_parallel_size": int(row["moe_ep"]),
        "max_batch_size": batch * ranks,
    }
    rate = float(row["tokens_s_gpu"]) * gpus / output
    both = {"ttft_s": ttft_s, "tpot_s": tpot_s}
    yield WorkerType(name=f"both {shape} b{batch}", role="both", requests_per_s=rate, **both, **common)
    rate = DECODE_UTILISATION * batch * ranks / (tpot_s * output)
    yield WorkerType(name=f"decode {shape} b{batch}", role="decode", requests_per_s=rate, tpot_s=tpot_s, **common)
    if batch == 1:
        rate, late_s = PREFILL_UTILISATION * ranks / ttft_s, PREFILL_QUEUE * ttft_s
        yield WorkerType(name=f"prefill {shape}", role="prefill", requests_per_s=rate, ttft_s=late_s, **common)


def pool(workers: list[WorkerType], gpus: int, ttft_s: float, tpot_s: float) -> ParallelProblem:
    """A table on one pool of GPUs: nodes of one GPU each, of which a worker takes as many as it needs."""
    late = np.array([one.ttft_s is not None and one.ttft_s > ttft_s for one in workers])
    slow = np.array([one.tpot_s is not None and one.tpot_s > tpot_s for one in workers])
    size = np.array([one.num_gpus for one in workers])
    return ParallelProblem(
        name="pool",
        sha256="",
        workers=tuple(workers),
        usable=~late & ~slow,
        role=np.array([ROLES[one.role] for one in workers]),
        rate=np.array([one.requests_per_s for one in workers]),
        gpus=size,
        device=np.zeros(len(workers), dtype=np.int64),
        price=np.zeros(len(workers)),
        watts=np.zeros(len(workers)),
        device_names=(workers[0].device,),
        nodes=np.array([gpus]),
        node_gpus=np.array([1]),
        goal="throughput",
        target_per_s=None,
        input_tokens=1,
        output_tokens=1,
        ttft_s=ttft_s,
        tpot_s=tpot_s,
    )


#: Model, device, nodes of 8, weights, target in seconds.
COLD = (
    ("meta-llama/Llama-3.1-70B-Instruct", "h200_sxm", 1, None, 3.0),
    ("meta-llama/Llama-3.1-70B-Instruct", "h100_sxm", 2, "fp8", 3.0),
    ("Qwen/Qwen3-235B-A22B", "h200_sxm", 4, "fp8", 10.0),
    ("Qwen/Qwen3-235B-A22B", "h100_sxm", 32, "fp8", 10.0),
    ("deepseek-ai/DeepSeek-R1", "h200_sxm", 4, None, 10.0),
    ("deepseek-ai/DeepSeek-R1", "h200_sxm", 32, None, 10.0),
)
#: What a cold process runs; prints seconds of the stages, worker types, and its peak memory in bytes.
COLD_RUN = """
import json, resource, sys, time
started = time.perf_counter()
from formulations.planning import load_problem, plan
from planner.descriptions.parallel import ParallelInstance
instance = ParallelInstance.model_validate(json.loads(sys.argv[1]))
imported = time.perf_counter()
problem = load_problem(instance)
read = time.perf_counter()
found = plan(problem)
print(json.dumps({
    "import": imported - started, "workers": read - imported, "search": time.perf_counter() - read,
    "cpu": time.process_time(), "types": len(problem.workers),
    "bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    "status": found.outcome.status, "gap": found.outcome.gap,
}))
"""


def end_to_end(short: bool) -> Iterator[Row]:
    """Seconds of a fresh process, from an instance to a judged plan with its runners-up."""
    for model, device, nodes, precision, target_s in COLD[:: 3 if short else 1]:
        instance = _instance(model, device, nodes, precision=precision, slo={"ttft_s": 2.0, "tpot_s": 0.03})
        text = instance.model_dump_json(exclude_defaults=True)
        started = time.perf_counter()
        printed = subprocess.run([sys.executable, "-c", COLD_RUN, text], check=True, capture_output=True, text=True)
        wall_s = time.perf_counter() - started
        # HiGHS may print a line of its own.
        found = json.loads(next(line for line in printed.stdout.splitlines() if line.startswith("{")))
        case = f"{model.split('/')[-1]}, {8 * nodes} {device}"
        yield Row(case, "cold process", wall_s, target_s, "target", "s", "lower")
        for stage in ("import", "workers", "search"):
            yield Row(case, f"  of which {stage}", found[stage], None, "", "s", "lower")
        yield Row(case, "the whole process in CPU time", found["cpu"], None, "", "s", "lower")
        yield Row(case, "worker types", float(found["types"]), None, "", "count", "higher")
        yield Row(case, "peak memory", found["bytes"] / 2**30, 2.0, "target", "GiB", "lower")
        proven = found["status"] == "optimal"
        yield Row(case, "proven optimal", float(proven), 1.0, "asked", "count", "higher")


def _instance(model: str, device: str, nodes: int, **more: Any) -> ParallelInstance:
    load = more.pop("workload", {"input_tokens": 4000, "output_tokens": 1000})
    group = {"device": device, "count": nodes, "gpus_per_node": 8}
    return ParallelInstance.model_validate(
        {"name": "cold", "model": model, "cluster": {"nodes": [group]}, "workload": load, **more}
    )


CASES: dict[str, Callable[[bool], Iterable[Row]]] = {
    "aic_grid": aic_grid,
    "measured": choices,
    "end_to_end": end_to_end,
    "deployments": deployments,
    "drafts": drafts,
}

if __name__ == "__main__":
    main("serving", CASES)
