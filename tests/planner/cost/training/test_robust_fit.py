"""The robust log fit: exact answers, priors, outliers, broken inputs."""

import numpy as np
import pytest

from planner.cost.robust_fit import FitResult, fit_log

SIZES = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])


def line(params: np.ndarray) -> np.ndarray:
    """A latency and a rate, both as logarithms."""
    return np.exp(params[0]) + np.exp(params[1]) * SIZES


def test_recovers_the_truth_without_noise() -> None:
    truth = np.log([3.0, 0.5])
    result = fit_log(line, line(truth), [0.0, 0.0], [3.0, 3.0], residual_sd=0.001)
    assert result.converged
    assert result.params == pytest.approx(truth, abs=1e-4)
    assert result.mape < 1e-4


def test_one_multiplier_without_prior_is_the_mean_log_ratio() -> None:
    observed = np.array([2.0, 4.0, 8.0])
    result = fit_log(lambda p: np.exp(p[0]) * np.ones(3), observed, [0.0], [np.inf], soft_scale=1e6)
    assert result.params[0] == pytest.approx(np.log(4.0))
    assert result.residuals == pytest.approx(np.log(4.0 / observed), abs=1e-9)
    # Three rows of sd 0.1 each: the mean has sd 0.1 / sqrt(3).
    assert result.sd[0] == pytest.approx(0.1 / np.sqrt(3.0))


def test_the_prior_and_the_data_meet_by_their_precisions() -> None:
    """Data say 1 with sd 0.2, the prior says 0 with sd 0.2: half way."""
    result = fit_log(lambda p: np.exp(p), [np.e], [0.0], [0.2], residual_sd=0.2, soft_scale=1e6)
    assert result.params[0] == pytest.approx(0.5)
    assert result.sd[0] == pytest.approx(0.2 / np.sqrt(2.0))


def test_an_outlier_moves_a_soft_fit_less_than_a_square_one() -> None:
    truth = np.log([3.0, 0.5])
    observed = line(truth)
    observed[2] *= 5.0
    soft = fit_log(line, observed, [0.0, 0.0], [3.0, 3.0], residual_sd=0.05)
    square = fit_log(line, observed, [0.0, 0.0], [3.0, 3.0], residual_sd=0.05, soft_scale=1e6)
    assert np.abs(soft.params - truth).max() < 0.1 < np.abs(square.params - truth).max()


def test_weights_count_as_repeated_rows() -> None:
    observed = np.array([1.0, 2.0])
    twice = fit_log(lambda p: np.exp(p[0]) * np.ones(3), [1.0, 2.0, 2.0], [0.0], [1.0])
    weighted = fit_log(lambda p: np.exp(p[0]) * np.ones(2), observed, [0.0], [1.0], weights=[1.0, 2.0])
    assert weighted.params == pytest.approx(twice.params)
    assert weighted.sd == pytest.approx(twice.sd)


def test_the_solution_is_a_minimum_of_the_stated_objective() -> None:
    rng = np.random.default_rng(3)
    observed = line(np.log([3.0, 0.5])) * np.exp(rng.normal(0.0, 0.3, SIZES.size))
    result = fit_log(line, observed, [0.0, 0.0], [1.0, 1.0], residual_sd=0.1, soft_scale=0.7)

    def objective(params: np.ndarray) -> float:
        z = np.log(line(params) / observed) / 0.1
        return float((0.49 * (np.sqrt(1 + (z / 0.7) ** 2) - 1)).sum() + 0.5 * (params**2).sum())

    best = objective(result.params)
    for offset in (0.01, -0.01):
        for k in range(2):
            moved = result.params.copy()
            moved[k] += offset
            assert objective(moved) > best


def test_errors_as_fractions() -> None:
    result = FitResult(np.zeros(1), np.zeros(1), np.log([1.1, 0.9]), True)
    assert result.mape == pytest.approx(0.1)
    assert result.bias == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    ("observed", "mean", "sd", "options", "message"),
    [
        ([], [0.0], [1.0], {}, "at least one value"),
        ([1.0, -1.0], [0.0], [1.0], {}, "positive and finite"),
        ([1.0, np.nan], [0.0], [1.0], {}, "positive and finite"),
        ([1.0], [0.0, 0.0], [1.0], {}, "same length"),
        ([1.0], [0.0], [0.0], {}, "prior_sd must be positive"),
        ([1.0], [0.0], [1.0], {"weights": [-1.0]}, "non-negative"),
        ([1.0], [0.0], [1.0], {"weights": [1.0, 1.0]}, "one for each"),
        ([1.0], [0.0], [1.0], {"residual_sd": 0.0}, "must be positive"),
    ],
)
def test_broken_inputs_are_refused(observed, mean, sd, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        fit_log(lambda p: np.exp(p[0]) * np.ones(len(observed)), observed, mean, sd, **options)


def test_a_model_that_cannot_start_is_refused() -> None:
    with pytest.raises(ValueError, match="at the prior mean"):
        fit_log(lambda p: p, [1.0], [-1.0], [1.0])
    with pytest.raises(ValueError, match="returned shape"):
        fit_log(lambda p: np.ones(3), [1.0], [0.0], [1.0])
