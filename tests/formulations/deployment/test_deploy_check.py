"""Plans that were broken on purpose are found out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from deploy_cases import offer, planned, problem, worker, written

from formulations.deployment.check import check
from formulations.deployment.problem import DeployProblem
from formulations.deployment.verdict import judge, judge_alone
from planner.deploy_plan import DeployPlan, Step


@pytest.fixture
def case(tmp_path: Path) -> tuple[DeployProblem, DeployPlan]:
    """Two workers of a on a rented pair, one of b on a standing node whose devices 1 and 2 are free."""
    nodes = [{"name": "own", "device": "l4", "gpus": 3, "free_gpus": 2}]
    rows = [worker("wa", 5, "a"), worker("wb", 5, "b", gpus=2)]
    instance = problem(tmp_path, {"a": 9, "b": 4}, rows, [offer("pair", 3, 2)], nodes=nodes)
    return instance, planned(instance)[1]


def test_a_right_plan_breaks_nothing(case: tuple[DeployProblem, DeployPlan]) -> None:
    instance, plan = case
    assert check(instance, plan) == []
    verdict = judge(instance, plan)
    assert verdict.feasible
    metrics = {one.name: one.value for one in verdict.metrics}
    assert (metrics["gpus_of_nodes"], metrics["gpus_in_workers"]) == (4, 4)
    assert judge_alone(plan).feasible


def pods(change: Callable[..., dict[str, object]]) -> Callable[[DeployPlan], DeployPlan]:
    """A plan whose first pod is changed."""

    def broken(plan: DeployPlan) -> DeployPlan:
        first, *rest = plan.pods
        return plan.model_copy(update={"pods": (first.model_copy(update=change(first, rest)), *rest)})

    return broken


def nodes(**update: object) -> Callable[[DeployPlan], DeployPlan]:
    """A plan whose first nodes are told otherwise."""

    def broken(plan: DeployPlan) -> DeployPlan:
        first, *rest = plan.nodes
        return plan.model_copy(update={"nodes": (first.model_copy(update=update), *rest)})

    return broken


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (pods(lambda first, rest: {"node": "nowhere"}), "which is no node of the plan"),
        (pods(lambda first, rest: {"gpus": (7,)}), "not all free"),
        (pods(lambda first, rest: {"node": rest[0].node, "gpus": rest[0].gpus}), "that another has"),
        (pods(lambda first, rest: {"pod": rest[0].pod}), "is told 2 times"),
        (pods(lambda first, rest: {"worker": "other"}), "run on"),
        (lambda plan: plan.model_copy(update={"pods": plan.pods[1:]}), "the fleet has"),
        (lambda plan: plan.model_copy(update={"workers": plan.workers[1:]}), "workers told are not"),
        (lambda plan: plan.model_copy(update={"assignment": ()}), "shares told are not"),
        (lambda plan: plan.model_copy(update={"cost_usd_per_hour": 1.0}), "cost told is not"),
        (lambda plan: plan.model_copy(update={"hours": (3,)}), "most expensive hours"),
        (lambda plan: plan.model_copy(update={"nodes": plan.nodes[1:]}), "are told, the fleet has"),
        (
            lambda plan: plan.model_copy(
                update={"nodes": tuple(one.model_copy(update={"names": ("x",) * one.count}) for one in plan.nodes)}
            ),
            "there is no standing node 'x'",
        ),
        (nodes(gpus=16), "it is 2 x l4"),
        (nodes(device="t4"), "is told as"),
        (nodes(usd_per_hour=1.0), "at 1 USD/h"),
        (pods(lambda first, rest: {"parts": 2}), "not whole"),
    ],
)
def test_broken_plans(
    case: tuple[DeployProblem, DeployPlan], broken: Callable[[DeployPlan], DeployPlan], said: str
) -> None:
    instance, plan = case
    found = check(instance, broken(plan))
    assert any(said in one.message for one in found), [one.message for one in found]
    assert not judge(instance, broken(plan)).feasible


def test_a_device_held_by_what_runs_already_is_no_place(case: tuple[DeployProblem, DeployPlan]) -> None:
    instance, plan = case
    moved = tuple(one.model_copy(update={"gpus": (0, 1)}) if one.node == "own" else one for one in plan.pods)
    found = check(instance, plan.model_copy(update={"pods": moved}))
    assert any("not all free" in one.message for one in found)


def test_a_device_held_twice_is_seen_without_an_instance(case: tuple[DeployProblem, DeployPlan]) -> None:
    _, plan = case
    twice = (*plan.pods, plan.pods[0].model_copy(update={"pod": "other"}))
    assert not judge_alone(plan.model_copy(update={"pods": twice})).feasible


def test_steps_that_do_not_lead_to_the_plan(tmp_path: Path) -> None:
    rows, found = [worker("w", 5)], [offer("single", 1)]
    _, before = planned(problem(tmp_path, {"m": 5}, rows, found))
    name = written(tmp_path, before)
    instance = problem(tmp_path, {"m": 15}, rows, found, current=name)
    _, plan = planned(instance)
    assert plan.change is not None
    assert check(instance, plan) == []
    (step,) = plan.change.steps

    def with_step(**update: object) -> list[str]:
        changed = plan.change.model_copy(update={"steps": (step.model_copy(update=update),)})  # type: ignore[union-attr]
        return [one.message for one in check(instance, plan.model_copy(update={"change": changed}))]

    assert any("other pods run" in said for said in with_step(start=step.start[1:]))
    assert any("nothing says where" in said for said in with_step(start=(*step.start, "other")))
    assert any("runs already" in said for said in with_step(start=(*step.start, before.pods[0].pod)))
    assert any("does not run" in said for said in with_step(stop=("other",)))
    assert any("which is not there" in said for said in with_step(add_nodes=()))
    assert any("other nodes are rented" in said for said in with_step(drop_nodes=step.add_nodes))
    assert any(
        "belong to a deployment" in one.message for one in check(instance, plan.model_copy(update={"change": None}))
    )


def test_steps_that_end_elsewhere_or_pull_a_node_away(tmp_path: Path) -> None:
    """What is in force ran on the other node; and a node may not go while a pod runs there."""
    rows, found = [worker("w", 5)], [offer("pair", 3, 2)]
    _, before = planned(problem(tmp_path, {"m": 15}, rows, found))
    moved = before.model_copy(update={"pods": (*before.pods[:2], before.pods[2].model_copy(update={"gpus": (1,)}))})
    instance = problem(tmp_path, {"m": 15}, rows, found, current=written(tmp_path, moved))
    _, plan = planned(instance)
    assert plan.change is not None
    wrong = plan.model_copy(update={"pods": before.pods})
    assert any("other pods run" in one.message for one in check(instance, wrong))
    step = Step(drop_nodes=("pair-1",), served=1.0)
    wrong = plan.model_copy(update={"change": plan.change.model_copy(update={"steps": (step,)})})
    assert any("pair-1 goes, but" in one.message for one in check(instance, wrong))


def test_steps_say_where_what_the_plan_does_not_have_runs(tmp_path: Path) -> None:
    """A swap on a full node borrows a node: the worker on it, and the one that stops, are told as they run."""
    nodes = [{"name": "own", "device": "l4", "gpus": 2}]
    rows = [worker("large", 4, gpus=2), worker("small", 5)]
    _, before = planned(problem(tmp_path, {"m": 4}, rows[:1], [offer("single", 5)], nodes=nodes))
    current = written(tmp_path, before)
    instance = problem(tmp_path, {"m": 9}, rows, [offer("single", 5)], nodes=nodes, current=current)
    _, plan = planned(instance)
    assert check(instance, plan) == []
    change = plan.change
    assert change is not None
    stops, lent = change.pods
    assert (stops.pod, stops.node, lent.node) == (before.pods[0].pod, "own", change.lent_nodes[0])
    assert [one.worker for one in change.lent] == [lent.worker]
    for pods, expected in (
        ((), "nothing says where"),
        ((stops, lent.model_copy(update={"node": "own"})), "is not lent"),
        ((stops.model_copy(update={"gpus": (0,)}), lent), "not told as it runs"),
    ):
        broken = plan.model_copy(update={"change": change.model_copy(update={"pods": pods})})
        assert any(expected in one.message for one in check(instance, broken)), expected
