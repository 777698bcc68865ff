"""Pools whose best pipelines can be found with pencil and paper. A layer takes 1 byte."""

from __future__ import annotations

import pytest
from layer_cases import answer, best_rate, pool, problem_of, two_sites

from formulations.parallelism.layers.baseline import parallax_greedy
from planner.layers_plan import LayersPlan

METHODS = ("highs", "scip", "cbc")


def shape(plan: LayersPlan) -> list[tuple[int, list[tuple[str, int]]]]:
    """Each pipeline's count, and device and layers of its stages by name."""
    return sorted(
        (one.count, sorted((stage.device, stage.num_layers) for stage in one.stages)) for one in plan.pipelines
    )


@pytest.mark.parametrize("method", METHODS)
def test_layers_in_proportion_to_speed(method: str) -> None:
    """10 layers: 8 on the fast device (8 x 0.1 s) and 2 on the slow (2 x 0.4 s) take 0.8 s: 1.25 steps/s.

    7 and 3 would take 1.2 s, 9 and 1 0.9 s.
    """
    found = answer(pool([("fast", 1, 9, 0.1), ("slow", 1, 9, 0.4)], 10), method)
    assert found.status == "optimal"
    assert found.objective is not None
    assert found.objective.total == pytest.approx(-1.25)
    assert found.plan is not None
    assert shape(found.plan) == [(1, [("fast", 8), ("slow", 2)])]
    assert found.plan.pipelines[0].latency_s == pytest.approx(1.6)


@pytest.mark.parametrize("method", METHODS)
def test_memory_makes_two_pipelines_of_equal_devices(method: str) -> None:
    """4 devices of 3 layers, 6 layers: two pipelines at 1 / 0.3 s; one of four does at most 1 / 0.2 s = 5 < 6.67."""
    found = answer(pool([("d", 4, 3, 0.1)], 6), method)
    assert found.objective is not None
    assert found.objective.total == pytest.approx(-2 / 0.3)
    assert found.plan is not None
    assert shape(found.plan) == [(2, [("d", 3), ("d", 3)])]


def test_embedding_and_head_take_their_room() -> None:
    """Memory 4, embedding and head 1 each, 7 layers: the ends hold 3 each, the third device the last one.

    Slot 3 x 0.1 s at most; in fact 2 + 3 + 2 as well: 1 / 0.3 s either way. Alone, two devices hold 3 + 3 < 7.
    """
    found = answer(pool([("d", 3, 4, 0.1)], 7, embedding_bytes=1.0, head_bytes=1.0))
    assert found.objective is not None
    assert found.objective.total == pytest.approx(-1 / 0.3)
    assert found.plan is not None
    assert found.plan.num_devices == 3
    short = answer(pool([("d", 2, 4, 0.1)], 7, embedding_bytes=1.0, head_bytes=1.0))
    assert short.status == "infeasible"


def test_one_device_holds_both_ends_only_alone() -> None:
    """A device of 6 bytes holds 4 layers with both ends: alone it is the pipeline, 1 / 0.4 s."""
    found = answer(pool([("d", 1, 6, 0.1)], 4, embedding_bytes=1.0, head_bytes=1.0))
    assert found.plan is not None
    assert shape(found.plan) == [(1, [("d", 4)])]
    assert found.plan.pipelines[0].latency_s == pytest.approx(0.4)


def test_a_device_between_is_neither_end() -> None:
    """Found by a run on 20 GPUs: one large device must not hold the embedding and the head of a pipeline of three.

    8 layers in slots of 0.4 s: 4 on the large one, beside both ends if that could be, and 2 on each small one. One end
    has to go to a small one, which then holds 1 layer: 5 + 2 + 1 in slots of 0.5 s.
    """
    instance = pool([("large", 1, 10, 0.1), ("small", 2, 2, 0.2)], 8, embedding_bytes=1.0, head_bytes=1.0)
    found = answer(instance)
    assert found.objective is not None
    assert found.objective.total == pytest.approx(-2.0)
    assert best_rate(problem_of(instance)) == pytest.approx(2.0)


def test_the_head_takes_time_on_the_last_stage() -> None:
    """4 layers of 0.1 s on two devices, head 0.2 s: 3 + 1 layers take 0.3 s each; 2 + 2 would take 0.2 and 0.4 s."""
    found = answer(pool([("d", 2, 3, 0.1, None, 0.2)], 4))
    assert found.objective is not None
    assert found.objective.total == pytest.approx(-1 / 0.3)
    assert found.plan is not None
    assert [stage.num_layers for stage in found.plan.pipelines[0].stages] == [3, 1]


@pytest.mark.parametrize("method", METHODS)
def test_a_slow_link_is_shared(method: str) -> None:
    """Two pipelines must cross from a to b or back; each could do 1 / 0.3 s = 3.33 steps/s, each way carries 2.

    Both one way share 2 steps/s; one each way is 2 + 2 = 4 steps/s.
    """
    devices = [("x", 2, 3, 0.1, "a"), ("y", 2, 2, 0.1, "b")]
    found = answer(pool(devices, 5, sites=two_sites(2.0), hand_over_bytes=1.0), method)
    assert found.status == "optimal"
    assert found.objective is not None
    assert found.objective.total == pytest.approx(-4.0, rel=1e-5)


def test_a_latency_limit_counts_slots_and_hops() -> None:
    """Two stages of 0.2 s and 2 hops of 0.05 s over the sites take 0.5 s; a limit below leaves one device alone.

    The large one alone takes 4 x 0.1 s = 0.4 s: 2.5 steps/s. Without a limit two stages of 0.2 s give 5.
    """
    devices = [("x", 1, 4, 0.1, "a"), ("y", 1, 3, 0.1, "b")]
    sites = two_sites(100.0, 0.05)
    free, limited = (answer(pool(devices, 4, sites=sites, max_latency_s=limit)) for limit in (0.5, 0.49))
    assert free.objective is not None
    assert limited.objective is not None
    assert free.objective.total == pytest.approx(-5.0)
    assert limited.objective.total == pytest.approx(-2.5)


def test_caches_end_the_steps_under_way() -> None:
    """Caches for 2 steps: 3 stages would need 3 under way, so two of the three devices are used: 1 / 0.3 s."""
    instance = pool([("d", 3, 4, 0.1)], 6, kv_tokens=8, batch=2, context_tokens=2)
    found = answer(instance)
    assert problem_of(instance).in_flight == 2.0
    assert found.objective is not None
    assert found.objective.total == pytest.approx(-2 / 0.3)
    assert found.plan is not None
    assert found.plan.num_devices == 2
    assert [(one.device, one.count) for one in found.plan.idle] == [("d", 1)]


def test_caches_take_memory() -> None:
    """1 byte of weights and 4 tokens x 0.5 byte of cache a layer: 9 bytes hold 3 layers."""
    instance = pool([("d", 2, 9, 0.1)], 6, kv_tokens=4, kv_bytes_per_token=0.5)
    assert problem_of(instance).cap[0].tolist() == [3, 3, 3, 3]
    found = answer(instance)
    assert found.plan is not None
    assert shape(found.plan) == [(1, [("d", 3), ("d", 3)])]


def test_the_rule_fills_by_memory_and_spreads_by_speed() -> None:
    """Memory order large, small: 10 layers need both; speed 1 : 3, but the small one holds 4, so 6 and 4 layers."""
    plan = parallax_greedy(problem_of(pool([("small", 1, 4, 0.1), ("large", 1, 9, 0.3)], 10)))
    assert plan is not None
    assert [(stage.device, stage.num_layers) for stage in plan.pipelines[0].stages] == [("large", 6), ("small", 4)]
    assert plan.tokens_per_s == pytest.approx(1 / 1.8)


def test_the_rule_stops_at_a_missing_link() -> None:
    """Its pipeline would cross sites that nothing joins."""
    devices = [("x", 1, 3, 0.1, "a"), ("y", 1, 3, 0.1, "b")]
    apart = two_sites(1.0).model_copy(
        update={"bandwidth_bytes_per_s": ((None, None), (None, None)), "latency_s": ((None, None), (None, None))}
    )
    problem = problem_of(pool(devices, 5, sites=apart))
    assert parallax_greedy(problem) is None
    found = answer(pool(devices, 5, sites=apart))
    assert found.status == "infeasible"
    assert "links join" in found.reasons[0]
    assert found.relaxations[0] == "add 1 x at a"
