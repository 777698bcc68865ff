"""Judge one training plan: step time and memory by part, and whether the fullest GPU holds it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from planner.cost.training.coefficients import MemoryMargin, TrainingCoefficients
from planner.cost.training.communication import TrainingNetwork
from planner.cost.training.memory import TrainingMemory, training_memory
from planner.cost.training.model import TrainingModel
from planner.cost.training.plans import Recompute, TrainingPlans
from planner.cost.training.step import training_step
from planner.cost.verdict import Metric, Source, Verdict, Violation
from planner.hardware import DeviceKind
from planner.units import format_bytes

#: Parts of a step in the words of a report.
STEP_WORDS: Mapping[str, str] = {
    "compute": "kernels of the slowest stage",
    "tensor": "collectives of tensor parallelism",
    "context": "collectives of context parallelism",
    "expert": "tokens sent to experts and back",
    "pipeline": "sends between stages",
    "bubble": "waiting for other stages",
    "data": "data-parallel collectives that nothing hides",
    "optimizer": "optimizer step",
}
MEMORY_PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "working", "margin")


def evaluate_training(
    model: TrainingModel,
    device: DeviceKind,
    network: TrainingNetwork,
    plan: TrainingPlans,
    coefficients: TrainingCoefficients,
    margin: MemoryMargin,
    dtype: str = "bf16",
) -> Verdict:
    """Verdict of one plan; RefusedError when it is illegal, DescriptionError when the device lacks `dtype`.

    Metrics: step_s, tokens_per_s, mfu, memory_bytes of the fullest GPU, then each part of a step (`step.*`) and of
    that GPU's memory (`memory.*`). Violation: more memory than the device has.
    """
    if len(plan) != 1:
        raise ValueError("one plan is judged at a time")
    times, memory = (
        training_step(model, device, network, plan, coefficients, dtype),
        training_memory(model, plan, margin),
    )
    origin: Source = "calibrated" if coefficients.source == "calibrated" else "datasheet"
    num_gpus, usable = int(plan.num_gpus[0]), device.known_memory_bytes
    rate, total = float(times.tokens_per_s[0]), float(memory.total[0])
    parts = {name.removesuffix("_s"): float(seconds[0]) for name, seconds in times.parts.items()}

    def metric(name: str, value: float, unit: str) -> Metric:
        return Metric(name=name, value=value, unit=unit, source=origin)

    metrics = [
        metric("step_s", float(times.step_s[0]), "s"),
        metric("tokens_per_s", rate, "1/s"),
        metric("tokens_per_s_per_gpu", rate / num_gpus, "1/s"),
        metric("mfu", float(times.mfu[0]), "fraction"),
        metric("hfu", float(times.hfu[0]), "fraction"),
        metric("memory_bytes", total, "bytes"),
        *(metric(f"step.{name}", seconds, "s") for name, seconds in parts.items()),
        *(metric(f"memory.{name}", _first(getattr(memory, name)), "bytes") for name in MEMORY_PARTS),
        metric("memory.free", usable - total, "bytes"),
    ]
    worst = max(parts, key=lambda name: parts[name])
    subject = f"{model.name} on {num_gpus} x {device.name}"
    return Verdict(
        metrics=tuple(metrics),
        violations=tuple(_violations(model, plan, memory, margin, usable, subject)),
        bottleneck=f"{STEP_WORDS[worst]}: {parts[worst] / sum(parts.values()):.0%} of a step",
        assumptions=(
            "weights in 16 bits, fp32 master weights and two Adam moments; flash attention",
            f"links reach {coefficients.link_efficiency:.0%} of their bandwidth",
        ),
    )


def _first(values: npt.NDArray[np.float64]) -> float:
    return float(values[0])


def _violations(
    model: TrainingModel, plan: TrainingPlans, memory: TrainingMemory, margin: MemoryMargin, usable: float, subject: str
) -> Iterator[Violation]:
    total = _first(memory.total)
    if total <= usable:
        return
    told = f"stage {int(memory.stage[0])} needs {format_bytes(total)} on each GPU, which has {format_bytes(usable)}"
    yield Violation(
        rule="gpu_memory",
        subject=subject,
        message=f"{told}; {_what_fits(model, plan, margin, usable)}",
        amount=total,
        limit=usable,
        unit="bytes",
    )


def _what_fits(model: TrainingModel, plan: TrainingPlans, margin: MemoryMargin, usable: float) -> str:
    """The least change, among micro-batch, recomputation and ZeRO, that fits; each with those before it."""
    now = {name: int(getattr(plan, name)[0]) for name in ("micro_batch_size", "recompute", "zero_stage")}
    ways = [
        ("micro_batch_size", 1, "a micro-batch of 1"),
        ("recompute", int(Recompute.SELECTIVE), "selective recomputation"),
        ("recompute", int(Recompute.FULL), "full recomputation"),
        ("zero_stage", 3, "ZeRO stage 3"),
    ]
    words: list[str] = []
    for name, value, told in ways:
        if now[name] == value or (name != "micro_batch_size" and now[name] > value):
            continue
        now[name] = value
        words = [one for one in words if not (name == "recompute" and "recomputation" in one)] + [told]
        if _first(training_memory(model, _changed(plan, now), margin).total) <= usable:
            return f"{' with '.join(words)} fits"
    return "neither recomputation nor ZeRO stage 3 is enough: split over more GPUs"


def _changed(plan: TrainingPlans, values: Mapping[str, int]) -> TrainingPlans:
    return replace(plan, variants=(), **{name: np.array([value]) for name, value in values.items()})
