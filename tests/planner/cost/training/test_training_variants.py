"""Layers of one plan that differ: what they must agree with when all, or none, of them do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from formulations.parallelism.training.search.mixes import with_other_layers
from formulations.parallelism.training.search.plans import passes_of
from formulations.parallelism.training.search.pricing import price, step_of
from formulations.parallelism.training.search.problem import TrainProblem
from planner.cost.training.memory import training_memory_by_stage
from planner.cost.training.plans import VARIED, LayerVariant, Recompute, TrainingPlans, problems
from planner.errors import RefusedError
from tests.formulations.parallelism.training.train_cases import problem

DEEPSEEK = {
    "model": "deepseek-ai/DeepSeek-V3",
    "cluster": {"nodes": [{"device": "h800_sxm", "count": 8}]},
    "global_batch_size": 32,
}


def plans(asked: TrainProblem, **changes: object) -> TrainingPlans:
    """Two stages of four tensor- and data-parallel GPUs."""
    sizes: dict[str, object] = {
        "tensor_parallel_size": 2, "data_parallel_size": 2, "pipeline_parallel_size": 2, "micro_batch_size": 2,
        "global_batch_size": asked.global_batch_size, "sequence_length": asked.sequence_length,
        "stage_layers": [asked.model.num_layers // 2, -(-asked.model.num_layers // 2)],
    }  # fmt: skip
    return TrainingPlans.build(**{**sizes, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("changes", [{}, DEEPSEEK])
@pytest.mark.parametrize("sizes", [{}, {"virtual_pipeline_size": 2}, {"zero_stage": 3}])
def test_a_plan_all_of_whose_layers_differ_is_the_other_plan(changes: dict[str, object], sizes: dict[str, int]) -> None:
    """All layers keep what the plan would recompute: time, passes, FLOP and memory are those of the plan that keeps."""
    asked = problem(**changes)
    recomputes = plans(asked, recompute=Recompute.FULL, **sizes)
    keeps = plans(asked, recompute=Recompute.NONE, **sizes)
    assert recomputes.stage_layers is not None
    mixed = with_other_layers(asked.model, recomputes, recomputes.stage_layers, Recompute.NONE)
    one, other = step_of(asked, mixed), step_of(asked, keeps)
    for name, seconds in one.parts.items():
        assert seconds == pytest.approx(other.parts[name], rel=1e-12), name
    assert one.hfu == pytest.approx(other.hfu)
    first, second = (training_memory_by_stage(asked.model, each, asked.margin) for each in (mixed, keeps))
    # The embedding is of the plan's own layers, whose buffer for recomputation then stays on the first stage.
    assert first.states == pytest.approx(second.states)
    assert first.activations == pytest.approx(second.activations)
    assert first.logits == pytest.approx(second.logits)
    passes, others = passes_of(asked, mixed), passes_of(asked, keeps)
    assert passes.weight_s == pytest.approx(others.weight_s)
    assert passes.total_s == pytest.approx(others.total_s)


def test_a_layer_that_keeps_takes_its_share_of_time_and_memory() -> None:
    """Time and activations of a stage are sums over its layers: each of three kept layers shifts a third of the gap."""
    asked = problem()
    base = plans(asked, recompute=Recompute.FULL)
    found = [with_other_layers(asked.model, base, np.array([[kept, 0]]), Recompute.NONE) for kept in range(4)]
    worked = np.array([passes_of(asked, one).total_s[0, 0] for one in found])
    held = np.array([training_memory_by_stage(asked.model, one, asked.margin).activations[0, 0] for one in found])
    assert np.diff(worked) == pytest.approx(np.full(3, (worked[3] - worked[0]) / 3))
    assert np.diff(held) == pytest.approx(np.full(3, (held[3] - held[0]) / 3))
    assert (np.diff(worked) < 0).all()
    assert (np.diff(held) > 0).all()


def varied(base: TrainingPlans, layers: list[int], **changes: int) -> TrainingPlans:
    sizes = {name: getattr(base, name) for name in VARIED} | {
        name: np.array([value]) for name, value in changes.items()
    }
    return replace(base, variants=(LayerVariant(**sizes, layers=np.array([[layers]], dtype=np.float64)),))


def test_layers_of_another_tensor_size_pay_one_switch_a_stage() -> None:
    """TP 4 for two of three layers: their own time, and a switch that does not grow with their number."""
    asked = problem()
    base = plans(asked)
    wide = {"tensor_parallel_size": 4, "data_parallel_size": 1, "micro_batch_size": 4}
    worked = [passes_of(asked, varied(base, [count, 0], **wide)).total_s[0, 0] for count in range(4)]
    steps = np.diff(worked)
    assert steps[1] == pytest.approx(steps[2])
    assert steps[0] > steps[1]
    whole = passes_of(asked, plans(asked, **wide)).total_s[0, 0]
    assert worked[3] == pytest.approx(whole + steps[0] - steps[1])


def test_layers_sharded_otherwise_hold_other_states() -> None:
    """ZeRO 1 to 3 for one of three layers of stage 0: weights and gradients of that layer, 2 + 4 bytes, are halved."""
    asked = problem(framework="x")
    base = plans(asked)
    first, second = (
        training_memory_by_stage(asked.model, one, asked.margin).states[0]
        for one in (base, varied(base, [1, 0], zero_stage=3))
    )
    layer = asked.model.kinds[0].dense_parameters / 2
    assert first[0] - second[0] == pytest.approx(3.0 * layer)
    assert first[1] == pytest.approx(second[1])
    assert price(asked, varied(base, [1, 0], zero_stage=3)).step_s[0] > 0.0


@pytest.mark.parametrize(
    ("layers", "changes", "words"),
    [
        ([1, 0], {"tensor_parallel_size": 4}, "other GPUs"),
        ([1, 0], {"micro_batch_size": 1}, "another size"),
        ([4, 0], {"recompute": 2}, "more layers"),
        ([1, 0], {"zero_stage": 4}, "zero_stage of a layer"),
        ([1, 0], {"recompute": 3}, "recompute of a layer"),
        ([1, 0], {"tensor_parallel_size": 3, "data_parallel_size": 2}, "does not divide the 32 attention heads"),
    ],
)
def test_layers_that_no_stage_can_have_are_refused(layers: list[int], changes: dict[str, int], words: str) -> None:
    asked = problem()
    broken = varied(plans(asked), layers, **changes)
    assert any(words in one.reason for one in problems(broken, asked.model))
    with pytest.raises(RefusedError, match=words):
        step_of(asked, broken)


def test_variants_need_stages_and_are_not_joined() -> None:
    base = plans(problem())
    with pytest.raises(ValueError, match="variants need stage_layers"):
        replace(varied(base, [1, 0], zero_stage=3), stage_layers=None)
    with pytest.raises(ValueError, match="not joined"):
        TrainingPlans.concat([base, varied(base, [1, 0], zero_stage=3)])
