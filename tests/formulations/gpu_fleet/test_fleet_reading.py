"""Bad fleets: every mistake at its line and column, all at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from formulations.gpu_fleet.problem import FleetProblem
from formulations.planning import load_problem
from planner.errors import DescriptionError

GOOD = """\
problem: fleet
name: chat
offers:
  - {name: a, device: l4, price_usd_per_hour: 0.8}
  - {name: b, device: h100_sxm, gpus: 8, price_usd_per_hour: $20/h}
models:
  - {name: m}
demand:
  - {model: m, input_tokens: 100, output_tokens: 50, rate_per_s: 3}
profiles:
  - {offer: a, model: m, input_tokens: 100, output_tokens: 50, max_rate_per_s: 1}
  - {offer: b, model: m, input_tokens: 100, output_tokens: 50, max_rate_per_s: 9, gpus: 4}
"""


SIZE = "input_tokens: 100, output_tokens: 50"
PROFILES = GOOD[GOOD.index("profiles:") :]


def read(folder: Path, text: str) -> FleetProblem:
    path = folder / "fleet.yaml"
    path.write_text(text)
    found: FleetProblem = load_problem(path)
    return found


def wrong(folder: Path, text: str) -> list[str]:
    """The findings, without the file's name."""
    with pytest.raises(DescriptionError) as caught:
        read(folder, text)
    return [str(finding).removeprefix(f"{folder / 'fleet.yaml'}:") for finding in caught.value.findings]


def changed(*replacements: tuple[str, str]) -> str:
    text = GOOD
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new, 1)
    return text


def test_the_arrays_of_a_good_one(tmp_path: Path) -> None:
    made = read(tmp_path, GOOD)
    assert made.price.tolist() == [0.8, 20.0]
    assert made.gpus.tolist() == [1, 8]
    # Board power, 72 and 8 x 700 W.
    assert made.watts.tolist() == [72.0, 5600.0]
    assert np.isinf(made.most).all()
    assert made.config_gpus.tolist() == [1, 4]
    assert made.throughput.tolist() == [[1.0, 9.0]]
    assert (made.rate.tolist(), made.share.tolist(), made.hours) == ([[3.0]], [1.0], ((0,),))


BAD: dict[str, tuple[list[tuple[str, str]], str]] = {
    "no price": ([(", price_usd_per_hour: 0.8", "")], "4:5: offers.0.price_usd_per_hour: is required"),
    "a negative price": ([("0.8", "-0.8")], "4:27: offers.0.price_usd_per_hour: Input should be greater"),
    "a price that is no number": ([("0.8", ".nan")], "offers.0.price_usd_per_hour"),
    "a price without end": ([("0.8", ".inf")], "offers.0.price_usd_per_hour"),
    "another currency": ([("$20/h", "20 EUR/h")], "5:42: offers.1.price_usd_per_hour: unknown unit 'EUR/h'"),
    "a price a month": ([("$20/h", "$20/month")], "5:42: offers.1.price_usd_per_hour: unknown unit '$/month'"),
    "another unit of power": ([("price_usd_per_hour: 0.8", "price_usd_per_hour: 0.8, watts: 5 A")], "unknown unit 'A'"),
    "a negative rate": ([("rate_per_s: 3", "rate_per_s: -3")], "9:54: demand.0.rate_per_s: Input should be greater"),
    "a rate that is no number": ([("rate_per_s: 3", "rate_per_s: .nan")], "demand.0.rate_per_s"),
    "a rate as text": ([("rate_per_s: 3", "rate_per_s: fast")], "9:54: demand.0.rate_per_s: Input should be a valid"),
    "an absurd rate": ([("rate_per_s: 3", "rate_per_s: 1.0e+300")], "9:54: demand.0.rate_per_s: Input should be less"),
    "two rates": ([("rate_per_s: 3", "rate_per_s: 3, hourly: [1, 2]")], "9:5: demand.0: give exactly one of"),
    "no rate": ([(", rate_per_s: 3", "")], "9:5: demand.0: give exactly one of rate_per_s and hourly"),
    "no hours": ([("rate_per_s: 3", "hourly: []")], "9:54: demand.0.hourly: is empty"),
    "no demand": ([("demand:\n  - {model: m, input_tokens: 100, output_tokens: 50, rate_per_s: 3}", "demand: []")],
                  "8:1: demand: is empty"),
    "a demand of nothing": ([("rate_per_s: 3", "rate_per_s: 0")], "8:1: demand: all rates are zero"),
    "no tokens": ([("input_tokens: 100, output_tokens: 50, rate", "input_tokens: 0, output_tokens: 50, rate")],
                  "9:16: demand.0.input_tokens: Input should be greater"),
    "a model that is not there": ([("demand:\n  - {model: m", "demand:\n  - {model: x")],
                                  "9:6: demand.0.model: no model is named 'x'"),
    "an offer that is not there": ([("{offer: b", "{offer: x")], "12:6: profiles.1.offer: no offer is named 'x'"),
    "a size that was not profiled": ([("50, rate_per_s", "70, rate_per_s")],
                                     "9:5: demand.0: m 100/70 tokens is not profiled on any offer"),
    "a size beyond the grid": ([("50, rate_per_s", "70, rate_per_s"), ("profiles:", "unprofiled: round_up\nprofiles:")],
                               "9:5: demand.0: m 100/70 tokens is larger than any profiled size on any offer"),
    "a negative throughput": ([("max_rate_per_s: 1", "max_rate_per_s: -1")], "profiles.0.max_rate_per_s"),
    "hardly any throughput": ([("max_rate_per_s: 1", "max_rate_per_s: 1.0e-9")],
                              "11:64: profiles.0.max_rate_per_s: 1e-09 is below 1e-06; 0 says"),
    "a replica larger than its instance": ([("gpus: 4", "gpus: 16")], "12:83: profiles.1.gpus: a replica of 16 GPUs"),
    "the same profile twice": ([("{offer: b", "{offer: a"), (", gpus: 4", "")], "12:5: profiles.1: is given twice"),
    "a cap below the least count": ([("0.8", "0.8, min_count: 3, max_count: 2")],
                                    "offers.0.min_count: 3 is above max_count 2"),
    "a negative cap": ([("0.8", "0.8, max_count: -1")], "offers.0.max_count: Input should be greater"),
    "half an instance": ([("0.8", "0.8, max_count: 1.5")], "offers.0.max_count: Input should be a valid integer"),
    "instances without GPUs": ([("gpus: 8", "gpus: 0")], "5:33: offers.1.gpus: Input should be greater"),
    "GPUs beyond counting": ([("gpus: 8", "gpus: 1000000000000000000000")], "5:33: offers.1.gpus"),
    "spot that is never there": ([("0.8", "0.8, market: spot, availability: 0")], "offers.0.availability: an offer"),
    "an unknown market": ([("0.8", "0.8, market: auction")], "offers.0.market: Input should be 'on_demand'"),
    "two offers of one name": ([("name: b", "name: a"), ("offer: b", "offer: a")], "3:1: offers: two are named 'a'"),
    "an unknown key": ([("name: chat", "name: chat\nregions: eu")], "3:1: regions: unknown key"),
    "a quota on nothing": ([("name: chat", "name: chat\nquotas: [{name: q, offers: [x], max_gpus: 3}]")],
                           "3:20: quotas.0.offers: no offer is named 'x'"),
    "a region that no offer is in": ([("{name: m}", "{name: m, regions: [eu]}")],
                                     "7:15: models.0.regions: no offer is in 'eu'"),
    "replicas of no size": ([("{name: m}", "{name: m, gpus_per_replica: []}")], "7:15: models.0.gpus_per_replica"),
    "too many replicas": ([("{name: m}", "{name: m, min_replicas: 1000000000000000000000}")], "models.0.min_replicas"),
    "replicas of what nobody asks for": ([("{name: m}", "{name: m}\n  - {name: warm, min_replicas: 1}")],
                                         "8:18: models.1.min_replicas: needs a demand"),
    "sizes that do not divide": (
        [("profiles:", f"profiles:\n  - {{offer: b, model: m, {SIZE}, max_rate_per_s: 5, gpus: 3}}")],
        "13:83: profiles.2.gpus: replicas of 3 and 4 GPUs on one offer",
    ),
    "changes of no fleet": ([("name: chat", "name: chat\nmax_changes: 2")],
                            "current: max_changes and change_cost_usd_per_hour need a current fleet"),
    "a current fleet of what is not there": ([("name: chat", "name: chat\ncurrent: {x: 1}")],
                                             "3:1: current: no offer is named 'x'"),
    "watts of a board that nobody knows": ([("device: l4", "device: mine"), ("models:", "max_watts: 1kW\nmodels:")],
                                           "offers.0.device: the power of 'mine' is not known"),
    "neither profiles nor a model": ([(PROFILES, "slo: {tpot_s: 0.1}\n")],
                                     "7:5: models.0: m has neither profiles nor a `model`"),
    "no limits to compute by": ([(PROFILES, ""), ("{name: m}", "{name: m, model: Qwen/Qwen3-8B}")],
                                "slo: is needed to compute throughput; or give profiles"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_located(tmp_path: Path, name: str) -> None:
    replacements, message = BAD[name]
    found = wrong(tmp_path, changed(*replacements))
    assert any(message in one for one in found), found


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    text = changed(
        (", price_usd_per_hour: 0.8", ""),
        ("$20/h", "-3"),
        ("rate_per_s: 3", "rate_per_s: -3"),
        ("name: chat", "nane: x"),
    )
    found = "\n".join(wrong(tmp_path, text))
    for one in ("offers.0.price_usd_per_hour", "offers.1.price_usd_per_hour", "demand.0.rate_per_s", "nane: unknown"):
        assert one in found
    text = changed(
        ("demand:\n  - {model: m", "demand:\n  - {model: x"),
        ("{offer: a", "{offer: y"),
        ("name: chat", "name: chat\ncurrent: {z: 1}"),
    )
    found = "\n".join(wrong(tmp_path, text))
    for one in ("no model is named 'x'", "no offer is named 'y'", "no offer is named 'z'"):
        assert one in found


def test_hours_that_differ(tmp_path: Path) -> None:
    more = "rate_per_s: 3}\n  - {model: m, input_tokens: 90, output_tokens: 50, hourly: [1, 2]}"
    more += "\n  - {model: m, input_tokens: 80, output_tokens: 50, hourly: [1, 2, 3]}"
    found = wrong(tmp_path, changed(("rate_per_s: 3}", more)))
    assert any("8:1: demand: hourly rates differ in length: [2, 3]" in one for one in found)


def test_a_current_fleet_and_hours(tmp_path: Path) -> None:
    text = changed(("rate_per_s: 3", "hourly: [1, 2]"), ("name: chat", "name: chat\ncurrent: {a: 1}"))
    assert "current: a current fleet goes with one constant rate" in wrong(tmp_path, text)[0]
    # Hours that are all alike are one rate.
    assert read(tmp_path, text.replace("[1, 2]", "[2, 2]")).num_periods == 1


def test_a_constant_rate_beside_hours_by_hand(tmp_path: Path) -> None:
    """Hours 1, 2, 1 beside a constant 3: two periods, of two thirds and one third."""
    more = "hourly: [1, 2, 1]}\n  - {model: m, input_tokens: 90, output_tokens: 50, rate_per_s: 3}"
    text = changed(("rate_per_s: 3}", more), ("profiles:", "unprofiled: round_up\nprofiles:"))
    made = read(tmp_path, text)
    assert made.rate.tolist() == [[1.0, 3.0], [2.0, 3.0]]
    assert made.share.tolist() == pytest.approx([2 / 3, 1 / 3])
    assert made.hours == ((0, 2), (1,))
    # 90/50 tokens count as 100/50, and the plan says so.
    assert made.throughput.tolist() == [[1.0, 9.0], [1.0, 9.0]]
    assert any("next larger profiled size" in note for note in made.assumptions)


def test_rounding_up_takes_the_smallest_size_that_covers(tmp_path: Path) -> None:
    rows = "".join(
        f"  - {{offer: a, model: m, input_tokens: {i}, output_tokens: {o}, max_rate_per_s: {rate}}}\n"
        for i, o, rate in ((200, 50, 0.5), (50, 500, 0.25), (400, 400, 0.125))
    )
    text = changed(
        ("profiles:\n", f"unprofiled: round_up\nprofiles:\n{rows}"), ("input_tokens: 100", "input_tokens: 150")
    )
    # 150/50: 100/50 is too small, 50/500 too; of 200/50 and 400/400 the smaller one. b has no profile that covers it.
    assert read(tmp_path, text).throughput.tolist() == [[0.5]]


def test_where_a_model_may_run_and_how_large(tmp_path: Path) -> None:
    """Profiles elsewhere or of other sizes are left out."""
    there = changed(
        ("device: l4", "device: l4, region: us"),
        ("8, price", "8, region: eu, price"),
        ("{name: m}", "{name: m, regions: [us]}"),
    )
    made = read(tmp_path, there)
    assert [made.offer_names[pool] for pool in made.config_pool] == ["a"]
    made = read(tmp_path, changed(("{name: m}", "{name: m, gpus_per_replica: [4, 8]}")))
    assert made.config_gpus.tolist() == [4]


def test_the_hash_follows_what_is_said(tmp_path: Path) -> None:
    first = read(tmp_path, GOOD).sha256
    assert read(tmp_path, GOOD.replace("0.8", "0.80")).sha256 == first
    assert read(tmp_path, GOOD + "headroom: 0\n").sha256 == first
    assert read(tmp_path, GOOD + "headroom: 0.1\n").sha256 != first


def test_broken_text(tmp_path: Path) -> None:
    assert "not valid YAML" in wrong(tmp_path, GOOD + "  - {offer: [")[0]
    assert "duplicate key" in wrong(tmp_path, GOOD.replace("name: chat", "name: chat\nname: chat"))[0]
    assert wrong(tmp_path, "problem: fleet\n")
    assert wrong(tmp_path, "[1, 2]")
    assert wrong(tmp_path, "problem: flet\n")
