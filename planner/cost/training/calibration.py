"""Fit the training coefficients to measured step times, and the memory margin to measured peaks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from planner.cost.robust_fit import FitResult, fit_log
from planner.cost.training.coefficients import MemoryMargin, TrainingCoefficients
from planner.cost.training.communication import TrainingNetwork
from planner.cost.training.memory import training_memory
from planner.cost.training.model import TrainingModel
from planner.cost.training.plans import TrainingPlans
from planner.cost.training.step import training_step
from planner.hardware import DeviceKind

FloatArray = npt.NDArray[np.float64]

#: Coefficients that are fitted, each by a multiplier on its prior.
FITTED = ("gemm_efficiency", "attention_efficiency", "traffic", "link_efficiency")
#: Standard deviations of the log multipliers: how far frameworks on known GPUs lie apart.
PRIOR_SD = (0.25, 0.4, 0.5, 0.5)
#: Expected relative error of a step time that is not the coefficients' fault.
RESIDUAL_SD = 0.05
#: Prior of the memory margin's fixed_bytes, states_factor and activations_factor: an allocator's and NCCL's usual
#: gigabytes, and formulas that are right; and their standard deviations as log multipliers.
MARGIN_PRIOR = MemoryMargin(fixed_bytes=8e9, states_factor=1.05, activations_factor=1.05)
MARGIN_SD = (0.4, 0.08, 0.08)


@dataclass(frozen=True, eq=False)
class MeasuredSteps:
    """Measured step times [n] of plans of one model on one cluster."""

    model: TrainingModel
    device: DeviceKind
    network: TrainingNetwork
    plans: TrainingPlans
    step_s: FloatArray
    dtype: str = "bf16"

    def predicted_s(self, coefficients: TrainingCoefficients) -> FloatArray:
        """Predicted step times, [n]."""
        return training_step(self.model, self.device, self.network, self.plans, coefficients, self.dtype).step_s


@dataclass(frozen=True, eq=False)
class MeasuredPeaks:
    """Measured peak memory [n] of the fullest GPU for plans of one model."""

    model: TrainingModel
    plans: TrainingPlans
    peak_bytes: FloatArray


def fit_training(
    measured: Sequence[MeasuredSteps], prior: TrainingCoefficients, weights: npt.ArrayLike | None = None
) -> tuple[TrainingCoefficients, FitResult]:
    """Coefficients of one GPU and framework from its step times, and the fit with its residuals in the given order.

    prior : what the multipliers start from; `overlap` is kept as it is.
    weights : of each measurement, all batches one after the other; 1 by default.
    """
    observed = np.concatenate([batch.step_s for batch in measured])

    def predict(params: FloatArray) -> FloatArray:
        coefficients = scaled(prior, params)
        return np.concatenate([batch.predicted_s(coefficients) for batch in measured])

    result = fit_log(
        predict, observed, np.zeros(len(FITTED)), PRIOR_SD, residual_sd=RESIDUAL_SD, soft_scale=1.5, weights=weights
    )
    return scaled(prior, result.params).model_copy(update={"source": "calibrated"}), result


def scaled(prior: TrainingCoefficients, params: FloatArray) -> TrainingCoefficients:
    """The prior's fitted coefficients times exp(params); shares stay at most 1."""
    changed = {name: getattr(prior, name) * float(np.exp(param)) for name, param in zip(FITTED, params, strict=True)}
    for name in ("gemm_efficiency", "attention_efficiency", "link_efficiency"):
        changed[name] = min(1.0, changed[name])
    return prior.model_copy(update=changed)


def fit_memory(
    measured: Sequence[MeasuredPeaks], prior: MemoryMargin = MARGIN_PRIOR, weights: npt.ArrayLike | None = None
) -> tuple[MemoryMargin, FitResult]:
    """The margin of one framework from its measured peaks; `logits_bytes` is kept as it is."""
    observed = np.concatenate([batch.peak_bytes for batch in measured])

    def margin(params: FloatArray) -> MemoryMargin:
        factors = np.exp(params)
        return MemoryMargin(
            fixed_bytes=prior.fixed_bytes * float(factors[0]),
            states_factor=prior.states_factor * float(factors[1]),
            activations_factor=prior.activations_factor * float(factors[2]),
            logits_bytes=prior.logits_bytes,
        )

    def predict(params: FloatArray) -> FloatArray:
        now = margin(params)
        return np.concatenate([training_memory(batch.model, batch.plans, now).total for batch in measured])

    result = fit_log(
        predict, observed, np.zeros(3), MARGIN_SD, residual_sd=RESIDUAL_SD, soft_scale=1.5, weights=weights
    )
    return margin(result.params), result
