"""Plans that none beats in step time, free memory, cost and energy together; and the next best."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from formulations.parallelism.training.search.pricing import Priced, joules
from formulations.parallelism.training.search.problem import TrainProblem

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

#: Values within this share count as equal: the cost model does not tell them apart.
SAME = 0.01
#: Points of a document; of more the ends and evenly many between are kept.
MOST_POINTS, MOST_NEXT = 24, 5
_BLOCK = 4096


def frontier(problem: TrainProblem, fits: Priced) -> IntArray:
    """Places of plans that none beats, the fastest first; at most MOST_POINTS."""
    gpus = fits.plans.num_gpus
    # GPU seconds stand for cost, which is in proportion to them.
    measures = [fits.step_s, problem.capacity_bytes * (1.0 + SAME) - fits.memory_bytes, gpus * fits.step_s]
    if problem.watts is not None:
        measures.append(joules(problem, fits.step_s, fits.busy_s, gpus))
    grid = np.stack([np.floor(np.log(np.maximum(one, 1e-30)) / np.log1p(SAME)) for one in measures], axis=1)
    grid[:, 1] *= -1.0
    order = np.lexsort(grid.T[::-1])
    front = _unbeaten(grid[order])
    found = order[front]
    found = found[np.argsort(fits.step_s[found], kind="stable")]
    if found.size > MOST_POINTS:
        found = found[np.unique(np.linspace(0, found.size - 1, MOST_POINTS).round().astype(np.int64))]
    return np.asarray(found)


def _unbeaten(grid: FloatArray) -> IntArray:
    """Rows, in lexicographic order, that no other row beats or equals everywhere: those before decide."""
    kept: list[int] = []
    values = np.empty((0, grid.shape[1]))
    for start in range(0, len(grid), _BLOCK):
        block = grid[start : start + _BLOCK]
        beaten = np.zeros(len(block), dtype=np.bool_)
        for row in values:
            beaten |= (row <= block).all(axis=1)
        for place in np.flatnonzero(~beaten).tolist():
            if not (len(values) and (values <= block[place]).all(axis=1).any()):
                kept.append(start + place)
                values = np.concatenate([values, block[place][None]])
    return np.array(kept, dtype=np.int64)


def next_best(priced: Priced, chosen: tuple[int, ...]) -> tuple[IntArray, list[str]]:
    """The best plans with other parallel sizes than `chosen` (t, c, e, d, p), one of each, and how much worse."""
    plans = priced.plans
    sizes = np.stack(
        [
            plans.tensor_parallel_size, plans.context_parallel_size, plans.expert_parallel_size,
            plans.data_parallel_size, plans.pipeline_parallel_size,
        ],
        axis=1,
    )  # fmt: skip
    seen, found, whys = {chosen}, [], []
    best = priced.goal.min(initial=np.inf)
    for place in np.argsort(priced.goal, kind="stable")[:5000].tolist():
        key = tuple(sizes[place].tolist())
        if key in seen:
            continue
        seen.add(key)
        found.append(place)
        whys.append(f"{priced.goal[place] / best - 1:.1%} more than the best even plan")
        if len(found) == MOST_NEXT:
            break
    return np.array(found, dtype=np.int64), whys
