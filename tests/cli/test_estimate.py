"""`gpuplan estimate` with flags: what it says, and every exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from planner import catalog
from planner.cost.serving.coefficients import fitted
from planner.cost.serving.economics import economics
from planner.cost.serving.judge import Load
from planner.cost.serving.predict import ServingModel, ServingPlans
from planner.cost.serving.worker import ServingWorker

Invoke = Callable[..., Result]

SERVE = ["estimate", "--model", "Qwen/Qwen3-32B", "--device", "h100", "--tp", "2"]
LOAD = ["--input-tokens", "1000", "--output-tokens", "500"]
CLOSED = [*SERVE, *LOAD, "--concurrency", "32"]
MOE = ["estimate", "--model", "Qwen/Qwen3-30B-A3B", "--device", "h100", *LOAD, "--concurrency", "32"]


def metrics(result: Result) -> dict[str, float]:
    assert result.exit_code in (0, 6), result.output
    return {one["name"]: one["value"] for one in json.loads(result.stdout)["verdict"]["metrics"]}


def reference() -> ServingModel:
    spec, device = catalog.model("Qwen/Qwen3-32B"), catalog.device("h100_sxm")
    return ServingModel([ServingWorker(model=spec, device=device, backend="vllm", tensor_parallel_size=2)])


def test_json_is_what_the_model_predicts(gpuplan: Invoke) -> None:
    found = metrics(gpuplan(*CLOSED, "--json"))
    expected = reference().predict(ServingPlans.of([0], 32, 1000, 500))
    for name in ("tpot_s", "ttft_s", "output_tokens_per_s", "admitted_sequences", "memory_bytes"):
        assert found[name] == pytest.approx(getattr(expected, name)[0]), name
    assert sum(value for name, value in found.items() if name.startswith("tpot.")) == pytest.approx(found["tpot_s"])
    parts = ("weights", "activations", "runtime", "cache")
    assert sum(found[f"memory.{name}"] for name in parts) == pytest.approx(found["memory_bytes"])


def test_json_tells_inputs_intervals_and_assumptions(gpuplan: Invoke) -> None:
    document = json.loads(gpuplan(*CLOSED, "--json").stdout)
    assert (document["schema_version"], document["task"]) == (1, "serve")
    inputs, verdict = document["inputs"], document["verdict"]
    assert (inputs["model"], inputs["device"], inputs["backend"]) == ("Qwen/Qwen3-32B", "h100_sxm", "vllm")
    assert (inputs["num_gpus"], inputs["tensor_parallel_size"], inputs["concurrency"]) == (2, 2, 32)
    (tpot,) = [one for one in verdict["metrics"] if one["name"] == "tpot_s"]
    assert tpot["low"] < tpot["value"] < tpot["high"]
    assert tpot["value"] / tpot["low"] == pytest.approx(fitted().spread["tpot.dense"])
    assert tpot["source"] == "calibrated"
    assert verdict["feasible"]
    assert verdict["bottleneck"]
    assert any("closed loop" in line for line in verdict["assumptions"])


def test_text_says_where_milliseconds_and_gigabytes_go(gpuplan: Invoke) -> None:
    result = gpuplan(*CLOSED, "--price-per-gpu-hour", "$2.5")
    assert result.exit_code == 0
    assert result.stderr == ""
    for word in ("2 x h100_sxm", "TPOT", "80 % of measurements", "output tokens/s", "cache admits", "a million output",
                 "J an output token", "dense matrix products", "reading the KV cache", "weights", "30.5", "bottleneck",
                 "calibrated", "closed loop"):  # fmt: skip
        assert word in result.stdout, word
    lines = result.stdout.splitlines()
    first = next(index for index, line in enumerate(lines) if "a token's time" in line) + 2
    shares = []
    for line in lines[first:]:
        if "%" not in line:
            break
        shares.append(float(line.split("%")[0].split()[-1]))
    named = shares[:-1]
    assert named == sorted(named, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=1)


def test_price_and_energy(gpuplan: Invoke) -> None:
    found = metrics(gpuplan(*CLOSED, "--price-per-gpu-hour", "2.5", "--json"))
    # 2 GPUs x 2.5 $/h over the tokens of an hour.
    expected = 5 / (found["output_tokens_per_s"] * 3600) * 1e6
    assert found["usd_per_million_output_tokens"] == pytest.approx(expected)
    assert 0.6 * 700 <= found["gpu_power_w"] <= 700, "between decoding and prefilling on a board of 700 W"
    joules = 2 * found["gpu_power_w"] / found["output_tokens_per_s"]
    assert found["joules_per_output_token"] == pytest.approx(joules)


def test_an_idle_worker_draws_less_and_its_tokens_cost_more() -> None:
    model, load = reference(), Load(1, 1000, 500)
    busy = {one.name: one.value for one in economics(model, 0, load, 2.0)}
    rate = float(model.predict(ServingPlans.of([0], 1, 1000, 500)).output_tokens_per_s[0])
    idle = {one.name: one.value for one in economics(model, 0, load, 2.0, rate / 10)}
    assert idle["gpu_power_w"] < busy["gpu_power_w"] / 2
    assert idle["joules_per_output_token"] > busy["joules_per_output_token"]
    price = "usd_per_million_output_tokens"
    assert idle[price] == pytest.approx(10 * busy[price])


@pytest.mark.parametrize("limit", ["5ms", "0.005", "5000us"])
def test_a_broken_budget_is_6_in_any_unit(gpuplan: Invoke, limit: str) -> None:
    result = gpuplan(*CLOSED, "--tpot", limit, "--ttft", "10s", "--json")
    assert result.exit_code == 6
    (violation,) = json.loads(result.stdout)["verdict"]["violations"]
    assert (violation["rule"], violation["limit"]) == ("slo_tpot", 0.005)
    text = gpuplan(*CLOSED, "--tpot", limit).stdout
    assert "1 budget broken" in text
    assert "over the limit of 5 ms" in text


def test_a_batch_that_does_not_fit_says_what_does(gpuplan: Invoke) -> None:
    result = gpuplan(*SERVE, "--input-tokens", "400000", "--output-tokens", "500", "--concurrency", "2")
    assert result.exit_code == 6
    assert "gpu_memory: one sequence needs" in result.stdout
    assert "in all fit" in result.stdout
    result = gpuplan("estimate", "--model", "deepseek-ai/DeepSeek-R1", "--device", "h100", *LOAD, "--concurrency", "1")
    assert result.exit_code == 6
    assert "weights and overheads alone take" in result.stdout


def test_more_than_fits_waits(gpuplan: Invoke) -> None:
    text = gpuplan(*SERVE, *LOAD, "--concurrency", "2000").stdout
    assert "of 2000 sequences run at once, the others wait" in text


def test_every_mistake_is_told_at_its_flag(gpuplan: Invoke) -> None:
    wrong = ["--tp", "0", "--precision", "fp3", "--ttft", "-1s", "--price-per-gpu-hour", "cheap"]
    wrong += ["--memory-fraction", "2", "--input-tokens", "0", "--output-tokens", "9", "--concurrency", "-4"]
    result = gpuplan("estimate", "--model", "no/model", "--device", "h101", *wrong)
    assert result.exit_code == 7
    for flag in ("--model", "--device", "--tp", "--precision", "--ttft", "--price-per-gpu-hour", "--memory-fraction",
                 "--input-tokens", "--concurrency"):  # fmt: skip
        assert f"{flag}: " in result.stderr, flag
    assert "did you mean" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([*CLOSED, "--tp", "3"], "--tp: tensor_parallel_size 3 does not divide the 64 attention heads"),
        ([*CLOSED, "--pp", "65"], "--pp: pipeline_parallel_size 65 is more than the 64 layers"),
        ([*CLOSED, "--ep", "2"], "--ep: Qwen/Qwen3-32B has no routed experts"),
        ([*MOE, "--tp", "2", "--ep", "3"], "does not divide the 128 experts"),
        ([*MOE, "--tp", "4", "--ep", "2", "--moe-tp", "4"], "--moe-tp: moe_tensor_parallel_size 4 x expert"),
        ([*CLOSED, "--max-num-seqs", "16"], "--max-num-seqs: --concurrency 32 is more than 16"),
        ([*CLOSED, "--calibration", "none.yaml"], "none.yaml: cannot be read"),
        ([*CLOSED, "--ttft", "3 parsecs"], "--ttft: unknown unit"),
        ([*CLOSED[:2], "/no/config.json", *CLOSED[3:]], "/no/config.json: cannot be read"),
    ],
)
def test_bad_descriptions_are_7(gpuplan: Invoke, arguments: list[str], told: str) -> None:
    result = gpuplan(*arguments)
    assert result.exit_code == 7, result.output
    assert told in result.stderr


def test_a_device_without_the_format(gpuplan: Invoke, folder: Path) -> None:
    device = "{name: odd, memory_bytes: 80GB, hbm_bandwidth_bytes_per_s: 3TB/s, flop_per_s: {int8: 1e15}}"
    (folder / "odd.yaml").write_text(device)
    result = gpuplan(*CLOSED, "--tp", "1", "--device", "odd.yaml")
    assert result.exit_code == 7
    assert "odd: has no matrix units for" in result.stderr


def test_a_wider_format_is_told(gpuplan: Invoke) -> None:
    text = gpuplan(*CLOSED, "--device", "a100_sxm", "--precision", "fp8").stdout
    assert "a100_sxm has no fp8 units: fp8 weights are multiplied in bf16" in text


def test_a_device_and_a_model_of_ones_own(gpuplan: Invoke, folder: Path) -> None:
    (folder / "fast.yaml").write_text("{base: h100, name: fast, hbm_bandwidth_bytes_per_s: 6.7TB/s}")
    (folder / "slow.yaml").write_text("{base: h100, name: slow, hbm_bandwidth_bytes_per_s: 3.35GB/s}")
    config = {"model_type": "qwen3", **_config("Qwen/Qwen3-32B")}
    (folder / "own.json").write_text(json.dumps(config))
    one = metrics(gpuplan(*CLOSED, "--model", "own.json", "--json"))
    assert one["tpot_s"] == pytest.approx(metrics(gpuplan(*CLOSED, "--json"))["tpot_s"])
    assert metrics(gpuplan(*CLOSED, "--device", "fast.yaml", "--json"))["tpot_s"] < 0.85 * one["tpot_s"]
    assert "check its unit" in gpuplan(*CLOSED, "--device", "slow.yaml").stdout


def _config(name: str) -> dict[str, Any]:
    from planner.catalog.models import entry

    return entry(name).config


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["estimate"], "--model, --device, --input-tokens, --output-tokens must be given"),
        ([*SERVE, *LOAD], "give either --concurrency or --rate"),
        ([*CLOSED, "--rate", "3"], "give either --concurrency or --rate"),
        ([*CLOSED, "--percentile", "99"], "--percentile is for --rate"),
        ([*CLOSED, "--zero", "3"], "--zero cannot be used with --task serve"),
        ([*CLOSED, "--models", "."], "--models cannot be used with flags"),
        ([*CLOSED, "-o", "x.csv"], "--output cannot be used with flags"),
        ([*CLOSED, "--backend", "tgi"], "'tgi' is not one of"),
        ([*CLOSED, "--tp", "two"], "Invalid value for '--tp'"),
    ],
)
def test_usage_is_2(gpuplan: Invoke, arguments: list[str], told: str) -> None:
    result = gpuplan(*arguments)
    assert result.exit_code == 2, result.output
    assert told in result.stderr


def test_arrivals_meet_the_closed_loop_of_the_same_rate(gpuplan: Invoke) -> None:
    closed = metrics(gpuplan(*CLOSED, "--json"))
    rate = closed["output_tokens_per_s"] / 500
    result = gpuplan(*SERVE, *LOAD, "--rate", f"{rate}", "--json")
    found = metrics(result)
    assert json.loads(result.stdout)["inputs"]["rate_per_s"] == rate
    assert found["tpot_s"] == pytest.approx(closed["tpot_s"], rel=0.05)
    assert found["running_sequences"] == pytest.approx(32, rel=0.1)
    assert found["output_tokens_per_s"] == pytest.approx(closed["output_tokens_per_s"])
    assert found["tpot_p50_s"] <= found["tpot_p90_s"] <= found["tpot_p99_s"]
    assert found["ttft_p50_s"] <= found["ttft_p90_s"] <= found["ttft_p99_s"]
    assert found["utilisation"] == pytest.approx(rate / found["max_rate_per_s"])
    # The highest rate is what a closed loop makes with every slot taken.
    full = metrics(gpuplan(*SERVE, *LOAD, "--concurrency", f"{closed['admitted_sequences']:.0f}", "--json"))
    assert found["max_rate_per_s"] == pytest.approx(full["output_tokens_per_s"] / 500, rel=0.05)


def test_a_percentile_is_held_to_the_limit(gpuplan: Invoke) -> None:
    arguments = [*SERVE, *LOAD, "--rate", "3"]
    found = metrics(gpuplan(*arguments, "--json"))
    between = f"{(found['tpot_s'] + found['tpot_p99_s']) / 2}"
    assert gpuplan(*arguments, "--tpot", between).exit_code == 0
    result = gpuplan(*arguments, "--tpot", between, "--percentile", "99")
    assert result.exit_code == 6
    assert "p99 TPOT of" in result.stdout


def test_more_than_can_be_served(gpuplan: Invoke) -> None:
    result = gpuplan(*SERVE, *LOAD, "--rate", "1000", "--ttft", "1s")
    assert result.exit_code == 6
    assert "rate: 1000 requests arrive a second, and at most" in result.stdout
    found = metrics(gpuplan(*SERVE, *LOAD, "--rate", "1000", "--json"))
    assert "ttft_s" not in found
    assert found["output_tokens_per_s"] == pytest.approx(500 * found["max_rate_per_s"])


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, atexit, cli.app; sys.argv = ['gpuplan', 'estimate', '--help']\n"
    code += "atexit.register(lambda: print(*sys.modules, file=sys.stderr)); cli.app.main()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--input-tokens" in result.stdout
    assert not {"numpy", "planner", "formulations", "rich"} & set(result.stderr.split())
