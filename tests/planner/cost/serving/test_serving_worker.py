"""Splits that cannot be, all problems at once; and every model on every device."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np
import pytest

from planner import catalog
from planner.cost.serving.judge import Load, evaluate_serving
from planner.cost.serving.precision import kv_element_bytes, served
from planner.cost.serving.predict import ServingModel, ServingPlans
from planner.cost.serving.worker import BACKENDS, ServingWorker

Serve = Callable[..., ServingWorker]


def test_gpus_of_a_worker(serve: Serve) -> None:
    worker = serve("deepseek-ai/DeepSeek-R1", tp=2, pp=3, dp=4, ep=8)
    assert (worker.num_gpus, worker.stage_gpus, list(worker.problems())) == (24, 8, [])


SIZES = ("tensor", "pipeline", "data", "moe_tensor", "expert")


@pytest.mark.parametrize("which", SIZES)
def test_a_size_below_one(serve: Serve, which: str) -> None:
    name = which.replace("expert", "expert_parallel").replace("moe_tensor", "moe_tensor_parallel")
    name = f"{name if 'parallel' in name else f'{which}_parallel'}_size"
    assert list(replace(serve(), **{name: 0}).problems()) == [f"{name} is 0, but must be at least 1"]


def test_all_sizes_below_one_are_told_at_once(serve: Serve) -> None:
    worker = serve(tp=0, pp=-1, dp=0, moe_tp=0, ep=0, kv=0.0)
    found = list(worker.problems())
    assert len(found) == 6
    assert found[-1] == "kv_element_bytes is 0, but must be positive and finite"


@pytest.mark.parametrize("kv", [0.0, -1.0, math.nan, math.inf])
def test_a_cache_element_that_cannot_be(serve: Serve, kv: float) -> None:
    with pytest.raises(ValueError, match="kv_element_bytes is"):
        ServingModel([serve(kv=kv)])


def test_more_stages_than_layers(serve: Serve) -> None:
    assert list(serve(pp=81).problems()) == [
        "pipeline_parallel_size 81 is more than the 80 layers of meta-llama/Llama-3.1-70B-Instruct"
    ]


def test_heads_that_do_not_divide(serve: Serve) -> None:
    assert list(serve("Qwen/Qwen2.5-32B-Instruct", tp=16).problems()) == [
        "tensor_parallel_size 16 does not divide the 40 attention heads of Qwen/Qwen2.5-32B-Instruct"
    ]
    # 10 KV heads are neither split by 4 nor copied to 4.
    assert list(serve("microsoft/phi-4", tp=4).problems()) == [
        "tensor_parallel_size 4 and the 10 KV heads of microsoft/phi-4 do not divide one another"
    ]


def test_experts_that_do_not_divide(serve: Serve) -> None:
    worker = serve("mistralai/Mixtral-8x7B-Instruct-v0.1", tp=16, moe_tp=2, ep=16)
    assert list(worker.problems()) == [
        "moe_tensor_parallel_size 2 x expert_parallel_size 16 must be the 16 GPUs of "
        "tensor_parallel_size 16 x data_parallel_size 1",
        "expert_parallel_size 16 does not divide the 8 experts of mistralai/Mixtral-8x7B-Instruct-v0.1",
    ]


SPLITS = ({"tp": 1}, {"tp": 16}, {"tp": 4, "pp": 2}, {"dp": 8, "ep": 8}, {"tp": 2, "dp": 8, "ep": 16})


@pytest.mark.parametrize("name", catalog.model_names())
def test_every_model_on_every_device(serve: Serve, name: str) -> None:
    """Finite and positive times and memory, or a ValueError from the split; splits, formats and engines take turns."""
    model = catalog.model(name)
    formats = [served(model, asked) for asked in ("", "fp8", "fp4", "int4")]
    answered = 0
    for turn, device in enumerate(catalog.device_names()):
        for number, split in enumerate(SPLITS if model.num_moe_layers else SPLITS[:3]):
            made, backend = formats[(turn + number) % 4], BACKENDS[(turn + number) % 3]
            worker = serve(made, device, backend, **split, kv=kv_element_bytes(made, backend))
            if list(worker.problems()):
                with pytest.raises(ValueError, match="parallel_size"):
                    ServingModel([worker])
                continue
            with warnings.catch_warnings(), np.errstate(all="raise", under="ignore"):
                warnings.simplefilter("error")
                found = ServingModel([worker])
                prediction = found.predict(ServingPlans.of(0, [1, 300, 1e6], [1, 3000, 2e6], [1, 500, 1e5]))
                evaluate_serving(found, 0, Load(8, 1000, 1000))
            for one in fields(prediction):
                values = getattr(prediction, one.name)
                assert np.isfinite(values).all(), (device, split, one.name)
                assert (values >= 0).all(), (device, split, one.name)
            assert (prediction.tpot_s > 0).all()
            answered += 1
    assert answered >= len(catalog.device_names())
