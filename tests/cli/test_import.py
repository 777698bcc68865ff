"""`gpuplan import`: traces and price lists become parts of fleet instances that other commands can read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import Result

from planner.descriptions.fleet import FleetInstance
from planner.files import read_as, read_source

Invoke = Callable[..., Result]

PRICES = "provider,region,instance_type,gpu,gpus_per_instance,gpu_mem_gib,market,usd_per_hour,as_of\n"
PRICES += "aws,us-east-1,p5.48xlarge,h100,8,80,on_demand,55.04,2026-07-20\n"
PRICES += "aws,us-east-1,g6.xlarge,l4,1,22.4,spot,0.4,2026-07-20\n"


@pytest.fixture
def files(folder: Path) -> Path:
    """chat.csv: 3 hours, 0.1 requests a second, one of 20,000 tokens; prices.csv: two offers."""
    times = np.arange(0, 3 * 3600 + 1, 10)
    rows = [f"{time},{20_000 if time == 50 else 300},{100 + time % 7}" for time in times]
    (folder / "chat.csv").write_text("arrival_s,input_tokens,output_tokens\n" + "\n".join(rows))
    (folder / "prices.csv").write_text(PRICES)
    return folder


def test_a_trace_becomes_demand(gpuplan: Invoke, files: Path) -> None:
    result = gpuplan("import", "trace", "chat.csv", "--model", "m", "--mean", "-o", "demand.yaml")
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    assert "1 requests (0.1%) are beyond the grid of 16000 input and 2000 output tokens" in result.stderr
    text = (files / "demand.yaml").read_text()
    assert text.startswith("# demand of chat.csv (plain table)\n# 1081 requests over 3 h, 0.1001 a second")
    value = read_source(files / "demand.yaml").value
    assert set(value) == {"demand", "headroom"}
    sizes = {(one["model"], one["input_tokens"], one["output_tokens"]) for one in value["demand"]}
    assert sizes == {("m", 500, 100), ("m", 500, 250), ("m", 20_000, 250)}
    assert sum(one["rate_per_s"] for one in value["demand"]) == pytest.approx(1081 / 10_800)
    assert value["headroom"] == 0.0


def test_hours_scale_grid_and_json(gpuplan: Invoke, files: Path) -> None:
    flags = ("--model", "m", "--scale", "10", "--grid", "1", "--size", "mean", "--ttft", "500ms", "--json")
    result = gpuplan("import", "trace", "chat.csv", *flags)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    (demand,) = document["demand"]
    assert demand["hourly"] == pytest.approx([1.0, 1.0, 361 / 360], rel=1e-5)
    assert (demand["input_tokens"], demand["output_tokens"]) == (319, 103)
    assert document["slo"] == {"ttft_s": 0.5}
    assert "rates are 10 times those" in result.stderr
    from_stdin = gpuplan("import", "trace", "-", *flags, stdin=(files / "chat.csv").read_text())
    assert json.loads(from_stdin.stdout) == document


def test_prices_become_offers_and_both_an_instance(gpuplan: Invoke, files: Path) -> None:
    result = gpuplan("import", "prices", "prices.csv", "-o", "offers.yaml")
    assert result.exit_code == 0, result.output
    names = [offer["name"] for offer in read_source(files / "offers.yaml").value["offers"]]
    assert names == ["aws/p5.48xlarge@us-east-1", "aws/g6.xlarge@us-east-1:spot"]
    flags = ("--model", "Qwen/Qwen3-8B", "--offers", "offers.yaml", "--ttft", "2s", "--tpot", "50ms")
    result = gpuplan("import", "trace", "chat.csv", *flags, "-o", "fleet.yaml")
    assert result.exit_code == 0, result.output
    instance = read_as(files / "fleet.yaml", FleetInstance)
    assert instance.name == "chat"
    assert [offer.name for offer in instance.offers] == names
    assert instance.slo is not None
    assert (instance.slo.ttft_s, instance.slo.tpot_s) == (2.0, 0.05)
    assert {len(one.hourly or ()) for one in instance.demand} == {3}
    result = gpuplan("import", "trace", "chat.csv", "--model", "m", "--offers", "offers.yaml", "-o", "fleet.json")
    assert "no slo is written" in result.stderr
    assert "slo" not in json.loads((files / "fleet.json").read_text())


def test_names_are_quoted(gpuplan: Invoke, files: Path) -> None:
    odd = 'a: "b" {x}, #é'
    assert gpuplan("import", "trace", "chat.csv", "--model", odd, "-o", "d.yaml").exit_code == 0
    assert {one["model"] for one in read_source(files / "d.yaml").value["demand"]} == {odd}


def test_bad_prices(gpuplan: Invoke, files: Path) -> None:
    (files / "prices.csv").write_text(PRICES + "aws,us-east-1,g6f.large,l4,0.125,2.8,on_demand,0.2,2026-07-20\n")
    result = gpuplan("import", "prices", "prices.csv", "-o", "offers.yaml")
    assert result.exit_code == 7
    assert result.stderr == "prices.csv:4: rents 0.125 GPUs: a plan counts whole ones\n"
    assert not (files / "offers.yaml").exists()
    result = gpuplan("import", "prices", "prices.csv", "--skip-bad")
    assert result.exit_code == 0
    assert "left out: prices.csv:4: rents 0.125 GPUs" in result.stderr
    assert result.stdout.count("device:") == 2
    assert gpuplan("import", "prices", "prices.csv", "--gpu", "h100", "--market", "spot").exit_code == 7
    assert gpuplan("import", "prices", "prices.csv", "--gpu", "h100").stdout.count("device:") == 1
    assert gpuplan("import", "prices", "prices.csv", "--gpu", "abacus").exit_code == 2


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--grid", "fine"), "--grid: is 'fine'"),
        (("--grid", "65"), "--grid: is '65'"),
        (("--scale", "0"), "--scale: is 0"),
        (("--scale", "nan"), "--scale: is nan"),
        (("--burst-quantile", "95"), "--burst-quantile: is 95"),
        (("--window", "10 parsecs"), "--window: unknown unit"),
        (("--window", "4h"), "chat.csv: 10800 s hold 0 windows"),
        (("--ttft", "0"), "--ttft: a time in seconds must be above 0"),
        (("--name", "x"), "--name: names an instance"),
        (("--offers", "none.yaml"), "none.yaml: cannot be read"),
        (("--offers", "chat.csv"), "chat.csv"),
        (("--offers", "empty.json"), "empty.json:1"),
    ],
)
def test_bad_flags_are_7(gpuplan: Invoke, files: Path, flags: tuple[str, ...], told: str) -> None:
    (files / "empty.json").write_text('{"offers": []}')
    result = gpuplan("import", "trace", "chat.csv", "--model", "m", *flags, "-o", "out.yaml")
    assert result.exit_code == 7, result.output
    assert told in result.stderr
    assert not (files / "out.yaml").exists()


def test_bad_traces_and_usage(gpuplan: Invoke, files: Path) -> None:
    (files / "mixed.csv").write_text("arrival_s,input_tokens,output_tokens\n300,0,5\n20,10,9\n")
    result = gpuplan("import", "trace", "mixed.csv", "--model", "m")
    assert result.exit_code == 7
    assert result.stderr.splitlines() == [
        "mixed.csv:2: has 0 input tokens and some output: columns are mixed up?",
        "mixed.csv:3: arrival goes back from 300 to 20 s: rows must be in the order of arrival; or columns are mixed "
        "up",
    ]
    assert gpuplan("import", "trace", "chat.csv").exit_code == 2
    assert gpuplan("import", "prices").exit_code == 2
    help_text = gpuplan("import", "--help").stdout
    assert "trace" in help_text
    assert "prices" in help_text


def test_recorded_trace_and_prices_make_an_instance(gpuplan: Invoke, folder: Path, shared_data: Path) -> None:
    data = shared_data / "fleet"
    flags = ("--provider", "aws", "--region", "us-east-1", "--gpu", "h100", "--gpu", "l4", "--skip-bad")
    assert gpuplan("import", "prices", str(data / "gpu_prices.csv"), *flags, "-o", "offers.yaml").exit_code == 0
    flags = ("--model", "Qwen/Qwen3-8B", "--offers", "offers.yaml", "--tpot", "50ms")
    result = gpuplan("import", "trace", str(data / "azure2023_conv.csv"), *flags, "-o", "fleet.yaml")
    assert result.exit_code == 0, result.output
    instance = read_as(folder / "fleet.yaml", FleetInstance)
    assert len(instance.demand) == 36
    assert instance.headroom == pytest.approx(0.49, abs=0.01)
    assert {offer.device for offer in instance.offers} == {"h100_sxm", "l4"}


def test_bursts_by_hour_and_pool_slack(gpuplan: Invoke, files: Path) -> None:
    """Three hours with a burst each; with --pool-slack what independent arrivals show is left to the pools."""
    flags = ("import", "trace", "chat.csv", "--model", "m", "--burst-by", "hour", "--window", "25s", "--json")
    demand = json.loads(gpuplan(*flags).stdout)["demand"]
    # Windows of 25 s hold 2 or 3 requests, 2.5 on average.
    assert all(row["burst"] == [1.2, 1.2, 1.2] for row in demand)
    split = json.loads(gpuplan(*flags, "--pool-slack").stdout)
    assert split["pool_slack"] == {"window_s": 25.0, "quantile": 0.95}
    assert "headroom" not in split
    assert all(row["burst"] == [1.0, 1.0, 1.0] for row in split["demand"])
    (files / "offers.yaml").write_text("offers: [{name: a, device: h100_sxm, price_usd_per_hour: 2}]")
    more = ("--offers", "offers.yaml", "--ttft", "2s", "--pool-slack", "--json")
    whole = gpuplan("import", "trace", "chat.csv", "--model", "m", *more)
    (files / "whole.json").write_text(whole.stdout)
    assert read_as(files / "whole.json", FleetInstance).pool_slack is not None
    bad = gpuplan(*flags, "--pool-slack", "--burst-quantile", "0.3")
    assert bad.exit_code == 7
    assert "--burst-quantile" in bad.stderr
