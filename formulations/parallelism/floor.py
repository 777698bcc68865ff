"""What stands in the way of a latency limit that no worker keeps: the fastest of them, and what its time is made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from planner.cluster import Cluster
from planner.cost.serving.coefficients import DECODE_PARTS, Coefficients
from planner.cost.serving.judge import BOTTLENECKS
from planner.cost.serving.precision import kv_element_bytes, served
from planner.cost.serving.predict import ServingModel, ServingPlans
from planner.cost.serving.worker import ServingWorker
from planner.descriptions.parallel import ParallelInstance
from planner.model.spec import ModelSpec
from planner.parallel_plan import WorkerType
from planner.units import format_seconds


def floors(
    instance: ParallelInstance,
    cluster: Cluster,
    spec: ModelSpec,
    workers: Sequence[WorkerType],
    coefficients: Coefficients | None = None,
) -> Iterator[str]:
    """For each limit that no predicted worker keeps: the fastest one's time, its largest part, and the physical bound.

    The bound is what the hardware cannot go below whatever the engine does: for a token the weights that it uses, read
    once at the full memory bandwidth of the worker's GPUs; for a prompt its FLOP at their highest dense rate.
    """
    margin = 1.0 + instance.margin
    for name, limit, told in (
        ("ttft_s", instance.slo.ttft_s, _first_token),
        ("tpot_s", instance.slo.tpot_s, _next_token),
    ):
        timed = [one for one in workers if getattr(one, name) is not None]
        if limit is None or not timed or any(getattr(one, name) * margin <= limit for one in timed):
            continue
        fastest = min(timed, key=lambda one: float(getattr(one, name)))
        model = ServingModel([_worker(instance, cluster, spec, fastest)], coefficients)
        lead = f"the fastest, {fastest.name}, has a {name} of {format_seconds(getattr(fastest, name))}"
        yield f"{lead}; {told(model, fastest, instance)}"


def _worker(instance: ParallelInstance, cluster: Cluster, spec: ModelSpec, one: WorkerType) -> ServingWorker:
    precision = instance.precision or ""
    model = served(spec, precision, precision)
    acceptance = None if instance.speculation is None else instance.speculation.acceptance
    made = ServingWorker(
        model=model,
        device=cluster.device(one.device),
        backend=instance.backend,
        tensor_parallel_size=one.tensor_parallel_size,
        pipeline_parallel_size=one.pipeline_parallel_size,
        data_parallel_size=one.data_parallel_size,
        context_parallel_size=one.context_parallel_size,
        expert_parallel_size=one.expert_parallel_size,
        redundant_experts=one.redundant_experts,
        draft_tokens=one.draft_tokens,
        draft_acceptance=acceptance or 0.0,
        kv_element_bytes=kv_element_bytes(model, instance.backend),
        moe_tensor_parallel_size=_stage(one) // one.expert_parallel_size if model.num_moe_layers else 1,
    )
    assert not any(made.problems())
    return made


def _stage(one: WorkerType) -> int:
    return one.tensor_parallel_size * one.data_parallel_size * one.context_parallel_size


def _next_token(model: ServingModel, one: WorkerType, instance: ParallelInstance) -> str:
    load = instance.workload
    batch = float(one.max_batch_size or 1)
    parts = model.parts(ServingPlans.of(0, batch, load.input_tokens, load.output_tokens))
    step = {name: float(parts[name][0]) for name in DECODE_PARTS}
    largest = max(step, key=lambda name: step[name])
    worker = model.workers[0]
    read = worker.model.weight_bytes * worker.model.active_params_without_embedding / worker.model.total_params
    # Every attention rank reads its own weights, and stages come one after another.
    seconds = read / (worker.tensor_parallel_size * worker.device.hbm_bandwidth_bytes_per_s) / worker.tokens_per_step
    return (
        f"{step[largest] / sum(step.values()):.0%} of it is {BOTTLENECKS[largest]}; only to read the weights of a token"
        f" at the full bandwidth of {worker.tensor_parallel_size} {one.device} takes {format_seconds(seconds)}"
    )


def _first_token(model: ServingModel, one: WorkerType, instance: ParallelInstance) -> str:
    worker, prompt = model.workers[0], float(instance.workload.input_tokens)
    step = np.array([max(prompt, model.max_num_batched_tokens)])
    alone = float(model.prefill_s(np.zeros(1, dtype=np.intp), np.array([prompt]), np.ones(1), step)[0])
    flop = worker.model.linear_flops_per_token * prompt + float(worker.model.prompt_attention_flops(prompt))
    # Other attention ranks have other prompts, and stages come one after another.
    gpus = worker.tensor_parallel_size * worker.context_parallel_size
    seconds = flop / (gpus * max(worker.device.flop_per_s.values()))
    return (
        f"{alone / (one.ttft_s or 1.0):.0%} of it is the prompt itself; its FLOP at the highest rate of {gpus}"
        f" {one.device} alone take {format_seconds(seconds)}"
    )
