"""Verdicts of a serving worker: metrics, intervals, broken limits with amounts, and what would fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from planner.cost.serving.coefficients import PARTS, fitted
from planner.cost.serving.judge import BOTTLENECKS, Load, evaluate_serving, what_fits
from planner.cost.serving.memory import admitted_sequences, whole_tokens
from planner.cost.serving.predict import ServingModel, ServingPlans
from planner.cost.serving.sharding import cache_bytes
from planner.cost.serving.worker import BACKENDS, Backend, ServingWorker
from planner.cost.verdict import Verdict
from planner.workload import Slo

Serve = Callable[..., ServingWorker]


@pytest.fixture(scope="module")
def model(serve: Serve) -> ServingModel:
    return ServingModel(
        [
            serve(tp=4),
            serve("meta-llama/Llama-3.1-405B-Instruct", tp=8),
            serve("deepseek-ai/DeepSeek-R1", "b200_sxm", "sglang", tp=8, speculative=True),
        ]
    )


def values(verdict: Verdict) -> dict[str, float]:
    return {one.name: one.value for one in verdict.metrics}


@pytest.mark.parametrize("index", [0, 2])
def test_metrics_are_the_predictions(model: ServingModel, index: int) -> None:
    load = Load(64, 2000, 500)
    verdict = evaluate_serving(model, index, load)
    found = model.predict(ServingPlans.of(index, 64, 2000, 500))
    told = values(verdict)
    for name in (
        "tpot_s",
        "ttft_s",
        "step_s",
        "output_tokens_per_s",
        "output_tokens_per_s_per_gpu",
        "running_sequences",
        "admitted_sequences",
        "memory_bytes",
    ):
        assert told[name] == getattr(found, name)[0], name
    assert sum(told[f"tpot.{part}"] for part in PARTS) == pytest.approx(told["tpot_s"])
    room = model.memory[index]
    assert sum(told[f"memory.{part}"] for part in ("weights", "activations", "runtime", "cache", "free")) == (
        pytest.approx(room.usable_bytes)
    )
    assert told["memory.cache_capacity"] == room.cache_capacity_bytes
    assert verdict.violations == ()
    tpot = next(one for one in verdict.metrics if one.name == "tpot_s")
    kind = "dense" if index == 0 else "moe"
    factor = fitted().spread[f"tpot.{kind}"]
    assert (tpot.low, tpot.high) == pytest.approx((tpot.value / factor, tpot.value * factor))


@pytest.mark.parametrize(
    "load", [Load(1, 100, 100), Load(256, 8000, 1000), Load(512, 8000, 16), Load(64, 100_000, 100)]
)
def test_the_bottleneck_is_the_largest_part(model: ServingModel, load: Load) -> None:
    verdict = evaluate_serving(model, 0, load)
    told = values(verdict)
    worst = max(PARTS, key=lambda part: told[f"tpot.{part}"])
    assert verdict.bottleneck is not None
    assert verdict.bottleneck.startswith(BOTTLENECKS[worst])
    assert verdict.bottleneck.endswith(f"{told[f'tpot.{worst}'] / told['tpot_s']:.0%} of a token's time")


def test_every_part_has_words() -> None:
    assert set(BOTTLENECKS) == set(PARTS)


def test_broken_limits_have_amounts(model: ServingModel) -> None:
    load = Load(64, 2000, 500)
    found = model.predict(ServingPlans.of(0, 64, 2000, 500))
    tpot, ttft = float(found.tpot_s[0]), float(found.ttft_s[0])
    assert evaluate_serving(model, 0, load, Slo(ttft_s=ttft, tpot_s=tpot)).violations == ()
    verdict = evaluate_serving(model, 0, load, Slo(ttft_s=ttft / 2, tpot_s=tpot / 4))
    by_rule = {one.rule: one for one in verdict.violations}
    assert set(by_rule) == {"slo_ttft", "slo_tpot"}
    assert (by_rule["slo_ttft"].amount, by_rule["slo_ttft"].limit) == (ttft, ttft / 2)
    assert (by_rule["slo_tpot"].amount, by_rule["slo_tpot"].limit) == (tpot, tpot / 4)
    assert "4 x h100_sxm" in by_rule["slo_tpot"].subject


def test_weights_that_do_not_fit(model: ServingModel) -> None:
    (broken,) = evaluate_serving(model, 1, Load(4, 1000, 1000)).violations
    worker, room = model.workers[1], model.memory[1]
    one = float(cache_bytes(worker, np.asarray(2000.0)))
    assert broken.rule == "gpu_memory"
    assert broken.amount == pytest.approx(room.fixed_bytes + one)
    # vLLM may use 90 % and does not count its graphs in them.
    assert broken.limit == pytest.approx(0.9 * room.usable_bytes + 0.5 * 2**30)
    assert "use more GPUs or narrower weights" in broken.message


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["Llama-3.1-70B-Instruct", "openai/gpt-oss-120b", "Qwen/Qwen3-Next-80B-A3B-Instruct"])
def test_what_fits_fits_and_one_more_does_not(serve: Serve, backend: Backend, name: str) -> None:
    worker = serve(name, "h100_sxm", backend, tp=2)
    room = replace(
        ServingModel([worker]).memory[0], cache_capacity_bytes=float(cache_bytes(worker, np.asarray(12345.0)))
    )
    model = ServingModel([worker], memory=[room])
    (broken,) = evaluate_serving(model, 0, Load(1, 100_000, 100)).violations
    assert broken.amount > broken.limit
    longest = int(broken.message.split("sequences of up to ")[1].split(" ")[0])
    assert longest == 12345 - 12345 % int(whole_tokens(backend, 1, 0))
    for tokens, admitted in ((longest, 1), (longest + 1, 0)):
        load = Load(1, tokens - 100, 100)
        assert (not evaluate_serving(model, 0, load).violations) == bool(admitted)
        assert bool(admitted_sequences(worker, room, tokens - 100, 100)) == bool(admitted)
        assert longest >= tokens or f"up to {longest} tokens" in what_fits(model, 0, load)


def test_a_verdict_survives_json(model: ServingModel) -> None:
    verdict = evaluate_serving(model, 2, Load(64, 2000, 500), Slo(tpot_s=1e-6, ttft_s=1e-6))
    text = verdict.model_dump_json()
    assert Verdict.model_validate_json(text) == verdict
    assert len(json.loads(text)["violations"]) == 2


def test_more_sequences_than_fit_wait_and_are_no_violation(model: ServingModel) -> None:
    verdict = evaluate_serving(model, 0, Load(100_000, 2000, 500))
    told = values(verdict)
    assert told["running_sequences"] == told["admitted_sequences"] < 100_000
    assert verdict.violations == ()
    assert told["memory.free"] >= 0
