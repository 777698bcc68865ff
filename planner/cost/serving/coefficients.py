"""What multiplies each part of a step: few coefficients, fitted on whole engines with operator times as priors.

    tpot = speculation x sum over parts of coefficient x part
    ttft = first_token + prompt x P1 x (1 + burst x B) + wait_steps x step

The coefficients of the operator parts are near 1 by construction; overheads are seconds a dense product, MoE layer,
step and sequence. Values, spread, rows and errors are in planner/catalog/calibration/serving.json, which
`python -m benchmarks.refit serving --write` writes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from planner.cost.serving.worker import BACKENDS, Backend, ServingWorker
from planner.hardware import DeviceKind

CALIBRATION = Path(__file__).parents[2] / "catalog" / "calibration" / "serving.json"

#: Parts of a decode step: what a step of B sequences takes without any prompt.
DECODE_PARTS = (
    "dense", "moe", "all_reduce", "dispatch", "cache", "latent", "state",
    "kernel_overhead", "moe_overhead", "step_overhead", "sequence_overhead",
)  # fmt: skip
#: Parts that the prompts of other sequences add to every token.
PREFILL_PARTS = ("prefill_dense", "prefill_moe", "prefill_communication", "prefill_attention")
PARTS = DECODE_PARTS + PREFILL_PARTS

GENERATIONS = ("hopper", "blackwell")


@dataclass(frozen=True, slots=True)
class Prior:
    """What a coefficient is before any engine is measured: its median and the standard deviation of its logarithm."""

    median: float
    log_sd: float


def generation(device: DeviceKind) -> str:
    """The launch overhead's class: Blackwell and newer hosts, or everything before."""
    return "blackwell" if device.architecture.lower().startswith(("blackwell", "rubin")) else "hopper"


def by_host(name: str, backend: Backend, device: DeviceKind) -> str:
    """Name of a coefficient that each backend and generation has its own value of."""
    return f"{name}.{backend}.{generation(device)}"


def _priors() -> dict[str, Prior]:
    priors = {
        "dense": Prior(1.0, 0.15),
        "moe": Prior(1.0, 0.25),
        "all_reduce": Prior(1.0, 0.3),
        "dispatch": Prior(1.0, 0.5),
        "cache": Prior(1.0, 0.3),
        "latent": Prior(1.0, 0.4),
        "state": Prior(1.0, 0.3),
        "moe_overhead": Prior(18e-6, 0.5),
        "step_overhead": Prior(0.45e-3, 0.7),
        "sequence_overhead": Prior(5e-6, 1.0),
        "prefill_dense": Prior(1.0, 0.2),
        "prefill_moe": Prior(1.0, 0.4),
        "prefill_communication": Prior(1.0, 0.4),
        "prefill_attention": Prior(1.0, 0.4),
        "speculation": Prior(0.7, 0.5),
        "burst": Prior(0.05, 0.7),
    }
    for backend in BACKENDS:
        priors |= {f"kernel_overhead.{backend}.{one}": Prior(10e-6, 0.4) for one in GENERATIONS}
        priors[f"first_token.{backend}"] = Prior(20e-3, 1.0)
        priors[f"prompt.{backend}"] = Prior(1.0, 0.5)
        priors[f"wait_steps.{backend}"] = Prior(2.0, 1.0)
    return priors


#: Every coefficient by name. Medians and spreads: shared knowledge of the operator fits (their held-out errors), and
#: for overheads the range that engines' traces show; frozen before the reported fit. Source: docs/cost_model.md.
PRIORS: Mapping[str, Prior] = _priors()
TTFT_NAMES = tuple(name for name in PRIORS if name.startswith(("first_token", "prompt.", "wait_steps", "burst")))
#: Multipliers of parts, then the one that multiplies their sum.
TPOT_NAMES = (*(name for name in PRIORS if name not in {*TTFT_NAMES, "speculation"}), "speculation")


#: What a user's own runs may change for one (model, device, backend): multipliers, and the standard deviation of
#: their logarithms before any run is seen. Source: spread between clusters of held-out residuals, docs/cost_model.md.
ADJUSTMENTS: Mapping[str, float] = {
    "overall": 0.12,
    "overhead": 0.25,
    "prefill": 0.25,
    "prompt": 0.4,
    "wait_steps": 0.5,
}
_OVERHEADS = frozenset({"kernel_overhead", "moe_overhead", "step_overhead", "sequence_overhead"})

Key = tuple[str, str, str]


def key_of(worker: ServingWorker) -> Key:
    """What an adjustment belongs to: model, device, backend."""
    return worker.model.name, worker.device.name, worker.backend


@dataclass(frozen=True, eq=False)
class Coefficients:
    """Value of every coefficient, and the intervals that held-out residuals give.

    values : by name as in PRIORS; sd : of their logarithms.
    spread : 80 % of held-out measurements lie within prediction x [1/f, f], f by "tpot.dense", "ttft.moe", ...
    adjustments : by key_of, multipliers named as in ADJUSTMENTS, from a user's own runs.
    record : where the fit comes from: date, source, rows, errors.
    """

    values: Mapping[str, float]
    sd: Mapping[str, float] = field(default_factory=dict)
    spread: Mapping[str, float] = field(default_factory=dict)
    adjustments: Mapping[Key, Mapping[str, float]] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)

    def adjustment(self, worker: ServingWorker) -> Mapping[str, float] | None:
        """Multipliers from the user's own runs of this model, device and backend; None without any."""
        return self.adjustments.get(key_of(worker))

    def of_part(self, part: str, worker: ServingWorker) -> float:
        """Coefficient of one of PARTS for one worker."""
        name = by_host(part, worker.backend, worker.device) if part == "kernel_overhead" else part
        own = self.adjustment(worker) or {}
        factor = own.get("overall", 1.0)
        if part in _OVERHEADS:
            factor *= own.get("overhead", 1.0)
        if part in PREFILL_PARTS:
            factor *= own.get("prefill", 1.0)
        return self.values[name] * factor

    def of_parts(self, worker: ServingWorker) -> dict[str, float]:
        """Coefficient of each of PARTS for one worker."""
        return {part: self.of_part(part, worker) for part in PARTS}

    def of_ttft(self, name: str, worker: ServingWorker) -> float:
        """first_token, prompt or wait_steps of one worker."""
        own = self.adjustment(worker) or {}
        return self.values[f"{name}.{worker.backend}"] * own.get(name, 1.0)

    def spread_of(self, what: str, worker: ServingWorker) -> float:
        """Interval factor of "tpot" or "ttft" for one worker; KeyError where the fit has none."""
        return self.spread[f"{what}.{'moe' if worker.model.num_moe_layers else 'dense'}"]


@cache
def fitted() -> Coefficients:
    """The coefficients of the catalogue."""
    record = json.loads(CALIBRATION.read_text(encoding="utf-8"))
    return Coefficients(
        values=record.pop("values"), sd=record.pop("log_sd"), spread=record.pop("spread"), record=record
    )


def from_logs(names: tuple[str, ...], logs: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, float]:
    """Values by name from fitted logarithms [len(names)]."""
    return {name: float(np.exp(log)) for name, log in zip(names, logs, strict=True)}
