"""What holds for every plan: parts add up, better hardware is not slower, ZeRO and recomputation save memory."""

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.cost.training.coefficients import MemoryMargin, TrainingCoefficients
from planner.cost.training.communication import TrainingNetwork
from planner.cost.training.memory import training_memory, training_memory_by_stage
from planner.cost.training.model import TrainingModel
from planner.cost.training.plans import Recompute, Schedule, TrainingPlans
from planner.cost.training.step import TrainingTimes, training_step
from planner.hardware import DeviceKind

#: Realistic coefficients with everything switched on.
REAL = TrainingCoefficients(
    gemm_efficiency=0.7, narrow_gemm=64, attention_efficiency=0.4, traffic=1.5, link_efficiency=0.7, overlap=0.5
)
SIZES = st.sampled_from([1, 2, 4])


@st.composite
def legal(draw: st.DrawFn, **fixed: object) -> dict:
    """Options of a plan that is legal for GPT-22B."""
    tensor, context, data, micro = draw(SIZES), draw(SIZES), draw(SIZES), draw(SIZES)
    stages = draw(st.integers(1, 12))
    schedule = draw(st.sampled_from(list(Schedule)))
    chunks = 1
    if schedule is Schedule.ZB_V:
        chunks = 2
    elif schedule is Schedule.ONE_F_ONE_B and stages > 1:
        chunks = draw(st.integers(1, 3))
    return {
        "tensor_parallel_size": tensor,
        "context_parallel_size": context,
        "data_parallel_size": data,
        "pipeline_parallel_size": stages,
        "virtual_pipeline_size": chunks,
        "schedule": schedule,
        "micro_batch_size": micro,
        "global_batch_size": data * micro * stages * draw(st.integers(1, 4)),
        "sequence_length": draw(st.sampled_from([64, 2048])),
        "sequence_parallel": draw(st.booleans()),
        "flash_attention": draw(st.booleans()),
        "recompute": draw(st.sampled_from(list(Recompute))),
        "zero_stage": draw(st.integers(0, 3)),
        "gradient_bytes": draw(st.sampled_from([2, 4, 6])),
    } | fixed


@given(legal())
def test_no_zero_stage_holds_more_states(gpt: TrainingModel, bare: MemoryMargin, options: dict) -> None:
    memory = training_memory_by_stage(gpt, TrainingPlans.build(**options | {"zero_stage": [0, 1, 2, 3]}), bare)
    assert (np.diff(memory.states.sum(axis=1)) <= 0).all()
    peaks = training_memory(gpt, TrainingPlans.build(**options | {"zero_stage": [0, 1, 2]}), bare)
    assert (np.diff(peaks.total) <= 0).all()


@given(legal())
def test_recomputing_more_never_keeps_more(gpt: TrainingModel, bare: MemoryMargin, options: dict) -> None:
    plans = TrainingPlans.build(**options | {"recompute": [Recompute.NONE, Recompute.SELECTIVE, Recompute.FULL]})
    kept = training_memory_by_stage(gpt, plans, bare).activations
    assert (np.diff(kept, axis=0) <= 0).all()


@given(legal())
def test_the_peak_is_the_largest_stage(gpt: TrainingModel, bare: MemoryMargin, options: dict) -> None:
    plans = TrainingPlans.build(**options)
    by_stage = training_memory_by_stage(gpt, plans, bare)
    peak = training_memory(gpt, plans, bare)
    assert peak.total[0] == pytest.approx(by_stage.total[0].max())
    assert by_stage.total[0, peak.stage[0]] == pytest.approx(peak.total[0])


@given(legal())
def test_parts_add_up(gpt: TrainingModel, gpu: DeviceKind, network: TrainingNetwork, options: dict) -> None:
    times = training_step(gpt, gpu, network, TrainingPlans.build(**options), REAL)
    assert sum(part[0] for part in times.parts.values()) == pytest.approx(times.step_s[0], rel=1e-12)
    assert all(part[0] >= 0 for part in times.parts.values())
    seconds = {field.name for field in fields(TrainingTimes) if field.name.endswith("_s")} - {"tokens_per_s"}
    assert set(times.parts) == seconds
    assert 0 < times.mfu[0] <= times.hfu[0] < 1


@given(st.lists(legal(), min_size=2, max_size=6))
def test_together_as_one_by_one(gpt: TrainingModel, gpu: DeviceKind, network: TrainingNetwork, many: list) -> None:
    alone = [TrainingPlans.build(**options) for options in many]
    together = training_step(gpt, gpu, network, TrainingPlans.concat(alone), REAL).step_s
    expected = [training_step(gpt, gpu, network, plan, REAL).step_s[0] for plan in alone]
    assert together == pytest.approx(expected, rel=1e-12)


@given(legal(), st.sampled_from(["flop", "memory", "inside", "between"]))
def test_faster_hardware_is_never_slower(
    gpt: TrainingModel, gpu: DeviceKind, network: TrainingNetwork, options: dict, what: str
) -> None:
    plans = TrainingPlans.build(**options)
    better_gpu, better_network = gpu, network
    if what == "flop":
        better_gpu = gpu.model_copy(update={"flop_per_s": {"bf16": 150e12}})
    elif what == "memory":
        better_gpu = gpu.model_copy(update={"hbm_bandwidth_bytes_per_s": 1.5e12})
    else:
        inside, between = (200e9, 10e9) if what == "inside" else (100e9, 20e9)
        better_network = TrainingNetwork(gpus_per_node=8, intra_node_bytes_per_s=inside, inter_node_bytes_per_s=between)
    before = training_step(gpt, gpu, network, plans, REAL).step_s[0]
    after = training_step(gpt, better_gpu, better_network, plans, REAL).step_s[0]
    assert after <= before * (1 + 1e-12)


@given(legal(global_batch_size=4 * 4 * 4 * 12 * 32), st.booleans())
def test_more_data_parallel_gpus_compute_no_longer(
    gpt: TrainingModel, gpu: DeviceKind, network: TrainingNetwork, options: dict, same_batch: bool
) -> None:
    """The same global batch on twice the replicas."""
    options = options | {"virtual_pipeline_size": 1, "schedule": 1, "pipeline_parallel_size": 4}
    twice = TrainingPlans.build(**options | {"data_parallel_size": [options["data_parallel_size"], 8]})
    times = training_step(gpt, gpu, network, twice, REAL)
    assert times.compute_s[1] <= times.compute_s[0] * (1 + 1e-12)
