"""Random small pools and rings against oracles that try every plan; relabelling; bounds of unfinished searches."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_cases import answer, answer_ring, best_rate, best_token_s, home, pool, problem_of, ring, two_sites

from formulations.parallelism.layers import pricing
from formulations.parallelism.layers.baseline import parallax_greedy
from formulations.parallelism.layers.check import check
from formulations.parallelism.windows.baseline import halda
from formulations.parallelism.windows.check import check as check_windows
from formulations.parallelism.windows.reading import read_problem as read_windows
from planner.descriptions.layers import LayersInstance, Sites, WindowsInstance


def some_pool(seed: int) -> LayersInstance:
    """Up to 4 devices of up to 3 kinds, at one to three sites, with and without limits."""
    draw = random.Random(seed)
    sites = draw.choice((0, 0, 2, 3))
    devices: list[tuple[Any, ...]] = []
    left = 4
    while left and len(devices) < 3:
        count = min(left, draw.randint(1, 2))
        left -= count
        site = draw.choice("abc"[:sites]) if sites else None
        memory, layer_s = draw.randint(2, 6), draw.choice((0.1, 0.15, 0.2, 0.3, 0.5))
        devices.append((f"d{left}", count, memory, layer_s, site, draw.choice((0, 0, 0.1))))
    more: dict[str, Any] = {
        "embedding_bytes": draw.choice((0, 0.5, 1.0)),
        "head_bytes": draw.choice((0, 0.5, 1.0)),
        "hand_over_bytes": draw.choice((0, 1.0)),
        "batch": draw.choice((1, 2)),
    }
    if sites:
        rates = [[None if i == j else draw.choice((None, 1.0, 3.0, 9.0)) for j in range(sites)] for i in range(sites)]
        late = [[None if rate is None else draw.choice((0.0, 0.05)) for rate in row] for row in rates]
        matrices = {"bandwidth_bytes_per_s": tuple(map(tuple, rates)), "latency_s": tuple(map(tuple, late))}
        more["sites"] = Sites(names=tuple("abc"[:sites]), **matrices)
    if draw.random() < 0.3:
        more["max_latency_s"] = draw.choice((0.6, 1.0, 2.0))
    if draw.random() < 0.3:
        more["kv_tokens"] = draw.choice((2, 4, 6))
    if draw.random() < 0.3:
        more["local_link"] = {"bandwidth_bytes_per_s": draw.choice((2.0, 20.0)), "latency_s": 0.02}
    return pool(devices, draw.randint(2, 5), **more)


@pytest.mark.parametrize("seed", range(40))
def test_no_plan_is_better(seed: int) -> None:
    instance = some_pool(seed)
    problem = problem_of(instance)
    best = best_rate(problem) * problem.batch
    found = answer(instance)
    assert found.status == ("optimal" if best else "infeasible")
    assert (0.0 if found.objective is None else -found.objective.total) == pytest.approx(best, rel=2e-6)


@pytest.mark.parametrize("seed", range(6))
def test_slots_in_parts_change_nothing(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = answer(some_pool(seed))
    monkeypatch.setattr(pricing, "MOST_CELLS", 1)
    parts = answer(some_pool(seed))
    assert parts.status == whole.status
    if whole.objective is not None and parts.objective is not None:
        assert parts.objective.total == pytest.approx(whole.objective.total, rel=2e-6)


@pytest.mark.parametrize("seed", range(100, 108))
@pytest.mark.parametrize("method", ["scip", "cbc"])
def test_another_backend_agrees(seed: int, method: str) -> None:
    first, second = answer(some_pool(seed)), answer(some_pool(seed), method)
    assert first.status == second.status
    if first.objective is not None and second.objective is not None:
        assert second.objective.total == pytest.approx(first.objective.total, rel=2e-6)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(3, 12), st.integers(1, 9)), min_size=1, max_size=4),
    st.integers(4, 16),
    st.integers(0, 2),
)
def test_between_the_rule_and_the_bound_whatever_the_order(
    kinds: list[tuple[int, int, int]], num_layers: int, ends: int
) -> None:
    """The rule is never better; no plan is above the bound; other names and another order change nothing."""
    devices = [(f"d{place}", count, memory, time / 10) for place, (count, memory, time) in enumerate(kinds)]
    other = [(f"e{place}", *rest) for place, (_, *rest) in enumerate(reversed(devices))]
    found, again = (
        answer(pool(some, num_layers, embedding_bytes=ends / 2, head_bytes=float(ends))) for some in (devices, other)
    )
    assert found.status == again.status
    if found.objective is None or again.objective is None:
        return
    assert again.objective.total == pytest.approx(found.objective.total, rel=2e-6)
    assert found.bound is not None
    assert found.bound.value <= found.objective.total * (1 - 1e-9)
    problem = problem_of(pool(devices, num_layers, embedding_bytes=ends / 2, head_bytes=float(ends)))
    rule = parallax_greedy(problem)
    if rule is not None:
        assert check(problem, rule) == []
        assert -rule.tokens_per_s >= found.objective.total * (1 + 1e-9)
    # All layers of all devices, at their speed, are a bound that needs no search.
    assert -found.objective.total <= float((problem.count / problem.layer_s).sum()) / num_layers * (1 + 1e-9)


def test_many_devices_get_a_plan_and_a_bound() -> None:
    """120 devices of 4 kinds within a short time: not below the rule, and a bound that is near."""
    kinds = [("a", 40, 19, 1 / 362), ("b", 30, 32, 1 / 312), ("c", 30, 9, 1 / 165), ("d", 20, 13, 1 / 125)]
    instance = pool(kinds, 80, embedding_bytes=1.2, head_bytes=1.2)
    found = answer(instance, time_limit_s=8.0)
    rule = parallax_greedy(problem_of(instance))
    assert found.objective is not None
    assert rule is not None
    assert -found.objective.total >= rule.tokens_per_s
    assert found.gap is not None
    assert found.gap < 0.1


def test_many_devices_within_a_latency_get_a_plan_and_a_bound() -> None:
    """96 devices of 8 kinds: counting stages must not take the time that a plan needs."""
    draw = random.Random(1)
    kinds = [(f"d{place}", 12, draw.uniform(5, 40), draw.uniform(0.001, 0.02)) for place in range(8)]
    found = answer(pool(kinds, 80, max_latency_s=0.15), time_limit_s=20.0)
    assert found.plan is not None
    assert max(one.latency_s for one in found.plan.pipelines) <= 0.15 * (1 + 1e-9)
    assert found.gap is not None
    assert found.gap < 0.2


def test_a_link_that_is_cut_costs_and_one_more_device_never_does() -> None:
    """Monotone in links and devices: more of either is never worse."""
    devices = [("x", 2, 3, 0.1, "a"), ("y", 1, 3, 0.1, "b")]
    rates = []
    for bandwidth, count in ((1.0, 1), (3.0, 1), (3.0, 2), (9.0, 2)):
        some = [devices[0], ("y", count, 3, 0.1, "b")]
        found = answer(pool(some, 5, sites=two_sites(bandwidth), hand_over_bytes=1.0))
        assert found.objective is not None
        rates.append(-found.objective.total)
    assert rates == sorted(rates)
    assert rates[0] < rates[-1]


def some_ring(seed: int) -> WindowsInstance:
    """2 to 4 devices, some with GPUs, hops and memory that all has to be read anew."""
    draw = random.Random(seed)
    devices = [
        home(
            f"d{place}",
            draw.randint(0, 6) / 2,
            draw.choice((0.1, 0.3, 0.7)),
            gpu=draw.choice((None, (draw.randint(0, 5), draw.choice((0.02, 0.2))))),
            disk=draw.choice((0.5, 2.0, 10.0)),
            hop_s=draw.choice((0.0, 0.05, 0.4)),
            reload=draw.choice(("overflow", "overflow", "all")),
        )
        for place in range(draw.randint(2, 4))
    ]
    return ring(devices, draw.choice((4, 6, 8)), rounds=draw.choice((1, 1, 2)), every_device=False)


@pytest.mark.parametrize("seed", range(40))
def test_no_windows_are_faster(seed: int) -> None:
    instance = some_ring(seed)
    found = answer_ring(instance)
    assert found.status == "optimal"
    assert found.objective is not None
    assert found.objective.total == pytest.approx(best_token_s(read_windows(instance)), rel=1e-6)


@pytest.mark.parametrize("seed", range(200, 206))
@pytest.mark.parametrize("method", ["scip", "cbc"])
def test_another_backend_finds_as_fast_windows(seed: int, method: str) -> None:
    first, second = answer_ring(some_ring(seed)), answer_ring(some_ring(seed), method)
    assert first.objective is not None
    assert second.objective is not None
    assert second.objective.total == pytest.approx(first.objective.total, rel=1e-6)


@pytest.mark.parametrize("seed", range(300, 320))
def test_the_iteration_is_valid_and_never_faster(seed: int) -> None:
    instance = some_ring(seed)
    problem = read_windows(instance)
    rule = halda(problem)
    found = answer_ring(instance)
    assert found.objective is not None
    if rule is not None:
        assert check_windows(problem, rule) == []
        assert rule.token_s >= found.objective.total * (1 - 1e-9)
