"""Robust fit of a few coefficients to positive measurements: log residuals, soft-L1 loss, Gaussian priors.

The objective, with z = log(predicted / observed) / residual_sd and s = soft_scale, is

    sum_i weight_i * s^2 * (sqrt(1 + (z_i / s)^2) - 1)  +  1/2 sum_k ((params_k - prior_mean_k) / prior_sd_k)^2

which is half the squared residual near zero and linear far away, so that one odd row moves nothing much. It is
minimised by Gauss-Newton on reweighted residuals with a numeric Jacobian and step halving.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

#: Step of the central differences, as a share of max(prior_sd, |param|) capped at 1: cube root of the float epsilon.
_DIFFERENCE = 6e-6
#: Gauss-Newton stops when a step would lower the objective by less than this share of itself.
_TOLERANCE = 1e-10
_MOST_STEPS = 100
_MOST_HALVINGS = 30


@dataclass(frozen=True)
class FitResult:
    """The solution of a robust fit.

    params : coefficients, [K].
    sd : standard deviation of each, from data and prior together, [K].
    residuals : log(predicted / observed) of each row at the solution, [N].
    converged : False when the step limit ended the search.
    """

    params: FloatArray
    sd: FloatArray
    residuals: FloatArray
    converged: bool

    @property
    def mape(self) -> float:
        """Mean of |predicted / observed - 1|, as a fraction."""
        return float(np.abs(np.expm1(self.residuals)).mean())

    @property
    def bias(self) -> float:
        """Mean of predicted / observed - 1, as a fraction."""
        return float(np.expm1(self.residuals).mean())


def fit_log(
    predict: Callable[[FloatArray], FloatArray],
    observed: npt.ArrayLike,
    prior_mean: npt.ArrayLike,
    prior_sd: npt.ArrayLike,
    *,
    residual_sd: float = 0.1,
    soft_scale: float = 1.0,
    weights: npt.ArrayLike | None = None,
) -> FitResult:
    """Fit params [K] so that predict(params) [N] matches `observed` [N]; both must be positive.

    The parameters are whatever `predict` makes of them; logarithms of multipliers keep multipliers positive.

    prior_mean, prior_sd : Gaussian prior of each parameter, [K]; an infinite sd means no prior.
    residual_sd : expected relative error of a row.
    soft_scale : residuals beyond so many residual_sd count linearly.
    weights : non-negative weight of each row, [N]; 1 by default. Weights of 1 / (rows of the cluster) count clusters.

    Raises ValueError for observations or first predictions that are not positive and finite, and for priors that
    do not match.
    """
    seen = np.asarray(observed, dtype=np.float64)
    mean = np.asarray(prior_mean, dtype=np.float64)
    spread = np.asarray(prior_sd, dtype=np.float64)
    weight = np.ones(seen.shape) if weights is None else np.asarray(weights, dtype=np.float64)
    _check(seen, mean, spread, weight, residual_sd, soft_scale)
    log_seen = np.log(seen)
    step = _DIFFERENCE * np.minimum(1.0, np.maximum(spread, np.abs(mean)))

    def scaled(params: FloatArray) -> FloatArray | None:
        predicted = np.asarray(predict(params), dtype=np.float64)
        if predicted.shape != seen.shape:
            raise ValueError(f"predict returned shape {predicted.shape}, observed has {seen.shape}")
        if not (np.isfinite(predicted) & (predicted > 0)).all():
            return None
        return (np.log(predicted) - log_seen) / residual_sd

    def objective(params: FloatArray, z: FloatArray) -> float:
        soft = soft_scale**2 * (np.sqrt(1.0 + (z / soft_scale) ** 2) - 1.0)
        return float((weight * soft).sum() + 0.5 * (((params - mean) / spread) ** 2).sum())

    params = mean.copy()
    start = scaled(params)
    if start is None:
        raise ValueError("predict returned values that are not positive and finite at the prior mean")
    z, value = start, objective(params, start)
    converged = False
    for _ in range(_MOST_STEPS):
        gradient, curvature = _normal_equations(scaled, params, z, step, weight, soft_scale, mean, spread)
        move = -np.linalg.lstsq(curvature, gradient, rcond=None)[0]
        if -(gradient @ move) <= _TOLERANCE * (1.0 + value):
            converged = True
            break
        for _ in range(_MOST_HALVINGS):
            trial = scaled(params + move)
            if trial is not None and objective(params + move, trial) < value:
                params, z, value = params + move, trial, objective(params + move, trial)
                break
            move = move / 2.0
        else:
            converged = True  # no smaller step helps: the objective is flat to the last digits
            break
    _, curvature = _normal_equations(scaled, params, z, step, weight, soft_scale, mean, spread)
    sd = np.sqrt(np.diag(np.linalg.pinv(curvature)))
    return FitResult(params=params, sd=sd, residuals=z * residual_sd, converged=converged)


def _normal_equations(
    scaled: Callable[[FloatArray], FloatArray | None],
    params: FloatArray,
    z: FloatArray,
    step: FloatArray,
    weight: FloatArray,
    soft_scale: float,
    mean: FloatArray,
    spread: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """Gradient [K] and Gauss-Newton curvature [K, K] of the objective at params."""
    jacobian = np.empty((z.size, params.size))
    for k in range(params.size):
        offset = np.zeros(params.size)
        offset[k] = step[k]
        up, down = scaled(params + offset), scaled(params - offset)
        if up is None or down is None:
            raise ValueError(f"predict returned values that are not positive and finite near parameter {k}")
        jacobian[:, k] = (up - down) / (2.0 * step[k])
    row = weight / np.sqrt(1.0 + (z / soft_scale) ** 2)
    precision = 1.0 / spread**2
    gradient = jacobian.T @ (row * z) + precision * (params - mean)
    curvature = jacobian.T @ (row[:, None] * jacobian) + np.diag(precision)
    return gradient, curvature


def _check(
    seen: FloatArray, mean: FloatArray, spread: FloatArray, weight: FloatArray, residual_sd: float, soft_scale: float
) -> None:
    if seen.ndim != 1 or not seen.size:
        raise ValueError("observed must be a list of at least one value")
    if not (np.isfinite(seen) & (seen > 0)).all():
        raise ValueError("observed values must be positive and finite")
    if mean.ndim != 1 or spread.shape != mean.shape:
        raise ValueError("prior_mean and prior_sd must be lists of the same length")
    if not (spread > 0).all():
        raise ValueError("prior_sd must be positive")
    if weight.shape != seen.shape or not (np.isfinite(weight) & (weight >= 0)).all():
        raise ValueError("weights must be non-negative, one for each observed value")
    if not (residual_sd > 0 and soft_scale > 0):
        raise ValueError("residual_sd and soft_scale must be positive")
