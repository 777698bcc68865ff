"""The parts of `patterns`: compiled knapsacks, spread classes in the program, whole nodes, and a second solver."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formulations.backends.linear import solve_linear_mathopt, solve_linear_pulp
from formulations.outcome import Budget, SolveOptions, Status
from formulations.pod_packing.columns import Goal, Program, evened, least_spread
from formulations.pod_packing.dive import dive
from formulations.pod_packing.knapsack import filled, filled_cores, joined
from formulations.pod_packing.master import master_model, passed_on, solve_master
from formulations.pod_packing.problem import PodsProblem
from formulations.pod_packing.rounding import Rounding
from formulations.pod_packing.shapes import shapes_of
from formulations.pod_packing.state import State
from tests.formulations.pod_packing.pods_cases import problem, random_problem, solved

ZONES = [{"name": name, "count": count, "gpus": 1, "labels": {"zone": name}} for name, count in (("a", 4), ("b", 1))]


def spread(app: str, skew: int) -> dict[str, object]:
    rule = {"whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": app}}}
    return {"labels": {"app": app}, "topology_spread": [{"maxSkew": skew, "topologyKey": "zone", **rule}]}


def program_of(one: PodsProblem) -> Program:
    """The program of GPU allocation (or of costs), with its patterns."""
    shapes = shapes_of(State(one))
    must = one.objective == "consolidate"
    weight = np.zeros(shapes.classes.size) if must else one.milli[shapes.classes] / 1000
    program = Program(shapes, Goal(weight=weight, costs=must, must=must), one.demand[shapes.classes])
    program.improve(Budget(60), 200)
    return program


@settings(deadline=None)
@given(st.lists(st.floats(0, 9), min_size=1, max_size=12), st.lists(st.floats(0, 9), min_size=1, max_size=12))
def test_joined_tables_hold_the_best_split(one: list[float], two: list[float]) -> None:
    """Against every split."""
    size = min(len(one), len(two))
    a, b = (np.maximum.accumulate(np.array(values[:size])) for values in (one, two))
    best = [max(a[c - i] + b[i] for i in range(c + 1)) for c in range(size)]
    assert joined(a, b).tolist() == pytest.approx(best)


@pytest.mark.parametrize("seed", range(8))
def test_filled_tables_hold_the_best_content(seed: int) -> None:
    """Against all numbers of three items, 0 .. 5 of each; the third takes no part of a device."""
    rng = np.random.default_rng(seed)
    values, sizes, cores = rng.random(3), rng.integers(1, 4, 3), rng.integers(1, 4, 3)
    table, line = filled(values, sizes, cores, 5, 6), filled_cores(values, cores, 6)
    for m, c in product(range(6), range(6)):
        inside = [n for n in product(range(6), repeat=3) if np.dot(n, cores) <= c]
        assert line[c] == pytest.approx(max(np.dot(n, values) for n in inside))
        assert table[m, c] == pytest.approx(max(np.dot(n, values) for n in inside if np.dot(n, sizes) <= m))


@pytest.mark.parametrize("must", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_the_least_of_a_spread_class(seed: int, must: bool) -> None:
    """No whole numbers of pods in three zones that keep the rows count less; and some corner counts as little: all
    corners are multiples of 1/3 where the numbers are whole, so thirds are tried."""
    rng = np.random.default_rng(seed)
    net, most, skew = rng.normal(size=3), int(rng.integers(1, 6)), int(rng.integers(1, 3))
    thirds = np.array(list(product(range(3 * most + 1), repeat=3))) / 3
    keeps = np.ptp(thirds, axis=1) <= skew + 1e-9
    total = thirds.sum(axis=1)
    keeps &= np.abs(total - most) < 1e-9 if must else total <= most + 1e-9
    assert least_spread(net, skew, most, must) == pytest.approx((thirds @ net)[keeps].min())


@settings(deadline=None)
@given(st.lists(st.integers(0, 60), min_size=2, max_size=5), st.integers(1, 3), st.booleans())
def test_evened_numbers_keep_the_spread(thirds: list[int], skew: int, must: bool) -> None:
    """From amounts that keep it, as the program's do."""
    amounts = np.minimum(np.array(thirds) / 3, min(thirds) / 3 + skew)
    most = int(np.ceil(amounts.sum()))
    found = evened(amounts, skew, most, must)
    assert found.max() - found.min() <= skew
    assert found.sum() == most if must else found.sum() <= amounts.sum() + 1e-6


def test_spread_counts_in_the_bound() -> None:
    """Zone a has four nodes of one GPU, zone b one. With at most one pod more in a than in b: 2 + 1, and no plan
    has more, though 5 GPUs are free for 5 pods."""
    one = problem(ZONES, [{"name": "s", "count": 5, "gpus": 1, **spread("s", 1)}], objective="allocation")
    outcome = solved(one, method="patterns")
    assert outcome.status is Status.OPTIMAL
    assert outcome.plan is not None
    assert outcome.plan.tiers[0].value == outcome.plan.tiers[0].bound == 3.0


@pytest.mark.parametrize("seed", range(6))
def test_an_exact_model_passes_no_bound_of_spread_classes(seed: int) -> None:
    """Two spread classes and one without, in three zones: neither method's plan passes the other's bound."""
    rng = np.random.default_rng(seed)
    nodes = [
        {"name": zone, "count": int(rng.integers(1, 4)), "gpus": int(rng.integers(1, 4)), "labels": {"zone": zone}}
        for zone in "abc"
    ]
    pods = [
        {"name": "s", "count": int(rng.integers(2, 9)), "cpu": 2, "gpus": 1, **spread("s", 1)},
        {"name": "t", "count": int(rng.integers(2, 9)), "gpus": 1, "gpu_milli": 600, **spread("t", int(seed % 2) + 1)},
        {"name": "u", "count": 2, "cpu": 3, "gpus": 2},
    ]
    one = problem(nodes, pods, objective="allocation")
    plans = [solved(one, method=name).plan for name in ("patterns", "cp-sat")]
    tiers = [plan.tiers[0] for plan in plans if plan is not None]
    assert len(tiers) == 2
    for ours, other in (tiers, tiers[::-1]):
        assert other.bound is not None
        assert ours.value <= other.bound + 1e-9


def test_spread_pods_all_run_on_few_nodes() -> None:
    """Six pods of half a GPU, at most one more in a than in b: 3 + 3 need two nodes in a zone, but b has one node of
    one GPU, two pods; so 4 + 2 with a skew of 2, three nodes in all. With a skew of 1 they cannot all run."""
    pods = {"name": "s", "count": 6, "gpus": 1, "gpu_milli": 500}
    wide = solved(problem(ZONES, [{**pods, **spread("s", 2)}], objective="consolidate"), method="patterns")
    assert wide.plan is not None
    assert (wide.plan.tiers[0].value, wide.plan.tiers[0].bound) == (3.0, 3.0)
    tight = solved(problem(ZONES, [{**pods, **spread("s", 1)}], objective="consolidate"), method="patterns")
    assert tight.plan is None


@pytest.mark.parametrize("objective", ["allocation", "consolidate"])
@pytest.mark.parametrize("seed", range(6))
def test_three_solvers_agree_on_whole_nodes(seed: int, objective: str) -> None:
    """HiGHS, SCIP and CBC choose patterns of the same worth, or find that none will do."""
    program = program_of(random_problem(seed, objective))
    if not program.columns.kind:
        pytest.skip("nothing fits anywhere")
    none = np.zeros(program.demand.size, dtype=np.int64)
    model, _, _ = master_model(program, np.arange(len(program.columns.kind)), none)
    options = SolveOptions(time_limit_s=30)
    answers = [solve_linear_mathopt(model, Budget(60), options, solver=name) for name in ("highs", "scip")]
    answers.append(solve_linear_pulp(model, Budget(60), options))
    first = answers[0][0]
    assert first.status in (Status.OPTIMAL, Status.INFEASIBLE)
    for result, _ in answers[1:]:
        assert result.status is first.status
        assert result.objective == pytest.approx(first.objective, abs=1e-6)


def test_rounding_never_makes_a_choice_worse() -> None:
    """Twenty parts settled anew, one after the other; patterns fit, and no node is given twice."""
    one = problem(
        [{"name": "n", "count": 12, "cpu": 24, "gpus": 4}, {"name": "m", "count": 6, "cpu": 10, "gpus": 2}],
        [
            {"name": f"p{index}", "count": 9 + index, "cpu": 1 + index % 3, "gpus": 1, "gpu_milli": milli}
            for index, milli in enumerate((230, 320, 470, 550, 650, 810, 1000))
        ],
        objective="allocation",
    )
    program = program_of(one)
    amounts = program.improve(Budget(60), 1)
    assert amounts is not None
    rounding = Rounding(
        program, program.demand.astype(np.int64), 0.01, SolveOptions(work_limit=200), np.random.default_rng(0)
    )
    worth, demand = rounding.value, program.demand.copy()
    best = dive(program, amounts, Budget(60))

    def value() -> float:
        count = sum(times * np.bincount([j for j, _ in pattern], minlength=demand.size) for _, pattern, times in best)
        return float(-(one.milli[program.shapes.classes] / 1000) @ np.minimum(count, demand))

    before = value()
    for idle in range(20):
        best = rounding.better(best, idle, Budget(60)) or best
        assert worth - 1e-6 <= value() <= before + 1e-6
        before = value()
    used = np.bincount([kind for kind, _, _ in best], weights=[times for _, _, times in best], minlength=2)
    assert (used <= program.shapes.count).all()
    assert all(program.shapes.holds(kind, pattern) for kind, pattern, _ in best)


def test_places_are_passed_on() -> None:
    """Two nodes are packed for one pod of 2 GPUs and one of 600 thousandths each. One of the large places goes to a pod
    of 1 GPU, which has the first of its devices, and one of the small places to a pod of 300 thousandths."""
    one = problem(
        [{"name": "n", "count": 2, "gpus": 3}],
        [
            {"name": "two", "gpus": 2, "cpu": 3},
            {"name": "one", "gpus": 1, "cpu": 2},
            {"name": "large", "gpus": 1, "gpu_milli": 600},
            {"name": "small", "gpus": 1, "gpu_milli": 300},
        ],
        objective="allocation",
    )
    shapes = shapes_of(State(one))
    name = {one.pod_names[int(np.flatnonzero(one.pod_class == j)[0])].partition("/")[2]: j for j in shapes.classes}
    two, whole, large, small = (int(name[pod]) for pod in ("two", "one", "large", "small"))
    pairs = [tuple(pair) for pair in shapes.exchanges.tolist()]
    assert set(pairs) == {(whole, two), (large, whole), (small, large)}
    numbers = np.array([{(whole, two): 1, (small, large): 1}.get(pair, 0) for pair in pairs])
    found = passed_on(shapes, [(0, ((two, (0, 1)), (large, (2,))), 2)], numbers)
    entries = sorted(entry for _, pattern, times in found for entry in pattern * times)
    assert entries == sorted([(two, (0, 1)), (whole, (0,)), (large, (2,)), (small, (2,))])
    assert all(shapes.holds(kind, pattern) for kind, pattern, _ in found)
    assert sum(times for _, _, times in found) == 2


def test_of_two_alike_one_takes_the_places_of_the_other() -> None:
    """Pods that differ in priority alone: one pair, not a circle."""
    one = problem([{"name": "n", "gpus": 1}], [{"name": "p", "gpus": 1, "priority": 5}, {"name": "q", "gpus": 1}])
    assert shapes_of(State(one)).exchanges.shape == (1, 2)


@pytest.mark.parametrize("seed", range(4))
def test_all_run_on_as_few_devices_as_the_bound_says(seed: int) -> None:
    """One hundred pods of many sizes, none of them often: every device holds a pod of more than half of one, so no plan
    has fewer devices than there are such pods, and cores are plenty. Patterns alone, without exchanges, end above."""
    rng = np.random.default_rng(seed)
    pods = [
        {"name": f"p{i}", "count": 2, "cpu": f"{int(cpu)}m", "gpus": 1, "gpu_milli": int(milli)}
        for i, (cpu, milli) in enumerate(
            zip(rng.integers(500, 3000, 50), rng.choice([230, 320, 550, 650, 810, 1000, 1000, 1000], 50), strict=True)
        )
    ]
    nodes = [{"name": "n", "count": 14, "cpu": 32, "gpus": 8}, {"name": "m", "count": 9, "cpu": 4, "gpus": 1}]
    outcome = solved(problem(nodes, pods, objective="consolidate"), method="patterns")
    assert outcome.status is Status.OPTIMAL


def test_a_gang_is_completed_beside_what_is_settled() -> None:
    """One pod of a gang of two has its place already, and one GPU is left. A pod of it is worth 1, another one 1.5: the
    gang's second pod makes both run, 2 > 1.5; with nothing settled the gang cannot run, and the other pod does."""
    one = problem(
        [{"name": "n", "gpus": 1}],
        [{"name": "g", "count": 2, "gpus": 1, "gang": "g"}, {"name": "o", "gpus": 1, "cpu": 2}],
        objective="allocation",
    )
    shapes = shapes_of(State(one))
    of_gang = one.gang[shapes.classes] >= 0
    goal = Goal(weight=np.where(of_gang, 1.0, 1.5), costs=False, must=False)
    for settled, chosen in ((1, of_gang), (0, ~of_gang)):
        done = np.where(of_gang, settled, 0)
        program = Program(shapes, goal, one.demand[shapes.classes] - done)
        for j in range(2):
            program.add(0, ((j, (0,)),))
        found = solve_master(program, [], np.ones(2, dtype=np.bool_), done, Budget(60), SolveOptions(time_limit_s=30))
        assert found == [(0, ((int(np.flatnonzero(chosen)[0]), (0,)),), 1)]


def test_what_runs_of_gangs_and_spread_classes() -> None:
    """Three of a gang of four have places: none runs. Four places in zone a and one in b, skew 1: 2 + 1."""
    one = problem(
        [{**node, "gpus": 9} for node in ZONES],
        [
            {"name": "g", "count": 4, "gpus": 1, "gang": "g"},
            {"name": "s", "count": 5, "gpus": 1, "cpu": 2, **spread("s", 1)},
        ],
        objective="allocation",
    )
    shapes = shapes_of(State(one))
    gang = one.gang[shapes.classes] >= 0
    zone = {index: shapes.zone[index] for index in np.flatnonzero(~gang).tolist()}
    places = np.array([3 if gang[j] else (4 if zone[j] == min(zone.values()) else 1) for j in range(gang.size)])
    running = shapes.running(places, np.full(gang.size, 5))
    assert running[gang].tolist() == [0]
    assert sorted(running[~gang].tolist()) == [1, 2]
    assert shapes.running(places + gang, np.full(gang.size, 5))[gang].tolist() == [4]
