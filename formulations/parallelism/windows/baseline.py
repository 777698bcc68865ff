"""The rule in use: prima.cpp's Halda, which guesses the devices that run short of memory until the guess holds.

Each guess makes the time of a device linear in its layers: one that is short reads what is too much, at the price of
its disk; one that is not may not go over its memory. The best windows for a guess are found, the guess is taken from
them anew, and the iteration ends when it repeats; without an answer for a guess, the device with the slowest disk that
was held to its memory is freed. No solver: for a guess, windows are filled layer by layer, the cheapest next, which is
exact for times that are convex in the layers.

Written from the published description (prima.cpp, arXiv:2504.08791, Linux case); it is not its code.
"""

from __future__ import annotations

import numpy as np

from formulations.parallelism.windows.problem import BoolArray, FloatArray, IntArray, WindowsProblem
from planner.layers_plan import WindowsPlan


def halda(problem: WindowsProblem) -> WindowsPlan | None:
    """The plan that the iteration ends with: the best that it saw."""
    # The published start: windows in proportion to memory.
    memory = problem.ram_bytes + problem.gpu_layers * problem.rounds * problem.layer_bytes
    share = memory / max(memory.sum(), 1.0) * problem.window
    w = np.maximum(np.floor(share).astype(np.int64), 1)
    short = _is_short(problem, w, np.minimum(w, problem.gpu_layers))
    seen: set[tuple[bool, ...]] = set()
    best: tuple[float, WindowsPlan] | None = None
    while tuple(short.tolist()) not in seen:
        seen.add(tuple(short.tolist()))
        found = _windows(problem, short)
        if found is None:
            held = np.flatnonzero(~short)
            if not held.size:
                return None
            short = short.copy()
            short[held[np.argmin(problem.disk_bytes_per_s[held])]] = True
            continue
        token_s = problem.times(*found).token_s
        if best is None or token_s < best[0]:
            best = token_s, problem.plan_of(*found)
        short = _is_short(problem, *found)
    return None if best is None else best[1]


def _is_short(problem: WindowsProblem, w: IntArray, g: IntArray) -> BoolArray:
    """Devices whose CPU layers are more than their RAM holds."""
    return problem.times(w, np.minimum(w, g)).reloaded_bytes > 0


def _windows(problem: WindowsProblem, short: BoolArray) -> tuple[IntArray, IntArray] | None:
    """Best windows where `short` devices read at least what is too much, the others nothing; None where none are.

    The published rows: a device that is guessed to be short is short, the other is not.
    """
    k, window = problem.rounds, problem.window
    # First layers go to the GPU, where it is faster.
    on_gpu = np.where(problem.gpu_layer_s < problem.cpu_layer_s, np.minimum(problem.gpu_layers, window), 0)
    fits = np.minimum(np.floor(problem.ram_bytes / (k * problem.layer_bytes) * (1 + 1e-12)), window).astype(np.int64)
    reload = k * problem.layer_bytes / problem.disk_bytes_per_s
    low = np.where(short, on_gpu + fits + 1, 1)
    high = np.where(short, window, on_gpu + fits)
    if (low > high).any() or low.sum() > window or high.sum() < window:
        return None
    w = low.copy()
    while w.sum() < window:
        w[np.argmin(_next(problem, w, on_gpu, short, reload) + np.where(w < high, 0.0, np.inf))] += 1
    return w, np.minimum(w, on_gpu)


def _next(problem: WindowsProblem, w: IntArray, on_gpu: IntArray, short: BoolArray, reload: FloatArray) -> FloatArray:
    """What one layer more takes on each device: on the GPU, on the CPU, or on the CPU and from disk."""
    cpu = problem.rounds * problem.cpu_layer_s + np.where(short, reload, 0.0)
    return np.where(w < on_gpu, problem.rounds * problem.gpu_layer_s, cpu)
