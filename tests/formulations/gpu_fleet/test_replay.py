"""Plans under request traces: routing as the plan says, queues as the arrivals make them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fleet_cases import run

from formulations.gpu_fleet.problem import FleetProblem
from formulations.gpu_fleet.reading import read_problem
from formulations.gpu_fleet.replay import Replayed, replay
from planner import catalog
from planner.descriptions.fleet import FleetInstance
from planner.errors import OptionError
from planner.fleet_plan import FleetPlan
from planner.request_trace import RequestTrace

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
SPECS = {"chat": catalog.model(LLAMA)}


def instance(rate: float = 30.0, **changes: Any) -> FleetInstance:
    return FleetInstance(
        **{
            "name": "computed",
            "models": [{"name": "chat", "model": LLAMA, "gpus_per_replica": [1]}],
            "offers": [
                {"name": "l40s", "device": "l40s", "price_usd_per_hour": 1.861},
                {"name": "h100", "device": "h100_sxm", "price_usd_per_hour": 6.88},
            ],
            "slo": {"ttft_s": 2, "tpot_s": 0.08, "percentile": 90},
            "demand": [
                {"model": "chat", "input_tokens": 250, "output_tokens": 250, "rate_per_s": rate},
                {"model": "chat", "input_tokens": 4000, "output_tokens": 250, "rate_per_s": rate / 10},
            ],
            **changes,
        }
    )


def planned(found: FleetInstance) -> tuple[FleetProblem, FleetPlan]:
    problem = read_problem(found)
    plan = run(problem).plan
    assert plan is not None
    return problem, plan


def requests(rate: float, num: int, input_tokens: int = 250, output_tokens: int = 250) -> RequestTrace:
    arrival = np.cumsum(np.random.default_rng(1).exponential(1 / rate, num))
    return RequestTrace(
        arrival_s=arrival - arrival[0],
        input_tokens=np.full(num, input_tokens),
        output_tokens=np.full(num, output_tokens),
    )


def served(found: FleetInstance, trace: RequestTrace) -> Replayed:
    problem, plan = planned(found)
    (one,) = replay(found, SPECS, problem, plan, {"chat": trace})
    return one


def test_every_request_is_served_and_judged() -> None:
    one = served(instance(), requests(30.0, 3_000))
    assert one.ttft_s.shape == one.tpot_s.shape == (3_000,)
    assert (one.ttft_s > 0).all()
    assert (one.tpot_s > 0).all()
    assert one.planned_per_s == pytest.approx(33)
    assert one.beyond == 0
    assert one.attainment == pytest.approx(((one.ttft_s <= 2) & (one.tpot_s <= 0.08)).mean())
    assert one.violations() == []


def test_more_load_is_never_better() -> None:
    found = instance()
    seen = [served(found, requests(rate, 3_000)) for rate in (10.0, 30.0, 300.0)]
    assert [np.median(one.tpot_s) for one in seen] == sorted(np.median(one.tpot_s) for one in seen)
    assert seen[2].attainment < seen[0].attainment
    assert {broken.rule for broken in seen[2].violations()} == {"slo"}


def test_requests_larger_than_planned_are_served_and_counted() -> None:
    one = served(instance(), requests(1.0, 100, input_tokens=5_000))
    assert one.beyond == 100
    assert (one.ttft_s > 0).all()


def test_single_token_answers_have_no_time_between_tokens() -> None:
    one = served(instance(), requests(10.0, 200, output_tokens=1))
    assert one.tpot_s.size == 0
    assert one.violations() == []
    assert {metric.name.split("_")[0] for metric in one.metrics()} == {"slo", "ttft"}


def test_the_mean_is_judged_where_no_percentile_is_asked() -> None:
    found = instance(slo={"ttft_s": 1e-4, "tpot_s": 0.08})
    # No fleet can keep such a limit: plan with another one, and judge by this.
    problem, plan = planned(instance())
    (one,) = replay(found, SPECS, problem, plan, {"chat": requests(10.0, 500)})
    (broken,) = one.violations()
    assert broken.amount == pytest.approx(one.ttft_s.mean())
    assert one.attainment == 0.0


def test_what_cannot_be_simulated_is_refused() -> None:
    found = instance()
    problem, plan = planned(found)
    with pytest.raises(OptionError, match="no model is named"):
        replay(found, SPECS, problem, plan, {"unheard": requests(1.0, 10)})
    hourly = [{"model": "chat", "input_tokens": 250, "output_tokens": 250, "hourly": [1, 2]}]
    by_hour = instance(demand=hourly)
    problem, plan = planned(by_hour)
    with pytest.raises(OptionError, match="hourly"):
        replay(by_hour, SPECS, problem, plan, {"chat": requests(1.0, 10)})
