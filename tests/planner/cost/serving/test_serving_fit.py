"""Fitting and calibrating: known coefficients come back, clusters count, and only what was run changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from planner.cost.serving.calibrate import TPOT_RUN_SD, calibrate, some_runs
from planner.cost.serving.coefficients import (
    ADJUSTMENTS,
    PARTS,
    PRIORS,
    TPOT_NAMES,
    TTFT_NAMES,
    Coefficients,
    fitted,
    generation,
)
from planner.cost.serving.fit import Runs, cluster_weights, fit, prior_coefficients, tpot_design
from planner.cost.serving.predict import ServingModel, ServingPlans
from planner.cost.serving.worker import BACKENDS, ServingWorker

Serve = Callable[..., ServingWorker]


@pytest.fixture(scope="module")
def model(serve: Serve) -> ServingModel:
    """Dense, experts, ranks, states and speculation, on both generations and all backends."""
    workers = []
    for backend in BACKENDS:
        for device in ("h200_sxm", "b200_sxm"):
            workers += [
                serve("Llama-3.1-70B-Instruct", device, backend, tp=4),
                serve("Llama-3.1-70B-Instruct", device, backend, tp=8),
                serve("openai/gpt-oss-120b", device, backend, tp=1),
                serve("deepseek-ai/DeepSeek-R1", device, backend, dp=8, ep=8, kv=1.0),
                serve("deepseek-ai/DeepSeek-R1", device, backend, tp=8, kv=1.0, speculative=True),
                serve("Qwen/Qwen3.5-397B-A17B", device, backend, tp=8),
            ]
    return ServingModel(workers)


def runs_of(model: ServingModel, truth: Coefficients, *, noise: float = 0.0, times: int = 1, seed: int = 0) -> Runs:
    """Measured runs of every worker as `truth` says."""
    load = np.array([(b, i, o) for b in (1, 8, 64, 256) for i, o in ((128, 1000), (1024, 1024), (8000, 1000))])
    load = np.tile(load, (times, 1))
    worker, row = (one.ravel() for one in np.meshgrid(np.arange(len(model.workers)), np.arange(len(load))))
    plans = ServingPlans.of(worker, *load[row].T)
    found = model.with_coefficients(truth).predict(plans)
    random = np.random.default_rng(seed)
    tpot, ttft = (values * np.exp(noise * random.normal(size=len(plans))) for values in (found.tpot_s, found.ttft_s))
    return Runs(model, plans, tpot, ttft, worker.tolist())


def test_every_part_has_a_prior_and_a_fitted_value() -> None:
    assert set(TPOT_NAMES) | set(TTFT_NAMES) == set(PRIORS) == set(fitted().values)
    assert not set(TPOT_NAMES) & set(TTFT_NAMES)
    assert all(value > 0 for value in fitted().values.values())
    assert set(fitted().spread) == {"tpot.dense", "tpot.moe", "ttft.dense", "ttft.moe"}
    for name, prior in PRIORS.items():
        assert abs(np.log(fitted().values[name] / prior.median)) < 3.5 * prior.log_sd, name


def test_known_coefficients_come_back(model: ServingModel) -> None:
    """Runs made with other coefficients: predicted within 3 % of them, from priors up to one standard deviation off."""
    random = np.random.default_rng(3)
    truth = Coefficients(
        values={
            name: prior.median * float(np.exp(0.7 * prior.log_sd * random.uniform(-1, 1)))
            for name, prior in PRIORS.items()
        }
    )
    runs = runs_of(model, truth, times=3)
    seen = np.arange(len(runs.plans)) % 2 == 0
    found = fit(runs, seen)
    made = model.with_coefficients(found).predict(runs.plans)
    before = model.with_coefficients(prior_coefficients()).predict(runs.plans)
    for name, measured in (("tpot_s", runs.tpot_s), ("ttft_s", runs.ttft_s)):
        off, was = (np.abs(getattr(one, name)[~seen] / measured[~seen] - 1) for one in (made, before))
        assert off.mean() < 0.03
        assert off.mean() < was.mean() / 3
    for name in ("speculation", "dense", "prompt.vllm"):
        assert found.values[name] == pytest.approx(truth.values[name], rel=0.15), name
        assert found.sd[name] < PRIORS[name].log_sd


def test_rows_that_are_not_used_do_not_matter(model: ServingModel) -> None:
    """Neither do those without a measured time."""
    runs = runs_of(model, fitted())
    use = np.arange(len(runs.plans)) % 3 != 0
    base = fit(runs, use)
    spoiled = replace(runs, tpot_s=np.where(use, runs.tpot_s, 99.0), ttft_s=np.where(use, runs.ttft_s, np.nan))
    assert fit(spoiled, use).values == base.values
    unknown = replace(runs, tpot_s=np.where(use, runs.tpot_s, np.nan))
    assert fit(unknown, np.ones_like(use)).values["dense"] == base.values["dense"]


def test_what_was_never_run_keeps_its_prior(model: ServingModel) -> None:
    """Runs of one backend and one generation say nothing of another's overheads."""
    truth = Coefficients(values={name: 1.3 * prior.median for name, prior in PRIORS.items()})
    runs = runs_of(model, truth)
    used = np.array([(one.backend, one.device.name) == ("vllm", "h200_sxm") for one in model.workers])
    found = fit(runs, used[runs.plans.worker])
    for name in ("kernel_overhead.vllm.blackwell", "kernel_overhead.sglang.hopper", "first_token.trtllm"):
        assert found.values[name] == pytest.approx(PRIORS[name].median)
        assert found.sd[name] == pytest.approx(PRIORS[name].log_sd)
    assert found.values["first_token.vllm"] > PRIORS["first_token.vllm"].median


def test_a_fit_needs_runs(model: ServingModel) -> None:
    runs = runs_of(model, fitted())
    every = np.ones(len(runs.plans), dtype=bool)
    for time in ("tpot_s", "ttft_s"):
        with pytest.raises(ValueError, match="at least one value"):
            fit(replace(runs, **{time: np.full(len(every), np.nan)}), every)


def test_a_cluster_counts_as_five_runs_at_most() -> None:
    weights = cluster_weights(["a"] * 10 + ["b"] * 2 + ["c"] * 5)
    assert weights == pytest.approx([0.5] * 10 + [1.0] * 7)
    assert len(cluster_weights([])) == 0


def test_the_design_times_coefficients_is_the_prediction(model: ServingModel) -> None:
    runs = runs_of(model, fitted())
    design, speculative = tpot_design(runs)
    values = fitted().values
    total = design @ [values[name] for name in TPOT_NAMES[:-1]] * np.where(speculative, values["speculation"], 1.0)
    assert total == pytest.approx(runs.tpot_s)
    assert speculative.sum() == len(speculative) // 6


@pytest.mark.parametrize(("device", "expected"), [("h100_sxm", "hopper"), ("mi300x", "hopper"), ("gb200", "blackwell")])
def test_generations_of_hosts(serve: Serve, device: str, expected: str) -> None:
    assert generation(serve(device=device).device) == expected


def test_held_out_predictions_do_not_see_their_own_measurements(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A family's measured times, made absurd, change the predictions of other families and not its own."""
    silicon = pytest.importorskip("benchmarks.silicon")
    data = silicon.silicon()
    tpot, ttft = silicon.held_out("family")
    own = data.family == "Qwen3-32B"
    assert own.any()
    wrong = replace(
        data.runs, tpot_s=np.where(own, 9.0, data.runs.tpot_s), ttft_s=np.where(own, 99.0, data.runs.ttft_s)
    )
    monkeypatch.setattr(silicon, "silicon", lambda: replace(data, runs=wrong))
    spoiled_tpot, spoiled_ttft = silicon.held_out("family")
    assert np.array_equal(spoiled_tpot[own], tpot[own])
    assert np.array_equal(spoiled_ttft[own], ttft[own])
    assert not np.allclose(spoiled_tpot[~own], tpot[~own], rtol=1e-3)


def test_families_that_are_one_architecture_are_held_out_together(shared_data: Path) -> None:
    silicon = pytest.importorskip("benchmarks.silicon")
    data = silicon.silicon()
    deepseek = np.char.startswith(data.cells["model"], "deepseek-ai")
    assert set(data.cells["model"][deepseek].tolist()) == {"deepseek-ai/DeepSeek-R1", "deepseek-ai/DeepSeek-V3"}
    assert set(data.family[deepseek].tolist()) == {"DeepSeek"}
    for name in set(data.cells["model"].tolist()):
        assert len(set(data.family[data.cells["model"] == name].tolist())) == 1


# Calibration with a user's own runs


def own_runs(model: ServingModel, worker: int, count: int, tpot: float = 1.0, ttft: float = 1.0) -> Runs:
    """Runs of one worker that measured a multiple of the prediction."""
    load = np.array([(1, 500, 500), (16, 1000, 1000), (64, 2000, 500), (128, 500, 1500), (256, 4000, 1000)] * 2)[:count]
    plans = ServingPlans.of(worker, *load.T)
    found = model.predict(plans)
    return Runs(model, plans, found.tpot_s * tpot, found.ttft_s * ttft, [0] * count)


def errors(model: ServingModel, runs: Runs, coefficients: Coefficients) -> tuple[float, float]:
    found = model.with_coefficients(coefficients).predict(runs.plans)
    return tuple(float(np.abs(a / b - 1).mean()) for a, b in ((found.tpot_s, runs.tpot_s), (found.ttft_s, runs.ttft_s)))


def test_one_run_moves_the_level_and_is_shrunk(model: ServingModel) -> None:
    made, (report,) = calibrate(own_runs(model, 0, 1, tpot=1.3), fitted())
    after, _ = errors(model, own_runs(model, 0, 5, tpot=1.3), made)
    assert 0.02 < after < 0.12
    assert report.num_runs == 1
    assert report.tpot_mape_before == pytest.approx(0.3 / 1.3)
    assert 0 < report.tpot_mape_after < 0.15
    moved = made.adjustments[report.key]
    assert 1.0 < moved["overall"] < 1.3
    assert set(moved) == set(ADJUSTMENTS)


def test_five_runs_mend_a_shift(model: ServingModel) -> None:
    made, _ = calibrate(own_runs(model, 0, 5, tpot=1.3), fitted())
    assert errors(model, own_runs(model, 0, 10, tpot=1.3), made)[0] < 0.03
    slower, _ = calibrate(own_runs(model, 0, 5, ttft=1.5), fitted())
    assert (
        errors(model, own_runs(model, 0, 10, ttft=1.5), slower)[1]
        < errors(model, own_runs(model, 0, 10, ttft=1.5), fitted())[1] / 3
    )


def test_runs_as_predicted_change_nothing(model: ServingModel) -> None:
    made, (report,) = calibrate(own_runs(model, 0, 5), fitted())
    assert list(made.adjustments[report.key].values()) == pytest.approx([1.0] * 5, abs=1e-6)
    assert report.tpot_mape_before == pytest.approx(0.0, abs=1e-9)


def test_only_this_model_device_and_backend_change(model: ServingModel) -> None:
    made, (report,) = calibrate(own_runs(model, 0, 5, tpot=1.5, ttft=2.0), fitted())
    assert report.key == ("meta-llama/Llama-3.1-70B-Instruct", "h200_sxm", "trtllm")
    plans = ServingPlans.of(np.arange(len(model.workers)), 32, 1000, 1000)
    before, after = model.predict(plans), model.with_coefficients(made).predict(plans)
    same = before.tpot_s == after.tpot_s
    # Workers 0 and 1 are the two splits of that model.
    assert same.tolist() == [False, False, *[True] * (len(same) - 2)]
    assert np.array_equal(before.ttft_s == after.ttft_s, same)
    again, _ = calibrate(own_runs(model, 2, 2, tpot=0.8), made)
    assert again.adjustments[report.key] == made.adjustments[report.key]
    assert len(again.adjustments) == 2


def test_reports_of_several_groups(model: ServingModel) -> None:
    parts = [own_runs(model, 0, 3, tpot=1.2), own_runs(model, 2, 4, tpot=0.9)]
    runs = Runs(
        model,
        ServingPlans.of(*(np.concatenate([getattr(one.plans, name) for one in parts]) for name in NAMES)),
        np.concatenate([one.tpot_s for one in parts]),
        np.full(7, np.nan),
        [0] * 7,
    )
    made, reports = calibrate(runs, fitted())
    assert [one.num_runs for one in reports] == [3, 4]
    assert [one.tpot_mape_before for one in reports] == pytest.approx([0.2 / 1.2, 0.1 / 0.9])
    assert all(one.ttft_mape_before is None and one.ttft_mape_after is None for one in reports)
    assert [errors(model, part, made)[0] for part in parts] == pytest.approx([one.tpot_mape_after for one in reports])
    assert all(set(one) == {"overall", "overhead", "prefill"} for one in made.adjustments.values())


NAMES: Sequence[str] = ("worker", "concurrency", "input_tokens", "output_tokens")


def test_runs_without_measurements_are_no_calibration(model: ServingModel) -> None:
    runs = own_runs(model, 0, 3)
    empty = replace(runs, tpot_s=np.full(3, np.nan), ttft_s=np.full(3, np.nan))
    made, reports = calibrate(empty, fitted())
    assert made.adjustments == {}
    assert reports == ()


def test_some_runs_keep_their_workers_and_times(model: ServingModel) -> None:
    runs = runs_of(model, fitted())
    index = np.array([40, 3, 17])
    part = some_runs(runs, index)
    assert len(part.model.workers) == len(set(runs.plans.worker[index].tolist()))
    assert part.model.predict(part.plans).tpot_s == pytest.approx(runs.tpot_s[index])
    assert ADJUSTMENTS["overall"] > TPOT_RUN_SD


def test_adjustments_multiply_their_own_parts(model: ServingModel) -> None:
    worker = model.workers[0]
    own = {"overall": 1.1, "overhead": 2.0, "prefill": 3.0}
    changed = replace(fitted(), adjustments={(worker.model.name, worker.device.name, worker.backend): own})
    for part in PARTS:
        factor = changed.of_part(part, worker) / fitted().of_part(part, worker)
        expected = 1.1 * (2.0 if part.endswith("overhead") else 3.0 if part.startswith("prefill") else 1.0)
        assert factor == pytest.approx(expected), part
