"""What training takes from a model."""

import pytest

from planner.catalog import model as catalogue_model
from planner.cost.training.model import TrainingModel


def test_dense_counts_matrices() -> None:
    model = TrainingModel.dense(layers=2, hidden=8, heads=4, kv_heads=2, ffn=16, vocab=10, gated=True)
    # Queries and output 8 x 8 each, keys and values 8 x 4 each, three matrices of 8 x 16, embedding and head.
    assert model.total_parameters == 2 * (64 + 64 + 32 + 32 + 3 * 128) + 2 * 80
    # 6 a weight without the embedding, and 12 x hidden x tokens of attention in each layer.
    assert model.model_flops_per_token(5.0) == pytest.approx(6 * (2 * 576 + 80) + 2 * 12 * 8 * 5)


@pytest.mark.parametrize("name", ["meta-llama/Llama-3.1-8B-Instruct", "deepseek-ai/DeepSeek-V3", "openai/gpt-oss-20b"])
def test_from_spec_keeps_the_parameters(name: str) -> None:
    spec = catalogue_model(name)
    model = TrainingModel.from_spec(spec)
    norm = sum(tensor.parameters for tensor in spec.outer if tensor.role == "vector")
    assert model.total_parameters == spec.total_params - norm
    assert model.num_layers == spec.num_hidden_layers


def test_deepseek_has_dense_layers_first() -> None:
    model = TrainingModel.from_spec(catalogue_model("deepseek-ai/DeepSeek-V3"))
    assert model.pattern == (0, 0, 0, *([1] * 58))
    assert model.num_experts == (256,)
    assert model.layers_before[:, 5].tolist() == [3, 2]


@pytest.mark.parametrize("change", [{"layers": 0}, {"heads": 5}, {"kv_heads": 3}, {"hidden": -8}])
def test_broken_dimensions_are_refused(change: dict) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        TrainingModel.dense(**{"layers": 2, "hidden": 8, "heads": 4, "ffn": 16, "vocab": 10} | change)
