"""Fleets from a table of workers by model and size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fleet_cases import demand, offers

from formulations.base import solve
from formulations.gpu_fleet.check import check
from formulations.gpu_fleet.formulation import GPU_FLEET
from formulations.gpu_fleet.reading import read_problem
from formulations.gpu_fleet.verdict import judge
from planner.descriptions.fleet import FleetInstance
from planner.errors import DescriptionError
from planner.files import SourceText
from planner.fleet_plan import FleetPlan
from planner.readers.service_workers import read_service_workers

HEAD = "worker,service,device,role,gpus,input_tokens,output_tokens,requests_per_s\n"
#: One GPU does 2 requests/s, two that share the work 5; a prefill and a decode worker of one GPU do 8 and 4.
ROWS = (
    "one,m,l4,A,1,100,100,2\n"
    "two,m,l4,A,2,100,100,5\n"
    "two slots,m,l4,A,2,100,100,4.5\n"
    "fills,m,l4,P,1,100,100,8\n"
    "writes,m,l4,D,1,100,100,4\n"
    "wide,m,l4,A,16,100,100,99\n"
)


def table(folder: Path, rows: str = ROWS, head: str = HEAD) -> Path:
    (folder / "workers.csv").write_text(head + rows)
    return folder / "workers.csv"


def problem(folder: Path, rate: float, rows: str | None = ROWS, **more: Any) -> Any:
    """`pair` has two l4 at 2 USD/h; rows None: the table is there."""
    if rows is not None:
        table(folder, rows)
    described = {
        "name": "t",
        "models": [{"name": "m"}],
        "offers": offers(pair={"device": "l4", "gpus": 2, "price": 2.0}),
        "demand": [demand(rate, input_tokens=100, output_tokens=100)],
        "workers": "workers.csv",
        **more,
    }
    return read_problem(FleetInstance.model_validate(described), SourceText("f.yaml", "", {}, folder))


@pytest.mark.parametrize(("rate", "cost"), [(4, 2), (5, 2), (5.1, 4), (9, 4)])
def test_workers_are_named_in_the_plan(tmp_path: Path, rate: float, cost: float) -> None:
    """One pair does 4 (prefill beside decode) or 5 (both GPUs as one worker); above that takes two pairs."""
    fleet = problem(tmp_path, rate)
    outcome = solve(GPU_FLEET, fleet)
    assert outcome.objective is not None
    assert outcome.objective.total == pytest.approx(cost)
    assert isinstance(outcome.plan, FleetPlan)
    named = {"one", "two", "two slots", "fills", "writes"}
    assert {row.worker for row in outcome.plan.periods[0].replicas} <= named
    assert all(row.worker is not None for row in outcome.plan.assignment)
    assert judge(fleet, outcome.plan).feasible


def test_two_workers_alike_but_for_their_name_are_told_apart(tmp_path: Path) -> None:
    """A plan with the slower of two workers of two GPUs is judged by its own rate."""
    fleet = problem(tmp_path, 5)
    plan = solve(GPU_FLEET, fleet).plan
    assert plan is not None
    other = plan.model_dump()
    for rows in (other["assignment"], other["periods"][0]["assignment"], other["periods"][0]["replicas"]):
        for row in rows:
            assert row["worker"] == "two"
            row["worker"] = "two slots"
    assert [one.rule for one in check(fleet, FleetPlan.model_validate(other))] == ["capacity"]
    for row in other["periods"][0]["replicas"]:
        row["worker"] = "three"
    assert "configuration" in [one.rule for one in check(fleet, FleetPlan.model_validate(other))]


def test_what_no_instance_holds_is_left_out_and_told(tmp_path: Path) -> None:
    """Pairs hold no groups of 4 GPUs, and no whole number of them has 5 GPUs."""
    odd = ",m,l4,A,5,100,100,9,1\n", ",m,l4,A,16,100,100,99,4\n"
    rows = "".join(f"{name}{row}" for name, row in zip(("odd", "wide"), odd, strict=True))
    table(tmp_path, "one,m,l4,A,1,100,100,2,1\n" + rows, HEAD.replace("\n", ",tp\n"))
    left = problem(tmp_path, 1, None).assumptions
    assert left == ("2 workers of m fit neither into an instance nor on several whole ones, and are left out",)


def test_a_size_that_the_table_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DescriptionError, match="m 7/9 tokens is not in the table of workers"):
        problem(tmp_path, 1, demand=[{"model": "m", "input_tokens": 7, "output_tokens": 9, "rate_per_s": 1}])


def test_rows_of_another_instance_are_left_out(tmp_path: Path) -> None:
    path = table(tmp_path, "t,one,m,l4,A,1,1,1,2\nu,one,m,l4,A,1,1,1,3\n", "instance," + HEAD)
    assert [dict(one.rates) for one in read_service_workers(path, "u")] == [{(1, 1): 3.0}]


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ("one,m,l4,X,1,1,1,1\n", ":2: role is 'X'"),
        ("one,m,l4,A,0,1,1,1\n", ":2: gpus is '0'"),
        ("one,m,l4,A,1.5,1,1,1\n", ":2: gpus is '1.5'"),
        ("one,m,l4,A,1,1,1,-1\n", ":2: requests_per_s is '-1'"),
        ("one,m,l4,A,1,1,1,nan\n", ":2: requests_per_s is 'nan'"),
        (",m,l4,A,1,1,1,1\n", ":2: worker is empty"),
        ("one,m,l4,A,1,1,1,1\none,m,l4,A,1,1,1,2\n", ":3: worker 'one' of m has this size on line 2 already"),
        ("one,m,l4,A,1,1,1,1\none,m,l4,A,2,2,2,2\n", ":3: worker 'one' of m differs from its first row"),
    ],
)
def test_bad_rows(tmp_path: Path, rows: str, told: str) -> None:
    with pytest.raises(DescriptionError) as error:
        read_service_workers(table(tmp_path, rows))
    assert told in str(error.value)


def test_profiles_beside_a_table_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="profiles are given too"):
        problem(tmp_path, 1, profiles=[{"offer": "pair", "model": "m", "input_tokens": 1, "output_tokens": 1,
                                        "max_rate_per_s": 1}])  # fmt: skip
