"""Pipelines: how long the schedule idles, and how many micro-batches a stage keeps.

Bubbles of the zero-bubble schedules follow the paper's own scheduler (sail-sg, arXiv 2401.10241) on its published
profiles; `tests/planner/cost/training/test_training_pipeline.py` holds the times it returned.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from planner.cost.training.plans import Schedule
from planner.cost.training.sizes import PlanSizes

FloatArray = npt.NDArray[np.float64]

#: Sends that each further stage adds to a zero-bubble schedule: there and back, to fill and to drain.
ZERO_BUBBLE_SENDS = 4.0


@dataclass(frozen=True)
class Idle:
    """Seconds of a step in which the slowest stage waits, [n]: for other stages, and for sends between them."""

    bubble_s: FloatArray
    send_s: FloatArray


def idle(sizes: PlanSizes, slowest_s: FloatArray, sum_s: FloatArray, weight_s: FloatArray, send_s: FloatArray) -> Idle:
    """Waiting of the slowest stage, which itself works micro_batches x slowest_s.

    slowest_s, sum_s : forward and backward of one micro-batch on the slowest stage, and summed over stages.
    weight_s : the slowest stage's share of that for weight gradients, which zero-bubble schedules can delay.
    send_s : one send of activations or gradients to the next stage.

    GPipe and 1F1B        sum - max                          and 2 sends a micro-batch
    interleaved           (sum - max) / v                    and 2 v sends a micro-batch
    ZB-1p                 (sum - max)(1 - 2 w)               and 4 sends for each further stage; w = weight / max
    ZB-2p                 (sum - max)(1 - w) - m x weight    and the same sends, both not below 0
    ZB-V                  (sum - max)(1 - 3 w)               and the same sends, not below 0
    """
    others = sum_s - slowest_s
    pipelined = sizes.pipeline > 1.0
    sends = np.where(pipelined, 2.0 * sizes.micro_batches * sizes.virtual * send_s, 0.0)
    bubble = others / sizes.virtual
    if not sizes.zero_bubble.any():
        return Idle(bubble, sends)
    schedule = sizes.schedule
    share = weight_s / slowest_s
    far = ZERO_BUBBLE_SENDS * (sizes.pipeline - 1.0) * send_s
    delayed = np.maximum(others * (1.0 - share) + far - sizes.micro_batches * weight_s, 0.0)
    zero = np.select(
        [schedule == Schedule.ZB_1P, schedule == Schedule.ZB_2P],
        [others * np.maximum(1.0 - 2.0 * share, 0.0), np.maximum(delayed - far, 0.0)],
        others * np.maximum(1.0 - 3.0 * share, 0.0),
    )
    zero_sends = np.where(schedule == Schedule.ZB_2P, np.minimum(far, delayed), far)
    return Idle(np.where(sizes.zero_bubble, zero, bubble), np.where(sizes.zero_bubble, zero_sends, sends))


def in_flight(sizes: PlanSizes, index: FloatArray) -> FloatArray:
    """Micro-batches whose activations stage `index` [classes, n] keeps at its peak, as counts of the whole stage.

    GPipe keeps all m; 1F1B p - i; interleaved ((v + 1) p - 1 - 2 i) / v, as Megatron's warm-up has it; ZB-1p and ZB-V
    p on every stage; ZB-2p 2 p - 1 on every stage; never more than m.
    """
    p, v, m = sizes.pipeline, sizes.virtual, sizes.micro_batches
    kept = np.where(v > 1.0, ((v + 1.0) * p - 1.0 - 2.0 * index) / v, p - index)
    if sizes.zero_bubble.any():
        kept = np.where(sizes.zero_bubble, np.where(sizes.schedule == Schedule.ZB_2P, 2.0 * p - 1.0, p), kept)
    return np.where(sizes.schedule == Schedule.GPIPE, m, np.minimum(kept, m))
