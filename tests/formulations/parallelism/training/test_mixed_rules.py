"""Plans over unequal GPUs that no search makes, which the check must refuse all the same; and bounds beside an LP."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.optimize import linprog

from formulations.base import solve
from formulations.parallelism.training.mixed import options
from formulations.parallelism.training.mixed.check import check, check_shape
from formulations.parallelism.training.mixed.formulation import ANY_TRAINING
from formulations.parallelism.training.mixed.options import Options, stage_options
from formulations.parallelism.training.mixed.problem import MixedProblem
from formulations.parallelism.training.mixed.search import work_bound_s
from formulations.parallelism.training.search.plans import passes_of
from formulations.parallelism.training.search.space import MOST_MICRO_BATCH, divisors, tensor_sizes
from planner.cost.training.plans import TrainingPlans
from planner.training_plan import TrainingPlan
from tests.formulations.parallelism.training.mixed_cases import PAIR, THREE, mixed, sites
from tests.formulations.parallelism.training.test_mixed_check import pipeline, shared, stage
from tests.formulations.parallelism.training.train_cases import SMALL


def rules(asked: MixedProblem, plan: TrainingPlan, **changes: Any) -> set[str]:
    return {one.rule for one in check(asked, plan.model_copy(update=changes))}


def one_kind() -> tuple[MixedProblem, TrainingPlan]:
    asked = mixed(model=SMALL, sites=sites(None))
    plan = solve(ANY_TRAINING, asked).plan
    assert plan is not None
    assert plan.layout == "one_kind"
    return asked, plan


def test_a_plan_of_one_kind_lies_on_one_kind() -> None:
    """Two stages of two GPUs, one of them on the slower kind, are no plan of the faster one."""
    _, plan = one_kind()
    rows = [
        plan.stages[0].model_copy(
            update={
                "num_layers": 3, "embedding": place == 0, "head": place == 1, "first_gpu": 2 * place, "num_gpus": 2,
                "device": device, "site": None, "tensor_parallel_size": 1, "data_parallel_size": 2,
                "micro_batch_size": 1, "micro_batches": (4, 4),
            }
        )
        for place, device in enumerate(("h100_sxm", "a100_sxm"))
    ]  # fmt: skip
    sizes = {
        "pipeline_parallel_size": 2, "tensor_parallel_size": 1, "data_parallel_size": 2, "micro_batch_size": 1,
        "num_micro_batches": 4, "idle_gpus": 0,
    }  # fmt: skip
    assert "layout" in rules(mixed(model=SMALL), plan, stages=tuple(rows), **sizes)


def test_stages_of_one_kind_do_as_the_plan_says() -> None:
    asked, plan = one_kind()
    assert "layout" in rules(asked, plan, **stage(plan, 0, recompute="full"))
    assert "layout" in rules(asked, plan, **stage(plan, 0, zero_stage=3))


@pytest.mark.parametrize("zero", [0, 2, 3])
def test_pipelines_shard_as_the_framework_does(zero: int) -> None:
    """Megatron-LM's distributed optimizer is ZeRO 1; what is sharded more runs its collectives every micro-batch."""
    rows = tuple(one.model_copy(update={"zero_stage": zero}) for one in pipeline().stages)
    assert "zero" in rules(mixed(model=SMALL), pipeline(), stages=rows)


@pytest.mark.parametrize("states", [False, True])
def test_a_block_is_one_family_of_replicas(states: bool) -> None:
    """One pipeline of two replicas told as two of one: their collectives would be priced as if they were one."""
    asked, plan = mixed(model=SMALL, global_batch_size=32), shared(False)
    whole = plan.stages[0]
    assert whole.data_parallel_size == 2
    halves = [
        whole.model_copy(
            update={
                "num_gpus": 1, "first_gpu": place, "data_parallel_size": 1, "pipeline": 5 + place,
                "micro_batches": whole.micro_batches[place : place + 1], "state_shares": (0.25,),
            }
        )
        for place in range(2)
    ]  # fmt: skip
    rest = tuple(one.model_copy(update={"state_shares": (0.5,)}) for one in plan.stages[1:])
    layout = {"layout": "shards"} if states else {}
    assert "layout" in rules(asked, plan, stages=(*halves, *rest), **layout)


def test_shared_states_are_sharded_as_they_are_priced() -> None:
    asked, plan = mixed(model=SMALL, global_batch_size=32), shared(True)
    assert "layout" in rules(asked, plan, **stage(plan, 0, zero_stage=0))
    told = {rule for rule, *_ in check_shape(plan.model_copy(update=stage(plan, 0, zero_stage=0)))}
    assert "layout" in told


def test_stages_of_a_replica_are_alike() -> None:
    asked = mixed(model=SMALL, global_batch_size=32)
    whole = shared(False).stages[1]
    parts = tuple(
        whole.model_copy(
            update={
                "num_layers": 3, "embedding": place == 0, "head": place == 1, "num_gpus": 1,
                "first_gpu": whole.first_gpu + place, "tensor_parallel_size": 1, "recompute": ("none", "full")[place],
            }
        )
        for place in range(2)
    )  # fmt: skip
    assert "layout" in rules(asked, shared(False), stages=(shared(False).stages[0], *parts))


def least_gpu_s(problem: MixedProblem) -> list[np.ndarray]:
    """GPU seconds of every layer for one sequence on each kind, each at the best of its sizes."""
    found = []
    for block in problem.blocks:
        layers = block.model.num_layers
        micro = [one for one in divisors(block.global_batch_size) if one <= MOST_MICRO_BATCH]
        columns = []
        for tensor in tensor_sizes(block):
            plans = TrainingPlans.build(
                tensor_parallel_size=tensor, pipeline_parallel_size=layers, micro_batch_size=micro,
                global_batch_size=micro, sequence_length=block.sequence_length, stage_layers=[1] * layers,
                flash_attention=block.flash_attention, gradient_bytes=block.gradient_bytes,
            )  # fmt: skip
            columns.append(tensor * passes_of(block, plans).total_s / np.array(micro)[:, None])
        found.append(np.concatenate(columns).min(axis=0))
    return found


@pytest.mark.parametrize("changes", [{}, {"cluster": THREE}, {"global_batch_size": 64, "sequence_length": 512}])
def test_no_split_of_the_work_beats_its_bound(changes: dict[str, Any]) -> None:
    """A linear program: sequences x[b, l] whose layer l kind b works on; the fuller kind decides. A kind may do the
    layers that it is least slow at, so that rates of whole models alone are no bound."""
    asked = mixed(**({"model": SMALL} | changes))
    seconds = least_gpu_s(asked)
    kinds, layers = len(seconds), asked.model.num_layers
    does = np.zeros((layers, kinds * layers + 1))
    busy = np.zeros((kinds, kinds * layers + 1))
    for kind, each in enumerate(seconds):
        for layer in range(layers):
            does[layer, kind * layers + layer] = 1.0
            busy[kind, kind * layers + layer] = each[layer] / asked.blocks[kind].num_gpus
    busy[:, -1] = -1.0
    goal = np.zeros(kinds * layers + 1)
    goal[-1] = 1.0
    best = linprog(
        goal, A_ub=busy, b_ub=np.zeros(kinds), A_eq=does, b_eq=np.full(layers, asked.any_block.global_batch_size)
    )
    assert best.success
    assert work_bound_s(asked) <= best.fun * (1 + 1e-9)
    assert work_bound_s(asked) >= 0.9 * best.fun


@pytest.mark.parametrize("sequence_length", [32, 2048])
def test_an_option_is_only_beaten_where_it_can_lie(monkeypatch: pytest.MonkeyPatch, sequence_length: int) -> None:
    """Eight GPUs: a run of four from GPU 2 can be tensor 2 x data 2, but no tensor group of four lies there."""
    nodes = [{"device": name, "count": 1, "gpus_per_node": 8} for name in ("h100_sxm", "a100_sxm")]
    asked = mixed(model=SMALL, cluster={**PAIR, "nodes": nodes}, sequence_length=sequence_length)
    kept = stage_options(asked, 0, 2)
    monkeypatch.setattr(options, "_unbeaten", lambda every, *_: every)
    every = stage_options(asked, 0, 2)
    assert kept is not None
    assert every is not None
    for place in range(len(every)):
        holds = (every.layer_bytes[place] + every.kept_bytes[place]).min() <= every.capacity_bytes[place]
        assert not holds or any(beats(kept, other, every, place) for other in range(len(kept)))


def beats(kept: Options, other: int, every: Options, place: int) -> bool:
    """Whether an option lies wherever another does, and is no worse in anything."""
    tensors = int(kept.plans.tensor_parallel_size[other]), int(every.plans.tensor_parallel_size[place])
    names = ("layer_s", "layer_bytes", "kept_bytes", "busy_s", "update_s")
    return (
        kept.units[other] == every.units[place]
        and tensors[1] % tensors[0] == 0
        and all((getattr(kept, name)[other] <= getattr(every, name)[place]).all() for name in names)
        and bool(kept.capacity_bytes[other] >= every.capacity_bytes[place])
    )
