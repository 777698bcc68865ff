"""Why no plan fits, and the least changes with which one does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from formulations.parallelism.training.search.plans import sizes_at
from formulations.parallelism.training.search.pricing import pieces, step_of
from formulations.parallelism.training.search.problem import TrainProblem
from formulations.parallelism.training.search.space import MIN_CONTEXT_TOKENS, MOST_MICRO_BATCH, divisors, space
from planner.cost.training.judge import MEMORY_PARTS
from planner.cost.training.memory import training_memory
from planner.cost.training.plans import TrainingPlans
from planner.units import format_bytes

#: Parts of memory in the words of a report.
PART_WORDS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer states",
    "activations": "activations in flight",
    "logits": "logits",
    "working": "gathered or recomputed layers",
    "margin": "allocator, context and buffers",
}
#: Batches with so few divisors leave data parallelism little choice. Some up to an eighth larger are tried, and told
#: where they train so many times the tokens.
FEW_DIVISORS, MOST_MORE_BATCH, BATCHES_TRIED, WORTH_MORE = 4, 8, 3, 1.05
#: Times the GPUs that are tried before nothing is proposed.
MOST_TIMES = 64


def reasons(problem: TrainProblem, leanest: TrainingPlans | None) -> tuple[str, ...]:
    """The plan that needs the least memory, and the part that takes most of it; or that nothing is legal."""
    if leanest is None:
        fixed = ", ".join(f"{name} {value}" for name, value in problem.fixed.items()) or "none"
        told = f"{problem.global_batch_size} sequences on {problem.num_gpus} GPUs, fixed sizes: {fixed}"
        return (f"no sizes divide heads, layers, experts and batch together ({told})",)
    memory = training_memory(problem.model, leanest, problem.margin)
    parts = {name: float(getattr(memory, name)[0]) for name in MEMORY_PARTS}
    worst = max(parts, key=lambda name: parts[name])
    sizes = sizes_at(leanest, 0)
    told = ", ".join(f"{name.removesuffix('_size').removesuffix('_parallel')} {value}" for name, value in sizes.items())
    return (
        f"the least memory of all plans is {format_bytes(float(memory.total[0]))} a GPU,"
        f" there are {format_bytes(problem.capacity_bytes)}: {PART_WORDS[worst]} take {format_bytes(parts[worst])}"
        f" of it ({told})",
    )


def ways_out(problem: TrainProblem) -> tuple[str, ...]:
    """Changes that would do, each alone, each checked by the same enumeration."""
    return tuple(_ways(problem)) or ("use GPUs with more memory, or a smaller model",)


def _ways(problem: TrainProblem) -> Iterator[str]:
    for name in problem.fixed:
        rest = {one: value for one, value in problem.fixed.items() if one != name}
        if _fits(replace(problem, fixed=rest)):
            yield f"let {name} be chosen"
    if "full" not in problem.recompute and _fits(replace(problem, recompute=(*problem.recompute, "full"))):
        yield "allow recompute: full"
    if problem.gradient_bytes > 2 and _fits(replace(problem, gradient_bytes=2)):
        yield "keep gradients in 2 bytes (gradient_bytes: 2)"
    nodes = _least_nodes(problem)
    if nodes is not None:
        yield f"use {nodes} nodes instead of {problem.num_gpus // problem.gpus_per_node}"
    padded = -(-problem.sequence_length // MIN_CONTEXT_TOKENS) * MIN_CONTEXT_TOKENS
    longer = replace(problem, sequence_length=padded)
    if padded != problem.sequence_length and not problem.sequence_lengths and _fits(longer):
        yield f"pad sequences to {padded} tokens: context parallelism must divide them"
    length = problem.sequence_length // 2
    while length >= MIN_CONTEXT_TOKENS // 4 and not problem.sequence_lengths:
        if _fits(replace(problem, sequence_length=length)):
            yield f"shorten sequences to {length} tokens"
            break
        length //= 2
    least = _least_bytes(problem)
    if least is not None:
        yield f"use GPUs with {format_bytes(least)} of memory"


def batch_hint(problem: TrainProblem, tokens_per_s: float) -> Iterator[str]:
    """A slightly larger batch, with more divisors, where that trains clearly more tokens a second."""
    batch = problem.global_batch_size
    if len(divisors(batch)) > FEW_DIVISORS or problem.goal != "step_time":
        return
    near = range(batch + 1, batch + batch // MOST_MORE_BATCH + 1)
    rates = {}
    for size in sorted(near, key=lambda size: len(divisors(size)), reverse=True)[:BATCHES_TRIED]:
        rates[size] = _tokens_per_s(replace(problem, global_batch_size=size))
    larger = max(rates, key=lambda size: rates[size], default=batch)
    if rates.get(larger, 0.0) > WORTH_MORE * tokens_per_s:
        gain = rates[larger] / tokens_per_s - 1.0
        told = f"{batch} sequences have few divisors for data parallelism and micro-batches"
        yield f"a batch of {larger} trains {gain:.0%} more tokens a second: {told}"


def _tokens_per_s(problem: TrainProblem) -> float:
    """Of the best even plan that fits; 0 where none does."""
    plans, best = space(problem), 0.0
    for piece in pieces(plans) if plans is not None else ():
        fits = piece[training_memory(problem.model, piece, problem.margin).total <= problem.capacity_bytes]
        if len(fits):
            best = max(best, float(step_of(problem, fits).tokens_per_s.max()))
    return best


def _least_nodes(problem: TrainProblem) -> int | None:
    """The fewest nodes with which a plan fits."""
    now = problem.num_gpus // problem.gpus_per_node

    def fits(nodes: int) -> bool:
        return _fits(replace(problem, num_gpus=nodes * problem.gpus_per_node))

    return fewest(now, MOST_TIMES, fits)


def fewest(now: int, most_times: int, fits: Callable[[int], bool]) -> int | None:
    """The fewest of something, above what there is now, with which `fits` holds and goes on to; None above a multiple.

    The doubling below the answer did not fit, so the search between both ends is right where `fits` only turns once.
    """
    high = 2 * now
    while high <= most_times * now and not fits(high):
        high *= 2
    if high > most_times * now:
        return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def _least_bytes(problem: TrainProblem) -> float | None:
    plans = space(problem)
    if plans is None:
        return None
    return min(float(training_memory(problem.model, one, problem.margin).total.min()) for one in pieces(plans))


def _fits(problem: TrainProblem) -> bool:
    """Whether some even plan fits. Larger micro-batches than 1 need no look: they only take more memory."""
    fixed = problem.fixed
    if "micro_batch_size" not in fixed and MOST_MICRO_BATCH > 1:
        problem = replace(problem, fixed={**fixed, "micro_batch_size": 1})
    least = _least_bytes(problem)
    return least is not None and least <= problem.capacity_bytes
