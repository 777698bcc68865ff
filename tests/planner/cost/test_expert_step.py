"""Seconds of a placement's experts: against direct operator calls, an even spread, and broken inputs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from formulations.planning import judge, load_problem, plan
from planner import catalog
from planner.cost.collectives import exchange_seconds
from planner.cost.expert_step import ExpertStep, expert_times
from planner.cost.operators.moe import moe_rank_seconds, moe_seconds
from planner.errors import DescriptionError
from planner.experts_plan import ExpertPlacement

STEP = ExpertStep(
    device=catalog.device("h100_sxm"),
    quant="fp8_block",
    hidden_size=2048,
    moe_intermediate_size=768,
    top_k=2,
    num_experts=4,
    expert_bytes=3 * 2048 * 768,
    tokens=1000.0,
)


def placement(rows: list[list[int]], num_gpus: int) -> ExpertPlacement:
    return ExpertPlacement.from_array(
        np.array(rows),
        4,
        num_gpus=num_gpus,
        gpus_per_node=num_gpus,
        layer_ids=tuple(range(len(rows))),
        num_decoder_layers=len(rows),
        split="even",
    )


def test_layer_waits_for_the_gpu_with_most_rows() -> None:
    """1,000 tokens x 2 choices, shares 1/2, 1/4, 1/8, 1/8: GPU 0 gets 1,500 rows of experts 0 and 1, GPU 1 gets 500."""
    times = expert_times(placement([[0, 1, 2, 3]], 2), np.array([[4.0, 2, 1, 1]]), np.ones(2), STEP)
    sizes = {"hidden_size": 2048, "moe_intermediate_size": 768, "launch": False}
    # More than 100 rows a replica: every one is touched. No token reaches a GPU twice more than there are tokens.
    expected = moe_rank_seconds(STEP.device, "fp8_block", rows=1500.0, touched=2.0, tokens=1000.0, **sizes)
    assert times.layer_s[0] == pytest.approx(float(expected), rel=1e-9)
    assert times.slowest_gpu[0] == 0
    even = moe_rank_seconds(STEP.device, "fp8_block", rows=1000.0, touched=2.0, tokens=1000.0, **sizes)
    assert times.even_layer_s[0] == pytest.approx(float(even), rel=1e-9)


def test_exchange_counts_every_layer() -> None:
    counts = np.ones((3, 4))
    times = expert_times(placement([[0, 1, 2, 3]] * 3, 2), counts, np.ones(2), STEP)
    one = exchange_seconds(STEP.device, tokens_per_gpu=500.0, hidden_size=2048, top_k=2, num_gpus=2, gpus_per_node=2)
    assert times.exchange_s == pytest.approx(3 * float(one))
    assert times.total_s == pytest.approx(times.layer_s.sum() + times.exchange_s)
    alone = expert_times(placement([[0, 1, 2, 3]], 1), np.ones((1, 4)), np.ones(1), STEP)
    assert alone.exchange_s == 0.0


def test_balanced_placement_is_never_slower_than_a_skewed_one() -> None:
    counts = np.array([[9.0, 5, 3, 1]])
    skewed = expert_times(placement([[0, 1, 2, 3]], 2), counts, np.ones(2), STEP)
    balanced = expert_times(placement([[0, 3, 1, 2]], 2), counts, np.ones(2), STEP)
    assert balanced.layer_s[0] < skewed.layer_s[0]


def test_few_tokens_touch_few_experts() -> None:
    """One token of two choices reads at most two of four experts' weights."""
    counts = np.ones((1, 4))
    few = expert_times(placement([[0, 1, 2, 3]], 1), counts, np.ones(1), replace(STEP, tokens=1.0))
    many = expert_times(placement([[0, 1, 2, 3]], 1), counts, np.ones(1), replace(STEP, tokens=64.0))
    assert few.layer_s[0] < 0.75 * many.layer_s[0]


def test_more_tokens_and_slower_gpus_take_longer() -> None:
    counts, rows = np.array([[4.0, 2, 1, 1]]), placement([[0, 1, 2, 3]], 2)
    base = expert_times(rows, counts, np.ones(2), STEP)
    assert expert_times(rows, counts, np.ones(2), replace(STEP, tokens=2000.0)).layer_s[0] >= base.layer_s[0]
    assert expert_times(rows, counts, np.array([0.5, 1.0]), STEP).layer_s[0] > base.layer_s[0]


def test_rank_form_equals_the_balanced_operator() -> None:
    direct = moe_seconds(
        STEP.device, "fp8_block", tokens=512, hidden_size=2048, moe_intermediate_size=768, top_k=2, num_experts=64,
        moe_tp=1, moe_ep=1, routing="balanced",
    )  # fmt: skip
    given = moe_rank_seconds(
        STEP.device, "fp8_block", rows=1024, touched=64, tokens=512, hidden_size=2048, moe_intermediate_size=768
    )
    assert float(given) == pytest.approx(float(direct))


def test_sizes_of_a_model() -> None:
    """DeepSeek-V3: 3 matrices of 7,168 x 2,048 in FP8 with one 32-bit scale a 128 x 128 block (56 x 16)."""
    step = ExpertStep.of(catalog.model("deepseek-ai/DeepSeek-V3"), catalog.device("h100_sxm"), 4096.0)
    assert (step.top_k, step.num_experts, step.quant) == (8, 256, "fp8_block")
    assert step.expert_bytes == 3 * (7168 * 2048 + 56 * 16 * 4)
    with pytest.raises(ValueError, match="no routed experts"):
        ExpertStep.of(catalog.model("meta-llama/Llama-3.1-8B-Instruct"), catalog.device("h100_sxm"), 1.0)


INSTANCE = """
problem: experts
name: timed
num_gpus: 2
num_slots: 16
loads: [{{counts: [[1, 2, 3, 4, 5, 6, 7, 8]]}}]
step: {{model: {model}, device: {device}, tokens: 256}}
"""


def test_verdict_tells_seconds(tmp_path: Path) -> None:
    path = tmp_path / "timed.yaml"
    path.write_text(INSTANCE.format(model="mistralai/Mixtral-8x7B-Instruct-v0.1", device="h100_sxm"))
    problem = load_problem(path)
    document = plan(problem)
    assert document.verdict is not None
    assert document.plan is not None
    seconds = {one.name.partition("[")[0]: one for one in document.verdict.metrics if one.unit == "s"}
    assert seconds["expert_step_s"].value == pytest.approx(
        seconds["expert_time_s"].value + seconds["all_to_all_time_s"].value
    )
    assert seconds["expert_time_s"].source == "measured"
    # 8 slots of 3 x 4,096 x 14,336 16-bit weights.
    assert judge(problem, document.plan).metric("expert_memory_per_gpu") == 8 * 3 * 4096 * 14336 * 2


@pytest.mark.parametrize(
    ("model", "device", "message"),
    [
        ("Qwen/Qwen3-30B-A3B", "h100_sxm", "has 128 experts, the loads have 8"),
        ("meta-llama/Llama-3.1-8B-Instruct", "h100_sxm", "no routed experts"),
        ("no/such-model", "h100_sxm", "no model"),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "h1000", "h100"),
    ],
)
def test_wrong_step_is_located(tmp_path: Path, model: str, device: str, message: str) -> None:
    path = tmp_path / "timed.yaml"
    path.write_text(INSTANCE.format(model=model, device=device))
    with pytest.raises(DescriptionError, match=message) as caught:
        load_problem(path)
    assert all(finding.line == 7 for finding in caught.value.findings)
