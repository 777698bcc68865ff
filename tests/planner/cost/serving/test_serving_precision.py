"""Formats of weights and cache, rule by rule."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planner import catalog
from planner.cost.serving.precision import WEIGHT_FORMATS, kv_element_bytes, served
from planner.model import FORMATS, Component, ModelSpec
from planner.model.formats import BF16, FP8_BLOCK, FP8_TENSOR, MXFP4, NVFP4

LLAMA, R1, OSS = "Llama-3.1-70B-Instruct", "deepseek-ai/DeepSeek-R1", "openai/gpt-oss-120b"


def formats(model: ModelSpec, component: Component) -> set[str]:
    """Formats of the matrices of a component."""
    return {
        one.format.name
        for layer in model.layers
        for one in layer.tensors
        if one.component is component and one.role == "linear"
    }


@pytest.mark.parametrize("name", [LLAMA, R1, OSS, "Qwen/Qwen3-235B-A22B"])
def test_nothing_asked_is_nothing_changed(name: str) -> None:
    model = catalog.model(name)
    assert served(model) is model


def test_a_16_bit_checkpoint_is_converted() -> None:
    model = catalog.model("Qwen/Qwen3-235B-A22B")
    eight = served(model, "fp8")
    assert formats(eight, Component.ATTENTION) == formats(eight, Component.ROUTED_EXPERTS) == {"fp8"}
    assert formats(eight, Component.ROUTER) == {"bfloat16"}
    mixed = served(model, "fp8", "fp4")
    assert formats(mixed, Component.ATTENTION) == {"fp8"}
    assert formats(mixed, Component.ROUTED_EXPERTS) == {"nvfp4"}
    assert served(model, "bf16") is model


def test_a_checkpoint_in_the_asked_width_is_served_as_it_is() -> None:
    r1, oss = catalog.model(R1), catalog.model(OSS)
    assert served(r1, "fp8") is r1
    assert formats(r1, Component.ATTENTION) == {FP8_BLOCK.name}
    assert served(oss, "fp4") is oss
    assert served(oss, "mxfp4", "fp4") is oss
    assert formats(oss, Component.ROUTED_EXPERTS) == {MXFP4.name}
    assert formats(oss, Component.ATTENTION) == {BF16.name}


def test_nvfp4_of_mla_models_keeps_attention_in_16_bits() -> None:
    """NVIDIA's own conversions; the one case in which weights of a checkpoint become wider."""
    four = served(catalog.model(R1), "fp4")
    assert formats(four, Component.ATTENTION) == {BF16.name}
    assert formats(four, Component.ROUTED_EXPERTS) == formats(four, Component.SHARED_EXPERTS) == {NVFP4.name}
    assert formats(served(catalog.model("Qwen/Qwen3-235B-A22B"), "fp4"), Component.ATTENTION) == {NVFP4.name}


@pytest.mark.parametrize("asked", ["bf16", "fp16", "fp8", "int8", "fp8_block"])
def test_four_bits_are_never_widened(asked: str) -> None:
    model = served(catalog.model("Qwen/Qwen3-235B-A22B"), "fp4")
    assert served(model, asked) is model
    assert formats(served(catalog.model(OSS), asked), Component.ROUTED_EXPERTS) == {MXFP4.name}


@pytest.mark.parametrize("name", catalog.model_names())
@pytest.mark.parametrize("asked", ["bf16", "fp8", "int4"])
def test_no_model_grows(name: str, asked: str) -> None:
    model = catalog.model(name)
    assert served(model, asked).weight_bytes <= model.weight_bytes


def test_integers_are_not_floats_of_the_same_width() -> None:
    four = served(catalog.model(LLAMA), "int4")
    assert formats(four, Component.ATTENTION) == {"int4"}
    assert served(four, "int4_wo") is four
    assert formats(served(four, "fp4"), Component.ATTENTION) == {"nvfp4"}
    eight = served(catalog.model(LLAMA), "fp8")
    assert formats(served(eight, "int8"), Component.ATTENTION) == {"int8"}


def test_names_that_mean_nothing() -> None:
    for dense, experts in (("fp7", ""), ("", "fp7"), ("BF16", "")):
        with pytest.raises(KeyError):
            served(catalog.model(R1), dense, experts)
    with pytest.raises(KeyError):
        kv_element_bytes(catalog.model(LLAMA), "vllm", "fp7")


def test_every_stored_format_can_be_asked_for() -> None:
    assert set(FORMATS) <= set(WEIGHT_FORMATS)
    assert WEIGHT_FORMATS["fp8"] is FP8_TENSOR


@pytest.mark.parametrize(
    ("name", "dense", "expected"),
    [
        # trtllm, vllm, sglang
        (LLAMA, "", (2.0, 2.0, 2.0)),
        (LLAMA, "fp8", (1.0, 1.0, 1.0)),  # conversions carry scales of the cache
        (LLAMA, "fp4", (1.0, 1.0, 1.0)),
        (R1, "", (1.0, 2.0, 1.0)),  # block FP8: 8 bits on TensorRT-LLM, and for MLA on SGLang
        (R1, "fp4", (1.0, 1.0, 1.0)),
        ("MiniMaxAI/MiniMax-M2", "", (1.0, 2.0, 2.0)),
        ("deepseek-ai/DeepSeek-V2-Lite", "", (2.0, 2.0, 1.0)),
        (OSS, "", (1.0, 1.0, 1.0)),
    ],
)
def test_habits_of_caches(name: str, dense: str, expected: tuple[float, float, float]) -> None:
    model = served(catalog.model(name), dense)
    found = tuple(kv_element_bytes(model, backend) for backend in ("trtllm", "vllm", "sglang"))
    assert found == expected
    assert kv_element_bytes(model, "vllm", "bf16") == 2.0
    assert kv_element_bytes(model, "vllm", "fp8") == 1.0


def test_the_checkpoint_decides_before_the_habit() -> None:
    model = catalog.model(LLAMA)
    assert kv_element_bytes(replace(model, kv_dtype="fp8"), "vllm") == 1.0
    assert kv_element_bytes(replace(served(model, "fp8"), kv_dtype="bf16"), "trtllm") == 2.0
    assert kv_element_bytes(replace(model, kv_dtype="fp8"), "vllm", "bf16") == 2.0
