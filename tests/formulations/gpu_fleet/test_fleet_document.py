"""From an instance to a document, to a file, and back to a verdict; and documents that somebody changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fleet_cases import demand, fleet, offers

from formulations.planning import check_document, load_problem, plan
from planner.errors import DescriptionError
from planner.files import to_json
from planner.plan import FleetDocument, read_document

INSTANCE = fleet(
    offers(fixed={"price": 0.6, "market": "reserved"}, there=1.0),
    [1.0, 1.0, 1.0, 5.0],
    {"fixed": 1.0, "there": 1.0},
    spare_instances=1,
)


@pytest.fixture(scope="module")
def document() -> FleetDocument:
    found = plan(INSTANCE)
    assert isinstance(found, FleetDocument)
    return found


def stored(folder: Path, document: FleetDocument, **changes: Any) -> Path:
    """The document as a file, with values at dotted paths replaced."""
    value = json.loads(to_json(document))
    for dotted, new in changes.items():
        *parents, last = dotted.split("__")
        inner = value
        for step in parents:
            inner = inner[int(step) if isinstance(inner, list) else step]
        inner[int(last) if isinstance(inner, list) else last] = new
    path = folder / "plan.json"
    path.write_text(json.dumps(value))
    return path


def test_a_document_survives_a_file(document: FleetDocument, tmp_path: Path) -> None:
    again = read_document(stored(tmp_path, document))
    assert again == document
    verdict = check_document(again, load_problem(INSTANCE))
    assert verdict.feasible
    assert verdict == document.verdict


def test_what_a_document_says(document: FleetDocument) -> None:
    """Hours of 1, 1, 1, 5 and one to lose: two reserved (1.2), 4 more in the last hour (4 / 4), of six needed."""
    assert document.outcome.status == "optimal"
    assert document.outcome.objective == pytest.approx(2.2)
    assert document.outcome.objective_unit == "USD/hour"
    assert document.outcome.bound is not None
    assert document.outcome.bound <= 2.2 + 1e-6
    assert document.baseline is not None
    # Five reserved at 0.6, sized at the peak, without a spare.
    assert document.baseline.name == "best single offer"
    assert document.baseline.objective == pytest.approx(3.0)


def test_without_an_instance_only_the_shape_is_judged(document: FleetDocument) -> None:
    verdict = check_document(document, None)
    assert verdict.feasible
    assert "not judged" in verdict.assumptions[0]


def test_an_infeasible_instance_is_a_document_without_a_plan(tmp_path: Path) -> None:
    found = plan(fleet(offers(a={"price": 1.0, "max_count": 1}), 3.5, {"a": 1.0}))
    assert (found.plan, found.verdict, found.outcome.objective) == (None, None, None)
    assert found.outcome.reasons == ("max_count: a 1",)
    again = read_document(stored(tmp_path, found))  # type: ignore[arg-type]
    assert [one.rule for one in check_document(again, load_problem(INSTANCE)).violations] == ["no_plan"]


LIES: dict[str, tuple[dict[str, Any], str]] = {
    "a better objective": ({"outcome__objective": 1.0}, "claimed_objective"),
    "a lower cost": ({"plan__cost_usd_per_hour": 1.0}, "cost"),
    "a lower cost of a period": ({"plan__periods__0__cost_usd_per_hour": 0.1}, "cost"),
    "a share less": ({"plan__periods__0__assignment__0__fraction": 0.1}, "demand"),
    "an offer that is not there": ({"plan__periods__0__allocation__0__offer": "x"}, "offer"),
    "a model that is not there": ({"plan__periods__0__assignment__0__model": "x"}, "model"),
    "a size that is not there": ({"plan__periods__0__assignment__0__input_tokens": 7}, "assignment"),
    "a replica of another size": ({"plan__periods__0__replicas__0__gpus": 2}, "configuration"),
    "hours that are not there": ({"plan__periods__0__hours": [9]}, "hours"),
    "no hours": ({"plan__periods__0__hours": []}, "hours"),
    "no periods": ({"plan__periods": []}, "hours"),
    "no instances": ({"plan__periods__0__allocation": []}, "packing"),
    "no survival": ({"plan__periods__0__survival": []}, "spare_instances"),
    "another fleet on top": ({"plan__allocation": []}, "summary"),
    "another fleet's requests on top": ({"plan__assignment": []}, "summary"),
    "changes of no fleet": ({"plan__changes": {"there": 1}}, "changes"),
    "millions of instances": ({"plan__periods__0__allocation__0__count": 9_999_999}, "cost"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_a_violation(document: FleetDocument, tmp_path: Path, name: str) -> None:
    changes, rule = LIES[name]
    changed = read_document(stored(tmp_path, document, **changes))
    verdict = check_document(changed, load_problem(INSTANCE))
    assert not verdict.feasible
    assert rule in {one.rule for one in verdict.violations}


BROKEN: dict[str, dict[str, Any]] = {
    "a negative share": {"plan__periods__0__assignment__0__fraction": -0.1},
    "a share above one": {"plan__periods__0__assignment__0__fraction": 1.5},
    "a share that is no number": {"plan__periods__0__assignment__0__fraction": float("nan")},
    "a share without end": {"plan__periods__0__assignment__0__fraction": float("inf")},
    "a negative count": {"plan__periods__0__allocation__0__count": -1},
    "half an instance": {"plan__periods__0__allocation__0__count": 1.5},
    "a count as text": {"plan__periods__0__replicas__0__count": "many"},
    "a count beyond counting": {"plan__periods__0__replicas__0__count": 10**30},
    "a negative hour": {"plan__periods__0__hours": [-1]},
    "a cost that is no number": {"plan__cost_usd_per_hour": float("nan")},
    "an unknown key": {"plan__surprise": 1},
    "another problem": {"problem": "parallel"},
    "no plan but text": {"plan": "cheap"},
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_document_is_refused(document: FleetDocument, tmp_path: Path, name: str) -> None:
    path = stored(tmp_path, document, **BROKEN[name])
    with pytest.raises(DescriptionError):
        read_document(path)


def test_a_plan_for_another_demand_is_judged_by_that_demand(document: FleetDocument) -> None:
    """Twice the demand of the same hours: too few replicas run."""
    other = fleet(
        offers(fixed={"price": 0.6, "market": "reserved"}, there=1.0),
        [demand([2.0, 2.0, 2.0, 10.0])],
        {"fixed": 1.0, "there": 1.0},
    )
    verdict = check_document(document, load_problem(other))
    assert {one.rule for one in verdict.violations} >= {"capacity"}
