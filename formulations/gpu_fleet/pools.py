"""How much load a pool of replicas may carry: small pools keep more slack than large ones.

Requests to a pool are a random part of all requests, so the load that arrives in a window of W seconds swings about its
mean a (in replicas) with a standard deviation of sqrt(a w / W), w the load of a typical request in replica-seconds: the
variance of a Poisson count. (A stream that swings of itself, thinned, has the variance of its own swing and that of
independent arrivals; the first is `headroom` or `burst`, the same share for every pool.) A pool of n replicas holds the
load of a share q of the windows where

    a + beta sqrt(a) <= n,    beta = z(q) sqrt(w / W)        square-root staffing

so it may carry  c(n) = n + beta^2 / 2 - beta sqrt(n + beta^2 / 4), a convex function. The rule of this problem is the
largest of its tangents at 1, 2, 4, 8, ... replicas: exact there, below c(n) elsewhere, and linear by parts.

Reference: Halfin and Whitt, Operations Research 29 (1981), for square-root staffing.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

from formulations.gpu_fleet.problem import FloatArray


def slack_of(throughput: FloatArray, rate: FloatArray, window_s: float, quantile: float) -> FloatArray:
    """beta of each configuration, [C]; throughput [D, C] requests/s, rate [D] the mean of each bucket's requests/s.

    w is that of the demand's own mix of the buckets that the configuration serves, weighted by their load.
    """
    possible = throughput > 0
    each_s = np.where(possible, 1.0 / np.where(possible, throughput, 1.0), 0.0)
    load = rate @ each_s
    typical_s = np.where(load > 0, rate @ each_s**2 / np.where(load > 0, load, 1.0), 0.0)
    return np.asarray(max(0.0, NormalDist().inv_cdf(quantile)) * np.sqrt(typical_s / window_s))


def tangents(slack: float, most: float) -> tuple[FloatArray, FloatArray]:
    """Slopes and intercepts of the rule's parts up to so many replicas, [parts] each."""
    at = 2.0 ** np.arange(int(np.ceil(np.log2(max(1.0, most)))) + 1)
    root = np.sqrt(at + slack**2 / 4)
    slope = 1 - slack / (2 * root)
    return slope, at + slack**2 / 2 - slack * root - slope * at


def capacity(slack: float, replicas: float) -> float:
    """Load that so many replicas of a pool may carry, in replicas."""
    if replicas <= 0:
        return 0.0
    slope, start = tangents(slack, replicas)
    return float((slope * replicas + start).max())


def replicas_for(slack: float, load: float) -> int:
    """Fewest replicas that may carry a load."""
    if load <= 0:
        return 0
    count = int(np.ceil(load - 1e-9))
    step = 1
    while capacity(slack, count + step) < load * (1 - 1e-9):
        step *= 2
    low = count if capacity(slack, count) < load * (1 - 1e-9) else count - 1
    high = count + step if low == count else count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if capacity(slack, middle) < load * (1 - 1e-9) else (low, middle)
    return max(1, high)
