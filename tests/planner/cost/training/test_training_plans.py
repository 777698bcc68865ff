"""Arrays of plans: building, joining, and what is illegal."""

import numpy as np
import pytest

from planner.catalog import model as catalogue_model
from planner.cost.training.model import TrainingModel
from planner.cost.training.plans import Schedule, TrainingPlans, check, problems
from planner.errors import RefusedError

LEGAL = {
    "tensor_parallel_size": 4,
    "pipeline_parallel_size": 8,
    "data_parallel_size": 2,
    "micro_batch_size": 1,
    "global_batch_size": 32,
    "sequence_length": 2048,
}


def test_scalars_are_broadcast_and_read_only() -> None:
    plans = TrainingPlans.build(**LEGAL | {"tensor_parallel_size": [1, 2, 4]})
    assert len(plans) == 3
    assert plans.num_gpus.tolist() == [16, 32, 64]
    assert plans.num_micro_batches.tolist() == [16, 16, 16]
    with pytest.raises(ValueError, match="read-only"):
        plans.tensor_parallel_size[0] = 8


def test_concat_and_choice() -> None:
    first = TrainingPlans.build(**LEGAL, stage_layers=[6] * 8)
    second = TrainingPlans.build(**LEGAL | {"pipeline_parallel_size": 2}, stage_layers=[24, 24])
    both = TrainingPlans.concat([first, second])
    assert both.stage_layers is not None
    assert both.stage_layers.tolist() == [[6] * 8, [24, 24, 0, 0, 0, 0, 0, 0]]
    assert both[both.pipeline_parallel_size == 2].num_gpus.tolist() == [16]
    with pytest.raises(ValueError, match="either all"):
        TrainingPlans.concat([first, TrainingPlans.build(**LEGAL)])


def test_lengths_must_match() -> None:
    with pytest.raises(ValueError, match="shape"):
        TrainingPlans.build(**LEGAL | {"tensor_parallel_size": [1, 2], "sequence_length": [1, 2, 3]})
    with pytest.raises(ValueError, match="whole numbers"):
        TrainingPlans.build(**LEGAL | {"micro_batch_size": 1.5})


def test_a_legal_plan_has_no_problem(gpt: TrainingModel) -> None:
    assert problems(TrainingPlans.build(**LEGAL), gpt) == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tensor_parallel_size": 0}, "tensor_parallel_size must be positive"),
        ({"sequence_length": -1}, "sequence_length must be positive"),
        ({"zero_stage": -1}, "zero_stage must be at least 0"),
        ({"tensor_parallel_size": 3}, "does not divide the 64 attention heads"),
        ({"pipeline_parallel_size": 49, "global_batch_size": 98}, "beyond the 48 layers"),
        ({"global_batch_size": 33}, "not a multiple"),
        ({"virtual_pipeline_size": 2, "global_batch_size": 24}, "interleaving needs micro-batches"),
        ({"virtual_pipeline_size": 2, "pipeline_parallel_size": 1}, "interleaving needs pipeline"),
        ({"virtual_pipeline_size": 7}, "beyond the 48 layers"),
        ({"virtual_pipeline_size": 2, "schedule": Schedule.ZB_1P}, "have no virtual stages"),
        ({"schedule": Schedule.ZB_V}, "two chunks a stage"),
        ({"context_parallel_size": 3}, "does not divide the sequence_length"),
        ({"expert_parallel_size": 2}, "without experts"),
        ({"zero_stage": 4}, "must be 0, 1, 2 or 3"),
        ({"recompute": 3}, "none of Recompute"),
        ({"schedule": 9}, "none of Schedule"),
        ({"gradient_bytes": 3}, "gradient_bytes must be"),
        ({"stage_layers": [6, 6]}, "fewer stages"),
        ({"stage_layers": [12, 0, 6, 6, 6, 6, 6, 6]}, "empty stage"),
        ({"stage_layers": [6] * 7 + [5]}, "add up to the 48 layers"),
        ({"stage_layers": [6] * 8 + [1]}, "beyond the last stage"),
    ],
)
def test_illegal_plans_are_named(gpt: TrainingModel, change: dict, reason: str) -> None:
    bad = TrainingPlans.build(**LEGAL | change)
    found = problems(bad, gpt)
    assert any(reason in problem.reason for problem in found)
    with pytest.raises(RefusedError, match="illegal plans"):
        check(bad, gpt)


def test_the_mask_says_which_plans(gpt: TrainingModel) -> None:
    (found,) = problems(TrainingPlans.build(**LEGAL | {"context_parallel_size": [1, 3, 2]}), gpt)
    assert found.mask.tolist() == [False, True, False]


def test_key_and_value_heads_and_experts_bind() -> None:
    mixtral = TrainingModel.from_spec(catalogue_model("mistralai/Mixtral-8x7B-Instruct-v0.1"))
    base = LEGAL | {"pipeline_parallel_size": 1, "data_parallel_size": 16}
    sixteen = problems(TrainingPlans.build(**base | {"tensor_parallel_size": 16}), mixtral)
    assert [p.reason for p in sixteen] == ["tensor_parallel_size does not divide the 8 key and value heads"]
    wide = problems(TrainingPlans.build(**base | {"expert_parallel_size": 16}), mixtral)
    assert [p.reason for p in wide] == ["expert_parallel_size does not divide the 8 experts"]
    odd = problems(TrainingPlans.build(**base | {"expert_parallel_size": 8, "data_parallel_size": 4}), mixtral)
    assert [p.reason for p in odd] == [
        "expert_parallel_size does not divide data_parallel_size x context_parallel_size"
    ]
    assert np.all([len(p.mask) == 1 for p in odd])
