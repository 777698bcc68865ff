"""The verdict on an expert placement, by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from planner.cost.evaluate import evaluate_expert_placement
from planner.cost.verdict import Metric, Verdict, Violation
from planner.experts_plan import ExpertPlacement
from planner.workload import RoutingTrace


def placement(rows: list[list[int]], experts: int, gpus: int = 2, **changes: object) -> ExpertPlacement:
    return ExpertPlacement.from_array(
        np.array(rows),
        experts,
        num_gpus=gpus,
        gpus_per_node=changes.get("gpus_per_node", gpus),  # type: ignore[arg-type]
        layer_ids=tuple(range(3, 3 + len(rows))),
        num_decoder_layers=3 + len(rows),
        split=changes.get("split", "even"),  # type: ignore[arg-type]
    )


def test_two_layers_by_hand() -> None:
    """Experts 0 1 on GPU 0, 2 3 on GPU 1, in both layers.

    Layer 3: 1 + 2 against 3 + 2, mean 4, hottest 5: 0.8. Layer 4: 6 + 0 against 1 + 1, mean 4, hottest 6: 2/3.
    Time over even: (5 + 6) / (4 + 4) = 1.375. The bottleneck is GPU 0 of layer 4, 1.5 times the mean.
    """
    plan = placement([[0, 1, 2, 3], [0, 1, 2, 3]], 4)
    verdict = evaluate_expert_placement(plan, {"day": np.array([[1.0, 2, 3, 2], [6.0, 0, 1, 1]])})
    assert verdict.feasible
    assert verdict.metric("balancedness_mean[day]") == pytest.approx((0.8 + 2 / 3) / 2)
    assert verdict.metric("balancedness_worst[day]") == pytest.approx(2 / 3)
    assert verdict.metric("expert_time_over_even[day]") == pytest.approx(1.375)
    assert verdict.bottleneck is not None
    assert verdict.bottleneck.startswith("layer 4, GPU 0 under day: 1.500x")
    with pytest.raises(KeyError):
        verdict.metric("nothing")


def test_the_worst_scenario_names_the_bottleneck() -> None:
    plan = placement([[0, 1]], 2)
    loads = {"calm": np.array([[1.0, 1.0]]), "storm": np.array([[1.0, 3.0]])}
    for names in (("calm", "storm"), ("storm", "calm")):
        verdict = evaluate_expert_placement(plan, {name: loads[name] for name in names})
        assert verdict.bottleneck is not None
        assert "GPU 1 under storm: 1.500x" in verdict.bottleneck


def test_memory_is_a_budget() -> None:
    """2 layers x 2 slots x 10 bytes = 40 bytes a GPU: 40 are enough, 39 are not."""
    plan = placement([[0, 1, 2, 3], [0, 1, 2, 3]], 4)
    loads = {"day": np.ones((2, 4))}
    enough = evaluate_expert_placement(plan, loads, expert_bytes=10.0, gpu_memory_bytes=40.0)
    assert enough.feasible
    assert enough.metric("expert_memory_per_gpu") == 40.0
    short = evaluate_expert_placement(plan, loads, expert_bytes=10.0, gpu_memory_bytes=39.0)
    assert not short.feasible
    assert [(v.rule, v.amount, v.limit, v.unit) for v in short.violations] == [("gpu_memory", 40.0, 39.0, "bytes")]


def test_a_trace_adds_crossings_and_fan_out() -> None:
    """Tokens 0 -> 1 (stays on GPU 0) and 0 -> 2 (crosses); GPUs are nodes. Every token uses one GPU of two."""
    plan = placement([[0, 1, 2, 3], [0, 1, 2, 3]], 4, gpus_per_node=1)
    trace = RoutingTrace(experts=np.array([[[0], [1]], [[0], [2]]]))
    verdict = evaluate_expert_placement(plan, {"trace": trace.counts(4)}, trace=trace)
    assert verdict.metric("cross_gpu_fraction") == 0.5
    assert verdict.metric("cross_node_fraction") == 0.5
    assert verdict.metric("fanout_remote_gpus") == pytest.approx(0.5)
    assert verdict.metric("fanout_remote_nodes") == pytest.approx(0.5)


def test_lp_plans_are_judged_by_the_lp() -> None:
    """a 6 on both GPUs, b 4 on GPU 0, c 2 on GPU 1: even 7 and 5 (6/7), LP 6 and 6 (1)."""
    load = {"day": np.array([[6.0, 4.0, 2.0]])}
    even = evaluate_expert_placement(placement([[0, 1, 0, 2]], 3), load)
    best = evaluate_expert_placement(placement([[0, 1, 0, 2]], 3, split="lp"), load)
    assert even.metric("balancedness_mean[day]") == pytest.approx(6 / 7)
    assert best.metric("balancedness_mean[day]") == pytest.approx(1.0, abs=1e-5)
    assert any("LP" in text for text in best.assumptions)


def test_feasible_follows_from_the_violations() -> None:
    violation = Violation(rule="r", subject="s", message="m")
    assert not Verdict(violations=(violation,), feasible=True).feasible
    assert Verdict(feasible=False).feasible
    assert not Verdict.model_validate_json(json.dumps({"violations": [violation.model_dump()]})).feasible


def test_metrics_are_numbers_that_json_can_hold() -> None:
    with pytest.raises(ValueError, match="finite"):
        Metric(name="x", value=float("nan"), unit="s", source="modelled")
