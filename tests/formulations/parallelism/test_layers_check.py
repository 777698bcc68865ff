"""Broken plans of layers: every rule is told, by pipelines and by windows."""

from __future__ import annotations

from typing import Any

import pytest
from layer_cases import answer, answer_ring, home, pool, problem_of, ring, two_sites

from formulations.parallelism.layers.check import check
from formulations.parallelism.layers.kind import judge, judge_alone
from formulations.parallelism.windows.check import check as check_windows
from formulations.parallelism.windows.kind import judge as judge_windows
from formulations.parallelism.windows.kind import judge_alone as judge_windows_alone
from formulations.parallelism.windows.reading import read_problem as read_windows
from planner.layers_plan import LayersPlan, WindowsPlan

#: x x at a and y at b: the link carries 2 steps/s, so the pipeline of 5 layers does.
POOL = pool(
    [("x", 2, 2, 0.1, "a"), ("y", 1, 2, 0.1, "b")],
    5,
    sites=two_sites(2.0, 0.01),
    hand_over_bytes=1.0,
    max_latency_s=2.0,
    kv_tokens=6,
)
RING = ring([home("a", 3, 0.1, gpu=(1, 0.05)), home("b", 2, 0.2)], 5, every_device=True)


@pytest.fixture(scope="module")
def plan() -> LayersPlan:
    found = answer(POOL).plan
    assert found is not None
    return found


@pytest.fixture(scope="module")
def windows() -> WindowsPlan:
    found = answer_ring(RING).plan
    assert found is not None
    return found


def rules(plan: LayersPlan) -> set[str]:
    return {one.rule for one in check(problem_of(POOL), plan)}


def with_pipeline(plan: LayersPlan, **changes: Any) -> LayersPlan:
    return plan.model_copy(update={"pipelines": (plan.pipelines[0].model_copy(update=changes),)})


def with_stage(plan: LayersPlan, place: int, **changes: Any) -> LayersPlan:
    stages = list(plan.pipelines[0].stages)
    stages[place] = stages[place].model_copy(update=changes)
    return with_pipeline(plan, stages=tuple(stages))


def test_the_plan_of_the_search_keeps_all_rules(plan: LayersPlan) -> None:
    assert check(problem_of(POOL), plan) == []
    verdict = judge(problem_of(POOL), plan)
    assert verdict.feasible
    assert verdict.bottleneck == "links between sites: the fastest pipeline waits for them"
    assert verdict.metric("tokens_per_s") == pytest.approx(2.0, rel=1e-5)


def test_layers_once_and_in_order(plan: LayersPlan) -> None:
    assert "cover" in rules(with_stage(plan, 1, first_layer=1))
    assert "cover" in rules(with_stage(plan, 2, num_layers=5))
    assert "cover" in rules(with_pipeline(plan, stages=plan.pipelines[0].stages[:-1]))
    assert not judge_alone(with_stage(plan, 1, first_layer=1)).feasible
    assert judge_alone(plan).feasible


def test_memory_time_and_rate(plan: LayersPlan) -> None:
    assert "memory" in rules(with_stage(plan, 0, num_layers=3))
    assert "stage_s" in rules(with_stage(plan, 0, stage_s=0.01))
    assert {"slot", "rate"} <= rules(with_pipeline(plan, slot_s=0.15, steps_per_s=7.0))
    assert "latency_s" in rules(with_pipeline(plan, latency_s=0.1))
    assert "max_latency_s" in rules(with_pipeline(plan, slot_s=1.0))


def test_devices_links_and_caches(plan: LayersPlan) -> None:
    assert "devices" in rules(with_pipeline(plan, count=2))
    assert "bandwidth" in rules(with_pipeline(plan, steps_per_s=3.0))
    assert rules(with_stage(plan, 0, device="z")) == {"device"}
    assert rules(with_stage(plan, 0, site=None)) == {"device"}
    # 6 steps under way at most: slots of 0.01 s have 0.06 s, which the links alone take.
    assert "kv_tokens" in rules(with_pipeline(plan, slot_s=0.01))


def test_sums(plan: LayersPlan) -> None:
    for key, value in (("tokens_per_s", 3.0), ("num_devices", 2), ("num_layers", 4)):
        assert key in rules(plan.model_copy(update={key: value}))


def test_a_local_link_and_a_missing_one() -> None:
    local = pool([("x", 2, 3, 0.1)], 4, hand_over_bytes=1.0, local_link={"bandwidth_bytes_per_s": 4.0})
    found = answer(local).plan
    assert found is not None
    assert found.pipelines[0].slot_s == 0.25
    faster = with_pipeline(found, slot_s=0.2)
    assert "local_link" in {one.rule for one in check(problem_of(local), faster)}
    sites = two_sites(9.0).model_copy(
        update={"bandwidth_bytes_per_s": ((None, 9.0), (None, None)), "latency_s": ((None, 0.0), (None, None))}
    )
    apart = problem_of(pool([("x", 2, 3, 0.1, "a"), ("y", 1, 2, 0.1, "b")], 5, sites=sites))
    crossing = answer(pool([("x", 1, 3, 0.1, "a"), ("y", 1, 2, 0.1, "b")], 5, sites=two_sites(9.0))).plan
    assert crossing is not None
    assert "link" in {one.rule for one in check(apart, crossing)}


def window_rules(plan: WindowsPlan) -> set[str]:
    return {one.rule for one in check_windows(read_windows(RING), plan)}


def with_window(plan: WindowsPlan, place: int, **changes: Any) -> WindowsPlan:
    windows = list(plan.windows)
    windows[place] = windows[place].model_copy(update=changes)
    return plan.model_copy(update={"windows": tuple(windows)})


def test_windows(windows: WindowsPlan) -> None:
    """a holds 1 layer on its GPU and 3 in RAM, b the fifth."""
    assert window_rules(windows) == set()
    assert judge_windows(read_windows(RING), windows).feasible
    assert "cover" in window_rules(with_window(windows, 0, num_layers=3))
    assert "gpu_memory" in window_rules(with_window(windows, 0, gpu_layers=2))
    assert "split" in window_rules(with_window(windows, 1, gpu_layers=2))
    assert "device" in window_rules(with_window(windows, 0, device="z"))
    assert "ring" in window_rules(windows.model_copy(update={"windows": windows.windows[::-1]}))
    assert "every_device" in window_rules(windows.model_copy(update={"windows": windows.windows[:1]}))
    assert "num_layers" in window_rules(windows.model_copy(update={"rounds": 2}))
    assert "token_s" in window_rules(windows.model_copy(update={"token_s": 0.1}))
    assert "reloaded_bytes" in window_rules(with_window(windows, 0, reloaded_bytes=1.0))
    assert not judge_windows(read_windows(RING), with_window(windows, 0, num_layers=3)).feasible
    assert judge_windows_alone(windows).feasible
    assert not judge_windows_alone(with_window(windows, 0, num_layers=3)).feasible
