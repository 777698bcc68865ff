"""Places of workers: every right count has one; and small deployments against trying every count."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from deploy_cases import offer, planned, problem, worker, written
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from formulations.deployment.check import check
from formulations.deployment.placing import Placed, together, workers_in

SIZES = (1, 2, 4)
counts = st.dictionaries(st.sampled_from(SIZES), st.integers(0, 4), min_size=1)
rates = st.dictionaries(st.sampled_from(["a", "b", "c"]), st.integers(1, 12), min_size=1)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(before=rates, after=rates, free=st.lists(st.integers(0, 4), min_size=0, max_size=3))
def test_every_plan_has_places_whatever_runs_before(
    before: dict[str, int], after: dict[str, int], free: list[int]
) -> None:
    """Places keep all rules, also where the plan before has others; what is kept has not moved."""
    rows = [worker(f"{service}{g}", 2.2 * g, service, g) for service in "abc" for g in SIZES]
    found = [offer("one", 1.1), offer("four", 4, 4)]
    nodes = [
        {"name": f"own-{i}", "device": "l4", "gpus": 4, "free_gpus": number} for i, number in enumerate(free)
    ] or None
    with TemporaryDirectory() as name:
        folder = Path(name)
        _, first = planned(problem(folder, before, rows, found, nodes=nodes))
        current = written(folder, first)
        instance = problem(folder, after, rows, found, nodes=nodes, current=current)
        _, second = planned(instance)
    assert check(instance, second) == []
    old, new = ({one.name: one for one in workers_in(plan.pods)} for plan in (first, second))
    assert second.change is not None
    assert second.change.kept == sum(old.get(name) == one for name, one in new.items())
    assert second.change.served_least >= min(1.0, second.change.served_before) - 1e-6 or not second.change.lent_nodes


@pytest.mark.parametrize(
    ("free", "size", "expected"),
    [((0, 1, 2, 3), 2, (0, 1)), ((1, 2, 3), 2, (2, 3)), ((1, 2), 2, (1, 2)), ((1, 3, 5), 2, (1, 3)), ((5,), 1, (5,))],
)
def test_devices_lie_together_where_they_can(free: tuple[int, ...], size: int, expected: tuple[int, ...]) -> None:
    assert together(free, size) == expected


def test_parts_of_a_worker_are_put_together_again() -> None:
    one = Placed("m-1", "m", "w", (("a", (0, 1)), ("b", (0, 1))))
    assert workers_in(one.pods()) == [one]
    assert [pod.pod for pod in one.pods()] == ["m-1-0", "m-1-1"]
    assert one.num_gpus == 4


@pytest.mark.parametrize("seed", range(6))
def test_no_count_of_nodes_and_workers_is_cheaper(tmp_path: Path, seed: int) -> None:
    """Two services, workers of 1 and 2 GPUs, nodes of 1, 2 and a standing one of 2: all counts are tried."""
    demand = {"a": 1 + 3 * seed % 7, "b": 1 + 5 * seed % 11}
    throughput = {("a", 1): 2.0, ("a", 2): 5.0, ("b", 1): 3.0, ("b", 2): 5.5}
    rows = [worker(f"{service}{g}", rate, service, g) for (service, g), rate in throughput.items()]
    price = {"one": 1.0 + 0.1 * seed, "two": 1.7}
    cost, _ = planned(
        problem(
            tmp_path, demand, rows, [offer("one", price["one"]), offer("two", price["two"], 2)],
            nodes=[{"name": "own", "device": "l4", "gpus": 2}],
        )
    )  # fmt: skip
    best = float("inf")
    for ones, twos in product(range(8), range(5)):
        rent = ones * price["one"] + twos * price["two"]
        if rent < best and fits(demand, throughput, ones, twos + 1):
            best = rent
    assert cost == pytest.approx(best)


def fits(demand: dict[str, int], throughput: dict[tuple[str, int], float], ones: int, twos: int) -> bool:
    """Whether some counts of workers serve everything on so many nodes."""
    ways: dict[str, list[Counter[int]]] = defaultdict(list)
    for service, rate in demand.items():
        for small, large in product(range(ones + 2 * twos + 1), range(twos + 1)):
            if small * throughput[service, 1] + large * throughput[service, 2] >= rate:
                ways[service].append(Counter({1: small, 2: large}))
    for chosen in product(*ways.values()):
        total: Counter[int] = sum(chosen, Counter())
        if total[2] <= twos and total[1] <= ones + 2 * (twos - total[2]):
            return True
    return False
