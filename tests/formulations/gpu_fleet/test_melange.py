"""Mélange's sliced model: against enumeration, against the model as written, and never below continuous shares."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest

from formulations.backends.linear import solve_linear_pulp
from formulations.base import solve
from formulations.gpu_fleet.check import check
from formulations.gpu_fleet.formulation import GPU_FLEET
from formulations.gpu_fleet.melange import SLICES, as_written, rent
from formulations.gpu_fleet.problem import FleetProblem
from formulations.gpu_fleet.reading import read_problem
from formulations.outcome import Budget, SolveOptions, Status, Stop
from planner.descriptions.fleet import FleetInstance
from planner.errors import OptionError

SLICED = ("melange-1", "melange-4", "melange-8")


def problem(throughput: list[list[float]], rates: list[float], prices: list[float], **more: Any) -> FleetProblem:
    """Buckets by offers; throughput in requests/s of one GPU."""
    caps = more.pop("caps", [None] * len(prices))
    offers = [
        {"name": f"g{k}", "device": f"g{k}", "price_usd_per_hour": price, "max_count": cap}
        for k, (price, cap) in enumerate(zip(prices, caps, strict=True))
    ]
    profiles = [
        {"offer": f"g{k}", "model": "m", "input_tokens": d + 1, "output_tokens": 1, "max_rate_per_s": rate}
        for d, row in enumerate(throughput)
        for k, rate in enumerate(row)
    ]
    demand = [
        {"model": "m", "input_tokens": d + 1, "output_tokens": 1, "rate_per_s": rate} for d, rate in enumerate(rates)
    ]
    described = {"name": "t", "offers": offers, "models": [{"name": "m"}], "demand": demand, "profiles": profiles}
    return read_problem(FleetInstance.model_validate(described | more))


def random_problem(seed: int) -> FleetProblem:
    rng = np.random.default_rng(seed)
    buckets, offers = int(rng.integers(2, 4)), int(rng.integers(2, 4))
    throughput = rng.uniform(0.5, 4.0, (buckets, offers)) * (rng.random((buckets, offers)) < 0.8)
    throughput[:, 0] = np.maximum(throughput[:, 0], 0.5)
    rates, prices = rng.uniform(0.2, 3.0, buckets), rng.uniform(1.0, 5.0, offers)
    return problem(throughput.tolist(), rates.tolist(), prices.tolist())


def total(instance: FleetProblem, method: str) -> float:
    outcome = solve(GPU_FLEET, instance, SolveOptions(method=method, time_limit_s=20))
    assert outcome.objective is not None
    return outcome.objective.total


def enumerated(instance: FleetProblem, slices: int) -> float:
    """Every split of every bucket into whole slices; instances are what the pooled load takes."""
    load = instance.load(0) / slices
    ways = [split for split in product(range(slices + 1), repeat=instance.num_offers) if sum(split) == slices]
    best = np.inf
    for chosen in product(ways, repeat=len(load)):
        slice_counts = np.array(chosen)
        if np.isinf(load[slice_counts > 0]).any():
            continue
        used = (np.where(slice_counts > 0, load, 0.0) * slice_counts).sum(axis=0)
        best = min(best, float(np.ceil(used - 1e-9) @ instance.price))
    return best


@pytest.mark.parametrize("seed", range(6))
def test_slices_as_enumerated(seed: int) -> None:
    instance = random_problem(seed)
    for slices in (1, 4):
        assert total(instance, f"melange-{slices}") == pytest.approx(enumerated(instance, slices))


@pytest.mark.parametrize("seed", range(6))
def test_equal_slices_have_the_optimum_of_the_model_as_written(seed: int) -> None:
    instance = random_problem(seed)
    for slices in (1, 4, 8):
        result, values = solve_linear_pulp(as_written(instance, slices), Budget(20), SolveOptions(time_limit_s=20))
        assert result.status is Status.OPTIMAL
        assert values is not None
        assert rent(instance, values) == pytest.approx(total(instance, f"melange-{slices}"))


@pytest.mark.parametrize("seed", range(6))
def test_finer_slices_are_not_costlier_and_continuous_shares_are_cheapest(seed: int) -> None:
    instance = random_problem(seed)
    one, four, eight, shares = (total(instance, method) for method in (*SLICED, "highs"))
    sixteen = total(instance, "cp-sat")
    for coarse, fine in ((one, four), (four, eight), (eight, sixteen), (sixteen, shares)):
        assert fine <= coarse + 1e-9


def test_a_slice_that_only_just_does_not_fit_costs_more() -> None:
    # Two buckets of 0.6 g0 each. Shares: a whole g0 and the rest, 0.4, on a g1: 1.60 USD, and so with 4 slices.
    # Whole buckets: both on g0 2.00, one on each 1 + 2 x 0.6, both on g1 3 x 0.6.
    instance = problem([[1.0, 0.5], [1.0, 0.5]], [0.6, 0.6], [1.0, 0.6])
    assert total(instance, "highs") == pytest.approx(1.6)
    assert total(instance, "melange-4") == pytest.approx(1.6)
    assert total(instance, "melange-1") == pytest.approx(1.8)


@pytest.mark.parametrize("method", SLICES)
def test_never_optimal_and_the_bound_is_of_continuous_shares(method: str) -> None:
    instance = problem([[2.0, 3.0]], [5.0], [1.0, 1.8])
    outcome = solve(GPU_FLEET, instance, SolveOptions(method=method))
    assert outcome.status is Status.FEASIBLE
    assert outcome.stop is Stop.HEURISTIC
    assert outcome.bound is not None
    assert outcome.bound.value == pytest.approx(2.5)  # 5 requests/s at 0.5 USD for each
    assert outcome.plan is not None
    assert check(instance, outcome.plan) == []


@pytest.mark.parametrize("method", SLICES)
def test_limits_are_kept(method: str) -> None:
    free = problem([[1.0, 1.0]], [3.0], [1.0, 2.0])
    assert total(free, method) == pytest.approx(3.0)
    assert total(replace(free, headroom=0.5), method) == pytest.approx(5.0)
    capped = problem([[1.0, 1.0]], [3.0], [1.0, 2.0], caps=[1, None])
    # Of 3 GPUs one may be g0. No number of slices is exactly 1 GPU: more than 2 stay for g1, so all go there.
    assert total(capped, "highs") == pytest.approx(5.0)
    assert total(capped, method) == pytest.approx(6.0)
    quota = [{"name": "q", "offers": ["g0"], "max_gpus": 0}]
    assert total(problem([[1.0, 1.0]], [3.0], [1.0, 2.0], quotas=quota), method) == pytest.approx(6.0)


@pytest.mark.parametrize("method", SLICES)
def test_what_mélange_cannot_express_is_refused(method: str) -> None:
    plain = {"throughput": [[1.0]], "rates": [1.0], "prices": [1.0]}
    hourly = [{"model": "m", "input_tokens": 1, "output_tokens": 1, "hourly": [1.0, 2.0]}]
    for more, named in (
        ({"spare_instances": 1}, "spare_instances"),
        ({"max_spot_share": 0.5}, "max_spot_share"),
        ({"current": {"g0": 1}}, "current fleet"),
        ({"demand": hourly}, "by the hour"),
    ):
        with pytest.raises(OptionError, match=named):
            solve(GPU_FLEET, problem(**plain, **more), SolveOptions(method=method))


@pytest.mark.parametrize("method", SLICES)
def test_infeasible_only_where_no_shares_serve(method: str) -> None:
    hopeless = problem([[1.0], [0.0]], [1.0, 1.0], [1.0])
    outcome = solve(GPU_FLEET, hopeless, SolveOptions(method=method))
    assert outcome.status is Status.INFEASIBLE
    assert "m 2/1 tokens" in outcome.reasons[0]
    # Shares split 1 request/s over two capped GPUs; one slice cannot, which is no proof for the instance.
    tight = problem([[0.5, 0.5]], [1.0], [1.0, 1.0], caps=[1, 1])
    outcome = solve(GPU_FLEET, tight, SolveOptions(method=method))
    expected = Status.UNKNOWN if method == "melange-1" else Status.FEASIBLE
    assert outcome.status is expected
