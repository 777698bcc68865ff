"""How much longer predicted latencies count against their limits, and up to where they therefore keep them."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

from formulations.parallelism.problem import FloatArray
from planner.cost.serving.intervals import COVERAGE
from planner.descriptions.parallel import ParallelInstance

#: Limits are relaxed by this share to see what that would bring.
RELAXED = 0.1
#: What rounding may make of a latency times its margin.
_ROUNDING = 1e-12


def margins(instance: ParallelInstance, factors: FloatArray) -> FloatArray:
    """Shares [W, 2] by which TTFT and TPOT count longer; factors [W, 2] : 80 % of measurements lie within 1/f .. f.

    With a confidence c the share is f^(z(c) / z(0.9)) - 1: 90 % of measurements lie below f, and the logarithm of the
    error is taken as normal.
    """
    if instance.slo_confidence is None:
        return np.full(factors.shape, instance.margin)
    normal = NormalDist()
    power = normal.inv_cdf(instance.slo_confidence) / normal.inv_cdf((1.0 + COVERAGE) / 2.0)
    return np.asarray(factors**power - 1.0)


def ceilings(instance: ParallelInstance, factors: FloatArray) -> list[FloatArray]:
    """The highest TTFT and TPOT, seconds [W, 2], that keep the limits, and those that keep each one relaxed."""
    asked = [np.inf if limit is None else limit for limit in (instance.slo.ttft_s, instance.slo.tpot_s)]
    looser = 1.0 + RELAXED
    limits = {tuple(asked), (looser * asked[0], asked[1]), (asked[0], looser * asked[1])}
    return [np.array(one) / (1.0 + margins(instance, factors)) * (1.0 - _ROUNDING) for one in sorted(limits)]
