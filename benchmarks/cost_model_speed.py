"""Plans a second, one thread: `OMP_NUM_THREADS=1 python -m benchmarks.cost_model --case speed`.

Peers' speeds were measured elsewhere and are named, not compared. What carries over to another machine is how many
times longer a prediction takes than copying its inputs and outputs does, which the same run measures.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Iterator

import numpy as np

from benchmarks import cost_model_training as training
from benchmarks.common import Row, seconds
from benchmarks.silicon import silicon
from planner.cost.serving.coefficients import fitted
from planner.cost.serving.predict import ServingModel, ServingPlans
from planner.units import GIB

PLANS, SHORT_PLANS = 10_000_000, 2_000_000
#: Bytes of a plan's four inputs and eight outputs.
PLAN_BYTES = 8 * (4 + 8)
PEER = "AIConfigurator 0.12.0 run_agg, uncached: 0.0045-0.0063, measured elsewhere"


def random_plans(model: ServingModel, count: int) -> ServingPlans:
    """Any worker of the model under any load; nothing is sorted."""
    random = np.random.default_rng(0)
    return ServingPlans(
        random.integers(0, len(model.workers), count),
        *(random.integers(low, high, count).astype(np.float64) for low, high in ((1, 512), (100, 9000), (100, 3000))),
    )


def copy_seconds(count: int) -> float:
    """Seconds that numpy takes to copy the inputs and outputs of so many plans, from memory to memory."""
    source = np.ones(count * PLAN_BYTES // 8)
    target = np.empty_like(source)
    return seconds(lambda: np.copyto(target, source))


def speed(short: bool) -> Iterator[Row]:
    """The whole serving prediction of unsorted plans of many workers, its memory, and training steps."""
    count = SHORT_PLANS if short else PLANS
    model = silicon().runs.model.with_coefficients(fitted())
    compiled = seconds(lambda: ServingModel(model.workers[:20], model.coefficients), 1) / 20
    plans = random_plans(model, count)
    started = time.perf_counter()
    model.predict(plans)
    taken = time.perf_counter() - started
    del plans
    tracemalloc.start()
    model.predict(random_plans(model, count))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    case = f"speed, {count / 1e6:g} M serving plans"
    yield Row(case, "whole prediction, one thread", count / taken / 1e6, None, PEER, "M/s", "higher")
    times = taken / count / (copy_seconds(SHORT_PLANS) / SHORT_PLANS)
    yield Row(case, "over copying inputs and outputs", times, None, "numpy copy, same run", "times", "lower")
    yield Row(case, "peak memory of all arrays", peak / GIB, None if short else 1.0, "target", "GiB", "lower")
    yield Row(case, f"compiling one of {len(model.workers)} workers", compiled * 1e3, None, "", "ms", "lower")
    yield from training.CASES["speed"](short)
