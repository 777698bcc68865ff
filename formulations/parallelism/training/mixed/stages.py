"""Pipelines through blocks of unequal GPUs: every order of blocks and number of micro-batches, bounds first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import permutations

import numpy as np
import numpy.typing as npt

from formulations.outcome import Budget, SolveOptions
from formulations.parallelism.training.mixed.options import Options, stage_options
from formulations.parallelism.training.mixed.pricing import sent_s
from formulations.parallelism.training.mixed.problem import MOST_ORDERED, MixedProblem
from formulations.parallelism.training.search.space import divisors
from formulations.parallelism.training.uneven_stages import Stage, UnevenProblem, choose

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

#: Bounds are sums of floats.
_ROUNDING = 1 - 1e-9


@dataclass(frozen=True, eq=False)
class Pipelines:
    """One order of blocks with one number of micro-batches: the program, and what its options stand for.

    block, first_unit, option : [O] of each option of the program; option : its place in `options` of the block.
    """

    problem: UnevenProblem
    options: dict[int, Options]
    block: IntArray
    first_unit: IntArray
    option: IntArray


@dataclass(slots=True)
class Found:
    """The best pipeline so far, and the least that what was not looked at may take."""

    pipelines: Pipelines | None = None
    stages: tuple[Stage, ...] = ()
    step_s: float = np.inf
    bound_s: float = np.inf
    programs: int = 0
    passed_over: int = 0
    orders: tuple[tuple[int, ...], ...] = field(default=())


def orders(problem: MixedProblem) -> list[tuple[int, ...]]:
    """Orders of the blocks whose neighbours are joined; of many blocks those by speed, up and down."""
    count = len(problem.blocks)
    if count <= MOST_ORDERED:
        every = list(permutations(range(count)))
    else:
        speed = [one.device.peak_flop_per_s(one.precision) for one in problem.blocks]
        up = tuple(int(place) for place in np.argsort(speed, kind="stable"))
        every = [up, up[::-1]]
    found = []
    for order in every:
        # A missing way cuts an order in two; each part is an order of its own.
        parts, start = [], 0
        for place in range(1, count):
            if not problem.joined(order[place - 1], order[place]):
                parts.append(order[start:place])
                start = place
        parts.append(order[start:])
        found += [part for part in parts if len(part) > 1]
    return list(dict.fromkeys(found))


def best_pipeline(
    problem: MixedProblem, below_s: float, options: SolveOptions, budget: Budget, any_plan: bool = False
) -> Found:
    """The fastest pipeline that takes less than `below_s`, if there is one; or the first that is found."""
    found = Found(step_s=below_s, orders=tuple(orders(problem)))
    micro = list(divisors(problem.any_block.global_batch_size))
    queue: list[tuple[float, int, dict[int, Options]]] = []
    for count in micro:
        made = {block: stage_options(problem, block, count) for block in range(len(problem.blocks))}
        known = {block: one for block, one in made.items() if one is not None}
        if known:
            queue.append((least_step_s(problem, known, count), count, known))
        if budget.stop() is not None:
            found.bound_s = 0.0
            return found
    for bound_s, count, known in sorted(queue, key=lambda one: one[0]):
        for order in found.orders:
            if bound_s >= found.step_s:
                found.passed_over += 1
                continue
            if budget.stop() is not None:
                found.bound_s = min(found.bound_s, bound_s)
                continue
            pipelines = program(problem, order, count, known)
            if pipelines is None:
                continue
            found.programs += 1
            answer = choose(pipelines.problem, options, budget, found.step_s)
            if answer.plan is not None and answer.claimed is not None and answer.claimed < found.step_s:
                found.pipelines, found.stages, found.step_s = pipelines, answer.plan.stages, answer.claimed
                if any_plan:
                    return found
            if answer.bound is not None:
                found.bound_s = min(found.bound_s, max(answer.bound.value, bound_s))
    return found


def least_step_s(problem: MixedProblem, options: dict[int, Options], micro_batches: int) -> float:
    """No pipeline with so many micro-batches is faster: all work over the speed of all units at their best option.

    With w the work of a model on some option and r[o] the least of an option's layers over its, a stage takes
    T >= r sum of w, so that the slowest takes sum of all w / sum of 1 / r over the units there are.
    """
    reference = next(iter(options.values())).layer_s[0]
    whole = float(reference.sum())
    speed, quickest = 0.0, np.inf
    for block, one in options.items():
        ratio = (one.layer_s / reference).min(axis=1)
        units = problem.blocks[block].num_gpus // problem.unit(block)
        speed += units * float((1.0 / (ratio * one.units)).max())
        quickest = min(quickest, float(ratio.min()))
    pace_s = whole / speed
    return ((micro_batches - 1) * pace_s + max(pace_s, whole * quickest)) * _ROUNDING


def program(
    problem: MixedProblem, order: tuple[int, ...], micro_batches: int, options: dict[int, Options]
) -> Pipelines | None:
    """The program of one order; None where a block that must be passed through has no option."""
    rows = list(_rows(problem, order, options))
    if not rows:
        return None
    begin, end, block, first, place = np.array(rows, dtype=np.int64).T
    sequences = problem.any_block.global_batch_size // micro_batches
    layers = problem.model.num_layers
    received, sent = _exchange(problem, order, begin, end, block, options, place, sequences)
    by_block = [options.get(number) for number in range(len(problem.blocks))]

    def gathered(name: str) -> FloatArray:
        return np.stack([getattr(by_block[b], name)[p] for b, p in zip(block.tolist(), place.tolist(), strict=True)])

    sync = {b: one.sync_s(problem.blocks[b].coefficients.overlap) for b, one in options.items()}
    return Pipelines(
        problem=UnevenProblem(
            begin=begin,
            end=end,
            layer_s=gathered("layer_s"),
            layer_bytes=gathered("layer_bytes"),
            kept_bytes=gathered("kept_bytes"),
            sync_s=np.zeros((begin.size, layers)),
            send_s=np.broadcast_to(sent[:, None], (begin.size, layers + 1)).copy(),
            capacity_bytes=gathered("capacity_bytes"),
            closing_s=np.zeros(begin.size),
            micro_batches=micro_batches,
            receive_s=received,
            sync_runs_s=np.stack([sync[b][p] for b, p in zip(block.tolist(), place.tolist(), strict=True)]),
            stages=problem.any_block.fixed.get("pipeline_parallel_size"),
        ),
        options=options,
        block=block,
        first_unit=first,
        option=place,
    )


def _rows(
    problem: MixedProblem, order: tuple[int, ...], options: dict[int, Options]
) -> Iterator[tuple[int, int, int, int, int]]:
    """(begin, end, block, first unit in it, option) of every run of units that an option may take."""
    start = 0
    for block in order:
        unit, one = problem.unit(block), problem.blocks[block]
        count = one.num_gpus // unit
        if block in options:
            for place, units in enumerate(options[block].units.tolist()):
                tensor = int(options[block].plans.tensor_parallel_size[place])
                for first in range(count - units + 1):
                    if first * unit % tensor == 0:
                        yield start + first, start + first + units, block, first, place
        start += count


def _exchange(
    problem: MixedProblem,
    order: tuple[int, ...],
    begin: IntArray,
    end: IntArray,
    block: IntArray,
    options: dict[int, Options],
    place: IntArray,
    sequences: int,
) -> tuple[FloatArray, FloatArray]:
    """Seconds that each option receives and sends, by the blocks before and behind it in the order."""
    received, sent = np.zeros(begin.size), np.zeros(begin.size)
    starts = np.concatenate([[0], np.cumsum([problem.blocks[b].num_gpus // problem.unit(b) for b in order])])
    for position, number in enumerate(order):
        own = np.flatnonzero(block == number)
        if not own.size:
            continue
        gpus = options[number].units[place[own]] * problem.unit(number)
        for result, edge, at, beside in (
            (received, starts[position], begin, position - 1),
            (sent, starts[position + 1], end, position + 1),
        ):
            inside = sent_s(problem, number, number, gpus, sequences)
            there = 0 <= beside < len(order)
            across = sent_s(problem, number, order[beside], gpus, sequences) if there else inside
            result[own] = np.where(at[own] == edge, across, inside)
    return received, sent
