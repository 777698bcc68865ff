"""Nodes on stages of pipelines: by hand, against every permutation, and hostile matrices."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formulations.outcome import Budget, SolveOptions, Status, Stop
from formulations.parallelism.training.rank_mapping import (
    Mapping,
    MappingProblem,
    bound_s,
    check,
    choose,
    cost,
    in_order,
    seconds,
)


def problem(bandwidth: Any, pipelines: int, activation: float = 1.0, gradient: Any = None) -> MappingProblem:
    bandwidth = np.array(bandwidth, dtype=np.float64)
    stages = len(bandwidth) // pipelines
    return MappingProblem(
        bandwidth_bytes_per_s=bandwidth,
        pipelines=pipelines,
        stages=stages,
        activation_bytes=activation,
        gradient_bytes=np.full(stages, 1.0) if gradient is None else np.array(gradient, dtype=np.float64),
    )


def random_problem(seed: int) -> MappingProblem:
    draw = np.random.default_rng(seed)
    pipelines, stages = ((2, 3), (3, 2), (1, 5), (5, 1), (2, 2))[seed % 5]
    size = pipelines * stages
    return problem(draw.uniform(1, 4, (size, size)), pipelines, 1.0, draw.uniform(0, 3, stages))


def test_two_islands() -> None:
    """Nodes 0, 2 and 1, 3 are linked at 4 B/s, others at 1 B/s; two pipelines of two stages, A = 1, G = 1.

    A pipeline inside an island sends 2 x 1/4 = 0.5 s; rings between islands carry 2 x 1/2 x 1 byte at 1 B/s = 1 s: 1.5.
    The other way round, rings inside take 0.25 s, and pipelines between 2 s: 2.25. In order, 0-1 and 2-3, that is what
    the plain rule does.
    """
    slow, fast = 1.0, 4.0
    asked = problem([[0, slow, fast, slow], [slow, 0, slow, fast], [fast, slow, 0, slow], [slow, fast, slow, 0]], 2)
    assert seconds(asked, in_order(asked)) == pytest.approx(2.25)
    assert seconds(asked, Mapping(((0, 2), (1, 3)))) == pytest.approx(1.5)
    found = choose(asked, SolveOptions(work_limit=20))
    assert found.claimed == pytest.approx(1.5)


def test_rings_are_priced_on_every_stage() -> None:
    """The one slow link, 2 to 3, must not lie in a heavy ring of any stage.

    Two pipelines of two stages: a ring of stage 1 with G = 10 over the slow link takes 2 x 1/2 x 10 / 0.1 = 100 s.
    """
    bandwidth = np.full((4, 4), 1.0)
    bandwidth[2, 3] = bandwidth[3, 2] = 0.1
    asked = problem(bandwidth, 2, 1.0, [0.0, 10.0])
    priced = cost(asked, np.array([[[0, 2], [1, 3]], [[2, 0], [3, 1]]]))
    assert priced.rings_s.tolist() == [[0.0, 100.0], [0.0, 10.0]]
    found = choose(asked, SolveOptions(work_limit=20))
    # Rings 10 s, pipelines 2 s: the slow link is in the ring of stage 0, which carries nothing.
    assert found.claimed == pytest.approx(12.0)


@pytest.mark.parametrize("seed", range(15))
def test_no_permutation_is_better(seed: int) -> None:
    asked = random_problem(seed)
    size = asked.pipelines * asked.stages
    every = np.array(list(permutations(range(size)))).reshape(-1, asked.pipelines, asked.stages)
    best_s = float(cost(asked, every).total_s.min())
    found = choose(asked, SolveOptions(work_limit=300))
    assert found.plan is not None
    assert check(asked, found.plan) == []
    assert found.claimed == pytest.approx(best_s)
    assert bound_s(asked) <= best_s * (1 + 1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_names_of_nodes_do_not_matter_to_the_bound_and_the_plan_is_never_worse_than_in_order(seed: int) -> None:
    asked = random_problem(seed)
    size = asked.pipelines * asked.stages
    shuffle = np.random.default_rng(seed).permutation(size)
    renamed = problem(asked.bandwidth_bytes_per_s[np.ix_(shuffle, shuffle)], asked.pipelines, 1.0, asked.gradient_bytes)
    assert bound_s(renamed) == pytest.approx(bound_s(asked))
    found = choose(renamed, SolveOptions(work_limit=5))
    assert found.plan is not None
    assert seconds(renamed, found.plan) <= seconds(renamed, in_order(renamed)) * (1 + 1e-12)
    assert found.bound is not None
    assert found.bound.value <= seconds(renamed, found.plan) * (1 + 1e-9)


def test_equal_links_are_proven_at_once() -> None:
    found = choose(problem(np.full((12, 12), 5.0), 3))
    assert found.status is Status.OPTIMAL
    assert found.stop is Stop.PROOF


def test_a_work_limit_repeats_itself_and_no_time_keeps_the_plain_rule() -> None:
    asked = problem(np.random.default_rng(1).uniform(1, 2, (12, 12)), 3)
    first, second = (choose(asked, SolveOptions(work_limit=30, seed=4)) for _ in range(2))
    assert first.plan == second.plan
    assert first.stop is Stop.WORK_LIMIT
    stopped = choose(asked, budget=Budget(1e-9))
    assert stopped.plan == in_order(asked)
    assert stopped.stop is Stop.TIME_LIMIT


def test_one_node_and_the_diagonal() -> None:
    assert choose(problem([[0.0]], 1)).claimed == 0.0
    asked = problem([[np.nan, 1.0], [1.0, 0.0]], 2)
    assert seconds(asked, in_order(asked)) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("nodes", "rule"), [(((0, 1), (2, 2)), "cover"), (((0, 1, 2, 3),), "shape"), (((0, 1), (2,)), "shape")]
)
def test_broken_plans_are_found(nodes: tuple[tuple[int, ...], ...], rule: str) -> None:
    asked = problem(np.ones((4, 4)), 2)
    assert [violation.rule for violation in check(asked, Mapping(nodes))] == [rule]


def test_hostile_matrices() -> None:
    with pytest.raises(ValueError, match="must be square"):
        problem(np.ones((2, 3)), 1)
    with pytest.raises(ValueError, match="from node 1 to node 0 is 0"):
        problem([[1.0, 1.0], [0.0, 1.0]], 1)
    with pytest.raises(ValueError, match="is nan"):
        problem([[1.0, np.nan], [1.0, 1.0]], 1)
    with pytest.raises(ValueError, match="do not take 5 nodes"):
        problem(np.ones((5, 5)), 2)
    with pytest.raises(ValueError, match="not negative"):
        problem(np.ones((2, 2)), 1, 1.0, [-1.0, 0.0])
