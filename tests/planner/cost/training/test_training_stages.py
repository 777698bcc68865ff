"""How layers fall on stages."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.catalog import model as catalogue_model
from planner.cost.training.model import TrainingModel
from planner.cost.training.plans import Schedule, TrainingPlans
from planner.cost.training.stages import even_split, stage_classes


def plans(stages: list[int], **options: object) -> TrainingPlans:
    return TrainingPlans.build(
        pipeline_parallel_size=stages, micro_batch_size=1, global_batch_size=64, sequence_length=64, **options
    )


def test_llama_405b_has_one_layer_less_at_both_ends() -> None:
    """The paper's layout: 126 layers on 16 stages."""
    assert even_split(plans([16]), 126).tolist() == [[7, *([8] * 14), 7]]


def test_left_over_layers_go_to_the_middle_then_the_first() -> None:
    """Eleven layers: three left of four stages, two of three, none of one."""
    assert even_split(plans([4, 3, 1]), 11).tolist() == [[3, 3, 3, 2], [4, 4, 3, 0], [11, 0, 0, 0]]
    assert even_split(plans([4, 4]), 10).tolist() == [[2, 3, 3, 2]] * 2


@given(layers=st.integers(1, 60), share=st.floats(0, 1), there_and_back=st.booleans())
def test_classes_stand_for_every_stage(layers: int, share: float, there_and_back: bool) -> None:
    """Spreading each class over its stages, from its first place on, gives every stage back."""
    stages = max(1, round(share * layers))
    model = TrainingModel.dense(layers=layers, hidden=64, heads=1, ffn=64, vocab=64)
    one = plans([stages], schedule=Schedule.ZB_V if there_and_back else Schedule.ONE_F_ONE_B)
    few, every = stage_classes(one, model), stage_classes(one, model, every_stage=True)
    spread = {
        place: (few.layers[0][k, 0], few.first[k, 0], few.last[k, 0])
        for k in range(4)
        for place in range(int(few.index[k, 0]), int(few.index[k, 0] + few.count[k, 0]))
    }
    expected = {
        place: (every.layers[0][place, 0], every.first[place, 0], every.last[place, 0]) for place in range(stages)
    }
    assert spread == expected


def test_layers_of_two_kinds_by_stage() -> None:
    model = TrainingModel.from_spec(catalogue_model("deepseek-ai/DeepSeek-V3"))
    dense, moe = stage_classes(plans([4]), model).layers
    assert dense[:, 0].tolist() == [3, 0, 0, 0]
    assert (dense + moe)[:, 0].tolist() == [15, 16, 15, 15]


def test_interleaving_scatters_kinds() -> None:
    model = TrainingModel.from_spec(catalogue_model("deepseek-ai/DeepSeek-V3"))
    dense, _ = stage_classes(plans([4], virtual_pipeline_size=2), model).layers
    assert dense[:, 0] == pytest.approx(np.array([15, 16, 15, 15]) * 3 / 61)
