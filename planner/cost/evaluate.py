"""Judge a plan from its decisions alone: metrics, broken budgets, bottleneck, assumptions."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from planner.cost.expert_parallel import balancedness, fanout, gpu_load, hottest, simulate_chain
from planner.cost.expert_step import ExpertStep, ExpertTimes, expert_times
from planner.cost.verdict import Metric, Source, Verdict, Violation
from planner.experts_plan import ExpertPlacement
from planner.units import format_bytes
from planner.workload import FloatArray, RoutingTrace


def evaluate_expert_placement(
    plan: ExpertPlacement,
    loads: Mapping[str, FloatArray],
    *,
    speed: FloatArray | None = None,
    trace: RoutingTrace | None = None,
    expert_bytes: float | None = None,
    gpu_memory_bytes: float | None = None,
    step: ExpertStep | None = None,
) -> Verdict:
    """Verdict of an expert placement.

    loads : tokens [num_layers, num_experts] by scenario name; speed : relative GPU speeds [num_gpus].
    The time of a layer is that of its slowest GPU, in units of the same layer spread evenly; with `step` in seconds
    too, with the exchange of tokens. expert_bytes follows from `step` where it is not given.
    """
    rows, num_experts = plan.array, plan.num_experts
    gpu_speed = np.ones(plan.num_gpus) if speed is None else speed
    assumptions = [
        f"replicas share tokens by {'even split' if plan.split == 'even' else 'the per-batch LP'}",
        "a layer waits for its slowest GPU; time is proportional to tokens",
        "loads stay as recorded",
    ]
    metrics = []
    worst: tuple[float, str] = (0.0, "")
    for name, counts in loads.items():
        load = gpu_load(counts[None], rows, gpu_speed, plan.split)
        balance = balancedness(load, gpu_speed)[0]
        time = hottest(load, gpu_speed)[0]
        mean = counts.sum(axis=1) / gpu_speed.sum()
        stretch = float(time.sum() / mean.sum())
        metrics.append(_metric(f"balancedness_mean[{name}]", float(balance.mean()), "ratio"))
        metrics.append(_metric(f"balancedness_worst[{name}]", float(balance.min()), "ratio"))
        metrics.append(_metric(f"expert_time_over_even[{name}]", stretch, "ratio"))
        layer = int(balance.argmin())
        gpu = int((load[0, layer] / gpu_speed).argmax())
        if step is not None:
            metrics += _step_metrics(name, expert_times(plan, counts, gpu_speed, step), step.source)
        loss = 1.0 - float(balance[layer])
        if loss >= worst[0]:
            stretched = 1 / max(float(balance[layer]), 1e-12)
            worst = (loss, f"layer {plan.layer_ids[layer]}, GPU {gpu} under {name}: {stretched:.3f}x the mean")
    if trace is not None and trace.num_layers == len(rows):
        crossed, crossed_node, local_load = simulate_chain(rows, trace, num_experts, plan.num_gpus, plan.gpus_per_node)
        remote_gpus, remote_nodes = fanout(rows, trace, num_experts, plan.num_gpus, plan.gpus_per_node)
        metrics += [
            _metric("cross_gpu_fraction", float(crossed.mean()) if crossed.size else 0.0, "fraction"),
            _metric("cross_node_fraction", float(crossed_node.mean()) if crossed.size else 0.0, "fraction"),
            _metric("fanout_remote_gpus", float(remote_gpus.mean()), "count"),
            _metric("fanout_remote_nodes", float(remote_nodes.mean()), "count"),
            _metric("balancedness_mean_local_first", float(balancedness(local_load, gpu_speed).mean()), "ratio"),
        ]
        assumptions.append("crossings follow each token's best expert; the nearest replica serves")
        assumptions.append("fan-out counts all k experts from a token whose own GPU is any GPU alike")
    if step is not None:
        assumptions.append(
            f"a pass of {step.tokens:g} tokens on {step.device.name}, {step.quant} experts, data-parallel attention"
        )
        expert_bytes = step.expert_bytes if expert_bytes is None else expert_bytes
    violations = []
    if expert_bytes is not None:
        need = expert_bytes * plan.num_slots / plan.num_gpus * len(rows)
        metrics.append(_metric("expert_memory_per_gpu", need, "bytes"))
        if gpu_memory_bytes is not None and need > gpu_memory_bytes:
            message = f"experts need {format_bytes(need)} on each GPU, {format_bytes(gpu_memory_bytes)} are there"
            violations.append(
                Violation(
                    rule="gpu_memory",
                    subject="every GPU",
                    message=message,
                    amount=need,
                    limit=gpu_memory_bytes,
                    unit="bytes",
                )
            )
    return Verdict(
        metrics=tuple(metrics),
        violations=tuple(violations),
        bottleneck=worst[1] or None,
        assumptions=tuple(assumptions),
    )


def _step_metrics(scenario: str, times: ExpertTimes, source: Source) -> list[Metric]:
    """Seconds of all layers: the slowest GPUs, the same spread evenly, the exchange, and the two together."""
    values = {
        "expert_time_s": float(times.layer_s.sum()),
        "expert_time_even_s": float(times.even_layer_s.sum()),
        "all_to_all_time_s": times.exchange_s,
        "expert_step_s": times.total_s,
    }
    return [Metric(name=f"{name}[{scenario}]", value=value, unit="s", source=source) for name, value in values.items()]


def _metric(name: str, value: float, unit: str) -> Metric:
    return Metric(name=name, value=value, unit=unit, source="modelled")
