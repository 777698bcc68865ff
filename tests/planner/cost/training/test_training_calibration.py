"""Fits recover what made the data; the shipped coefficients; the published runs as regression gates."""

from pathlib import Path

import numpy as np
import pytest

from planner.catalog import device
from planner.cost.training.calibration import (
    FITTED,
    MARGIN_PRIOR,
    MeasuredPeaks,
    MeasuredSteps,
    fit_memory,
    fit_training,
)
from planner.cost.training.coefficients import MemoryMargin, TrainingCoefficients, calibration
from planner.cost.training.communication import TrainingNetwork
from planner.cost.training.memory import training_memory
from planner.cost.training.model import TrainingModel
from planner.cost.training.plans import TrainingPlans
from planner.hardware import DeviceKind

PRIOR = TrainingCoefficients(
    gemm_efficiency=0.75, narrow_gemm=64, attention_efficiency=0.35, traffic=1.3, link_efficiency=0.75, overlap=0.0
)


def varied() -> TrainingPlans:
    return TrainingPlans.build(
        tensor_parallel_size=[1, 1, 1, 2, 4, 8, 8, 8],
        data_parallel_size=[1, 8, 16, 4, 2, 1, 4, 8],
        micro_batch_size=[4, 1, 1, 2, 4, 1, 1, 2],
        global_batch_size=64,
        sequence_length=[1024, 2048, 4096, 512, 2048, 32768, 16384, 2048],
    )


def test_recovers_coefficients(gpt: TrainingModel, gpu: DeviceKind, network: TrainingNetwork) -> None:
    truth = PRIOR.model_copy(
        update={"gemm_efficiency": 0.6, "attention_efficiency": 0.5, "traffic": 2.0, "link_efficiency": 0.5}
    )
    small = TrainingModel.dense(layers=12, hidden=512, heads=8, ffn=2048, vocab=1024)
    measured = []
    for model in (gpt, small):
        made = MeasuredSteps(model, gpu, network, varied(), np.ones(8))
        measured.append(MeasuredSteps(model, gpu, network, varied(), made.predicted_s(truth)))
    found, result = fit_training(measured, PRIOR)
    assert result.mape < 0.01
    assert found.source == "calibrated"
    for name in FITTED:
        assert getattr(found, name) == pytest.approx(getattr(truth, name), rel=0.1), name


def test_without_evidence_the_prior_stays(gpt: TrainingModel, gpu: DeviceKind, network: TrainingNetwork) -> None:
    """One GPU and unfused attention say nothing about links and flash attention."""
    plans = TrainingPlans.build(micro_batch_size=1, global_batch_size=8, sequence_length=64, flash_attention=False)
    made = MeasuredSteps(gpt, gpu, network, plans, np.ones(1))
    found, _ = fit_training([MeasuredSteps(gpt, gpu, network, plans, 1.3 * made.predicted_s(PRIOR))], PRIOR)
    assert found.link_efficiency == pytest.approx(PRIOR.link_efficiency)
    assert found.attention_efficiency == pytest.approx(PRIOR.attention_efficiency)
    assert found.gemm_efficiency < PRIOR.gemm_efficiency


def test_recovers_the_margin(gpt: TrainingModel) -> None:
    truth = MemoryMargin(fixed_bytes=10e9, states_factor=1.1, activations_factor=1.0)
    measured = MeasuredPeaks(gpt, varied(), training_memory(gpt, varied(), truth).total)
    found, result = fit_memory([measured])
    assert result.mape < 0.01
    assert found.fixed_bytes == pytest.approx(10e9, rel=0.15)
    assert found.logits_bytes == MARGIN_PRIOR.logits_bytes


def test_shipped_coefficients_fall_back_by_framework() -> None:
    shipped = calibration()
    exact = shipped.coefficients("h100_sxm", "llm_foundry")
    assert exact.source == "calibrated"
    moved = shipped.coefficients("h100_sxm", "megatron")
    assert moved.source == "datasheet"
    assert moved.gemm_efficiency == shipped.coefficients("a100_sxm", "megatron").gemm_efficiency
    assert shipped.coefficients("mi300x", "never measured") == shipped.default
    for row in shipped.times:
        assert device(row.gpu).name == row.gpu
        assert row.mape <= row.held_out_mape < 0.1
    assert shipped.default.source == "datasheet"


def test_published_step_times(shared_data: Path) -> None:
    """SC21 and Korthikanti under 4 %, FSDP under 6 %, with the shipped coefficients."""
    from benchmarks.refit.training import FITS, step_rows

    limits = {"megatron": 0.04, "llm_foundry": 0.06}
    counts = {}
    for fitted in FITS:
        coefficients = calibration().coefficients(fitted.gpu, fitted.framework)
        _, batches = step_rows(fitted, shared_data / "training")
        errors = np.concatenate([batch.predicted_s(coefficients) / batch.step_s - 1.0 for batch in batches])
        counts[fitted.gpu, fitted.framework] = errors.size
        assert np.abs(errors).mean() < limits[fitted.framework], fitted.gpu
    assert counts == {
        ("a100_sxm", "megatron"): 18,
        ("a100_sxm", "llm_foundry"): 61,
        ("a100_sxm_40gb", "llm_foundry"): 78,
        ("h100_sxm", "llm_foundry"): 70,
    }


def test_published_peaks(shared_data: Path) -> None:
    """BLOOM under 6 % with the shipped margin."""
    from benchmarks.refit.training import peak_rows

    rows, batches = peak_rows(shared_data / "training")
    margin = calibration().memory.margin
    errors = np.concatenate([training_memory(b.model, b.plans, margin).total / b.peak_bytes - 1.0 for b in batches])
    assert len(rows) == errors.size == 61
    assert np.abs(errors).mean() < 0.06
