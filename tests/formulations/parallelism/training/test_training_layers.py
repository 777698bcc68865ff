"""Layers of a plan that differ: as few recompute as fit, by brute force; the document, the check and the export."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest

from formulations.base import solve
from formulations.outcome import Status, Stop
from formulations.parallelism.training.search import refine
from formulations.parallelism.training.search.blocks import block_of, with_blocks
from formulations.parallelism.training.search.check import check
from formulations.parallelism.training.search.formulation import TRAINING
from formulations.parallelism.training.search.layer_choice import bound_of_families, strategies_of
from formulations.parallelism.training.search.mixes import recomputed_of, recomputing_least, with_other_layers
from formulations.parallelism.training.search.plans import arrays_of, of_document
from formulations.parallelism.training.search.pricing import price, splits, with_splits
from formulations.parallelism.training.search.problem import LayerScope, TrainProblem
from formulations.parallelism.training.search.space import space
from planner.cost.training.plans import Recompute, problems
from planner.errors import ExportError
from planner.training_plan import LayerBlock, TrainingPlan
from planner.writers.megatron import arguments
from planner.writers.training_launch import uniform
from tests.formulations.parallelism.training.train_cases import SMALL, problem

#: Two stages, in memory that holds neither all activations nor needs all layers to recompute.
TIGHT: dict[str, Any] = {
    "reserve": 0.74,
    "sequence_length": 8192,
    "global_batch_size": 32,
    "fixed": {
        "tensor_parallel_size": 2,
        "pipeline_parallel_size": 2,
        "context_parallel_size": 1,
        "micro_batch_size": 1,
    },
}
EIGHT = {"nodes": [{"device": "h800_sxm", "count": 8}]}
SCOPES = ("uniform", "framework", "stage", "any")


@pytest.fixture(autouse=True)
def little_time_for_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of passes is not asked about here."""
    monkeypatch.setattr(refine, "ORDER_S", 0.1)


def found(scope: str, **changes: Any) -> TrainingPlan:
    outcome = solve(TRAINING, problem(**{**TIGHT, **changes}, layer_strategies=scope))
    assert outcome.plan is not None, outcome.reasons
    assert outcome.bound is not None
    assert outcome.objective is not None
    assert outcome.bound.value <= outcome.objective.total * (1 + 1e-9)
    return outcome.plan


def recomputed(plan: TrainingPlan) -> list[int]:
    """Layers of each stage that recompute."""
    whole = plan.recompute == "full"
    return [
        sum(block.num_layers for block in stage.layer_blocks if block.recompute == "full")
        if stage.layer_blocks
        else whole * stage.num_layers
        for stage in plan.stages
    ]


@pytest.mark.parametrize("scope", ["framework", "stage"])
def test_no_counts_by_brute_force_are_better(scope: str) -> None:
    """All numbers of layers that recompute, all splits and all sizes of the space, one plan of one stage each."""
    asked = problem(**TIGHT, layer_strategies=scope)
    plan = found(scope)
    assert not check(asked, plan)
    every = space(asked)
    assert every is not None
    best = np.inf
    for place in np.flatnonzero(every.recompute == Recompute.FULL).tolist():
        one = every[np.array([place])]
        virtual = int(one.virtual_pipeline_size[0])
        for layers in splits(asked.model.num_layers, 2, virtual):
            counts = product(*(range(count + 1) for count in layers))
            if scope == "framework":
                chunks = np.array([virtual])
                counts = (recomputed_of(layers, chunks, np.array([n])).tolist() for n in range(7))  # type: ignore[assignment]
            split = with_splits(asked, one)
            assert split is not None
            assert split.stage_layers is not None
            same = split[(split.stage_layers == layers).all(axis=1)]
            for count in counts:
                tried = price(asked, with_other_layers(asked.model, same, layers - np.array([count]), Recompute.NONE))
                if tried.memory_bytes[0] <= asked.capacity_bytes:
                    best = min(best, float(tried.goal[0]))
    assert plan.step_s == pytest.approx(best, rel=1e-9)


def test_each_freedom_is_no_worse_than_the_one_before() -> None:
    """One step of a tight pipeline: the first stage keeps more micro-batches, so that it recomputes more layers."""
    steps = [found(scope).step_s for scope in SCOPES]
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in pairwise(steps))
    assert steps[2] < 0.99 * steps[0]
    assert 0 < sum(recomputed(found("stage"))) < 6


def test_layers_that_differ_in_more_than_recomputation_can_be_better() -> None:
    """Memory that holds gathered weights of a few layers only: those reduce-scatter, the others gather again."""
    asked = problem(
        model={**SMALL, "num_hidden_layers": 12}, reserve=0.5, sequence_length=8192, global_batch_size=32,
        framework="torchtitan", layer_strategies="any",
    )  # fmt: skip
    outcome = solve(TRAINING, asked)
    assert outcome.plan is not None
    assert outcome.objective is not None
    assert outcome.bound is not None
    assert outcome.stop is Stop.HEURISTIC
    assert outcome.bound.value < outcome.objective.total < outcome_of(asked, "stage") * (1 - 1e-3)
    assert not check(asked, outcome.plan)
    assert len({block.zero_stage for block in outcome.plan.stages[0].layer_blocks}) == 2


def outcome_of(asked: TrainProblem, scope: LayerScope) -> float:
    outcome = solve(TRAINING, replace(asked, layer_scope=scope))
    assert outcome.objective is not None
    return outcome.objective.total


@pytest.mark.parametrize(
    ("changes", "layers"),
    [
        (TIGHT | {"framework": "x"}, [3, 3]),
        ({"model": "deepseek-ai/DeepSeek-V3", "cluster": EIGHT, "global_batch_size": 32, "framework": "x"}, [30, 31]),
    ],
)
def test_no_mix_is_below_the_bound_of_its_family(changes: dict[str, Any], layers: list[int]) -> None:
    """Random layers of a family's plans, whether they fit or not: each is dearer than the family's own bound.

    DeepSeek-V3's three dense layers are cut off from the others, which are faster under other sizes.
    """
    asked = problem(**changes | {"fixed": {"pipeline_parallel_size": 2, "virtual_pipeline_size": 1}})
    every = space(asked)
    assert every is not None
    random = np.random.default_rng(3)
    for _ in range(25):
        one = every[random.integers(len(every), size=1)]
        bound = bound_of_families(asked, every, price(asked, one))
        one = replace(one, stage_layers=np.array([layers]))
        known = strategies_of(asked, one)
        blocks = []
        for count in layers:
            first, rest = (known[place] for place in random.integers(len(known), size=2))
            blocks.append([block_of(first, min(3, count - 1)), block_of(rest, count - min(3, count - 1))])
        mixed = with_blocks(asked.model, one, blocks)
        assert not problems(mixed, asked.model)
        assert price(asked, mixed).goal[0] >= bound


def test_what_free_stages_would_gain_is_told() -> None:
    told = [note for note in found("uniform").notes if "layer_strategies: stage" in note]
    gain = 1.0 - found("stage").step_s / found("uniform").step_s
    assert told[0].startswith(f"{gain:.1%} less")
    assert not [note for note in found("stage").notes if "layer_strategies" in note]


def test_as_few_layers_recompute_as_fit() -> None:
    """One layer fewer on any stage does not fit, and stages that need none have none."""
    asked = problem(**TIGHT, layer_strategies="stage")
    every = space(asked)
    assert every is not None
    chosen = every[(every.recompute == Recompute.FULL) & (every.virtual_pipeline_size == 1)]
    split = with_splits(asked, chosen)
    assert split is not None
    least = recomputing_least(asked, split, Recompute.NONE, "stage")
    priced = price(asked, least)
    assert split.stage_layers is not None
    counts = split.stage_layers - least.variants[0].layers[0].astype(np.int64)
    for place in np.flatnonzero(priced.memory_bytes <= asked.capacity_bytes).tolist():
        for stage in np.flatnonzero(counts[place]).tolist():
            fewer = counts[place].copy()
            fewer[stage] -= 1
            one = split[np.array([place])]
            assert one.stage_layers is not None
            tried = with_other_layers(asked.model, one, one.stage_layers - fewer, Recompute.NONE)
            assert price(asked, tried).memory_bytes[0] > asked.capacity_bytes


def test_only_what_the_instance_allows_is_mixed() -> None:
    """`recompute: full` leaves nothing to mix; layers of two kinds of recomputation stay possible by hand."""
    assert not any(stage.layer_blocks for stage in found("stage", recompute="full").stages)


def test_a_document_keeps_its_layers() -> None:
    plan = found("stage")
    again = TrainingPlan.model_validate_json(plan.model_dump_json())
    asked = problem(**TIGHT, layer_strategies="stage")
    assert price(asked, of_document(asked, again)).step_s[0] == pytest.approx(plan.step_s)
    assert not check(asked, again)


def _with(plan: TrainingPlan, *blocks: tuple[int, int, int, str]) -> TrainingPlan:
    """The plan whose first stage has these blocks: layers, tensor-parallel size, ZeRO stage, recompute."""
    made = tuple(
        LayerBlock(num_layers=count, tensor_parallel_size=tensor, zero_stage=zero, recompute=kind)  # type: ignore[arg-type]
        for count, tensor, zero, kind in blocks
    )
    first = plan.stages[0].model_copy(update={"layer_blocks": made})
    return plan.model_copy(update={"stages": (first, *plan.stages[1:])})


def test_layers_that_the_instance_does_not_allow_are_named() -> None:
    plan = found("uniform")
    count = plan.stages[0].num_layers
    cases = (
        ("uniform", [(count, 2, 1, "full")], "layers"),
        ("stage", [(count + 1, 2, 1, "full")], "blocks"),
        ("stage", [(count, 2, 1, "selective")], "layers"),
        ("stage", [(count, 4, 1, "full")], "layers"),
        ("any", [(count, 4, 1, "full")], "layers"),  # tensor_parallel_size is fixed
        ("any", [(count, 2, 3, "full")], "layers"),  # Megatron-LM has no ZeRO 3 in a pipeline
    )
    for scope, blocks, rule in cases:
        asked = problem(**TIGHT, layer_strategies=scope)
        assert rule in {one.rule for one in check(asked, _with(plan, *blocks))}, (scope, blocks)
    free = found("stage")
    keeps = _with(free, (free.stages[0].num_layers, 2, 1, "none"))
    assert {one.rule for one in check(problem(**TIGHT, layer_strategies="stage"), keeps)} == {
        "gpu_memory",
        "claimed_memory",
    }
    apart = problem(**TIGHT, layer_strategies="framework")
    one_stage = _with(plan.model_copy(update={"recompute": "none"}), (count, 2, 1, "full"))
    assert "layers" in {one.rule for one in check(apart, one_stage)}
    uneven = [(1, 2, 1, "full"), (count - 1, 2, 1, "none")]
    assert "layers" in {one.rule for one in check(apart, _with(plan.model_copy(update={"recompute": "full"}), *uneven))}


def test_megatron_is_told_the_layers_of_a_chunk() -> None:
    """Two of three layers of both stages: block recomputation of 2; different numbers have no option."""
    plan = found("uniform", fixed=TIGHT["fixed"] | {"virtual_pipeline_size": 1})
    blocks = (
        LayerBlock(num_layers=2, tensor_parallel_size=2, zero_stage=1, recompute="full"),
        LayerBlock(num_layers=1, tensor_parallel_size=2, zero_stage=1, recompute="none"),
    )
    stages = tuple(stage.model_copy(update={"num_layers": 3, "layer_blocks": blocks}) for stage in plan.stages)
    even = plan.model_copy(update={"stages": stages, "recompute": "full"})
    assert "--recompute-granularity full --recompute-method block --recompute-num-layers 2" in arguments(even)
    for broken, words in (
        ([(1, 2, 1, "full"), (2, 2, 1, "none")], "no one number"),
        ([(2, 4, 1, "full"), (1, 2, 1, "none")], "tensor parallelism"),
        ([(2, 2, 1, "none"), (1, 2, 1, "full")], "first ones of a chunk"),
    ):
        with pytest.raises(ExportError, match=words):
            arguments(_with(even, *broken))
    with pytest.raises(ExportError, match="layer_strategies: uniform"):
        uniform(even, "torchtitan")


def test_chunks_that_are_short_give_all_they_have() -> None:
    """5 layers in 2 chunks are 3 + 2: of each chunk 0, 1, 2, 3, 4 recompute 0, 2, 4, 5, 5."""
    counts = [int(recomputed_of(np.array([5]), np.array([2]), np.array([each]))[0]) for each in range(5)]
    assert counts == [0, 2, 4, 5, 5]


def test_blocks_of_interleaved_chunks_hold_every_kind_in_proportion() -> None:
    asked = problem(model="deepseek-ai/DeepSeek-V3", global_batch_size=32,
                    cluster=EIGHT)  # fmt: skip
    plan = found("uniform")
    changes = {"virtual_pipeline_size": 2, "expert_parallel_size": 1}
    one = arrays_of(asked, plan.model_copy(update=changes), [30, 31])
    block = LayerBlock(num_layers=10, tensor_parallel_size=2, zero_stage=1, recompute="full")
    rest = LayerBlock(num_layers=20, tensor_parallel_size=2, zero_stage=1, recompute="none")
    own = with_blocks(asked.model, one, [[block, rest], []])
    count = sum(float(variant.layers.sum()) for variant in own.variants)
    assert count == pytest.approx(20 if plan.recompute == "full" else 10)
    assert own.variants[0].layers[0, 0, 0] == pytest.approx(count * 3 / 61)


def test_two_kinds_of_layers_are_told_apart_by_depth() -> None:
    """DeepSeek-V3 has three dense layers first: of the first five layers three are dense."""
    asked = problem(model="deepseek-ai/DeepSeek-V3", global_batch_size=32,
                    cluster=EIGHT)  # fmt: skip
    plan = found("uniform").model_copy(update={"virtual_pipeline_size": 1, "recompute": "none"})
    block = LayerBlock(num_layers=5, tensor_parallel_size=2, zero_stage=1, recompute="full")
    rest = LayerBlock(num_layers=25, tensor_parallel_size=2, zero_stage=1, recompute="none")
    own = with_blocks(asked.model, arrays_of(asked, plan, [30, 31]), [[block, rest], []])
    assert own.variants[0].layers[:, 0, 0].tolist() == [3.0, 2.0]


def test_status_is_optimal_for_counts_of_stages() -> None:
    outcome = solve(TRAINING, problem(**TIGHT, layer_strategies="stage"))
    assert outcome.status is Status.OPTIMAL
    assert outcome.bound is not None
    assert "each stage recomputes" in outcome.bound.name
    assert SMALL["num_hidden_layers"] == 6
