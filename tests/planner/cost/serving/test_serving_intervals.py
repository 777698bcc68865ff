"""Interval factors by hand and as a law, and where numbers are said to come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.cost.serving.coefficients import fitted, key_of
from planner.cost.serving.intervals import COVERAGE, conformal_factor, coverage, factors, source
from planner.cost.serving.worker import ServingWorker
from planner.hardware import DeviceKind

Serve = Callable[..., ServingWorker]


def test_factor_by_hand() -> None:
    """Four of five within 1.4; too low counts as too high does."""
    measured = np.array([1.1, 1 / 1.2, 1.4, 1 / 1.3, 3.0])
    assert conformal_factor(np.ones(5), measured) == pytest.approx(1.4)
    assert conformal_factor(np.full(5, 7.0), 7 * measured) == pytest.approx(1.4)
    assert conformal_factor(measured, np.ones(5)) == pytest.approx(1.4)


def test_weighted_factor_by_hand() -> None:
    """Shares 0.1, 0.1, 0.6, 0.1, 0.1: 80 % are reached with 1.4; and with the far run worth half, only with it."""
    measured = np.array([1.1, 1.2, 1.4, 1.6, 3.0])
    assert conformal_factor(np.ones(5), measured, np.array([1.0, 1, 6, 1, 1])) == pytest.approx(1.4)
    assert conformal_factor(np.ones(5), measured, np.array([1.0, 1, 1, 1, 4])) == pytest.approx(3.0)


@given(st.lists(st.floats(0.1, 10.0), min_size=1, max_size=50))
def test_the_factor_covers_and_none_smaller_does(ratios: list[float]) -> None:
    measured = np.array(ratios)
    factor = conformal_factor(np.ones(len(ratios)), measured)
    assert factor >= 1.0
    assert coverage(np.ones(len(ratios)), measured, factor) >= COVERAGE - 1e-9
    if factor > 1.001:
        assert coverage(np.ones(len(ratios)), measured, factor * 0.9999) < COVERAGE


def test_coverage_of_each_with_its_own_factor() -> None:
    measured = np.array([1.5, 1.5, 0.5, 1.0])
    assert coverage(np.ones(4), measured, np.array([1.4, 1.6, 1.9, 1.0])) == 0.5


def test_factors_of_workers(serve: Serve) -> None:
    workers = [serve(), serve("openai/gpt-oss-120b")]
    spread = fitted().spread
    assert factors(fitted(), workers, "tpot").tolist() == [spread["tpot.dense"], spread["tpot.moe"]]
    assert factors(fitted(), workers, "ttft").tolist() == [spread["ttft.dense"], spread["ttft.moe"]]
    with pytest.raises(KeyError):
        factors(replace(fitted(), spread={}), workers, "tpot")


def test_sources(serve: Serve) -> None:
    unknown = DeviceKind(
        name="mine",
        memory_bytes=80e9,
        hbm_bandwidth_bytes_per_s=2e12,
        flop_per_s={"bf16": 400e12},
        scale_up_bandwidth_bytes_per_s=200e9,
        scale_up_domain_gpus=8,
    )
    for name in ("Llama-3.1-70B-Instruct", "openai/gpt-oss-120b"):
        assert source(serve(name, tp=4), fitted()) == "calibrated"
        assert source(serve(name, unknown, tp=4), fitted()) == "datasheet"
    own = serve(device=unknown)
    told = replace(fitted(), adjustments={key_of(own): {"overall": 1.1}})
    assert source(own, told) == "measured"
    assert source(replace(own, backend="sglang"), told) == "datasheet"


def test_a_device_of_a_known_architecture_is_calibrated(serve: Serve) -> None:
    relative = DeviceKind.model_validate({"name": "mine", "base": "h100_sxm", "hbm_bandwidth_bytes_per_s": 4e12})
    assert source(serve(device=relative, tp=4), fitted()) == "calibrated"
