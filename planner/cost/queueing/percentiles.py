"""Percentiles of a waiting time from its mean, its standard deviation and the least it can be: a shifted gamma."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from planner.cost.queueing.step_times import FloatArray, refuse

#: log10 of the gamma shapes at which quantiles are tabulated; outside, held at the edge (below 0.02 the tail is that of
#: a rare event, above 1e4 the distribution is a point).
_LOG_SHAPES = np.linspace(-1.7, 4.0, 115)


def shifted_gamma(mean: FloatArray, deviation: FloatArray, least: FloatArray, percentile: float) -> FloatArray:
    """Quantile of least + Gamma with this mean and standard deviation, elementwise; inf where the mean is.

    percentile : a fraction above 0 and below 1 (0.99 is P99).
    """
    refuse(not 0 < percentile < 1, "percentile must be a fraction above 0 and below 1, such as 0.99")
    finite = np.isfinite(mean) & np.isfinite(deviation)
    above = np.where(finite, np.maximum(mean - least, 0.0), 1.0)
    spread = np.where(finite, deviation, 1.0)
    certain = (spread <= 1e-12 * above) | (above <= 0)
    shape = (above / np.where(certain, 1.0, spread)) ** 2
    scaled = np.interp(np.log10(np.maximum(shape, 1e-300)), _LOG_SHAPES, _standard_quantiles(percentile))
    value = np.where(certain, above, above * scaled)
    return np.where(finite, least + value, np.inf)


@lru_cache(maxsize=32)
def _standard_quantiles(percentile: float) -> FloatArray:
    """Quantile over mean of Gamma(shape), at the tabulated shapes, by bisection on the distribution."""
    shapes = 10**_LOG_SHAPES
    low, high = np.full(shapes.shape, -700.0), np.full(shapes.shape, math.log(1e3))
    for _ in range(60):
        middle = (low + high) / 2
        below = _gamma_cdf(shapes, shapes * np.exp(middle)) < percentile
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.asarray(np.exp((low + high) / 2))


def _gamma_cdf(shape: FloatArray, x: FloatArray) -> FloatArray:
    """P(Gamma(shape, 1) <= x): the power series of the lower incomplete gamma function (Abramowitz & Stegun 6.5.29)."""
    log_gamma = np.array([math.lgamma(value) for value in shape])
    with np.errstate(under="ignore"):
        # The series needs about x terms; beyond ten deviations above the mean the answer is one.
        far = x > shape + 10 * np.sqrt(shape) + 40
        held = np.where(far, shape, x)
        term = 1 / shape
        total = term
        for k in range(1, int(np.max(held)) + 400):
            term = term * held / (shape + k)
            total = total + term
            if np.max(term / total) < 1e-12:
                break
        value = total * np.exp(shape * np.log(np.maximum(held, 1e-300)) - held - log_gamma)
    return np.where(far, 1.0, np.minimum(value, 1.0))
