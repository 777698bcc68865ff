"""Plans priced by the cost model, what of that is minimised, and a bound over all splits of a plan's layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import numpy.typing as npt

from formulations.parallelism.training.search.problem import TrainProblem
from planner.cost.energy import IDLE_SHARE
from planner.cost.training.memory import training_memory
from planner.cost.training.plans import Schedule, TrainingPlans
from planner.cost.training.step import TrainingTimes, training_step
from planner.units import HOUR_S

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

#: Plans priced between two looks at the clock.
PIECE = 1 << 16
#: Layers that the first and the last stage may be short of, at most.
MOST_SHORT = (3, 6)
#: Bounds are a sum of floats.
_ROUNDING = 1 - 1e-9


@dataclass(frozen=True, eq=False)
class Priced:
    """Plans with what they take, arrays [n].

    memory_bytes : of the fullest GPU. busy_s : kernels and collectives of the stages, on average. goal : minimised.
    balanced : no split of the plan's layers is better; the goal itself without a pipeline.
    """

    plans: TrainingPlans
    step_s: FloatArray
    memory_bytes: FloatArray
    busy_s: FloatArray
    goal: FloatArray
    balanced: FloatArray

    def __getitem__(self, chosen: IntArray | npt.NDArray[np.bool_]) -> Priced:
        return Priced(
            self.plans[chosen], self.step_s[chosen], self.memory_bytes[chosen], self.busy_s[chosen], self.goal[chosen],
            self.balanced[chosen],
        )  # fmt: skip


def price(problem: TrainProblem, plans: TrainingPlans, memory_bytes: FloatArray | None = None) -> Priced:
    """Time of legal plans, and memory where that is not known yet."""
    if memory_bytes is None:
        memory_bytes = training_memory(problem.model, plans, problem.margin).total
    times = step_of(problem, plans)
    step_s, micro, stages = times.step_s, plans.num_micro_batches, plans.pipeline_parallel_size
    all_s = through_s(problem, plans, times)
    busy_s = np.minimum(micro * all_s / stages, step_s)
    plain = plans.schedule == Schedule.ONE_F_ONE_B
    filled = np.where(plain, (1.0 - 1.0 / stages) * all_s / plans.virtual_pipeline_size + times.pipeline_s, 0.0)
    balanced_s = np.where(stages > 1, np.minimum((busy_s + filled) * _ROUNDING, step_s), step_s)
    gpus = plans.num_gpus
    return Priced(
        plans=plans,
        step_s=step_s,
        memory_bytes=memory_bytes,
        busy_s=busy_s,
        goal=goal(problem, step_s, busy_s, gpus),
        balanced=goal(problem, balanced_s, np.minimum(busy_s, balanced_s), gpus),
    )


def through_s(problem: TrainProblem, plans: TrainingPlans, times: TrainingTimes) -> FloatArray:
    """Seconds of one micro-batch on all stages together, forward and backward, [n]."""
    slowest_s = (times.compute_s + times.tensor_s + times.context_s + times.expert_s) / plans.num_micro_batches
    plain = plans.schedule == Schedule.ONE_F_ONE_B
    bubble_s = times.bubble_s
    if not plain.all():
        # The stages are the same under any schedule; 1F1B tells what they take together.
        ones = np.ones_like(plans.virtual_pipeline_size)
        same = replace(plans, schedule=np.zeros_like(ones) + Schedule.ONE_F_ONE_B, virtual_pipeline_size=ones)
        bubble_s = np.where(plain, bubble_s, step_of(problem, same).bubble_s)
    return np.asarray(slowest_s + bubble_s * np.where(plain, plans.virtual_pipeline_size, 1))


def step_of(problem: TrainProblem, plans: TrainingPlans) -> TrainingTimes:
    """The cost model's step of these plans."""
    return training_step(
        problem.model, problem.device, problem.network, plans, problem.coefficients, problem.precision
    )  # fmt: skip


def goal(problem: TrainProblem, step_s: FloatArray, busy_s: FloatArray, gpus: IntArray) -> FloatArray:
    """What is minimised, [n]."""
    if problem.goal == "cost":
        return usd(problem, step_s, gpus)
    if problem.goal == "joules":
        return joules(problem, step_s, busy_s, gpus)
    return step_s


def usd(problem: TrainProblem, step_s: FloatArray, gpus: IntArray) -> FloatArray:
    """USD of a step; not a number without a price."""
    price_usd = np.nan if problem.usd_per_gpu_hour is None else problem.usd_per_gpu_hour
    return np.asarray(step_s * gpus * price_usd / HOUR_S)


def joules(problem: TrainProblem, step_s: FloatArray, busy_s: FloatArray, gpus: IntArray) -> FloatArray:
    """Energy of a step: a GPU that computes or communicates draws its board's power, one that waits a share of it."""
    watts = np.nan if problem.watts is None else problem.watts
    return np.asarray(gpus * watts * (busy_s + IDLE_SHARE * (step_s - busy_s)))


@cache
def splits(layers: int, stages: int, least: int) -> IntArray:
    """Layers of each stage where the first is some short, the last some, and the others are even, [k, stages].

    least : layers that each stage must have. What is left over goes to stages between, then the first, then the last.
    """
    found: set[tuple[int, ...]] = set()
    for first in range(MOST_SHORT[0] + 1):
        for last in range(MOST_SHORT[1] + 1):
            each, left = divmod(layers + first + last, stages)
            row = [each] * stages
            for place in [*range(1, stages - 1), 0, stages - 1][:left]:
                row[place] += 1
            row[0] -= first
            row[-1] -= last
            if min(row) >= least:
                found.add(tuple(row))
    return np.array(sorted(found), dtype=np.int64).reshape(len(found), stages)


def with_splits(problem: TrainProblem, plans: TrainingPlans) -> TrainingPlans | None:
    """Every plan under each split of its layers; None where no plan has a pipeline that could be split."""
    layers = problem.model.num_layers
    rows, tables = [], []
    width = int(plans.pipeline_parallel_size.max())
    for place, (stages, virtual) in enumerate(
        zip(plans.pipeline_parallel_size.tolist(), plans.virtual_pipeline_size.tolist(), strict=True)
    ):
        table = splits(layers, stages, virtual)
        rows.append(np.full(len(table), place))
        tables.append(np.pad(table, ((0, 0), (0, width - stages))))
    chosen = np.concatenate(rows)
    return replace(plans[chosen], stage_layers=np.concatenate(tables)) if chosen.size else None


def pieces(plans: TrainingPlans) -> Iterator[TrainingPlans]:
    """Plans in parts of PIECE."""
    for start in range(0, len(plans), PIECE):
        yield plans[start : start + PIECE]


def joined(parts: list[Priced]) -> Priced:
    """Parts of priced plans, one after the other."""
    return Priced(
        TrainingPlans.concat([part.plans for part in parts]),
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("step_s", "memory_bytes", "busy_s", "goal", "balanced")
        ),
    )


def best_of(priced: Priced) -> Priced | None:
    """The best of some plans alone; of equal ones that which leaves more memory. None where there is none."""
    if not priced.goal.size:
        return None
    place = int(np.lexsort((priced.memory_bytes, priced.goal))[0])
    return priced[np.array([place])]
