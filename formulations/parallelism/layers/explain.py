"""Why no pipeline holds the model, and the smallest changes that would let one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import numpy as np

from formulations.outcome import Budget
from formulations.parallelism.layers.pricing import OutOfTimeError, Pricing, pricings, useful_slots
from formulations.parallelism.layers.problem import PLAIN, FloatArray, LayersProblem, capacities
from planner.units import format_bytes, format_seconds

#: Whether some pipeline holds the model.
Holds = Callable[[LayersProblem], bool]


def holds(problem: LayersProblem, budget: Budget) -> bool:
    """Whether some pipeline over some path holds the model, whatever it takes of the devices. Raises OutOfTimeError."""
    if problem.most_pipelines == 0:
        return False
    found = False

    def visit(pricing: Pricing, path: tuple[int, ...], tables: object, cost: FloatArray) -> None:
        nonlocal found
        found |= bool(np.isfinite(cost).any())

    for part in pricings(problem, useful_slots(problem), limited=True):
        part.each_path(np.zeros(problem.num_classes), visit, budget)
        if found:
            return True
    return False


def reasons(problem: LayersProblem) -> tuple[str, ...]:
    """What is missing: memory, links between sites that have it, or time."""
    # The proof is there; saying why takes a few programs more, whatever time is left.
    budget = Budget(np.inf)
    held = int(problem.count @ problem.cap[:, PLAIN])
    short = _short_bytes(problem)
    if held < problem.num_layers:
        return (
            f"all devices together hold {held} of {problem.num_layers} layers;"
            f" memory is short by at least {format_bytes(short)}",
        )
    free = replace(problem, max_latency_s=np.inf, in_flight=np.inf)
    if not holds(free, budget):
        if len(problem.site_names) > 1:
            return ("no sites that links join in a row hold all layers, the embedding and the head",)
        return (f"beside the embedding and the head the devices hold fewer than {problem.num_layers} layers",)
    found = []
    latency, caches = np.isfinite(problem.max_latency_s), np.isfinite(problem.in_flight)
    if latency and not holds(replace(free, max_latency_s=problem.max_latency_s), budget):
        found.append(f"no pipeline passes a step in {format_seconds(problem.max_latency_s)}")
    if caches and not holds(replace(free, in_flight=problem.in_flight), budget):
        found.append(
            f"caches have room for {problem.in_flight:g} steps under way, and every pipeline has more stages or hops"
        )
    return tuple(found) or ("no pipeline keeps both the latency and the steps under way",)


def ways_out(problem: LayersProblem, budget: Budget) -> tuple[str, ...]:
    """Changes that would do, each alone, checked by the same program; fewer when time is up."""

    def holds_model(changed: LayersProblem) -> bool:
        with suppress(OutOfTimeError):
            return holds(changed, budget)
        return False

    ways = [*_more_devices(problem, holds_model), *_lighter(problem, holds_model)]
    if np.isfinite(problem.max_latency_s):
        longer = _least(holds_model, lambda factor: _slower(problem, factor))
        if longer is not None:
            ways.append(f"raise max_latency_s to {format_seconds(problem.max_latency_s * longer)}")
    if np.isfinite(problem.in_flight):
        more = _least(holds_model, lambda factor: _more_cache(problem, factor))
        if more is not None:
            ways.append(f"raise kv_tokens {more:.3g} times")
        # Each step then carries fewer sequences, so that there may be more steps.
        smaller = replace(problem, batch=1, in_flight=problem.in_flight * problem.batch)
        longer = 1.0 if holds_model(smaller) else _least(holds_model, lambda factor: _slower(smaller, factor))
        if problem.batch > 1 and longer is not None:
            also = f" and raise max_latency_s to {format_seconds(problem.max_latency_s * longer)}" if longer > 1 else ""
            ways.append(f"lower batch to 1{also}")
    return tuple(ways) or ("add devices or links between sites",)


def _short_bytes(problem: LayersProblem) -> float:
    """Memory that is missing, if it could be cut as one likes."""
    needs = problem.needs
    need = problem.num_layers * (needs.weight_bytes + needs.cache_bytes) + needs.embedding_bytes + needs.head_bytes
    return max(0.0, need - float(problem.count @ needs.room_bytes)) or needs.weight_bytes + needs.cache_bytes


def _more_devices(problem: LayersProblem, holds_model: Holds) -> list[str]:
    """The fewest more of one kind that make a pipeline possible, by the kind that takes fewest."""
    best: tuple[int, int] | None = None
    for group in range(problem.num_classes):
        if problem.cap[group, PLAIN] < 1:
            continue
        low, high = 0, problem.num_layers + 2
        if not holds_model(_with_more(problem, group, high)):
            continue
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if holds_model(_with_more(problem, group, middle)) else (middle, high)
        if best is None or high < best[0]:
            best = high, group
    if best is None:
        return []
    where = f" at {problem.site_names[problem.site[best[1]]]}" if problem.site_names else ""
    return [f"add {best[0]} {problem.names[best[1]]}{where}"]


def _with_more(problem: LayersProblem, group: int, more: int) -> LayersProblem:
    count = problem.count.copy()
    count[group] += more
    return replace(problem, count=count)


def _lighter(problem: LayersProblem, holds_model: Holds) -> list[str]:
    """The heaviest layers, or the most cache, with which the devices would hold the model."""
    needs = problem.needs
    ways = []
    weights = needs.weight_bytes + needs.embedding_bytes + needs.head_bytes
    for what, size in (("weights", weights), ("caches", needs.cache_bytes)):
        weight = what == "weights"
        if size <= 0:
            continue
        low, high = 1e-3, 1.0
        if not holds_model(_scaled(problem, *((low, 1.0) if weight else (1.0, low)))):
            continue
        for _ in range(10):
            middle = (low + high) / 2
            fits = holds_model(_scaled(problem, *((middle, 1.0) if weight else (1.0, middle))))
            low, high = (middle, high) if fits else (low, middle)
        if low > 1e-3:
            how = "fewer bits" if weight else "lower kv_tokens"
            ways.append(f"shrink the {what} to {np.floor(low * 1000) / 10:g}% of their bytes ({how})")
    return ways


def _scaled(problem: LayersProblem, weights: float, caches: float) -> LayersProblem:
    """With weights and caches so much smaller; speed as it is."""
    needs = problem.needs
    scaled = replace(
        needs,
        weight_bytes=needs.weight_bytes * weights,
        cache_bytes=needs.cache_bytes * caches,
        embedding_bytes=needs.embedding_bytes * weights,
        head_bytes=needs.head_bytes * weights,
    )
    return replace(problem, needs=scaled, cap=capacities(problem.num_layers, scaled))


def _slower(problem: LayersProblem, factor: float) -> LayersProblem:
    """With so many times the latency."""
    return replace(problem, max_latency_s=problem.max_latency_s * factor)


def _more_cache(problem: LayersProblem, factor: float) -> LayersProblem:
    """With so many times the tokens in caches, and so the steps under way."""
    return replace(_scaled(problem, 1.0, factor), in_flight=problem.in_flight * factor)


def _least(holds_model: Holds, change: Callable[[float], LayersProblem]) -> float | None:
    """The least factor above 1, in steps of a tenth, with which there is a pipeline; None below 1,000."""
    for power in range(1, 73):
        if holds_model(change(1.1**power)):
            return float(1.1**power)
    return None
