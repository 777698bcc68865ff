"""Models, GPUs and plans that the tests of the training cost share."""

import pytest

from planner.cost.training.coefficients import MemoryMargin, TrainingCoefficients
from planner.cost.training.communication import TrainingNetwork
from planner.cost.training.model import TrainingModel
from planner.hardware import DeviceKind


@pytest.fixture(scope="session")
def gpt() -> TrainingModel:
    """GPT-22B of Korthikanti et al."""
    return TrainingModel.dense(layers=48, hidden=6144, heads=64, ffn=24576, vocab=51200, tied=True, dropout=True)


@pytest.fixture(scope="session")
def gpu() -> DeviceKind:
    """An invented GPU with round numbers: 100 TFLOP/s, 1 TB/s, links of 100 GB/s."""
    return DeviceKind(
        name="round",
        memory_bytes=80e9,
        hbm_bandwidth_bytes_per_s=1e12,
        flop_per_s={"bf16": 100e12, "fp8": 200e12},
        scale_up_bandwidth_bytes_per_s=100e9,
        scale_up_domain_gpus=8,
    )


@pytest.fixture(scope="session")
def network(gpu: DeviceKind) -> TrainingNetwork:
    """Nodes of eight, 10 GB/s a GPU between them."""
    return TrainingNetwork.of(gpu, inter_node_bytes_per_s=10e9)


@pytest.fixture(scope="session")
def ideal() -> TrainingCoefficients:
    """Nothing is lost: peaks are reached, links are full, nothing overlaps."""
    return TrainingCoefficients(
        gemm_efficiency=1.0, narrow_gemm=0.0, attention_efficiency=1.0, traffic=1.0, link_efficiency=1.0, overlap=0.0
    )


@pytest.fixture(scope="session")
def bare() -> MemoryMargin:
    """The formulas alone."""
    return MemoryMargin(fixed_bytes=0.0, states_factor=1.0, activations_factor=1.0)
