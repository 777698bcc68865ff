"""Memory: published figures by formula and arithmetic by hand."""

import pytest

from planner.catalog import model as catalogue_model
from planner.cost.training.coefficients import MemoryMargin
from planner.cost.training.memory import training_memory, training_memory_by_stage
from planner.cost.training.model import TrainingModel
from planner.cost.training.plans import Recompute, TrainingPlans

#: Korthikanti et al., Figure 1, first stage: layers, hidden, heads, pipeline, chunks, micro-batch, batch; GiB of
#: activations with tensor parallelism alone and with sequence parallelism and selective recomputation, and of states.
FIGURE_1 = {
    "22B": (48, 6144, 64, 1, 1, 4, 4, 59.25, 9.5625, 45.5625),
    "175B": (96, 12288, 96, 8, 3, 1, 64, 66.84375, 12.3515625, 45.5625),
    "530B": (105, 20480, 128, 35, 3, 1, 280, 114.0234375, 23.076171875, 31.640625),
    "1T": (128, 25600, 160, 64, 1, 1, 512, 131.25, 26.5625, 32.958984375),
}


@pytest.mark.parametrize("name", FIGURE_1)
def test_korthikanti_figure_1_is_exact(name: str, bare: MemoryMargin) -> None:
    layers, hidden, heads, stages, chunks, micro, batch, plain, selective, states = FIGURE_1[name]
    model = TrainingModel.dense(
        layers=layers, hidden=hidden, heads=heads, ffn=4 * hidden, vocab=51200, tied=True, dropout=True
    )
    plans = TrainingPlans.build(
        tensor_parallel_size=8,
        pipeline_parallel_size=stages,
        virtual_pipeline_size=chunks,
        micro_batch_size=micro,
        global_batch_size=batch,
        sequence_length=2048,
        zero_stage=0,
        flash_attention=False,
        sequence_parallel=[False, True],
        recompute=[Recompute.NONE, Recompute.SELECTIVE],
    )
    memory = training_memory_by_stage(model, plans, bare)
    assert memory.activations[:, 0] / 2**30 == pytest.approx([plain, selective], rel=1e-12)
    embedding = 18 * 51200 * hidden / 8
    assert (memory.states[0, 0] - embedding) / 2**30 == pytest.approx(states, rel=1e-12)


def llama() -> TrainingModel:
    return TrainingModel.dense(layers=4, hidden=1024, heads=8, kv_heads=2, ffn=2048, vocab=1000, gated=True)


def test_zero_by_hand(bare: MemoryMargin) -> None:
    """2 + 4 + 12 bytes a parameter, over four ranks as far as ZeRO shards."""
    model = llama()
    plans = TrainingPlans.build(
        data_parallel_size=4, zero_stage=[0, 1, 2, 3], micro_batch_size=1, global_batch_size=4, sequence_length=64
    )
    memory = training_memory(model, plans, bare)
    parameters = model.total_parameters
    assert memory.weights / parameters == pytest.approx([2, 2, 2, 0.5])
    assert memory.gradients / parameters == pytest.approx([4, 4, 1, 1])
    assert memory.optimizer / parameters == pytest.approx([12, 3, 3, 3])
    # FSDP holds two whole layers, the gradient of one, and the embedding and head.
    layer = 2 * 1024 * (1024 + 256) + 3 * 1024 * 2048
    assert memory.working == pytest.approx([0, 0, 0, 8 * layer + 2 * 2 * 1000 * 1024])


def test_activations_by_hand(bare: MemoryMargin) -> None:
    """Flash attention and a gate: 8 h + 2 (q + k + v + out) + 6 f bytes a token, halved by two-way parallelism."""
    plans = TrainingPlans.build(
        tensor_parallel_size=[1, 2, 2],
        sequence_parallel=[True, True, False],
        micro_batch_size=2,
        global_batch_size=2,
        sequence_length=64,
    )
    memory = training_memory(llama(), plans, bare)
    split = 2 * (1024 + 256 + 256 + 1024) + 6 * 2048
    tokens = 4 * 128
    expected = [tokens * (8192 + split), tokens * (8192 + split) / 2, tokens * (8192 + split / 2)]
    assert memory.activations == pytest.approx(expected)
    assert memory.logits == pytest.approx([6 * 1000 * 128, 3 * 1000 * 128, 3 * 1000 * 128])


def test_full_recompute_works_on_one_layer(bare: MemoryMargin) -> None:
    plans = TrainingPlans.build(
        recompute=[Recompute.NONE, Recompute.FULL], micro_batch_size=2, global_batch_size=2, sequence_length=64
    )
    memory = training_memory(llama(), plans, bare)
    assert memory.activations[1] == pytest.approx(4 * 2 * 1024 * 128)
    assert memory.working[1] == pytest.approx(memory.activations[0] / 4)


def test_experts_are_split_and_their_replicas_fewer(bare: MemoryMargin) -> None:
    """Eight experts on four ranks: two each, and of their states two replicas instead of eight."""
    model = TrainingModel.from_spec(catalogue_model("mistralai/Mixtral-8x7B-Instruct-v0.1"))
    plans = TrainingPlans.build(
        expert_parallel_size=[1, 4], data_parallel_size=8, micro_batch_size=1, global_batch_size=8, sequence_length=64
    )
    memory = training_memory(model, plans, bare)
    experts = sum(model.kinds[k].routed_parameters for k in model.pattern)
    dense = model.total_parameters - experts
    assert memory.weights == pytest.approx([2 * (dense + experts), 2 * (dense + experts / 4)])
    assert memory.optimizer == pytest.approx([12 * (dense + experts) / 8] * 2)


def test_a_tied_embedding_is_held_twice_only_across_stages(gpt: TrainingModel, bare: MemoryMargin) -> None:
    plans = TrainingPlans.build(
        pipeline_parallel_size=[1, 2], micro_batch_size=1, global_batch_size=2, sequence_length=64
    )
    by_stage = training_memory_by_stage(gpt, plans, bare).weights.sum(axis=1)
    assert by_stage[1] - by_stage[0] == pytest.approx(2 * gpt.embedding_parameters)


def test_the_margin_is_the_fixed_part_and_the_factors(gpt: TrainingModel, bare: MemoryMargin) -> None:
    plans = TrainingPlans.build(micro_batch_size=1, global_batch_size=1, sequence_length=64)
    plain = training_memory(gpt, plans, bare)
    margin = MemoryMargin(fixed_bytes=5e9, states_factor=1.1, activations_factor=1.2)
    found = training_memory(gpt, plans, margin).total
    assert found == pytest.approx(5e9 + 1.1 * plain.states + 1.2 * (plain.total - plain.states))


def test_stages_given_or_even_are_the_same(gpt: TrainingModel, bare: MemoryMargin) -> None:
    options = {"pipeline_parallel_size": 5, "micro_batch_size": 1, "global_batch_size": 5, "sequence_length": 64}
    even = training_memory(gpt, TrainingPlans.build(**options), bare)
    given_ = training_memory(gpt, TrainingPlans.build(**options, stage_layers=[9, 10, 10, 10, 9]), bare)
    assert even.total == pytest.approx(given_.total)
    other = training_memory(gpt, TrainingPlans.build(**options, stage_layers=[16, 8, 8, 8, 8]), bare)
    assert other.total[0] > even.total[0]
