"""Options of a stage: runs of units of one block and how they work, with seconds and bytes of every layer."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from formulations.parallelism.training.mixed.pricing import exposed, reduction
from formulations.parallelism.training.mixed.problem import MixedProblem
from formulations.parallelism.training.search.plans import passes_of
from formulations.parallelism.training.search.problem import RECOMPUTE, TrainProblem
from formulations.parallelism.training.search.space import (
    MIN_CONTEXT_TOKENS,
    MOST_MICRO_BATCH,
    divisors,
    powers_of_two,
    tensor_sizes,
    zero_stages,
)
from planner.cost.training.memory import training_memory_by_stage
from planner.cost.training.plans import TrainingPlans
from planner.cost.training.sizes import plan_sizes

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Options:
    """Ways for n units of a block to be a stage, arrays [n]; rows of [n, layers], the ends with embedding and head.

    plans : as pipelines of one layer a stage. busy_s, update_s : [n, L + 1, L + 1] of every run of layers, the
    reduction before any of it hides, and the optimizer.
    """

    block: int
    units: IntArray
    plans: TrainingPlans
    layer_s: FloatArray
    layer_bytes: FloatArray
    kept_bytes: FloatArray
    capacity_bytes: FloatArray
    busy_s: FloatArray
    update_s: FloatArray

    def __getitem__(self, chosen: IntArray | npt.NDArray[np.bool_]) -> Options:
        return Options(
            self.block, self.units[chosen], self.plans[chosen], self.layer_s[chosen], self.layer_bytes[chosen],
            self.kept_bytes[chosen], self.capacity_bytes[chosen], self.busy_s[chosen], self.update_s[chosen],
        )  # fmt: skip

    def __len__(self) -> int:
        return int(self.units.size)

    def sync_s(self, overlap: float) -> FloatArray:
        """What a step waits for after the last micro-batch, [n, L + 1, L + 1]."""
        return exposed(self.busy_s, runs(self.layer_s), overlap) + self.update_s


def context_sizes(block: TrainProblem) -> list[int]:
    """1, or what is fixed; powers of two where sequences are so long that a rank keeps MIN_CONTEXT_TOKENS x 16."""
    if "context_parallel_size" in block.fixed:
        return [block.fixed["context_parallel_size"]]
    most = max(1, block.sequence_length // (16 * MIN_CONTEXT_TOKENS))
    return [one for one in powers_of_two(most) if block.sequence_length % one == 0]


def expert_sizes(block: TrainProblem, ranks: int) -> list[int]:
    """Sizes that divide all expert counts and the ranks that hold them."""
    counts = block.model.num_experts
    wanted = [block.fixed["expert_parallel_size"]] if "expert_parallel_size" in block.fixed else divisors(ranks)
    return [
        one for one in wanted if ranks % one == 0 and (one == 1 if not counts else all(c % one == 0 for c in counts))
    ]


def sharding(block: TrainProblem, pipelined: bool = True) -> list[int]:
    """ZeRO stages 0 and 1, whose collectives run once a step, of those that the framework runs or that are fixed."""
    known = [block.fixed["zero_stage"]] if "zero_stage" in block.fixed else zero_stages(block.framework, pipelined)
    return [one for one in known if one <= 1][:1]


def stage_options(problem: MixedProblem, number: int, micro_batches: int) -> Options | None:
    """All options of a block's runs that are legal and not worse in everything; None where there is none."""
    block, unit = problem.blocks[number], problem.unit(number)
    sequences = block.global_batch_size // micro_batches
    rows: list[tuple[int, ...]] = []
    for units in range(1, block.num_gpus // unit + 1):
        gpus = units * unit
        for tensor, context in product(tensor_sizes(block), context_sizes(block)):
            data, left = divmod(gpus, tensor * context)
            if left or not data or sequences % data or block.fixed.get("data_parallel_size", data) != data:
                continue
            micro = sequences // data
            if micro > MOST_MICRO_BATCH or block.fixed.get("micro_batch_size", micro) != micro:
                continue
            for expert, zero, name in product(expert_sizes(block, data * context), sharding(block), block.recompute):
                rows.append((units, tensor, context, expert, data, micro, zero, int(RECOMPUTE[name])))
    if not rows or block.fixed.get("virtual_pipeline_size", 1) != 1 or "1f1b" not in block.schedules:
        return None
    units, tensor, context, expert, data, micro, zero, recompute = np.array(rows, dtype=np.int64).T
    plans = TrainingPlans.build(
        tensor_parallel_size=tensor,
        context_parallel_size=context,
        expert_parallel_size=expert,
        data_parallel_size=data,
        micro_batch_size=micro,
        zero_stage=zero,
        recompute=recompute,
        pipeline_parallel_size=problem.model.num_layers,
        global_batch_size=block.global_batch_size,
        sequence_length=block.sequence_length,
        flash_attention=block.flash_attention,
        gradient_bytes=block.gradient_bytes,
        stage_layers=[1] * problem.model.num_layers,
    )
    return _unbeaten(_priced(problem, number, units, plans), unit)


def _priced(problem: MixedProblem, number: int, units: IntArray, plans: TrainingPlans) -> Options:
    block, margin = problem.blocks[number], problem.blocks[number].margin
    layer_s = passes_of(block, plans).total_s
    memory = training_memory_by_stage(problem.model, plans, margin)
    layers = problem.model.num_layers
    flying = np.minimum(layers - np.arange(layers), plans.num_micro_batches[:, None])
    # Working buffers are of the stage, not of its layers; the embedding's gathered copies are with its layer.
    working = memory.working.min(axis=1)
    beside = memory.logits + memory.working - working[:, None]
    states = memory.states
    dense, routed = _parameters_of_runs(problem)
    many = (len(plans), layers + 1, layers + 1)
    sizes = plan_sizes(plans)
    busy_s, update_s = reduction(block, sizes, np.broadcast_to(dense, many), np.broadcast_to(routed, many))
    return Options(
        block=number,
        units=units,
        plans=plans,
        layer_s=layer_s,
        layer_bytes=margin.states_factor * states + margin.activations_factor * beside,
        kept_bytes=margin.activations_factor * memory.activations / flying,
        capacity_bytes=block.capacity_bytes - margin.fixed_bytes - margin.activations_factor * working,
        busy_s=busy_s,
        update_s=update_s,
    )


def _parameters_of_runs(problem: MixedProblem) -> tuple[FloatArray, FloatArray]:
    """Parameters of layers a .. b - 1 [L + 1, L + 1] with embedding and head: of every token, and routed ones."""
    model = problem.model
    kinds = [model.kinds[k] for k in model.pattern]
    dense = np.array([[float(kind.dense_parameters) for kind in kinds]])
    dense[0, 0] += model.embedding_parameters
    dense[0, -1] += model.embedding_parameters
    of_all = runs(dense)[0]
    if model.tied:
        of_all[0, -1] -= model.embedding_parameters
    return of_all, runs(np.array([[float(kind.routed_parameters) for kind in kinds]]))[0]


def runs(by_layer: FloatArray) -> FloatArray:
    """Sums over layers a .. b - 1 at [n, a, b], 0 where b <= a."""
    before = np.concatenate([np.zeros((len(by_layer), 1)), np.cumsum(by_layer, axis=1)], axis=1)
    return np.asarray(np.maximum(before[:, None, :] - before[:, :, None], 0.0))


def _unbeaten(options: Options, unit: int) -> Options | None:
    """Without options that hold not even one layer, or that another of as many units beats or equals in everything.

    Less work and less reduction is never slower, although less work hides less of a reduction: it hides no more than
    the work is less. Tensor groups begin at multiples of their size, so that the other must lie wherever this one may.
    """
    holds = (options.layer_bytes + options.kept_bytes).min(axis=1) <= options.capacity_bytes
    options = options[holds]
    if not len(options):
        return None
    few = np.concatenate(
        [options.layer_s, options.layer_bytes, options.kept_bytes, -options.capacity_bytes[:, None]], axis=1
    )
    # Units between places where an option may begin.
    tensor = options.plans.tensor_parallel_size
    steps = tensor // np.gcd(tensor, unit)
    kept: list[int] = []
    for place in np.lexsort((steps, options.layer_s.sum(axis=1), options.units)).tolist():
        beaten = any(
            (few[other] <= few[place]).all()
            and steps[place] % steps[other] == 0
            and (options.busy_s[other] <= options.busy_s[place]).all()
            and (options.update_s[other] <= options.update_s[place]).all()
            for other in kept
            if options.units[other] == options.units[place]
        )
        if not beaten:
            kept.append(place)
    return options[np.array(sorted(kept))]
