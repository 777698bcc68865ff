"""What a reader of a serving prediction should know about its worker."""

from __future__ import annotations

from collections.abc import Iterator

from planner.cost.operators.gemm import QUANTS, arithmetic
from planner.cost.serving.curves import expert_quant
from planner.cost.serving.sharding import dense_gemms
from planner.cost.serving.worker import ServingWorker, is_moe


def widened(worker: ServingWorker) -> Iterator[str]:
    """Formats of weights that the device has no units for, which are therefore multiplied in wider ones."""
    quants = {one.quant for one in dense_gemms(worker)}
    quants |= {expert_quant(layer) for layer, _ in worker.model.layer_groups() if is_moe(layer)}
    for quant in sorted(quants):
        native, used = QUANTS[quant][1], arithmetic(worker.device, quant).dtype
        if native is not None and used != native:
            yield f"{worker.device.name} has no {native} units: {quant} weights are multiplied in {used}"


def memory_note(asked: float, running: float, admitted: float) -> str | None:
    """What the cache does to a load of `asked` sequences; None when all of them run."""
    if admitted < 1:
        return "not even one sequence fits the memory: predicted as if one did"
    if running < asked:
        return f"{running:.0f} of {asked:.0f} sequences run at once, the others wait"
    return None
