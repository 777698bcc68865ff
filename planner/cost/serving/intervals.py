"""How sure a serving prediction is: intervals from held-out residuals, and where its numbers come from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from planner.cost.operators.gemm import gemm_source
from planner.cost.operators.moe import moe_source
from planner.cost.serving.coefficients import Coefficients
from planner.cost.serving.curves import expert_quant
from planner.cost.serving.sharding import dense_gemms
from planner.cost.serving.worker import ServingWorker, is_moe
from planner.cost.verdict import Source

FloatArray = npt.NDArray[np.float64]

#: Share of measurements that an interval is to hold.
COVERAGE = 0.8
#: Rounding errors of sums and logarithms that do not count.
_ROUNDING = 1e-12


def factors(coefficients: Coefficients, workers: Sequence[ServingWorker], what: str) -> FloatArray:
    """Interval factor f of each worker for "tpot" or "ttft", [workers]: 80 % lie in prediction x [1/f, f]."""
    return np.array([coefficients.spread_of(what, worker) for worker in workers])


def conformal_factor(predicted: FloatArray, measured: FloatArray, weights: FloatArray | None = None) -> float:
    """Smallest f with (weighted) COVERAGE of measurements within predicted x [1/f, f]; held-out predictions, [runs]."""
    size = np.abs(np.log(predicted / measured))
    weight = np.ones_like(size) if weights is None else weights
    order = np.argsort(size)
    share = np.cumsum(weight[order]) / weight.sum()
    last = min(int(np.searchsorted(share, COVERAGE - _ROUNDING)), len(size) - 1)
    return float(np.exp(size[order[last]]))


def coverage(predicted: FloatArray, measured: FloatArray, factor: FloatArray | float) -> float:
    """Share of measurements within predicted x [1/factor, factor]."""
    return float((np.abs(np.log(predicted / measured)) <= np.log(factor) + _ROUNDING).mean())


def source(worker: ServingWorker, coefficients: Coefficients) -> Source:
    """measured: the user's own runs of this model, device and backend are in; calibrated: engines were fitted and the
    operators of this device, or of its kin, measured; datasheet: peaks and typical efficiencies alone."""
    if coefficients.adjustment(worker) is not None:
        return "measured"
    found = {gemm_source(worker.device, one.quant) for one in dense_gemms(worker)}
    found |= {
        moe_source(worker.device, expert_quant(layer)) for layer, _ in worker.model.layer_groups() if is_moe(layer)
    }
    return "datasheet" if "datasheet" in found else "calibrated"
