"""Workers of more GPUs than an instance has: they take whole instances of one offer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fleet_cases import best, brute_force, demand, offers, run
from test_fleet_tables import table

from formulations.gpu_fleet.baseline import best_single_offer
from formulations.gpu_fleet.check import check
from formulations.gpu_fleet.dominance import needless_configs
from formulations.gpu_fleet.facts import route_throughput
from formulations.gpu_fleet.insight import explain_plan
from formulations.gpu_fleet.packing import place
from formulations.gpu_fleet.problem import FleetProblem
from formulations.gpu_fleet.reading import read_problem
from formulations.gpu_fleet.verdict import judge
from formulations.outcome import SolveOptions
from planner.descriptions.fleet import FleetInstance
from planner.errors import OptionError
from planner.files import SourceText
from planner.fleet_plan import FleetPlan

#: 16 GPUs of l4 do 10 requests/s, 8 do 3; of model n, 4 GPUs do 1.
ROWS = "wide,m,l4,A,16,100,100,10\nnode,m,l4,A,8,100,100,3\nsmall,n,l4,A,4,100,100,1\n"


def problem(folder: Path, rates: dict[str, float], rows: str = ROWS, **more: Any) -> FleetProblem:
    """`node` has 8 l4 at 8 USD/h, `half` 4 at 5."""
    table(folder, rows)
    described = {
        "name": "t",
        "models": [{"name": name} for name in rates],
        "offers": offers(node={"gpus": 8, "price": 8.0}, half={"gpus": 4, "price": 5.0}),
        "demand": [demand(rate, name, input_tokens=100, output_tokens=100) for name, rate in rates.items()],
        "workers": "workers.csv",
        **more,
    }
    return read_problem(FleetInstance.model_validate(described), SourceText("f.yaml", "", {}, folder))


@pytest.mark.parametrize(
    ("rates", "cost"),
    [({"m": 3}, 8), ({"m": 10}, 16), ({"m": 13}, 24), ({"m": 10, "n": 1}, 21), ({"m": 10, "n": 2}, 24)],
)
def test_by_hand(tmp_path: Path, rates: dict[str, float], cost: float) -> None:
    """One node does 3, two as one worker 10, three 13; n takes a half, or both halves of a third node."""
    fleet = problem(tmp_path, rates)
    assert best(fleet) == pytest.approx(cost)
    assert best(fleet, "cbc") == pytest.approx(cost)


def test_the_plan_names_the_offer_and_all_gpus(tmp_path: Path) -> None:
    fleet = problem(tmp_path, {"m": 10, "n": 1})
    plan = run(fleet).plan
    assert plan is not None
    rows = [(row.offer, row.model, row.gpus, row.count, row.worker) for row in plan.periods[0].replicas]
    assert rows == [("node", "m", 16, 1, "wide"), ("half", "n", 4, 1, "small")]
    assert {(row.offer, row.model, row.count) for row in plan.allocation} == {("node", "m", 2), ("half", "n", 1)}
    assert judge(fleet, plan).feasible
    assert route_throughput(fleet, plan)[0, "node", 16, "both", "wide"] == 10


def test_a_spare_instance_of_a_worker_of_two(tmp_path: Path) -> None:
    """With one node lost of three, two are left for a worker: 24. For two workers, five: 40. Two alone lose it."""
    rows = "wide,m,l4,A,16,100,100,10\n"
    assert best(problem(tmp_path, {"m": 9}, rows, spare_instances=1)) == pytest.approx(24)
    fleet = problem(tmp_path, {"m": 15}, rows, spare_instances=1)
    outcome = run(fleet)
    assert outcome.objective is not None
    assert outcome.objective.total == pytest.approx(40)
    assert outcome.plan is not None
    lost = outcome.plan.periods[0].survival
    assert [(one.lost_offer, [row.count for row in one.replicas]) for one in lost] == [("node", [2])]
    short = problem(tmp_path, {"m": 9}, rows, spare_instances=1, offers=offers(
        node={"gpus": 8, "price": 8.0, "max_count": 2}))  # fmt: skip
    assert run(short).status == "infeasible"


def test_smaller_instances_are_not_joined(tmp_path: Path) -> None:
    """Four halves have 16 GPUs, but the worker's rate is that of two nodes."""
    rows = "wide,m,l4,A,16,100,100,10\n"
    few = offers(node={"gpus": 8, "price": 8.0, "max_count": 1}, half={"gpus": 4, "price": 0.0, "max_count": 9})
    assert run(problem(tmp_path, {"m": 1}, rows, offers=few)).status == "infeasible"


def test_not_on_spot_instances_that_may_go(tmp_path: Path) -> None:
    spot = offers(node={"gpus": 8, "price": 8.0, "market": "spot", "availability": 0.9})
    fleet = problem(tmp_path, {"m": 1}, offers=spot)
    assert set(fleet.config_worker) == {"node"}
    assert (
        "1 workers of m fit neither into an instance nor on several whole ones, and are left out" in fleet.assumptions
    )


def test_two_offers_of_one_size_are_told_apart(tmp_path: Path) -> None:
    """A standing node is free, but a worker of two nodes spans instances of one offer: 16, not 8."""
    both = offers(stands={"gpus": 8, "price": 0.0, "max_count": 1}, node={"gpus": 8, "price": 8.0})
    fleet = problem(tmp_path, {"m": 10}, "wide,m,l4,A,16,100,100,10\n", offers=both)
    assert fleet.num_configs == 2
    assert best(fleet) == pytest.approx(16)
    more = offers(stands={"gpus": 8, "price": 0.0, "max_count": 2}, node={"gpus": 8, "price": 8.0})
    assert best(problem(tmp_path, {"m": 10}, "wide,m,l4,A,16,100,100,10\n", offers=more)) == 0


def test_broken_plans(tmp_path: Path) -> None:
    fleet = problem(tmp_path, {"m": 10, "n": 1})
    plan = run(fleet).plan
    assert plan is not None

    def rules(change: Any) -> set[str]:
        other = plan.model_dump()
        change(other["periods"][0])
        return {one.rule for one in check(fleet, FleetPlan.model_validate(other))}

    assert "packing" in rules(lambda period: period["allocation"][0].update(count=1))
    assert "packing" in rules(lambda period: period["replicas"][1].update(offer="node"))
    assert rules(lambda period: period["replicas"][0].update(offer="half")) == {"configuration"}
    assert rules(lambda period: period["replicas"][0].update(count=0)) == {"capacity"}
    with pytest.raises(ValueError, match="4 instances of node"):
        place(fleet, np.array([3, 9]), np.where(fleet.config_gpus == 16, 2, 0))


def test_what_smaller_workers_replace(tmp_path: Path) -> None:
    """Two of 8 GPUs do 6 and replace a worker of 16 that does 5, not one that does 10; nor one of 24 that does 11."""
    rows = ROWS + "slow,m,l4,A,16,100,100,5\nodd,m,l4,A,24,100,100,11\nless,m,l4,A,8,100,100,2\n"
    fleet = problem(tmp_path, {"m": 1, "n": 1}, rows)
    gone = {name for name, needless in zip(fleet.config_worker, needless_configs(fleet), strict=True) if needless}
    assert gone == {"slow", "less"}


def test_a_least_number_of_large_workers(tmp_path: Path) -> None:
    """Nine nodes of one worker, more than a small rate has a use for, yet one replica is asked."""
    fleet = problem(tmp_path, {"m": 0.001}, "huge,m,l4,A,72,100,100,10\n", models=[{"name": "m", "min_replicas": 2}])
    assert best(fleet) == pytest.approx(18 * 8)


def test_the_baseline_takes_whole_instances(tmp_path: Path) -> None:
    """Of workers that need 2 nodes and do 10, one node and do 3: at 9 requests/s 16 or 24 USD."""
    plan = best_single_offer(problem(tmp_path, {"m": 9}))
    assert plan is not None
    assert plan.cost_usd_per_hour == pytest.approx(16)


def test_insight_and_other_methods(tmp_path: Path) -> None:
    fleet = problem(tmp_path, {"m": 10}, offers=offers(node={"gpus": 8, "price": 8.0, "max_count": 2}))
    outcome = run(fleet)
    assert outcome.plan is not None
    insight = explain_plan(fleet, outcome.plan, 16.0, 16.0, SolveOptions(time_limit_s=5))
    assert [one.limit for one in insight.reliefs] == ["max_count of node"]
    assert insight.without.status == "infeasible"
    with pytest.raises(OptionError, match="replicas on several instances"):
        run(fleet, "melange-1")


@pytest.mark.parametrize("seed", range(24))
def test_brute_force(tmp_path: Path, seed: int) -> None:
    """Every count of two offers of 2 and 4 GPUs, of one pool, and all ways to place workers of 1 to 8 GPUs."""
    rng = np.random.default_rng(seed)
    rows = "".join(
        f"{model}{gpus},{model},l4,A,{gpus},100,100,{gpus ** rng.uniform(0.9, 1.4) * rng.uniform(0.5, 1.0):.2f}\n"
        for model in ("m", "n")
        for gpus in rng.choice([1, 2, 4, 8], 2, replace=False).tolist()
    )
    found = offers(
        two={"gpus": 2, "price": round(rng.uniform(1.5, 2.5), 2), "max_count": int(rng.integers(2, 5))},
        four={"gpus": 4, "price": round(rng.uniform(3, 4.5), 2), "max_count": int(rng.integers(1, 5))},
    )
    rates = {"m": round(rng.uniform(1, 6), 2), "n": round(rng.uniform(0.5, 3), 2)}
    fleet = problem(tmp_path, rates, rows, offers=found, spare_instances=seed % 2)
    outcome, expected = run(fleet), brute_force(fleet)
    if np.isinf(expected):
        assert outcome.status == "infeasible"
    else:
        assert outcome.objective is not None
        assert outcome.objective.total == pytest.approx(expected)
