"""Judge one serving worker under one load: predictions with intervals, their parts, and broken budgets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from planner.cost.serving.intervals import source
from planner.cost.serving.memory import whole_tokens
from planner.cost.serving.predict import ServingModel, ServingPlans, ServingPrediction
from planner.cost.serving.sharding import cache_bytes
from planner.cost.serving.worker import ServingWorker
from planner.cost.verdict import Metric, Source, Verdict, Violation
from planner.units import format_bytes, format_seconds
from planner.workload import Slo

#: Parts of a token's time in the words of the report, with what to do when one of them is the bottleneck.
BOTTLENECKS = {
    "dense": "dense matrix products",
    "moe": "experts: their weights are read or multiplied",
    "all_reduce": "all-reduces of the tensor-parallel group",
    "dispatch": "tokens sent to the experts of other ranks",
    "cache": "reading the KV cache",
    "latent": "attention in the latent space",
    "state": "reading and writing recurrent states",
    "kernel_overhead": "launches and small kernels around the dense products",
    "moe_overhead": "launch overhead of the experts",
    "step_overhead": "scheduler overhead of a step",
    "sequence_overhead": "overhead of each sequence",
    "prefill_dense": "dense products of other sequences' prompts",
    "prefill_moe": "experts of other sequences' prompts",
    "prefill_communication": "communication of other sequences' prompts",
    "prefill_attention": "attention of other sequences' prompts",
}


@dataclass(frozen=True, slots=True)
class Load:
    """A closed loop: so many sequences at once, each with a prompt and an output of so many tokens."""

    concurrency: int
    input_tokens: int
    output_tokens: int


def evaluate_serving(model: ServingModel, index: int, load: Load, slo: Slo | None = None) -> Verdict:
    """Verdict of one compiled worker under one closed-loop load.

    Metrics: tpot, ttft, throughput and memory, then each part of a token's time (`tpot.*`) and of a GPU's memory
    (`memory.*`). Violations: a latency above its limit, a cache that cannot hold one sequence.
    """
    worker, memory = model.workers[index], model.memory[index]
    plans = ServingPlans.of([index], load.concurrency, load.input_tokens, load.output_tokens)
    found = model.predict(plans)
    origin = source(worker, model.coefficients)
    parts = {name: float(values[0]) for name, values in model.parts(plans).items()}
    speculation = found.tpot_s[0] / sum(parts.values())
    metrics = [
        _interval("tpot_s", found.tpot_s[0], model.coefficients.spread_of("tpot", worker), origin),
        _interval("ttft_s", found.ttft_s[0], model.coefficients.spread_of("ttft", worker), origin),
        Metric(name="step_s", value=found.step_s[0], unit="s", source=origin),
        _metric("output_tokens_per_s", found.output_tokens_per_s, "1/s", origin),
        _metric("output_tokens_per_s_per_gpu", found.output_tokens_per_s_per_gpu, "1/s", origin),
        _metric("running_sequences", found.running_sequences, "count", origin),
        _metric("admitted_sequences", found.admitted_sequences, "count", origin),
        _metric("memory_bytes", found.memory_bytes, "bytes", origin),
    ]
    metrics += [
        Metric(name=f"tpot.{name}", value=s * speculation, unit="s", source=origin) for name, s in parts.items()
    ]
    cache = found.memory_bytes[0] - memory.fixed_bytes
    sizes = {
        "weights": memory.weight_bytes,
        "activations": memory.activation_bytes,
        "runtime": memory.runtime_bytes,
        "cache": cache,
        "free": memory.usable_bytes - found.memory_bytes[0],
        "cache_capacity": max(memory.cache_capacity_bytes, 0.0),
    }
    metrics += [Metric(name=f"memory.{name}", value=size, unit="bytes", source=origin) for name, size in sizes.items()]
    worst = max(parts, key=lambda name: parts[name])
    return Verdict(
        metrics=tuple(metrics),
        violations=tuple(_violations(model, index, load, found, slo)),
        bottleneck=f"{BOTTLENECKS[worst]}: {parts[worst] / sum(parts.values()):.0%} of a token's time",
        assumptions=(
            "closed loop: every sequence that ends is replaced at once",
            f"cache elements of {8 * worker.kv_element_bytes:g} bits",
            *(("experts drawn as by a power law of 1.01",) if worker.model.num_moe_layers else ()),
            *worker.model.assumptions,
        ),
    )


def _metric(name: str, values: np.ndarray[tuple[int], np.dtype[np.float64]], unit: str, origin: Source) -> Metric:
    return Metric(name=name, value=float(values[0]), unit=unit, source=origin)


def _interval(name: str, value: float, factor: float, origin: Source) -> Metric:
    return Metric(name=name, value=value, unit="s", source=origin, low=value / factor, high=value * factor)


def _violations(
    model: ServingModel, index: int, load: Load, found: ServingPrediction, slo: Slo | None
) -> Iterator[Violation]:
    worker, memory = model.workers[index], model.memory[index]
    subject = f"{worker.model.name} on {worker.num_gpus} x {worker.device.name}"
    if found.admitted_sequences[0] < 1:
        need = _sequence_bytes(worker, load.input_tokens + load.output_tokens) + memory.fixed_bytes
        budget = memory.cache_capacity_bytes + memory.fixed_bytes
        yield Violation(
            rule="gpu_memory",
            subject=subject,
            message=f"one sequence needs {format_bytes(need)} on each GPU, the engine may use {format_bytes(budget)}; "
            + what_fits(model, index, load),
            amount=need,
            limit=budget,
            unit="bytes",
        )
    limits = {"ttft": (slo.ttft_s, found.ttft_s[0]), "tpot": (slo.tpot_s, found.tpot_s[0])} if slo else {}
    for name, (limit, value) in limits.items():
        if limit is not None and value > limit:
            yield Violation(
                rule=f"slo_{name}",
                subject=subject,
                message=f"{name.upper()} of {format_seconds(value)} is over the limit of {format_seconds(limit)}",
                amount=float(value),
                limit=limit,
                unit="s",
            )


def what_fits(model: ServingModel, index: int, load: Load) -> str:
    """What would fit instead of a load that does not: the longest sequence, or that weights alone are too large."""
    worker, memory = model.workers[index], model.memory[index]
    room = memory.cache_capacity_bytes
    if _sequence_bytes(worker, 1) > room:
        return f"weights and overheads alone take {format_bytes(memory.fixed_bytes)}: use more GPUs or narrower weights"
    low, high = 1, load.input_tokens + load.output_tokens
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _sequence_bytes(worker, middle) <= room else (low, middle)
    return f"sequences of up to {low} tokens in all fit"


def _sequence_bytes(worker: ServingWorker, tokens: int) -> float:
    """Cache of one sequence of so many tokens in all on each GPU."""
    return float(cache_bytes(worker, whole_tokens(worker.backend, tokens, 0)))
