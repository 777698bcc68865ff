"""Efficiency: what a user's own measurements change about predictions; written by `gpuplan calibrate`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field, PositiveInt, StringConstraints

from planner.cost.serving.calibrate import CalibrationReport
from planner.cost.serving.coefficients import Coefficients, Key, fitted
from planner.cost.serving.worker import Backend
from planner.cost.training.coefficients import TrainingCoefficients
from planner.descriptions.base import Description, Problem
from planner.files import read_as

#: Multipliers of coefficients.ADJUSTMENTS.
Adjustment = Literal["overall", "overhead", "prefill", "prompt", "wait_steps"]
#: Farther from 1 than any measurement can move it.
Multiplier = Annotated[float, Field(ge=1e-6, le=1e6)]
#: Mean |predicted / measured - 1| on the runs calibrated with; None where nothing of the kind was measured.
Mape = Annotated[float, Field(ge=0)] | None
Name = Annotated[str, StringConstraints(min_length=1, max_length=400)]


class ServingEfficiency(Description):
    """Multipliers of one model, device and backend, from `num_runs` runs."""

    model: Name
    device: Name
    backend: Backend
    num_runs: PositiveInt
    multipliers: dict[Adjustment, Multiplier]
    tpot_mape_before: Mape = None
    tpot_mape_after: Mape = None
    ttft_mape_before: Mape = None
    ttft_mape_after: Mape = None

    @property
    def key(self) -> Key:
        """What the multipliers belong to."""
        return self.model, self.device, self.backend


class TrainingEfficiency(Description):
    """Coefficients of one device and framework, from `num_runs` step times."""

    device: Name
    framework: Name
    num_runs: PositiveInt
    coefficients: TrainingCoefficients
    mape_before: Mape = None
    mape_after: Mape = None


class Efficiency(Description):
    """efficiency.yaml: each entry holds for its own model, device and backend (or device and framework) alone."""

    schema_version: Literal[1] = 1
    gpuplan_version: str = ""
    serving: tuple[ServingEfficiency, ...] = ()
    training: tuple[TrainingEfficiency, ...] = ()

    def problems(self) -> Iterator[Problem]:
        """One entry for one thing."""
        for name, keys in (
            ("serving", [one.key for one in self.serving]),
            ("training", [(one.device, one.framework) for one in self.training]),
        ):
            for index, key in enumerate(keys):
                if key in keys[:index]:
                    yield (name, index), f"there is an entry for {', '.join(key)} already"

    @classmethod
    def of_serving(
        cls, coefficients: Coefficients, reports: Sequence[CalibrationReport], version: str = ""
    ) -> Efficiency:
        """What `calibrate` found, as a document."""
        entries = tuple(
            ServingEfficiency(
                model=report.key[0],
                device=report.key[1],
                backend=next(one for one in get_args(Backend) if one == report.key[2]),
                num_runs=report.num_runs,
                multipliers=dict(coefficients.adjustments[report.key]),
                tpot_mape_before=report.tpot_mape_before,
                tpot_mape_after=report.tpot_mape_after,
                ttft_mape_before=report.ttft_mape_before,
                ttft_mape_after=report.ttft_mape_after,
            )
            for report in reports
        )
        return cls(gpuplan_version=version, serving=entries)

    def over(self, base: Coefficients) -> Coefficients:
        """`base` with these multipliers in place of any of its own for the same model, device and backend."""
        own: dict[Key, Mapping[str, float]] = {
            one.key: {str(name): value for name, value in one.multipliers.items()} for one in self.serving
        }
        return replace(base, adjustments={**base.adjustments, **own})

    def of_training(self, device: str, framework: str) -> TrainingCoefficients | None:
        """The user's own coefficients of a device under a framework; None without any."""
        found = (one.coefficients for one in self.training if (one.device, one.framework) == (device, framework))
        return next(found, None)


def calibrated(path: str | Path) -> Coefficients:
    """The catalogue's coefficients with a user's own over them. DescriptionError as `read_efficiency`."""
    return read_efficiency(path).over(fitted())


def read_efficiency(path: str | Path) -> Efficiency:
    """Read efficiency.yaml; DescriptionError with every problem at its line and column."""
    return read_as(path, Efficiency)
