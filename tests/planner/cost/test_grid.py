"""LogGrid and its fit: interpolation by hand, exact recovery, and the normal equations against a dense solve."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from planner.cost.operators import grid as module
from planner.cost.operators.grid import FloatArray, LogGrid, fit_grid

AXES = (np.array([0.0, 2.0, 4.0]), np.array([0.0, 1.0, 3.0, 4.0]))


def scattered(points: int = 200) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Sizes in and around the nodes of AXES, and noise."""
    rng = np.random.default_rng(3)
    return 2 ** rng.uniform(-1, 5, points), 2 ** rng.uniform(-1, 5, points), rng.normal(size=points)


def test_interpolates_in_the_logarithm_and_holds_at_the_edges() -> None:
    """Nodes 1, 4 with 0, 1: the middle of the logs is 2; cells are bilinear: (0 + 1 + 10 + 11) / 4."""
    grid = LogGrid((np.array([0.0, 2.0]), np.array([0.0, 1.0])), np.array([[0.0, 1.0], [10.0, 11.0]]))
    assert grid(2, 1) == pytest.approx(5.0)
    assert grid(2, 2**0.5) == pytest.approx(5.5)
    assert grid(0.01, 0.01) == 0.0
    assert grid(1e9, 1e9) == 11.0


def test_broadcasts() -> None:
    grid = LogGrid(AXES, np.arange(12.0).reshape(3, 4))
    assert grid(np.ones((5, 1)), np.ones(7)).shape == (5, 7)
    assert grid(1, 1).shape == ()


def test_recovers_a_multilinear_function() -> None:
    """a + b x + c y + d x y in the logs lies in the span of the grid and has no second differences on even axes."""
    axes = (np.arange(4.0), np.arange(5.0))
    rng = np.random.default_rng(1)
    first, second = 2 ** rng.uniform(0, 3, 400), 2 ** rng.uniform(0, 4, 400)
    x, y = np.log2(first), np.log2(second)
    values = 0.3 - 0.2 * x + 0.1 * y + 0.05 * x * y
    grid = fit_grid(axes, (first, second), values, smooth=0.1, ridge=1e-12)
    np.testing.assert_allclose(grid(first, second), values, atol=1e-8)


def test_normal_equations_equal_a_dense_solve(monkeypatch: pytest.MonkeyPatch) -> None:
    """min mean w (A v - r)² + u (s |D v|² + c |v|²) with A from the grid itself, in blocks of a few points."""
    first, second, residuals = scattered()
    weights = np.linspace(0.1, 2, residuals.size)
    smooth, ridge = 0.2, 0.01
    unit = [LogGrid(AXES, row.reshape(3, 4))(first, second) for row in np.eye(12)]
    design = np.stack(unit, axis=1)
    normal = (design * weights[:, None]).T @ design / residuals.size
    scale = np.trace(normal) / 12
    for i, j in product(range(3), range(4)):
        for step, size in (((1, 0), 3), ((0, 1), 4)):
            if (i, j)[step.index(1)] + 2 < size:
                bend = np.zeros((3, 4))
                for count, part in enumerate((1, -2, 1)):
                    bend[i + count * step[0], j + count * step[1]] = part
                normal += scale * smooth * np.outer(bend.ravel(), bend.ravel())
    normal += scale * ridge * np.eye(12)
    expected = np.linalg.solve(normal, design.T @ (weights * residuals) / residuals.size)
    monkeypatch.setattr(module, "BLOCK_ENTRIES", 16 * 7)
    fitted = fit_grid(AXES, (first, second), residuals, weights=weights, smooth=smooth, ridge=ridge)
    np.testing.assert_allclose(fitted.values.ravel(), expected, atol=1e-10)


def test_nodes_without_points_follow_their_neighbours() -> None:
    """Points at the first three nodes of a line that rises by 1 a node: the fourth goes on, the ridge hardly pulls."""
    sizes = 2 ** np.repeat([0.0, 1.0, 2.0], 5)
    grid = fit_grid((np.arange(4.0),), (sizes,), np.log2(sizes), smooth=0.1, ridge=1e-6)
    assert grid.values[3] == pytest.approx(3.0, abs=1e-3)
    pulled = fit_grid((np.arange(4.0),), (sizes,), np.log2(sizes), smooth=1e-6, ridge=0.1)
    assert abs(pulled.values[3]) < 0.1
