"""A small grid of log residuals: how far measured kernels lie from a roofline, multilinear in log2 of each size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IndexArray = npt.NDArray[np.intp]

#: Entries of the largest temporary array while normal equations are summed up (8 bytes each).
BLOCK_ENTRIES = 4_000_000


@dataclass(frozen=True, slots=True, eq=False)
class LogGrid:
    """log(measured / roofline) on nodes; between them multilinear, beyond them held at the edge.

    axes : ascending log2 coordinates of the nodes, one array a dimension; values : [len(axis) for axis in axes].
    """

    axes: tuple[FloatArray, ...]
    values: FloatArray

    def __call__(self, *sizes: npt.ArrayLike) -> FloatArray:
        """Log residual at positive sizes (not logs), one argument a dimension, broadcast; any shape."""
        flat = np.ascontiguousarray(self.values).ravel()
        total: FloatArray = np.asarray(0.0)
        for index, weight in _corners(self.axes, sizes):
            total = total + weight * flat[index]
        return total


def _place(axis: FloatArray, at: FloatArray) -> tuple[IndexArray, FloatArray]:
    """Lower node and share of the upper one, held inside the axis."""
    held = np.clip(at, axis[0], axis[-1])
    low = np.clip(np.searchsorted(axis, held, side="right") - 1, 0, len(axis) - 2)
    return low, (held - axis[low]) / (axis[low + 1] - axis[low])


def _corners(axes: Sequence[FloatArray], sizes: Sequence[npt.ArrayLike]) -> list[tuple[IndexArray, FloatArray]]:
    """Flat node index and weight of each corner of the cell around each point."""
    corners: list[tuple[IndexArray, FloatArray]] = [(np.asarray(0), np.asarray(1.0))]
    for axis, size in zip(axes, sizes, strict=True):
        low, share = _place(axis, np.log2(np.asarray(size, dtype=np.float64)))
        corners = [
            (index * len(axis) + low + up, weight * (share if up else 1.0 - share))
            for (index, weight), up in product(corners, (0, 1))
        ]
    return corners


def fit_grid(
    axes: Sequence[FloatArray],
    sizes: Sequence[FloatArray],
    residuals: FloatArray,
    *,
    weights: FloatArray | None = None,
    smooth: float = 0.1,
    ridge: float = 1e-3,
) -> LogGrid:
    """Least squares for the node values from scattered residuals [points].

    smooth : weight of the second differences along each axis; ridge : pull of every node towards 0. Both keep nodes
    without measurements near what their neighbours say, and so let the grid carry over to sizes that were not run.
    """
    shape = tuple(len(axis) for axis in axes)
    num_nodes, num_points = int(np.prod(shape)), len(residuals)
    share = np.ones(num_points) if weights is None else weights
    normal, target = np.zeros(num_nodes * num_nodes), np.zeros(num_nodes)
    step = max(1, BLOCK_ENTRIES // 4 ** len(shape))
    for start in range(0, num_points, step):
        block = slice(start, start + step)
        corners = _corners(axes, [size[block] for size in sizes])
        index = np.stack([nodes for nodes, _ in corners])
        weight = np.stack([part for _, part in corners])
        pairs = index[:, None] * num_nodes + index[None]
        normal += np.bincount(
            pairs.ravel(), weights=(weight[:, None] * weight[None] * share[block]).ravel(), minlength=normal.size
        )
        target += np.bincount(
            index.ravel(), weights=(weight * share[block] * residuals[block]).ravel(), minlength=num_nodes
        )
    matrix = normal.reshape(num_nodes, num_nodes) / num_points
    unit = np.trace(matrix) / num_nodes
    matrix += unit * (smooth * _roughness(shape) + ridge * np.eye(num_nodes))
    values = np.asarray(np.linalg.solve(matrix, target / num_points), dtype=np.float64)
    return LogGrid(axes=tuple(axes), values=values.reshape(shape))


@cache
def _roughness(shape: tuple[int, ...]) -> FloatArray:
    """Quadratic form of the second differences along all dimensions, [nodes, nodes]."""
    nodes = np.arange(int(np.prod(shape))).reshape(shape)
    total = np.zeros((nodes.size, nodes.size))
    for dimension in range(len(shape)):
        moved = np.moveaxis(nodes, dimension, 0)
        stencil = [(moved[i : max(i, len(moved) - 2 + i)].ravel(), part) for i, part in enumerate((1.0, -2.0, 1.0))]
        for (row, left), (column, right) in product(stencil, repeat=2):
            np.add.at(total, (row, column), left * right)
    return total
