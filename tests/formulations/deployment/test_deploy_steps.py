"""Steps of a change, followed one by one by a simulation of its own: what runs where, and how much it serves."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from random import Random
from typing import Any

import pytest
from deploy_cases import offer, planned, problem, worker, written
from scipy.optimize import linprog

from formulations.deployment.check import check
from formulations.deployment.problem import DeployProblem
from planner.deploy_plan import DeployedPod, DeployPlan

#: What rounding and two solvers may differ by.
NEAR = 1e-5


def share(rates: dict[str, float], roles: dict[str, str], need: float, count: Counter[str]) -> float:
    """Of a demand of one size, by so many workers of each name: the lesser of what prompts and answers get."""
    free = {
        role: sum(rates[name] * n for name, n in count.items() if roles[name] == role) for role in set(roles.values())
    }
    both, first, second = (free.get(role, 0.0) for role in ("both", "prefill", "decode"))
    # max t : t need = m + s, m <= both, s <= first, s <= second
    found = linprog(
        [-1.0, 0.0, 0.0],
        A_eq=[[need, -1.0, -1.0]],
        b_eq=[0.0],
        bounds=[(0, 1), (0, both), (0, min(first, second))],
    )
    return float(-found.fun)


class Walk:
    """The cluster on the way from what is in force to a plan."""

    def __init__(self, instance: DeployProblem, plan: DeployPlan) -> None:
        assert instance.current is not None
        assert plan.change is not None
        self.instance, self.plan, self.change = instance, plan, plan.change
        self.pods = {pod.pod: pod for pod in instance.current.pods}
        self.known = {pod.pod: pod for pod in (*self.change.pods, *plan.pods)}
        self.free = {node.name: set(node.devices) for kind in instance.standing for node in kind.nodes}
        for row in instance.current.nodes:
            if row.offer is not None:
                self.free |= {name: set(range(row.gpus)) for name in row.names}
        rows = (*instance.current.workers, *plan.workers, *self.change.lent)
        self.kinds = {(row.service, row.worker): row for row in rows}

    def runs(self, pod: DeployedPod) -> bool:
        return set(pod.gpus) <= self.free.get(pod.node, set())

    def served(self) -> float:
        """Of the service that is served worst."""
        parts: dict[tuple[str, str, str], list[DeployedPod]] = defaultdict(list)
        for pod in self.pods.values():
            name = pod.pod if pod.parts == 1 else pod.pod.removesuffix(f"-{pod.part}")
            if self.runs(pod):
                parts[name, pod.service, pod.worker].append(pod)
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for (_, service, name), found in parts.items():
            counts[service][name] += len(found) == found[0].parts
        fleet = self.instance.fleet
        shares = []
        for model, service in enumerate(fleet.model_names):
            need = float(fleet.needed(0)[fleet.bucket_model == model].sum())
            own = {name: row for (of, name), row in self.kinds.items() if of == service}
            rates = {name: row.rates[0].requests_per_s for name, row in own.items()}
            roles = {name: row.role for name, row in own.items()}
            if need:
                shares.append(share(rates, roles, need, counts[service]))
        return min(shares)

    def steps(self) -> list[float]:
        """Shares served at the start and after each step; every step is one that can be done."""
        found = [self.served()]
        for step in self.change.steps:
            for node in step.add_nodes:
                assert node not in self.free
                self.free[node] = set(range(8))
            for name in step.start:
                pod = self.known[name]
                assert self.runs(pod), name
                held = [d for one in self.pods.values() if one.node == pod.node for d in one.gpus]
                assert not set(held) & set(pod.gpus), name
                assert name not in self.pods
                self.pods[name] = pod
            for name in step.stop:
                del self.pods[name]
            for node in step.drop_nodes:
                assert all(pod.node != node for pod in self.pods.values())
                del self.free[node]
            found.append(self.served())
        return found


def followed(instance: DeployProblem, plan: DeployPlan) -> list[float]:
    """The shares on the way, after all that is told was found to be so."""
    assert check(instance, plan) == []
    walk = Walk(instance, plan)
    found = walk.steps()
    change = walk.change
    assert walk.pods == {pod.pod: pod for pod in plan.pods}
    assert change.served_before == pytest.approx(found[0], abs=NEAR)
    assert [step.served for step in change.steps] == pytest.approx(found[1:], abs=NEAR)
    assert change.served_least == pytest.approx(min(found), abs=NEAR)
    return found


def cases(random: Random) -> dict[str, Any]:
    """Demand, workers and nodes of two services; the second has prefill and decode apart."""
    rows = [worker(f"a{g}", random.choice([2, 3]) * g * random.choice([0.9, 1.1]), "a", g) for g in (1, 2, 4)]
    rows += [worker(f"{role[0]}{g}", 3 * g, "b", g, role) for g in (1, 2) for role in ("prefill", "decode")]
    rows += [worker("b4", 9, "b", 4)]
    nodes = [
        {"name": f"n{i}", "device": "l4", "gpus": 4, "free_gpus": random.randint(1, 4)}
        for i in range(random.randint(1, 3))
    ]
    return {"rates": {"a": random.randint(1, 15), "b": random.randint(1, 10)}, "workers": rows, "nodes": nodes}


@pytest.mark.parametrize("seed", range(20))
def test_no_less_is_served_on_the_way(tmp_path: Path, seed: int) -> None:
    """From one random deployment to another one: all is as told, and nothing falls below the start."""
    random = Random(seed)
    before, after = cases(random), cases(random)
    # What is limited: nodes of each offer, so that some have to be lent, and none at all for every fourth.
    found = [offer("one", 1.1), offer("four", 4, 4, max_count=3)]
    _, first = planned(problem(tmp_path, before["rates"], before["workers"], found, nodes=before["nodes"]))
    name = written(tmp_path, first)
    rows = random.sample(after["workers"], 6) + [worker("spare", 2, service) for service in "ab"]
    instance = problem(tmp_path, after["rates"], rows, found, nodes=after["nodes"], current=name)
    shares = followed(instance, planned(instance)[1])
    # Any number of nodes of one GPU can be lent, but not every worker has one of its service that fits there.
    assert min(shares) >= min(1.0, shares[0]) - NEAR


def test_what_ran_on_a_lost_node_does_not_count(tmp_path: Path) -> None:
    """Of two nodes one is gone: half is served before, and what was there stops first."""
    nodes = [{"name": f"own-{i}", "device": "l4", "gpus": 1} for i in range(2)]
    rows, found = [worker("w", 5)], [offer("single", 1)]
    _, before = planned(problem(tmp_path, {"m": 10}, rows, found, nodes=nodes))
    instance = problem(tmp_path, {"m": 10}, rows, found, nodes=nodes[:1], current=written(tmp_path, before))
    _, plan = planned(instance)
    assert followed(instance, plan) == pytest.approx([0.5, 0.5, 1.0])
    assert plan.change is not None
    (lost,) = plan.change.steps[0].stop
    assert {pod.pod: pod.node for pod in before.pods}[lost] == "own-1"


def test_several_nodes_are_lent_where_one_is_too_small(tmp_path: Path) -> None:
    """The large worker serves 8 of 8; the one that can be lent serves 5, so two are needed while it goes."""
    nodes = [{"name": "own", "device": "l4", "gpus": 2}]
    rows = [worker("large", 8, gpus=2), worker("small", 5)]
    _, before = planned(problem(tmp_path, {"m": 8}, rows[:1], [offer("single", 5)], nodes=nodes))
    instance = problem(tmp_path, {"m": 9}, rows, [offer("single", 5)], nodes=nodes, current=written(tmp_path, before))
    _, plan = planned(instance)
    assert min(followed(instance, plan)) >= 8 / 9 - NEAR
    assert plan.change is not None
    assert len(plan.change.lent_nodes) == 2


@pytest.mark.parametrize("lent", [True, False])
def test_nothing_is_lent_where_the_service_may_not_run(tmp_path: Path, lent: bool) -> None:
    """The service may run in `eu` alone; only `us` has nodes left."""
    place = "us" if not lent else "eu"
    nodes = [{"name": "own", "device": "l4", "gpus": 2, "region": "eu"}]
    found = [offer("more", 5, region=place), offer("other", 5, region="us")]
    rows = [worker("large", 4, gpus=2), worker("small", 5)]

    def case(rate: float, rows: list[str], **more: Any) -> DeployProblem:
        service = {
            "name": "m",
            "regions": ["eu"],
            "demand": [{"input_tokens": 100, "output_tokens": 100, "rate_per_s": rate}],
        }
        return problem(tmp_path, {}, rows, found, nodes=nodes, services=[service], **more)

    _, before = planned(case(4, rows[:1]))
    instance = case(9, rows, current=written(tmp_path, before))
    _, plan = planned(instance)
    assert plan.change is not None
    assert bool(plan.change.lent_nodes) == lent
    followed(instance, plan)


def test_no_more_nodes_of_an_offer_than_there_are(tmp_path: Path) -> None:
    """Two nodes are all there is of the offer, and both are rented until the end: none can be lent beside them."""
    rows = [worker("large", 4, gpus=2), worker("small", 5)]
    nodes = [{"name": "own", "device": "l4", "gpus": 2}]
    found = [offer("single", 0.001, max_count=2)]
    both = [worker("tiny", 0.5), *rows[:1]]
    _, before = planned(problem(tmp_path, {"m": 5}, both, found, nodes=nodes))
    assert sum(row.count for row in before.nodes if row.offer) == 2
    instance = problem(tmp_path, {"m": 10}, rows[1:], found, nodes=nodes, current=written(tmp_path, before))
    _, plan = planned(instance)
    assert plan.change is not None
    assert plan.change.lent_nodes == ()
    followed(instance, plan)
