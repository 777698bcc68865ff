"""All legal plans of a problem as arrays, and the few numbers that each size may take.

tensor      divisors of the scale-up domain that divide heads, key-value heads and MLP width
pipeline    all up to the L layers
virtual     v > 1 where p v divides L, L + 1 or L + 2 (the embedding and the head may each stand for a layer)
context     powers of two that leave MIN_CONTEXT_TOKENS tokens a rank
data        divisors of the batch
expert      common divisors of the expert counts that divide c d
micro-batch divisors of the batch up to MOST_MICRO_BATCH
ZeRO        what the framework runs; only the lowest where a stage has one replica
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import gcd

import numpy as np
import numpy.typing as npt

from formulations.parallelism.training.search.problem import RECOMPUTE, SCHEDULES, TrainProblem
from planner.cost.training.plans import Schedule, TrainingPlans

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

#: Sequences of a micro-batch, at most; more only adds memory. Calculon's own scenarios end here too.
MOST_MICRO_BATCH = 16
#: Tokens that context parallelism leaves a rank, at least: below, kernels and sends are too small. modelled.
MIN_CONTEXT_TOKENS = 1024
#: ZeRO stages by framework, with a pipeline and without. Megatron-LM: distributed optimizer, Megatron-FSDP without a
#: pipeline (its arguments.py refuses both together); DeepSpeed: pipelines take ZeRO 0 or 1 (its pipe/engine.py);
#: torchtitan and llm-foundry: FSDP2 that keeps or reshards weights after the forward pass.
ZERO_STAGES: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "megatron": ((1,), (1, 2, 3)),
    "deepspeed": ((1,), (1, 2, 3)),
    "torchtitan": ((2, 3), (2, 3)),
    "llm_foundry": ((), (2, 3)),
}


class _Grid:
    """A table of combinations that grows column by column and loses rows."""

    def __init__(self) -> None:
        self.columns: dict[str, IntArray] = {}

    def cross(self, name: str, values: Iterable[int]) -> None:
        """Every row with every value."""
        new = np.array(sorted(values), dtype=np.int64)
        rows = len(next(iter(self.columns.values()))) if self.columns else 1
        self.columns = {one: np.repeat(array, new.size) for one, array in self.columns.items()}
        self.columns[name] = np.tile(new, rows)

    def keep(self, mask: BoolArray) -> None:
        """These rows alone."""
        self.columns = {name: array[mask] for name, array in self.columns.items()}

    def __getitem__(self, name: str) -> IntArray:
        return self.columns[name]


def divisors(number: int) -> list[int]:
    """All divisors, ascending."""
    small = [one for one in range(1, int(number**0.5) + 1) if number % one == 0]
    return sorted({*small, *(number // one for one in small)})


def powers_of_two(most: int) -> list[int]:
    """1, 2, 4, .. up to `most`."""
    return [1 << place for place in range(max(1, most).bit_length())]


def zero_stages(framework: str, pipelined: bool) -> tuple[int, ...]:
    """ZeRO stages that a framework runs; all for one that is not known here. 0 is 1 with more memory and traffic."""
    known = ZERO_STAGES.get(framework)
    return (1, 2, 3) if known is None else known[0 if pipelined else 1]


def space(problem: TrainProblem) -> TrainingPlans | None:
    """Every legal plan, whether it fits into memory or not; None where there is none."""
    grid = _Grid()
    grid.cross("tensor", tensor_sizes(problem))
    grid.cross("context", _chosen(problem, "context_parallel_size", _context(problem)))
    grid.cross("pipeline", _chosen(problem, "pipeline_parallel_size", range(1, problem.model.num_layers + 1)))
    grid.keep(grid["tensor"] * grid["context"] * grid["pipeline"] <= problem.num_gpus)
    grid.cross("data", _chosen(problem, "data_parallel_size", divisors(problem.global_batch_size)))
    gpus = grid["tensor"] * grid["context"] * grid["pipeline"] * grid["data"]
    grid.keep(gpus <= problem.num_gpus)
    _experts(problem, grid)
    batch = problem.global_batch_size
    small = [one for one in divisors(batch) if one <= MOST_MICRO_BATCH]
    grid.cross("micro", _chosen(problem, "micro_batch_size", small))
    grid.keep(batch % (grid["data"] * grid["micro"]) == 0)
    _schedules(problem, grid)
    _zero(problem, grid)
    grid.cross("recompute", [int(RECOMPUTE[name]) for name in problem.recompute])
    if not grid["tensor"].size:
        return None
    return TrainingPlans.build(
        tensor_parallel_size=grid["tensor"],
        context_parallel_size=grid["context"],
        pipeline_parallel_size=grid["pipeline"],
        data_parallel_size=grid["data"],
        expert_parallel_size=grid["expert"],
        micro_batch_size=grid["micro"],
        virtual_pipeline_size=grid["virtual"],
        schedule=grid["schedule"],
        zero_stage=grid["zero"],
        recompute=grid["recompute"],
        global_batch_size=problem.global_batch_size,
        sequence_length=problem.sequence_length,
        flash_attention=problem.flash_attention,
        gradient_bytes=problem.gradient_bytes,
    )


def _chosen(problem: TrainProblem, name: str, values: Sequence[int]) -> Sequence[int]:
    """The fixed value, or all."""
    return [problem.fixed[name]] if name in problem.fixed else values


def divided_by_tensor(problem: TrainProblem) -> list[tuple[int, str]]:
    """Counts that tensor parallelism must divide, with their names."""
    found = set()
    for kind in problem.model.kinds:
        attention = kind.attention
        found.add((attention.num_attention_heads, "attention heads"))
        if not attention.kv_lora_rank:
            found.add((attention.num_key_value_heads, "key and value heads"))
        found.add((kind.mlp_width, "columns of the MLP"))
    return sorted(one for one in found if one[0])


def tensor_sizes(problem: TrainProblem) -> list[int]:
    """Tensor-parallel sizes that divide what they must, or the fixed one."""
    counts = [count for count, _ in divided_by_tensor(problem)]
    domain = problem.domain_gpus
    wanted = _chosen(problem, "tensor_parallel_size", divisors(domain))
    return [one for one in wanted if domain % one == 0 and all(count % one == 0 for count in counts)]


def _context(problem: TrainProblem) -> list[int]:
    length = problem.sequence_length
    return [one for one in powers_of_two(max(1, length // MIN_CONTEXT_TOKENS)) if length % one == 0]


def _experts(problem: TrainProblem, grid: _Grid) -> None:
    counts = problem.model.num_experts
    grid.cross("expert", _chosen(problem, "expert_parallel_size", divisors(gcd(*counts)) if counts else [1]))
    grid.keep((grid["data"] * grid["context"]) % grid["expert"] == 0)
    for count in counts:
        grid.keep(count % grid["expert"] == 0)


def _schedules(problem: TrainProblem, grid: _Grid) -> None:
    """Schedules with the chunks that they take."""
    layers, batch = problem.model.num_layers, problem.global_batch_size
    chunks = {layers, layers + 1, layers + 2}
    deepest = max(1, layers // 2)
    grid.cross("schedule", [int(SCHEDULES[name]) for name in problem.schedules])
    one = grid["schedule"] == Schedule.ONE_F_ONE_B
    # Without a pipeline all schedules are the same.
    grid.keep(one | (grid["pipeline"] > 1) if one.any() else np.ones(one.shape, dtype=bool))
    virtual = {v for total in chunks for v in divisors(total) if v <= deepest} | {1, 2}
    grid.cross("virtual", _chosen(problem, "virtual_pipeline_size", sorted(virtual)))
    p, v, schedule = grid["pipeline"], grid["virtual"], grid["schedule"]
    micro = batch // (grid["data"] * grid["micro"])
    dealt = np.zeros(p.shape, dtype=bool)
    for total in chunks:
        dealt |= total % (p * v) == 0
    interleaved = (schedule == Schedule.ONE_F_ONE_B) & (p > 1) & (p * v <= layers) & dealt & (micro % p == 0)
    there_and_back = (schedule == Schedule.ZB_V) & (v == 2) & (2 * p <= layers) & (p > 1)
    grid.keep(np.where(v == 1, schedule != Schedule.ZB_V, interleaved | there_and_back))


def _zero(problem: TrainProblem, grid: _Grid) -> None:
    if "zero_stage" in problem.fixed:
        grid.cross("zero", [problem.fixed["zero_stage"]])
        return
    pipelined, alone = (zero_stages(problem.framework, flag) for flag in (True, False))
    grid.cross("zero", {*pipelined, *alone})
    several = grid["pipeline"] > 1
    legal = np.where(several, np.isin(grid["zero"], pipelined), np.isin(grid["zero"], alone))
    lowest = np.where(several, min(pipelined, default=0), min(alone))
    one = grid["data"] * grid["context"] == 1
    grid.keep(legal & (~one | (grid["zero"] == lowest)))
