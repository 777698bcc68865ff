"""A power cap filled by expected draw: by hand, another way through the cost model, broken plans."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fleet_cases import best, demand, fleet, offers, problem, profile, random_problem, run
from pydantic import ValidationError

from formulations.gpu_fleet.check import check
from formulations.gpu_fleet.insight import binding
from formulations.gpu_fleet.power import drawn
from formulations.gpu_fleet.problem import Draw, FleetProblem
from formulations.gpu_fleet.reading import read_problem
from formulations.gpu_fleet.verdict import judge
from planner.catalog import device
from planner.descriptions.fleet import FleetInstance

BOARDS = offers(small={"price": 1.0, "watts": 400}, lean={"price": 3.0, "watts": 100})
SERVED = {"small": 1.0, "lean": 1.0}


def test_expected_draw_lets_more_in() -> None:
    """1600 W and 5/s: boards allow 3 x 400 + 2 x 100 W, $9; at 60 % and a margin of 160 W six of 240 W fit, $5."""
    power = {"draw": 0.6, "margin": 0.1}
    assert best(problem(BOARDS, 5.0, SERVED, max_watts=1600)) == pytest.approx(9.0)
    assert best(problem(BOARDS, 5.0, SERVED, max_watts=1600, power=power)) == pytest.approx(5.0)
    assert best(problem(BOARDS, 6.0, SERVED, max_watts=1600, power=power)) == pytest.approx(6.0)
    # A seventh: 5 x 240 + 2 x 60 W.
    assert best(problem(BOARDS, 7.0, SERVED, max_watts=1600, power=power)) == pytest.approx(11.0)


def test_all_of_the_watts_without_margin_is_the_plain_cap() -> None:
    plain = problem(BOARDS, 5.0, SERVED, max_watts=1600)
    told = problem(BOARDS, 5.0, SERVED, max_watts=1600, power={"draw": 1.0, "margin": 0.0})
    assert best(told) == pytest.approx(best(plain))


def by_hand() -> FleetProblem:
    """Idle 10 W an instance, 50 W more a replica, 20 J a request; instances of 4 GPUs and 400 W, replicas of 2."""
    made = problem(offers(a={"price": 1.0, "gpus": 4, "watts": 400}), 3.0, [profile("a", 1.0, gpus=2)], max_watts=1000)
    return replace(made, draw=Draw(np.array([10.0]), np.array([50.0]), np.array([[20.0]])))


def test_draw_by_what_runs() -> None:
    """3/s on three replicas of two instances: 2 x 10 + 3 x 50 + 3 x 20 = 230 W, of 800 W of boards."""
    made = by_hand()
    plan = run(replace(made, max_watts=230.0)).plan
    assert plan is not None
    found = drawn(made, plan.periods[0])
    assert found.expected == pytest.approx(230.0)
    assert found.boards == pytest.approx(800.0)
    # 8 GPUs that swing by 20 W: 0.7 of it each for itself, 0.3 together, 160 W.
    assert found.deviation == pytest.approx(np.sqrt(0.7 * 8 * 400 + 0.3 * 160**2))
    assert found.above(230.0) == pytest.approx(0.5)
    assert run(replace(made, max_watts=229.0)).status == "infeasible"


def test_an_infeasible_cap_is_explained() -> None:
    """A draw of 230 W with a margin of half needs 460 W."""
    outcome = run(replace(by_hand(), max_watts=300.0, watt_margin=0.5))
    assert outcome.status == "infeasible"
    assert "raise max_watts from 300 to 460" in outcome.relaxations
    assert "set the margin of power to 0" in outcome.relaxations


def test_broken_plans_and_the_verdict() -> None:
    made = replace(by_hand(), max_watts=300.0)
    plan = run(made).plan
    assert plan is not None
    (found,) = check(replace(made, watt_margin=0.5), plan)
    assert found.rule == "watts"
    assert found.limit == pytest.approx(150.0)
    assert {one.rule for one in check(replace(made, draw=None), plan)} == {"watts"}
    verdict = judge(made, plan)
    assert verdict.metric("watts_peak") == pytest.approx(800.0)
    assert verdict.metric("watts_drawn_peak") == pytest.approx(drawn(made, plan.periods[0]).expected)
    assert verdict.metric("oversubscription") == pytest.approx(800 / 300)
    chance = verdict.metric("capping_share")
    assert chance is not None
    assert 0 < chance < 0.5
    assert "max_watts" in {limit.name for limit in binding(replace(made, max_watts=235.0), plan)}


@pytest.mark.parametrize("seed", range(400, 408))
def test_backends_agree_and_less_margin_never_costs_more(seed: int) -> None:
    made = random_problem(seed, max_watts=900, power={"draw": 0.7, "margin": 0.1})
    found = [run(made, method) for method in ("highs", "scip", "cbc")]
    assert len({outcome.status for outcome in found}) == 1
    less = run(replace(made, watt_margin=0.0))
    for outcome in found:
        if outcome.objective is not None:
            assert less.objective is not None
            assert found[0].objective is not None
            assert outcome.objective.total == pytest.approx(found[0].objective.total, rel=1e-6)
            assert outcome.objective.total >= less.objective.total - 1e-6


def test_phases_come_from_the_cost_model() -> None:
    """One L4 serves all: idle and decode are 60 % of its board, prefill adds 40 % of it for rate x seconds."""
    rows: list[dict[str, Any]] = [{"name": "a", "device": "l4", "price_usd_per_hour": 1.0}]
    given = {
        "name": "case", "offers": rows, "models": [{"name": "m", "model": "meta-llama/Llama-3.1-8B-Instruct"}],
        "slo": {"tpot_s": 0.2}, "demand": [demand(0.05, input_tokens=1000, output_tokens=20)],
        "max_watts": 1000, "power": {"draw": "phases"},
    }  # fmt: skip
    made = read_problem(FleetInstance.model_validate(given))
    assert made.draw is not None
    board = device("l4").power_w
    assert board is not None
    config = int(np.flatnonzero(made.config_gpus == 1)[0])
    assert made.draw.idle[0] + made.draw.running[config] == pytest.approx(0.6 * board)
    prefill_s = made.draw.joules[0, config] / (0.4 * board)
    # 1000 tokens x 2 x 8e9 FLOP at 22 % to 130 % of 121 TFLOP/s.
    assert 0.1 < prefill_s < 0.6
    plan = run(made).plan
    assert plan is not None
    assert drawn(made, plan.periods[0]).expected == pytest.approx(board * (0.6 + 0.05 * prefill_s * 0.4))


def test_bad_instances_are_refused() -> None:
    with pytest.raises(ValidationError, match="is not given"):
        fleet(BOARDS, 1.0, SERVED, power={"draw": 0.6})
    with pytest.raises(ValidationError, match="phases come from the cost model"):
        fleet(BOARDS, 1.0, SERVED, max_watts=1000, power={"draw": "phases"})
    for wrong in ({"draw": 0.0}, {"draw": 1.2}, {"draw": "tdp"}, {"draw": 0.5, "margin": 1.0}):
        with pytest.raises(ValidationError):
            fleet(BOARDS, 1.0, SERVED, max_watts=1000, power=wrong)
