"""Names that meet, and deployments in force that contradict themselves or what is there."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deploy_cases import SIZE, offer, planned, problem, run, worker, written
from test_deploy_nodes import cluster, node

from formulations.gpu_fleet import tiers
from formulations.outcome import Status
from planner.errors import DescriptionError

Plan = dict[str, Any]


def test_parts_of_one_worker_and_workers_of_another_service(tmp_path: Path) -> None:
    """Worker m-1 of two nodes has pods m-1-0 and m-1-1; so the first worker of service m-1 has another name."""
    rows = [worker("large", 5, "m", 8), worker("small", 5, "m-1")]
    _, plan = planned(problem(tmp_path, {"m": 3, "m-1": 1}, rows, [offer("four", 4, 4)]))
    assert len({pod.pod for pod in plan.pods}) == 3


def test_services_of_one_name_for_pods(tmp_path: Path) -> None:
    names = ["a_b", "a-b", "☃", "☃☃", "n" * 100, "n" * 101]
    rows = [worker("w", 5, name) for name in names]
    _, plan = planned(problem(tmp_path, dict.fromkeys(names, 5.0), rows, [offer("single", 1)]))
    assert len({pod.pod for pod in plan.pods}) == len(names)
    assert all(len(pod.pod) < 50 and pod.pod.replace("-", "").isalnum() and pod.pod.isascii() for pod in plan.pods)


def test_new_nodes_are_not_named_as_those_that_stand(tmp_path: Path) -> None:
    instance = problem(
        tmp_path, {"m": 10}, [worker("w", 5)], [offer("p", 1)], nodes=[{"name": "p-1", "device": "l4", "gpus": 1}]
    )
    _, plan = planned(instance)
    assert sorted(name for row in plan.nodes for name in row.names) == ["p-1", "p-2"]


def test_two_nodes_of_one_name(tmp_path: Path) -> None:
    nodes = [{"name": "a", "device": "l4", "gpus": 1, "count": 2}, {"name": "a-0", "device": "l4", "gpus": 1}]
    with pytest.raises(DescriptionError, match=r"nodes\.1\.name: another node is named 'a-0'"):
        problem(tmp_path, {"m": 10}, [worker("w", 5)], nodes=nodes)


def test_kinds_of_nodes_have_names_of_their_own(tmp_path: Path) -> None:
    """Region a-b with zone c, and region a with zone b-c; an offer is named as the kind of a third."""
    region = "topology.kubernetes.io/region"
    nodes = node("x", labels={region: "a-b"}, zone="c"), node("y", labels={region: "a"}, zone="b-c"), node("z")
    instance = cluster(tmp_path, *nodes, rate=60, offers=[offer("l4-4-free-a", 1)])
    assert len({kind.offer.name for kind in instance.standing}) == 3
    assert planned(instance)[0] == 0


def test_a_node_of_the_list_that_the_deployment_rents_is_that_one(tmp_path: Path) -> None:
    """It is in kubectl's output as soon as it is rented, under its name; it still has its price."""
    _, before = planned(cluster(tmp_path, node("x", gpus=1), rate=10))
    name = written(tmp_path, before)
    instance = cluster(tmp_path, node("x", gpus=1), node("single-1", gpus=1), rate=10, current=name)
    cost, plan = planned(instance)
    assert cost == pytest.approx(1)
    assert plan.change is not None
    assert (plan.change.kept, plan.change.steps) == (2, ())
    assert any("rented by the deployment in force" in one for one in instance.fleet.assumptions)


def first(**update: object) -> Callable[[Plan], None]:
    """A deployment in force of which one pod is changed."""
    return lambda plan: plan["pods"][1].update(update)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (first(worker="other"), "1 of other of m run"),
        (first(service="other"), "1 of w of other run"),
        (first(node="pair-1", gpus=[0]), "that another has"),
        (first(pod="m-1"), "told 2 times"),
        (first(node="nowhere"), "no node of the plan"),
        (first(gpus=[0, 1]), "run with 2 GPUs"),
        (first(gpus=[9]), "not all free"),
        (first(part=1, parts=3), "not whole"),
        (lambda plan: plan["nodes"][0].update(names=["pair-1", "pair-1"]), "told 2 times"),
        (lambda plan: plan["nodes"][0].update(count=1), "1 are counted"),
        (lambda plan: plan["nodes"][0].update(gpus=1_000_000_000), "rents 'pair' as 1000000000 x l4"),
        (lambda plan: plan["nodes"][0].update(node="x"), "or as both"),
    ],
)
def test_a_deployment_in_force_that_contradicts_itself(
    tmp_path: Path, change: Callable[[Plan], None], said: str
) -> None:
    rows, found = [worker("w", 5)], [offer("pair", 3, 2)]
    _, before = planned(problem(tmp_path, {"m": 15}, rows, found))
    file = tmp_path / written(tmp_path, before)
    document = json.loads(file.read_text())
    change(document["plan"])
    file.write_text(json.dumps(document))
    with pytest.raises(DescriptionError, match=said):
        problem(tmp_path, {"m": 15}, rows, found, current=file.name)


def test_an_offer_that_has_another_shape_now(tmp_path: Path) -> None:
    rows = [worker("w", 5)]
    _, before = planned(problem(tmp_path, {"m": 15}, rows, [offer("pair", 3, 2)]))
    with pytest.raises(DescriptionError, match="rents 'pair' as 2 x l4, it is offered as 1 x l4"):
        problem(tmp_path, {"m": 15}, rows, [offer("pair", 3)], current=written(tmp_path, before))


def test_no_worker_runs_that_serves_nothing(tmp_path: Path) -> None:
    """Six GPUs for 35 requests/s at 5 a GPU: what is left out needs no workers, and takes none from what is served."""
    rows = [worker("w", 5), worker("w2", 9, gpus=2), worker("v", 5, "o")]
    nodes = [{"name": "a", "device": "l4", "gpus": 2}, {"name": "b", "device": "l4", "gpus": 8}]
    services = [
        {"name": "m", "priority": 1, "demand": [{**SIZE, "rate_per_s": 12}]},
        {"name": "o", "demand": [{**SIZE, "rate_per_s": 4}, {**SIZE, "output_tokens": 7, "rate_per_s": 3}]},
    ]
    rows.append("v,o,l4,A,1,100,7,0,,\n")
    instance = problem(tmp_path, {}, rows, nodes=nodes, services=services, unserved="by_priority")
    _, plan = planned(instance)
    assert sum(row.num_gpus * row.count for row in plan.workers) == 4
    assert [(row.model, row.fraction) for row in plan.fleet.periods[0].unserved] == [("o", pytest.approx(1))]


def test_idle_hours_of_standing_nodes_are_no_starts(tmp_path: Path) -> None:
    """Four nodes stand and none may be started: those that idle for an hour are not given back for it."""
    nodes = [{"name": "a", "device": "l4", "gpus": 1, "count": 4}]
    instance = problem(tmp_path, {"m": [5.0, 20.0, 5.0]}, [worker("w", 5)], nodes=nodes, max_starts=0)
    assert planned(instance)[0] == 0


def test_a_node_that_idles_is_not_the_one_in_force(tmp_path: Path) -> None:
    """Two kinds of nodes stand, one is needed: it is the one on which the worker runs, though the other is first."""
    own = {"name": "b", "device": "l4", "gpus": 2}
    rows = [worker("w", 5)]
    _, before = planned(problem(tmp_path, {"m": 5}, rows, nodes=[own]))
    nodes = [{"name": "a", "device": "l4", "gpus": 1}, own]
    _, plan = planned(problem(tmp_path, {"m": 5}, rows, nodes=nodes, current=written(tmp_path, before)))
    assert plan.change is not None
    assert (plan.change.kept, plan.change.started) == (1, 0)


def test_moves_that_no_goal_has_looked_at_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time ran out before the goal of cost: the columns of moves are anything, and the plan is priced as it is."""
    rows, found = [worker("w", 5)], [offer("single", 1)]
    _, before = planned(problem(tmp_path, {"m": 10}, rows, found))
    instance = problem(tmp_path, {"m": 10}, rows, found, current=written(tmp_path, before), unserved="by_priority")
    real = tiers.solver_of("highs")

    def solver_of(method: str) -> Any:
        def solve(model: Any, *arguments: Any) -> Any:
            result, values = real(model, *arguments)
            if model.cost[-1] > 0:
                return replace(result, status=Status.UNKNOWN, bound=None), None
            # The last column says how many workers are started.
            return result, np.append(values[:-1], model.upper[-1])

        return solve

    monkeypatch.setattr(tiers, "solver_of", solver_of)
    outcome = run(instance)
    assert outcome.objective is not None
    assert outcome.objective.parts["move_usd_per_hour"] == 0
    assert outcome.status is Status.FEASIBLE
