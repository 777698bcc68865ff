"""Coefficients of the training cost model: few, each with a meaning, a range and a source."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from planner.descriptions.base import Description
from planner.files import read_as
from planner.units import Bytes

FILE = Path(__file__).parents[2] / "catalog" / "calibration" / "training.json"

Share = Annotated[float, Field(gt=0, le=1)]
Factor = Annotated[float, Field(gt=0)]


class TrainingCoefficients(Description):
    """What turns FLOP and bytes into seconds for one GPU and framework.

    gemm_efficiency : share of the dense peak that a large matrix product reaches.
    narrow_gemm : size of the smallest dimension at which half of that is left: efficiency x d / (d + narrow_gemm).
    attention_efficiency : share of the 16-bit peak that a flash attention kernel reaches on the causal half.
    traffic : memory time of element-wise kernels over (ideal bytes / HBM bandwidth).
    link_efficiency : share of a link's bandwidth that collectives reach.
    overlap : share of a data-parallel collective that hides behind computation, up to all of that computation's time;
        a fact about the framework, not fitted.
    source : calibrated on measurements, or a default for a GPU or framework that was never measured.
    """

    gemm_efficiency: Share
    narrow_gemm: Annotated[float, Field(ge=0)]
    attention_efficiency: Share
    traffic: Factor
    link_efficiency: Share
    overlap: Annotated[float, Field(ge=0, le=1)]
    source: Literal["calibrated", "datasheet"] = "datasheet"


class MemoryMargin(Description):
    """How far the driver's peak lies above the formulas: fixed_bytes + states x factor + activations x factor.

    logits_bytes : bytes of one logit and its gradient: 2 in 16 bits and 4 in fp32; 0 for a fused cross entropy that
        never writes them.
    """

    fixed_bytes: Bytes
    states_factor: Factor
    activations_factor: Factor
    logits_bytes: Annotated[float, Field(ge=0)] = 6.0


class CalibratedTimes(Description):
    """One row of the catalogue: coefficients of a GPU and framework with what they were fitted on."""

    gpu: str
    framework: str
    coefficients: TrainingCoefficients
    rows: Annotated[int, Field(gt=0)]
    mape: Annotated[float, Field(ge=0, description="mean |predicted / measured - 1| of the rows fitted")]
    held_out_mape: Annotated[float, Field(ge=0, description="the same where each configuration is left out in turn")]
    split: str
    source: str
    date: str


class CalibratedMemory(Description):
    """The memory margin with what it was fitted on."""

    margin: MemoryMargin
    rows: Annotated[int, Field(gt=0)]
    mape: Annotated[float, Field(ge=0)]
    held_out_mape: Annotated[float, Field(ge=0)]
    source: str
    date: str


class TrainingCalibration(Description):
    """catalog/calibration/training.json: coefficients by GPU and framework, and the pooled default."""

    default: TrainingCoefficients
    default_source: str
    times: tuple[CalibratedTimes, ...]
    memory: CalibratedMemory

    def coefficients(self, gpu: str, framework: str) -> TrainingCoefficients:
        """Coefficients of a GPU, by catalogue name, under a framework.

        A framework that was measured on other GPUs only gets those coefficients, because overlap, kernels and links
        differ more between frameworks than between GPUs; one that was never measured gets the default. Both are
        marked `datasheet`.
        """
        known = [row for row in self.times if row.framework == framework]
        for row in known:
            if row.gpu == gpu:
                return row.coefficients
        return known[0].coefficients.model_copy(update={"source": "datasheet"}) if known else self.default


def calibration() -> TrainingCalibration:
    """The shipped coefficients."""
    return read_as(FILE, TrainingCalibration)
