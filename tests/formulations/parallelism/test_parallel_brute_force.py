"""The search against every count, packing against every way of packing, patterns against every multiset."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parallel_cases import best, brute_force, packs_on_nodes, problem, run, solved, worker

from formulations.parallelism.baseline import best_uniform
from formulations.parallelism.check import check, fits
from formulations.parallelism.packing import divide_one_another, packing_arcs
from formulations.parallelism.pareto import undominated
from formulations.parallelism.problem import ParallelProblem
from planner.parallel_plan import Role

ROLE_NAMES: tuple[Role, ...] = ("both", "prefill", "decode")


def drawn(seed: int) -> ParallelProblem:
    """Up to four worker types of odd sizes on one or two small device kinds."""
    random = np.random.default_rng(seed)
    kinds = {"h100_sxm": (int(random.integers(1, 4)), int(random.integers(2, 5)))}
    if random.random() < 0.4:
        kinds["l40s"] = (1, int(random.integers(2, 5)))
    roles = [*ROLE_NAMES, ROLE_NAMES[int(random.integers(3))]]
    workers = [
        worker(
            f"w{index}",
            role,
            int(random.integers(1, 7 if index else 4)),
            round(float(random.uniform(0.5, 9.0)), 3),
            device=list(kinds)[int(random.integers(len(kinds)))],
        )
        for index, role in enumerate(roles)
    ]
    prices = {"h100_sxm": 4.0, "l40s": 1.5}
    limit = int(random.integers(1, 6)) if random.random() < 0.3 else None
    return problem(workers, kinds, prices=prices, max_workers=limit)


@pytest.mark.parametrize("seed", range(24))
def test_most_throughput(seed: int) -> None:
    instance = drawn(seed)
    by_trying = brute_force(instance)
    for method in ("highs", "scip", "cbc"):
        outcome = run(instance, method)
        if by_trying is None:
            assert outcome.status == "infeasible"
            continue
        assert outcome.status == "optimal"
        assert outcome.objective is not None
        assert outcome.objective.total == pytest.approx(by_trying, rel=1e-6)


@pytest.mark.parametrize("goal", ["gpus", "cost"])
@pytest.mark.parametrize("seed", range(12))
def test_fewest_gpus_and_least_cost(seed: int, goal: str) -> None:
    instance = drawn(seed)
    most = brute_force(instance)
    if most is None:
        pytest.skip("nothing fits")
    for share in (0.3, 0.8):
        asked = replace(instance, goal=goal, target_per_s=-share * most)
        by_trying = brute_force(asked)
        for method in ("highs", "scip", "cbc"):
            assert best(asked, method) == pytest.approx(by_trying, rel=1e-6)
    assert run(replace(instance, goal=goal, target_per_s=-1.01 * most)).status == "infeasible"


@pytest.mark.parametrize("seed", range(24))
def test_the_rule_is_valid_and_never_better(seed: int) -> None:
    instance = drawn(seed)
    most = brute_force(instance)
    if most is None:
        assert best_uniform(instance) is None
        return
    rule = best_uniform(instance)
    if rule is not None:
        assert check(instance, rule) == []
        assert rule.requests_per_s <= -most * (1 + 1e-9)
    for goal in ("gpus", "cost"):
        asked = replace(instance, goal=goal, target_per_s=-0.6 * most)
        rule = best_uniform(asked)
        if rule is not None:
            assert check(asked, rule) == []
            worth = {"gpus": rule.num_gpus, "cost": sum(
                one.count * one.num_gpus * {"h100_sxm": 4.0, "l40s": 1.5}[one.device] for one in rule.workers
            )}[goal]  # fmt: skip
            assert worth >= best(asked) * (1 - 1e-9)


def test_the_rule_knows_nothing_of_nodes_but_its_plan_must_fit() -> None:
    """2 nodes of 4: 3 GPUs of prefill and 3 of decode are 6 of 8 GPUs; two of 3 GPUs and two of 1 fit as well."""
    workers = [worker("p", "prefill", 3, 4.0), worker("d", "decode", 3, 4.0), worker("q", "prefill", 2, 4.0)]
    rule = best_uniform(problem(workers, (2, 4)))
    assert rule is not None
    assert check(problem(workers, (2, 4)), rule) == []
    # Three of 3 GPUs are 9 of 9 GPUs and do not fit nodes that are whole: 3 x 3 do, 2 nodes of 4 hold two.
    assert best_uniform(problem([worker("p", "prefill", 5, 4.0), worker("d", "decode", 3, 4.0)], (2, 4))) is None


def test_the_rule_keeps_the_most_workers() -> None:
    workers = [worker("one", "both", 1, 1.0), worker("four", "both", 4, 3.0)]
    rule = best_uniform(problem(workers, (1, 8), max_workers=2))
    assert rule is not None
    assert [(one.name, one.count) for one in rule.workers] == [("four", 2)]


@settings(max_examples=300, deadline=None)
@given(
    sizes=st.dictionaries(st.integers(1, 12), st.integers(1, 4), max_size=4),
    node=st.integers(1, 10),
    nodes=st.integers(0, 4),
)
def test_fits_agrees_with_trying_every_node(sizes: dict[int, int], node: int, nodes: int) -> None:
    assert fits(Counter(sizes), node, nodes) == packs_on_nodes(Counter(sizes), node, nodes)


def test_fits_on_many_nodes() -> None:
    """4000 nodes of 8 hold as many pairs of 5 + 3, and not one worker more."""
    assert fits(Counter({5: 4000, 3: 4000}), 8, 4000)
    assert not fits(Counter({5: 4000, 3: 4001}), 8, 4000)


@settings(max_examples=200, deadline=None)
@given(sizes=st.sets(st.integers(1, 10), min_size=1, max_size=4), node=st.integers(1, 14))
def test_paths_of_arcs_are_the_ways_to_fill_a_node(sizes: set[int], node: int) -> None:
    """Every multiset that fits is the sizes along one path from 0, largest first, and no path holds more."""
    ordered = sorted((size for size in sizes if size <= node), reverse=True)
    every = {
        tried
        for tried in product(*(range(node // size + 1) for size in ordered))
        if sum(count * size for count, size in zip(tried, ordered, strict=True)) <= node
    }
    arcs = {tuple(arc) for arc in packing_arcs(ordered, node).tolist()}
    for tried in every:
        place = 0
        for size, count in zip(ordered, tried, strict=True):
            for _ in range(count):
                assert (size, place) in arcs
                place += size
    assert all(place + size <= node for size, place in arcs)


def test_many_odd_sizes_on_a_large_domain() -> None:
    """Domains of 72 GPUs and workers of 12 sizes: 142,914 ways to fill one, and 421 arcs. At a rate of its GPUs each,
    4 domains serve 288, as 72 divides; without 72 and with 71 in its place a worker of 1 fills the rest."""
    sizes = [1, 2, 3, 4, 6, 8, 9, 12, 18, 24, 36, 72]
    arcs = packing_arcs(sizes, 72)
    assert len(arcs) == 421
    for last in (72, 71):
        workers = [worker(f"w{size}", "both", size, float(size)) for size in (*sizes[:-1], last)]
        assert best(problem(workers, (4, 72))) == pytest.approx(-288.0)
    # 2 x 35 leaves 2 GPUs of 72 idle, and 25 + 47 none: at one rate a GPU, 4 domains of 25 + 47.
    assert best(problem([worker(f"w{k}", "both", k, float(k)) for k in (35, 25, 47)], (4, 72))) == pytest.approx(-288.0)


@pytest.mark.parametrize(
    ("sizes", "chain"), [([], True), ([3], True), ([1, 2, 4, 8], True), ([2, 6, 12], True), ([4, 6], False)]
)
def test_sizes_that_divide_one_another(sizes: list[int], chain: bool) -> None:
    assert divide_one_another(sizes) is chain
    assert divide_one_another(sizes[::-1]) is chain


@settings(max_examples=200, deadline=None)
@given(rows=st.lists(st.tuples(*[st.integers(0, 3)] * 4), min_size=1, max_size=12))
def test_undominated_rows_against_comparing_all(rows: list[tuple[int, int, int, int]]) -> None:
    table = np.array(rows, dtype=np.float64)
    kept = undominated(*table.T)
    as_losses = table * [-1, 1, 1, 1]
    for index, row in enumerate(as_losses):
        better = [
            other for other in range(len(rows)) if (as_losses[other] <= row).all() and (as_losses[other] < row).any()
        ]
        equal = [other for other in range(len(rows)) if (as_losses[other] == row).all()]
        assert not (kept[index] and better)
        if not better:
            assert kept[equal].sum() == 1


def relabelled(instance: ParallelProblem, order: list[int]) -> ParallelProblem:
    arrays = {name: getattr(instance, name)[order] for name in ("usable", "role", "rate", "gpus", "device", "price")}
    return replace(instance, workers=tuple(instance.workers[one] for one in order), **arrays)


@pytest.mark.parametrize("seed", range(15))
def test_more_of_anything_is_never_worse(seed: int) -> None:
    instance = drawn(seed)
    if brute_force(instance) is None:
        pytest.skip("nothing fits")
    worth = best(instance)
    allowed = worth + 1e-9
    assert best(replace(instance, nodes=instance.nodes + 1)) <= allowed
    assert best(relabelled(instance, [2, 0, 3, 1])) == pytest.approx(worth)
    assert best(replace(instance, max_workers=None)) <= allowed
    fewer = replace(instance, usable=instance.usable & (np.arange(4) != seed % 4))
    without = run(fewer)
    assert without.status == "infeasible" or (without.objective is not None and without.objective.total >= worth - 1e-9)
    most = solved(instance).requests_per_s
    gpus = [best(replace(instance, goal="gpus", target_per_s=share * most)) for share in (0.2, 0.5, 0.9)]
    assert gpus == sorted(gpus)
