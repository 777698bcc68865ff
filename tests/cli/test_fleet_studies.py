"""`gpuplan fleet` beyond one plan: explanations, sweeps, and request traces."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import Result

Invoke = Callable[..., Result]

SIZES = {"input_tokens": 100, "output_tokens": 100}
#: A `small` serves 2 requests a second for 1 USD, a `large` 6 for 4: 2 small and 1 large for 10 a second.
CAPPED: dict[str, Any] = {
    "problem": "fleet",
    "name": "capped",
    "models": [{"name": "chat"}],
    "offers": [
        {"name": "small", "device": "l4", "price_usd_per_hour": 1, "max_count": 2},
        {"name": "large", "device": "h100_sxm", "price_usd_per_hour": 4},
    ],
    "demand": [{"model": "chat", **SIZES, "rate_per_s": 10}],
    "profiles": [
        {"offer": "small", "model": "chat", **SIZES, "max_rate_per_s": 2},
        {"offer": "large", "model": "chat", **SIZES, "max_rate_per_s": 6},
    ],
}
COMPUTED: dict[str, Any] = {
    "problem": "fleet",
    "name": "computed",
    "models": [{"name": "chat", "model": "meta-llama/Llama-3.1-8B-Instruct"}],
    "offers": [{"name": "g6e", "device": "l40s", "price_usd_per_hour": 1.861}],
    "slo": {"ttft_s": 2, "tpot_s": 0.08, "percentile": 90},
    "demand": [{"model": "chat", "input_tokens": 250, "output_tokens": 250, "rate_per_s": 4}],
}


@pytest.fixture
def capped(folder: Path) -> str:
    (folder / "capped.json").write_text(json.dumps(CAPPED))
    return "capped.json"


@pytest.fixture
def computed(folder: Path) -> str:
    (folder / "computed.json").write_text(json.dumps(COMPUTED))
    return "computed.json"


def trace(folder: Path, arrival_s: Any, input_tokens: int = 100, output_tokens: int = 100) -> str:
    lines = [f"{at:.3f},{input_tokens},{output_tokens}" for at in arrival_s]
    (folder / "requests.csv").write_text("\n".join(["arrival_s,input_tokens,output_tokens", *lines]) + "\n")
    return "requests.csv"


def test_explain_tells_relief_and_substitute(gpuplan: Invoke, capped: str) -> None:
    result = gpuplan("fleet", capped, "--explain", "-o", "plan.json")
    assert result.exit_code == 0, result.output
    # A third small saves nothing while a large is needed: 2 x 1 + 4 = 6 USD, and 4 x 1 + ... cannot be had.
    assert "relief        max_count of small 2 -> 3: saves nothing" in result.stdout
    # Without the large ones, two small ones do not do.
    assert "without       large: no fleet serves the demand" in result.stdout
    insight = json.loads(Path("plan.json").read_text())["plan"]["insight"]
    assert insight["without"]["status"] == "infeasible"
    assert gpuplan("check", "plan.json", "--instance", capped).exit_code == 0


def test_sweep_prints_each_point_and_writes_csv(gpuplan: Invoke, capped: str, folder: Path) -> None:
    result = gpuplan("fleet", capped, "--sweep", "rate=1..16:5", "-o", "points.csv")
    assert result.exit_code == 0, result.output
    assert "cost against rate" in result.stdout
    rows = list(csv.DictReader((folder / "points.csv").read_text().splitlines()))
    assert [float(row["rate"]) for row in rows] == [1, 2, 4, 8, 16]
    # 1, 1, 2 small; 1 large + 1 small; 2 large + 2 small.
    assert [float(row["usd_per_hour"]) for row in rows] == pytest.approx([1, 1, 2, 5, 10])
    assert [row["instances[large]"] for row in rows] == ["0", "0", "0", "1", "2"]


def test_sweep_as_json_tells_infeasible_points(gpuplan: Invoke, capped: str) -> None:
    result = gpuplan("fleet", capped, "--budget", "5", "--sweep", "rate=1..16:5", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["sweep"] == "rate"
    assert [point["status"] for point in found["points"]] == ["optimal"] * 4 + ["infeasible"]
    assert found["points"][4]["usd_per_hour"] is None
    assert found["points"][4]["reasons"]
    text = gpuplan("fleet", capped, "--budget", "5", "--sweep", "rate=1..16:5").stdout
    assert "infeasible" in text
    assert "16 requests/s: " in text


def test_sweep_without_any_fleet_exits_3(gpuplan: Invoke, capped: str) -> None:
    assert gpuplan("fleet", capped, "--budget", "5", "--sweep", "rate=16..32:2").exit_code == 3


def test_sweep_of_headroom_and_of_limits(gpuplan: Invoke, capped: str, computed: str) -> None:
    points = json.loads(gpuplan("fleet", capped, "--sweep", "headroom=0..0.6:4", "--json").stdout)["points"]
    assert [point["value"] for point in points] == pytest.approx([0, 0.2, 0.4, 0.6])
    costs = [point["usd_per_hour"] for point in points]
    assert costs == sorted(costs)
    assert costs[0] == pytest.approx(6)
    points = json.loads(gpuplan("fleet", computed, "--sweep", "tpot=20ms..200ms:3", "--json").stdout)["points"]
    costs = [point["usd_per_hour"] for point in points]
    assert costs == sorted(costs, reverse=True)


def test_limits_that_a_model_has_of_its_own_are_not_swept(gpuplan: Invoke, folder: Path) -> None:
    own = deepcopy(COMPUTED)
    own["models"][0]["slo"] = {"tpot_s": 0.05}
    (folder / "own.json").write_text(json.dumps(own))
    result = gpuplan("fleet", "own.json", "--sweep", "tpot=20ms..200ms:3")
    assert result.exit_code == 2
    assert "limits of its own" in result.stderr
    assert "limits of its own" in gpuplan("fleet", "own.json", "--tpot", "60ms").stderr


def test_bound_of_a_trace_by_window(gpuplan: Invoke, capped: str, folder: Path) -> None:
    # 4 requests a second for a minute, then 1: 2 and 1/2 small, at 2 and 1/2 USD an hour; as few GPUs: 1 large each.
    arrivals = np.concatenate([np.arange(0, 60, 0.25), np.arange(60, 120.5, 1.0)])
    trace(folder, arrivals)
    result = gpuplan("fleet", capped, "--bound-trace", "requests.csv", "--window", "1min", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [row["start_s"] for row in found["windows"]] == [0, 60]
    first, second = (row["usd_per_hour_at_least"] for row in found["windows"])
    assert first == pytest.approx(2)
    assert second == pytest.approx(61 / 60 / 2)
    assert [row["gpus_at_least"] for row in found["windows"]] == [1, 1]
    assert found["usd"] == pytest.approx((first + second) / 60)
    assert found["usd_per_hour_peak"] == pytest.approx(2)
    text = gpuplan("fleet", capped, "--bound-trace", "requests.csv", "--window", "60s", "-o", "bounds.csv").stdout
    assert "2 windows of 1 min" in text
    assert len((folder / "bounds.csv").read_text().splitlines()) == 3


def test_bound_of_a_trace_no_offer_serves(gpuplan: Invoke, computed: str, folder: Path) -> None:
    trace(folder, np.arange(0, 120, 1.0), input_tokens=4_000_000)
    result = gpuplan("fleet", computed, "--bound-trace", "requests.csv", "--window", "1min")
    assert result.exit_code == 3
    assert "no offer serves chat" in result.stderr


@pytest.mark.parametrize(
    "flags",
    [
        ("--bound-trace", "unheard=requests.csv", "--window", "1min"),
        ("--bound-trace", "requests.csv", "--window", "soon"),
        ("--bound-trace", "requests.csv", "-o", "bounds.txt"),
        ("--bound-trace", "requests.csv", "--bound-trace", "requests.csv"),
        ("--simulate", "requests.csv", "--sweep", "rate=1..2"),
    ],
)
def test_what_no_trace_can_do_is_refused(gpuplan: Invoke, capped: str, folder: Path, flags: tuple[str, ...]) -> None:
    trace(folder, np.arange(0, 120, 1.0))
    assert gpuplan("fleet", capped, *flags).exit_code in (2, 7)


def test_sizes_beyond_the_profiles_are_refused(gpuplan: Invoke, capped: str, folder: Path) -> None:
    trace(folder, np.arange(0, 120, 1.0), input_tokens=101)
    result = gpuplan("fleet", capped, "--bound-trace", "requests.csv", "--window", "1min")
    assert result.exit_code == 7
    assert "not profiled" in result.stderr


def test_simulated_plan_keeps_its_limits_on_poisson_arrivals(gpuplan: Invoke, computed: str, folder: Path) -> None:
    arrivals = np.cumsum(np.random.default_rng(3).exponential(1 / 4, 2_000))
    trace(folder, arrivals - arrivals[0], 250, 250)
    result = gpuplan("fleet", computed, "--simulate", "requests.csv", "--json")
    assert result.exit_code == 0, result.output
    metrics = {one["name"]: one["value"] for one in json.loads(result.stdout)["verdict"]["metrics"]}
    assert metrics["slo_attainment[chat]"] >= 0.9
    assert 0 < metrics["ttft_p50[chat]"] <= metrics["ttft_p90[chat]"] <= metrics["ttft_p99[chat]"]
    assert metrics["tpot_p90[chat]"] <= 0.08


def test_simulated_plan_that_misses_its_limits_is_a_violation(gpuplan: Invoke, computed: str, folder: Path) -> None:
    # Every minute brings 1200 requests, 20 for each second that is planned for 4, within its first second.
    arrivals = np.concatenate([60.0 * minute + np.linspace(0, 1, 1200) for minute in range(3)])
    trace(folder, arrivals, 250, 250)
    result = gpuplan("fleet", computed, "--simulate", "chat=requests.csv")
    assert result.exit_code == 6, result.output
    assert "VIOLATION     slo: chat: p90 T" in result.stdout
    assert "of requests within the limits" in result.stdout


def test_hourly_plans_are_not_simulated(gpuplan: Invoke, folder: Path) -> None:
    hourly = deepcopy(COMPUTED)
    del hourly["demand"][0]["rate_per_s"]
    hourly["demand"][0]["hourly"] = [1, 2]
    (folder / "hourly.json").write_text(json.dumps(hourly))
    trace(folder, np.arange(0, 60, 1.0))
    result = gpuplan("fleet", "hourly.json", "--simulate", "requests.csv")
    assert result.exit_code == 2
    assert "hourly" in result.stderr
