"""Windows of layers over a ring of home devices: the fastest token in one model, without cases by device class.

Sets and data: see `problem`; W = L / k layers a round, v[i] layers that the GPU of i holds in each round.

Variables
    w[i]  layers of the window of i, integer >= 0 (>= 1 where every device has to take part)
    g[i]  of them on the GPU, integer, 0 <= g[i] <= v[i]
    o[i]  layers, of all rounds, that are read from disk for every token, >= 0
    u[i]  i has a window, binary; a[i]  i is alone, binary (where hand-overs take time)
    z[i]  the RAM of i is short, binary (where all is read anew)

Objective
    minimise sum_i k (cpu_s (w - g) + gpu_s g) + b o / disk + k hop (u - a)

Constraints
    cover     sum_i w[i] = W
    split     g[i] <= w[i]
    overflow  o[i] >= k (w[i] - g[i]) - ram[i] / b
    all anew  k (w[i] - g[i]) <= ram[i] / b + L z[i],   o[i] >= k (w[i] - g[i]) - L (1 - z[i])     where all[i]
    used      w[i] <= W u[i]
    alone     a[i] <= u[i],   sum_{j != i} u[j] <= (n - 1)(1 - a[i])

prima.cpp's Halda solves this for one fixed guess of which devices run short of memory, and guesses anew until the guess
holds, which may end at a plan that is not the best. Here the overflow is a variable, so no guess is needed.

One round is never worse: k rounds of windows w are, in this model, one round of windows k w with fewer hand-overs.
More rounds help where reading the next window overlaps with the other devices' work, which this model leaves out.

Ignored: prompts, caches and the overlap of reading and computing. Reference: prima.cpp (arXiv:2504.08791), Linux and
macOS cases of its layer-window assignment.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from formulations.backends.linear import LinearBuilder, LinearModel
from formulations.parallelism.windows.problem import IntArray, WindowsProblem


@dataclass(frozen=True, slots=True, eq=False)
class WindowsModel:
    """The model, and where the windows are: columns [devices]."""

    model: LinearModel
    w: IntArray
    g: IntArray


def build(problem: WindowsProblem) -> WindowsModel:
    """The whole model; times in milliseconds, so that rounding of the solver stays below what matters."""
    builder = LinearBuilder()
    k, n, window = problem.rounds, problem.num_devices, problem.window
    ms = 1e3
    cpu, gpu = k * problem.cpu_layer_s * ms, k * problem.gpu_layer_s * ms
    reload = problem.layer_bytes / problem.disk_bytes_per_s * ms
    w = builder.variables((n,), lower=float(problem.every_device), upper=window, cost=cpu, integer=True)
    g = builder.variables((n,), upper=np.minimum(problem.gpu_layers, window), cost=gpu - cpu, integer=True)
    o = builder.variables((n,), upper=problem.num_layers, cost=reload)
    builder.rows(window, window, (w[None, :], 1.0))
    builder.rows(-np.inf, 0.0, (g, 1.0), (w, -1.0))
    room = problem.ram_bytes / problem.layer_bytes
    builder.rows(-np.inf, room, (w, float(k)), (g, -float(k)), (o, -1.0))
    _all_anew(builder, problem, w, g, o, room)
    if problem.hop_s.any():
        _hops(builder, problem, w)
    return WindowsModel(builder.build(), w, g)


def _all_anew(
    builder: LinearBuilder,
    problem: WindowsProblem,
    w: IntArray,
    g: IntArray,
    o: IntArray,
    room: np.ndarray[tuple[int], np.dtype[np.float64]],
) -> None:
    anew = np.flatnonzero(problem.reloads_all)
    if not anew.size:
        return
    k, most = float(problem.rounds), float(problem.num_layers)
    z = builder.variables((anew.size,), integer=True)
    # What fits is a whole number of layers, so that a rounded z cannot hide one.
    fits = np.floor(room[anew] * (1 + 1e-12))
    builder.rows(-np.inf, fits, (w[anew], k), (g[anew], -k), (z, -most))
    builder.rows(-np.inf, most, (w[anew], k), (g[anew], -k), (o[anew], -1.0), (z, most))


def _hops(builder: LinearBuilder, problem: WindowsProblem, w: IntArray) -> None:
    n, hop = problem.num_devices, problem.rounds * problem.hop_s * 1e3
    u = builder.variables((n,), cost=hop, integer=True)
    alone = builder.variables((n,), cost=-hop, integer=True)
    builder.rows(-np.inf, 0.0, (w, 1.0), (u, -float(problem.window)))
    builder.rows(-np.inf, 0.0, (alone, 1.0), (u, -1.0))
    others = np.array([[j for j in range(n) if j != i] for i in range(n)], dtype=np.int64).reshape(n, n - 1)
    builder.rows(-np.inf, n - 1.0, (u[others], 1.0), (alone, n - 1.0))
