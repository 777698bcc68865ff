"""`gpuplan fleet`: flags over files, exit codes, what is printed, and bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

import cli.solving

Invoke = Callable[..., Result]
Instance = dict[str, Any]

#: 2 long requests a second take 2/3 of a `large`; its rest serves 2 of the 10 short ones, 4 `small` the other 8: 8 USD.
FLEET: Instance = {
    "problem": "fleet",
    "name": "by hand",
    "models": [{"name": "chat"}],
    "offers": [
        {"name": "small", "device": "l4", "price_usd_per_hour": 1, "max_count": 9},
        {"name": "large", "device": "h100_sxm", "price_usd_per_hour": 4, "max_count": 3},
    ],
    "demand": [
        {"model": "chat", "input_tokens": 100, "output_tokens": 100, "rate_per_s": 10},
        {"model": "chat", "input_tokens": 1000, "output_tokens": 100, "rate_per_s": 2},
    ],
    "profiles": [
        {"offer": "small", "model": "chat", "input_tokens": 100, "output_tokens": 100, "max_rate_per_s": 2},
        {"offer": "large", "model": "chat", "input_tokens": 100, "output_tokens": 100, "max_rate_per_s": 6},
        {"offer": "small", "model": "chat", "input_tokens": 1000, "output_tokens": 100, "max_rate_per_s": 0},
        {"offer": "large", "model": "chat", "input_tokens": 1000, "output_tokens": 100, "max_rate_per_s": 3},
    ],
}


@pytest.fixture
def fleet(gpuplan: Invoke, folder: Path) -> Callable[..., Result]:
    """Run `gpuplan fleet fleet.json` with these flags, on FLEET after `change`."""

    def run(*flags: str, change: Callable[[Instance], None] | None = None) -> Result:
        instance = deepcopy(FLEET)
        if change is not None:
            change(instance)
        # NaN and infinities as Python writes them, which no reader may take.
        (folder / "fleet.json").write_text(json.dumps(instance))
        return gpuplan("fleet", "fleet.json", *flags)

    return run


def document(result: Result) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_plan_and_what_is_printed_of_it(fleet: Callable[..., Result]) -> None:
    result = fleet()
    assert result.exit_code == 0, result.output
    text = result.stdout
    assert "by hand: optimal plan (proven)" in text
    assert "cost          8 USD/hour, 5,840 USD a month of 730 hours" in text
    assert "instances     4 x small, 1 x large" in text
    assert "none is reached" in text
    assert "best single offer" in text
    assert "no plan is below 8" in text


def test_json_is_the_document_alone(fleet: Callable[..., Result]) -> None:
    found = document(fleet("--json"))
    assert found["problem"] == "fleet"
    assert found["outcome"]["objective"] == pytest.approx(8)
    assert found["plan"]["insight"] is None
    assert found["verdict"]["feasible"] is True


def test_plan_and_fleet_give_the_same(fleet: Callable[..., Result], gpuplan: Invoke) -> None:
    mine = document(fleet("--json"))
    other = document(gpuplan("plan", "fleet.json", "--json"))
    assert mine["instance"] == other["instance"]
    assert mine["plan"]["cost_usd_per_hour"] == other["plan"]["cost_usd_per_hour"]


@pytest.mark.parametrize(
    ("flags", "cost"),
    [
        # 20 % more of everything: 0.8 of a large, whose rest serves 1.2 of 12; 10.8 / 2 -> 6 small.
        (("--headroom", "0.2"), 10),
        (("--spare", "0"), 8),
        (("--budget", "8"), 8),
        (("--budget", "$9/h"), 8),
        (("--max-watts", "1kW"), 8),
    ],
)
def test_flags_override_the_file(fleet: Callable[..., Result], flags: tuple[str, ...], cost: float) -> None:
    assert document(fleet("--json", *flags))["outcome"]["objective"] == pytest.approx(cost)


def test_spare_costs_more_and_says_so(fleet: Callable[..., Result]) -> None:
    result = fleet("--spare", "1", "--json")
    found = document(result)
    assert found["outcome"]["objective"] > 8
    assert {one["lost_offer"] for one in found["plan"]["periods"][0]["survival"]} <= {"small", "large"}
    assert "reached: spare_instances 1" in fleet("--spare", "1").stdout


@pytest.mark.parametrize("flags", [("--budget", "7"), ("--max-watts", "900W"), ("--spare", "1", "--budget", "9")])
def test_infeasible_exits_3_with_reasons(fleet: Callable[..., Result], flags: tuple[str, ...]) -> None:
    result = fleet(*flags)
    assert result.exit_code == 3
    assert "no plan can exist" in result.stdout
    assert "because" in result.stdout
    assert "each of these changes" in result.stdout


def test_offers_and_demand_from_their_files(gpuplan: Invoke, folder: Path) -> None:
    offers = {"offers": [{"name": "g6e", "device": "l40s", "price_usd_per_hour": "1.861 $/h"}]}
    demand = {
        "demand": [{"model": "chat", "input_tokens": 250, "output_tokens": 250, "rate_per_s": 5}],
        "headroom": 0.1,
    }
    (folder / "offers.json").write_text(json.dumps(offers))
    (folder / "demand.json").write_text(json.dumps(demand))
    flags = ("--offers", "offers.json", "--demand", "demand.json", "--ttft", "2s", "--tpot", "80ms", "--json")
    known = gpuplan("fleet", *flags, "--model", "chat=meta-llama/Llama-3.1-8B-Instruct")
    assert known.exit_code == 0, known.output
    found = document(known)
    assert found["instance"]["name"] == "demand"
    assert {row["offer"] for row in found["plan"]["allocation"]} == {"g6e"}
    # Without --model the demand's names are catalogue names, and `chat` is none.
    unknown = gpuplan("fleet", *flags)
    assert unknown.exit_code == 7
    assert "--model" in unknown.stderr
    assert "chat" in unknown.stderr


def test_mistakes_in_files_of_flags_have_their_place(gpuplan: Invoke, folder: Path) -> None:
    (folder / "fleet.json").write_text(json.dumps(FLEET))
    (folder / "offers.yaml").write_text("offers:\n  - name: small\n    device: l4\n    price_usd_per_hour: €3/h\n")
    (folder / "demand.yaml").write_text(
        "demand:\n  - {model: chat, input_tokens: 100, output_tokens: 0, rate_per_s: 1}\n"
    )
    result = gpuplan("fleet", "fleet.json", "--offers", "offers.yaml", "--demand", "demand.yaml")
    assert result.exit_code == 7
    assert "offers.yaml:4:" in result.stderr
    assert "demand.yaml:2:" in result.stderr


@pytest.mark.parametrize("content", ["demand: []\nextra: 1\n", "offers: []\nproblem: fleet\n", "- 1\n", "{}\n"])
def test_other_keys_in_files_of_flags_are_refused(gpuplan: Invoke, folder: Path, content: str) -> None:
    (folder / "part.yaml").write_text(content)
    (folder / "fleet.json").write_text(json.dumps(FLEET))
    for flag in ("--offers", "--demand"):
        result = gpuplan("fleet", "fleet.json", flag, "part.yaml")
        assert result.exit_code == 7
        assert "part.yaml" in result.stderr


def test_current_from_a_plan_and_from_counts(fleet: Callable[..., Result], gpuplan: Invoke, folder: Path) -> None:
    assert fleet("-o", "plan.json", "--quiet").exit_code == 0
    again = document(fleet("--current", "plan.json", "--change-cost", "0.5", "--json"))
    assert again["plan"]["changes"] == {}
    assert again["outcome"]["objective"] == pytest.approx(8)
    (folder / "counts.yaml").write_text("{small: 2, large: 2}\n")
    # 2 large and 2 small serve it all, for 10 USD; the cheapest fleet is 3 changes away.
    kept = document(fleet("--current", "counts.yaml", "--max-changes", "0", "--json"))
    assert kept["plan"]["changes"] == {}
    assert kept["outcome"]["objective"] == pytest.approx(10)
    same = document(gpuplan("plan", "fleet.json", "--current", "counts.yaml", "--json"))
    assert same["plan"]["changes"] == {"small": 2, "large": -1}
    assert gpuplan("check", "plan.json", "--instance", "fleet.json", "--current", "plan.json").exit_code in (0, 6)


@pytest.mark.parametrize("content", ["[1, 2]", "{small: -1}", "{unheard: 1}", '{"schema_version": 1}'])
def test_bad_current_exits_7(fleet: Callable[..., Result], folder: Path, content: str) -> None:
    (folder / "bad.yaml").write_text(content)
    assert fleet("--current", "bad.yaml").exit_code == 7


def test_compare_tells_instances(fleet: Callable[..., Result], gpuplan: Invoke, plan_file: Path) -> None:
    assert fleet("-o", "one.json", "--quiet").exit_code == 0
    assert fleet("-o", "two.json", "--quiet", "--headroom", "0.2").exit_code == 0
    result = gpuplan("compare", "one.json", "two.json")
    assert result.exit_code == 0
    assert "one.json -> two.json: +2 small" in result.stdout
    other = json.loads(gpuplan("compare", "one.json", plan_file.name, "--json").stdout)
    assert "experts" in other["moves"][0]["why"]


def test_gap_and_limits(fleet: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    assert fleet("--gap", "0.01").exit_code == 0
    solved = cli.solving.plan

    def short(*arguments: Any, **options: Any) -> Any:
        made = solved(*arguments, **options)
        outcome = made.outcome.model_copy(update={"status": "feasible", "stop": "time_limit", "gap": 0.5})
        return made.model_copy(update={"outcome": outcome})

    monkeypatch.setattr(cli.solving, "plan", short)
    assert fleet("--gap", "0.01").exit_code == 4


def test_no_plan_in_time_exits_5(fleet: Callable[..., Result]) -> None:
    assert fleet("--time-limit", "1e-9").exit_code == 5


@pytest.mark.parametrize(
    "flags",
    [
        ("--method", "eplb"),
        ("--model", "chat"),
        ("--ttft", "1s"),
        ("--sweep", "rate=1..2", "--explain"),
        ("--sweep", "price=1..2"),
        ("--sweep", "rate=1"),
        ("--sweep", "rate=4..1"),
        ("--sweep", "rate=0..1"),
        ("--sweep", "rate=1..2:one"),
        ("--sweep", "rate=1..nan"),
        ("--sweep", "tpot=10ms..20ms"),
        ("--sweep", "rate=1..2", "-o", "points.json"),
        ("--simulate", "trace.csv"),
        ("--threads", "2", "--method", "highs"),
    ],
)
def test_what_cannot_be_honoured_exits_2(fleet: Callable[..., Result], flags: tuple[str, ...]) -> None:
    result = fleet(*flags)
    assert result.exit_code == 2, result.output
    assert "gpuplan: " in result.stderr


@pytest.mark.parametrize(
    "flags",
    [
        ("--budget", "€3/h"),
        ("--budget", "nan"),
        ("--max-watts", "3 horses"),
        ("--headroom", "-1"),
        ("--headroom", "nan"),
        ("--spare", "2"),
        ("--max-spot-share", "1.5"),
        ("--max-changes", "3"),
        ("--offers", "absent.yaml"),
        ("--current", "absent.json"),
    ],
)
def test_bad_values_exit_7(fleet: Callable[..., Result], flags: tuple[str, ...]) -> None:
    result = fleet(*flags)
    assert result.exit_code == 7, result.output
    assert "Traceback" not in result.output


def _offer(**changes: Any) -> Callable[[Instance], None]:
    return lambda instance: instance["offers"][0].update(changes)


def _demand(**changes: Any) -> Callable[[Instance], None]:
    return lambda instance: instance["demand"][0].update(changes)


def _profile(**changes: Any) -> Callable[[Instance], None]:
    return lambda instance: instance["profiles"][0].update(changes)


def _key(name: str, value: Any) -> Callable[[Instance], None]:
    return lambda instance: instance.update({name: value})


def _no_price(instance: Instance) -> None:
    del instance["offers"][0]["price_usd_per_hour"]


def _no_profile(instance: Instance) -> None:
    instance["profiles"] = instance["profiles"][:2]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_no_price, "price_usd_per_hour: is required"),
        (_offer(price_usd_per_hour=-1), "offers"),
        (_offer(price_usd_per_hour=float("nan")), "NaN"),
        (_offer(price_usd_per_hour="€3/h"), "€3/h"),
        (_offer(price_usd_per_hour="3 EUR/h"), "EUR"),
        (_offer(gpus=0), "gpus"),
        (_offer(max_count=-1), "max_count"),
        (_offer(min_count=10), "above max_count"),
        (_offer(market="barter"), "market"),
        (_offer(name="large"), "two are named 'large'"),
        (_offer(availability=0), "never there"),
        (_demand(rate_per_s=-1), "rate_per_s"),
        (_demand(rate_per_s=float("inf")), "Infinity"),
        (_demand(rate_per_s=None), "exactly one of rate_per_s and hourly"),
        (_demand(hourly=[1, 2]), "exactly one of rate_per_s and hourly"),
        (_demand(model="unheard"), "no model is named 'unheard'"),
        (_demand(input_tokens=0), "input_tokens"),
        (_demand(input_tokens=99), "not profiled"),
        (_demand(input_tokens=1000), "given twice"),
        (_profile(max_rate_per_s=-2), "max_rate_per_s"),
        (_profile(max_rate_per_s=None), "max_rate_per_s"),
        (_profile(offer="unheard"), "no offer is named 'unheard'"),
        (_profile(gpus=2), "larger than"),
        (_no_profile, "not profiled"),
        (_key("demand", []), "demand"),
        (_key("offers", []), "offers"),
        (_key("profiles", []), "neither profiles nor a `model`"),
        (_key("quotas", [{"name": "q", "offers": ["unheard"], "max_gpus": 1}]), "no offer is named 'unheard'"),
        (_key("current", {"unheard": 1}), "no offer is named 'unheard'"),
        (_key("max_spot_share", 2), "max_spot_share"),
        (_key("unheard", 1), "unknown key"),
    ],
)
def test_bad_descriptions_exit_7_and_say_why(
    fleet: Callable[..., Result], change: Callable[[Instance], None], told: str
) -> None:
    result = fleet(change=change)
    assert result.exit_code == 7, result.output
    assert told in result.stderr
    assert "fleet.json" in result.stderr


def test_zero_throughput_everywhere_is_told_by_size(fleet: Callable[..., Result]) -> None:
    def change(instance: Instance) -> None:
        for profile in instance["profiles"]:
            profile["max_rate_per_s"] *= profile["input_tokens"] == 100

    result = fleet(change=change)
    assert result.exit_code == 3
    assert "no offer serves chat 1000/100 tokens within the SLO" in result.stdout


def test_caps_of_zero_are_caps(fleet: Callable[..., Result]) -> None:
    result = fleet(change=lambda instance: instance["offers"][1].update(max_count=0))
    assert result.exit_code == 3
    assert "raise max_count of large" in result.stdout


def test_all_rates_zero_is_refused(fleet: Callable[..., Result]) -> None:
    def change(instance: Instance) -> None:
        for demand in instance["demand"]:
            demand["rate_per_s"] = 0

    result = fleet(change=change)
    assert result.exit_code == 7
    assert "nothing to serve" in result.stderr


def test_hours_are_summed_up(fleet: Callable[..., Result]) -> None:
    def change(instance: Instance) -> None:
        for demand, rate in zip(instance["demand"], (10, 2), strict=True):
            del demand["rate_per_s"]
            demand["hourly"] = [rate, rate, 0.1 * rate]
        instance["offers"].append({**instance["offers"][1], "name": "base", "market": "reserved"})
        instance["profiles"] += [{**one, "offer": "base"} for one in instance["profiles"] if one["offer"] == "large"]
        instance["offers"][2]["price_usd_per_hour"] = 2

    result = fleet(change=change)
    assert result.exit_code == 0, result.output
    assert "0-1" in result.stdout
    assert "reserved" in result.stdout
    assert "at all hours" in result.stdout
    assert "busiest hour" in result.stdout


def test_many_routes_are_cut_and_counted(fleet: Callable[..., Result]) -> None:
    def change(instance: Instance) -> None:
        instance["demand"] = [
            {"model": "chat", "input_tokens": size, "output_tokens": 10, "rate_per_s": 1} for size in range(1, 26)
        ]
        instance["unprofiled"] = "round_up"

    result = fleet(change=change)
    assert result.exit_code == 0, result.output
    assert "more," in result.stdout
    assert "of the requests; --json lists all" in result.stdout


def test_schema_of_both_documents(gpuplan: Invoke) -> None:
    for kind, key in (("fleet", "offers"), ("fleet-plan", "plan")):
        assert key in json.loads(gpuplan("schema", kind).stdout)["properties"]


def test_plain_rule_that_breaks_a_cap_says_so(fleet: Callable[..., Result]) -> None:
    """Only `large` serves every size, and takes 3; with at most 2 of them the rule's plan is none that can be had."""

    def two_large(instance: Instance) -> None:
        instance["offers"][1]["max_count"] = 2

    baseline = json.loads(fleet("--json", change=two_large).stdout)["baseline"]
    assert [one["rule"] for one in baseline["violations"]] == ["count"]
    assert f"best single offer breaks count: {baseline['violations'][0]['message']}" in fleet(change=two_large).stdout
    assert json.loads(fleet("--json").stdout)["baseline"]["violations"] == []
