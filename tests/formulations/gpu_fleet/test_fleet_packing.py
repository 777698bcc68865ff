"""Replicas onto instances: `place` succeeds exactly where the counting rule holds, and where any packing exists."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fleet_cases import demand, offers, packs, problem, profile
from hypothesis import given, settings
from hypothesis import strategies as st

from formulations.gpu_fleet.packing import place
from formulations.gpu_fleet.problem import FleetProblem


def pool(gpus: list[int], sizes: list[int]) -> FleetProblem:
    """One pool of instances of some shapes; one model for each replica size."""
    rows = offers(**{f"o{k}": {"price": 1.0, "gpus": size} for k, size in enumerate(gpus)})
    asked = [demand(1.0, f"m{size}") for size in sizes]
    largest = rows[int(np.argmax(gpus))]["name"]
    made = problem(rows, asked, [profile(largest, 1.0, f"m{size}", size) for size in sizes])
    shared = np.zeros(len(gpus), dtype=np.int64)
    return replace(
        made,
        pool_of_offer=shared,
        config_pool=np.zeros(len(sizes), dtype=np.int64),
        availability=np.ones(1),
        spot=np.zeros(1, dtype=bool),
    )


def counted(gpus: list[int], instances: list[int], sizes: list[int], replicas: list[int]) -> bool:
    """For every size, replicas at least that large fit into what instances hold of that size."""
    return all(
        sum(size * n for size, n in zip(sizes, replicas, strict=True) if size >= least)
        <= sum(least * (shape // least) * n for shape, n in zip(gpus, instances, strict=True))
        for least in sizes
    )


@settings(max_examples=200, deadline=None)
@given(
    gpus=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    chain=st.sampled_from([[1, 2, 4, 8], [1, 3, 6], [2, 4], [1, 4], [3]]),
    data=st.data(),
)
def test_replicas_are_placed_exactly_where_they_fit(gpus: list[int], chain: list[int], data: st.DataObject) -> None:
    sizes = [size for size in chain if size <= max(gpus)]
    if not sizes:
        return
    instances = data.draw(st.lists(st.integers(0, 2), min_size=len(gpus), max_size=len(gpus)))
    replicas = data.draw(st.lists(st.integers(0, 4), min_size=len(sizes), max_size=len(sizes)))
    bins = sorted((shape for shape, n in zip(gpus, instances, strict=True) for _ in range(n)), reverse=True)
    items = sorted((size for size, n in zip(sizes, replicas, strict=True) for _ in range(n)), reverse=True)
    fits = sum(items) <= sum(bins) and packs(bins, items)
    assert counted(gpus, instances, sizes, replicas) == fits
    made = pool(gpus, sizes)
    if not fits:
        with pytest.raises(ValueError, match="have no room"):
            place(made, np.array(instances), np.array(replicas))
        return
    where, hosts = place(made, np.array(instances), np.array(replicas))
    assert where.sum(axis=1).tolist() == replicas
    assert sorted(offer for offer, _ in hosts) == sorted(offer for offer, n in enumerate(instances) for _ in range(n))
    # Each offer's own share fits onto its own instances.
    for offer, shape in enumerate(gpus):
        mine = sorted((sizes[c] for c in range(len(sizes)) for _ in range(int(where[c, offer]))), reverse=True)
        assert packs([shape] * instances[offer], mine)


def test_a_full_node_by_hand() -> None:
    """4 + 2 + 1 + 1 on one node of 8 hosts three models."""
    made = pool([8], [1, 2, 4])
    where, hosts = place(made, np.array([1]), np.array([2, 1, 1]))
    assert where[:, 0].tolist() == [2, 1, 1]
    assert hosts == [(0, frozenset({0, 1, 2}))]
    with pytest.raises(ValueError, match="1 replicas of 1 GPUs have no room"):
        place(made, np.array([1]), np.array([3, 1, 1]))


def test_no_replicas_on_idle_instances() -> None:
    where, hosts = place(pool([4], [4]), np.array([2]), np.array([0]))
    assert where.sum() == 0
    assert hosts == [(0, frozenset()), (0, frozenset())]
