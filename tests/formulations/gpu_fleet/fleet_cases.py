"""Small fleets, in few words, and an oracle that tries every count."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import numpy as np
from scipy.optimize import brentq, linprog

from formulations.base import solve
from formulations.gpu_fleet.formulation import GPU_FLEET
from formulations.gpu_fleet.problem import FleetProblem
from formulations.gpu_fleet.reading import read_problem
from formulations.outcome import Outcome, SolveOptions
from planner.descriptions.fleet import FleetInstance
from planner.fleet_plan import FleetPlan

#: Requests of the one size that most cases have.
SIZE = {"input_tokens": 100, "output_tokens": 50}


def offers(**found: float | Mapping[str, Any]) -> list[dict[str, Any]]:
    """Offers by name: a price, or a price and more."""
    rows = []
    for name, given in found.items():
        said = dict(given) if isinstance(given, Mapping) else {"price": given}
        rows.append({"name": name, "device": "l4", "price_usd_per_hour": said.pop("price"), **said})
    return rows


def demand(rate: float | list[float], model: str = "m", **size: int) -> dict[str, Any]:
    """Requests of one size, at a rate or at one for each hour."""
    key = "hourly" if isinstance(rate, list) else "rate_per_s"
    return {"model": model, **SIZE, **size, key: rate}


def profile(offer: str, rate: float, model: str = "m", gpus: int | None = None, **size: int) -> dict[str, Any]:
    """Throughput of one size."""
    return {"offer": offer, "model": model, **SIZE, **size, "max_rate_per_s": rate, "gpus": gpus}


def does(offer: str, role: str, rate: float, **more: Any) -> dict[str, Any]:
    """Throughput of a role."""
    return {**profile(offer, rate, **more), "role": role}


def fleet(
    found: list[dict[str, Any]],
    asked: float | list[float] | list[dict[str, Any]],
    served: Mapping[str, float] | list[dict[str, Any]],
    **limits: Any,
) -> FleetInstance:
    """An instance. A rate (or one for each hour) is that of model m; `served` by offer is what it serves of it."""
    single = not isinstance(asked, list) or not isinstance(asked[0], dict)
    rows = [demand(asked)] if single else asked  # type: ignore[arg-type]
    profiles = [profile(*one) for one in served.items()] if isinstance(served, Mapping) else served
    models = limits.pop("models", [{"name": name} for name in dict.fromkeys(row["model"] for row in rows)])
    return FleetInstance(
        **{"name": "case", "offers": found, "models": models, "demand": rows, "profiles": profiles, **limits}
    )


def problem(*arguments: Any, **limits: Any) -> FleetProblem:
    """The arrays of `fleet(...)`."""
    return read_problem(fleet(*arguments, **limits))


def run(instance: FleetProblem, method: str = "highs", **options: Any) -> Outcome[FleetPlan]:
    """Solve to the end."""
    return solve(GPU_FLEET, instance, SolveOptions(**{"method": method, "time_limit_s": 60.0, **options}))


def best(instance: FleetProblem, method: str = "highs") -> float:
    """The proven optimum, USD/hour."""
    outcome = run(instance, method)
    assert outcome.status == "optimal", (outcome.status, outcome.reasons)
    assert outcome.objective is not None
    return outcome.objective.total


def cost(*arguments: Any, **limits: Any) -> float:
    """The optimum of `fleet(...)`."""
    return best(problem(*arguments, **limits))


def counts(plan: FleetPlan, period: int = 0) -> dict[str, int]:
    """Instances by offer."""
    found: dict[str, int] = {}
    for row in plan.periods[period].allocation:
        found[row.offer] = found.get(row.offer, 0) + row.count
    return found


def packs(bins: list[int], items: list[int]) -> bool:
    """Whether items fit into bins, by trying all ways."""
    if not items:
        return True
    first, rest = items[0], items[1:]
    tried = set()
    for index, room in enumerate(bins):
        if room >= first and room not in tried:
            tried.add(room)
            if packs(sorted([*bins[:index], room - first, *bins[index + 1 :]], reverse=True), rest):
                return True
    return False


def brute_force(instance: FleetProblem) -> float:
    """The cheapest cost over all counts, or inf; periods that no reservation ties, or a single one."""
    assert not instance.reserved.any() or instance.num_periods == 1
    return sum(float(share) * _period_cost(instance, period) for period, share in enumerate(instance.share))


def _period_cost(instance: FleetProblem, period: int) -> float:
    load = instance.load(period)
    need = np.where(np.isfinite(load), load, 0.0).sum(axis=0) / instance.availability[instance.config_pool]
    if instance.slack is not None:
        need = need + 1.1 * instance.slack * np.sqrt(need) + (need > 0)
    most = int(np.ceil(need).sum() + instance.min_replicas.sum() + instance.spare_instances + instance.least.max())
    if instance.current is not None:
        most = max(most, int(instance.current.max()))
    upper = np.minimum(instance.most, most).astype(int)
    fleets = np.array(
        list(product(*(range(int(low), top + 1) for low, top in zip(instance.least, upper, strict=True))))
    )
    if not len(fleets):
        return np.inf
    price = fleets @ instance.price
    if instance.current is not None:
        price = price + instance.change_cost * np.abs(fleets - instance.current).sum(axis=1)
    for index in np.argsort(price, kind="stable"):
        if _keeps_limits(instance, fleets[index]) and _serves(instance, period, fleets[index]):
            return float(price[index])
    return np.inf


def _keeps_limits(instance: FleetProblem, fleet: np.ndarray) -> bool:
    if fleet @ instance.price > instance.budget_usd_per_hour + 1e-9:
        return False
    if np.isfinite(instance.max_watts) and fleet @ instance.watts > instance.max_watts + 1e-9:
        return False
    if instance.max_changes is not None and np.abs(fleet - instance.current).sum() > instance.max_changes:
        return False
    gpus = instance.quota_offers @ (fleet * instance.gpus)
    return bool((gpus <= instance.quota_gpus + 1e-9).all())


def _serves(instance: FleetProblem, period: int, fleet: np.ndarray) -> bool:
    """Whether some replicas on the fleet serve everything, and after any one loss some of them still do."""
    load = instance.load(period)
    need = np.where(np.isfinite(load), load, 0.0).sum(axis=0) / instance.availability[instance.config_pool]
    if instance.slack is not None:
        need = need + 1.1 * instance.slack * np.sqrt(need) + (need > 0)
    useful = np.ceil(need).astype(int) + instance.min_replicas[instance.config_model]
    losses = [fleet - one for one in np.eye(len(fleet), dtype=int)[np.flatnonzero(fleet)]]
    left = losses if instance.spare_instances else []
    if not _routes(instance, period, _room(instance, fleet, useful)):
        return False
    if not all(_routes(instance, period, _room(instance, fewer, useful)) for fewer in left):
        return False
    for replicas in _replicas(instance, fleet, useful):
        enough = all(
            replicas[instance.config_model == model].sum() >= least for model, least in enumerate(instance.min_replicas)
        )
        if not enough or not _routes(instance, period, replicas):
            continue
        if not all(_routes(instance, period, kept) for kept in _without_zones(instance, replicas)):
            continue
        if all(any(_routes(instance, period, kept) for kept in _replicas(instance, fewer, replicas)) for fewer in left):
            return True
    return False


def _without_zones(instance: FleetProblem, replicas: np.ndarray) -> Iterator[np.ndarray]:
    """What is left of the replicas when each zone is lost."""
    for zone in range(len(instance.zone_names)):
        assert instance.zone_of_pool is not None
        yield np.where(instance.zone_of_pool[instance.config_pool] == zone, 0, replicas)


def _room(instance: FleetProblem, fleet: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Replicas of each configuration that fit alone."""
    inside = instance.pool_of_offer[None] == instance.config_pool[:, None]
    fits = (inside * fleet * (instance.gpus[None] // instance.config_gpus[:, None])).sum(axis=1)
    for config, offer in _spanning(instance):
        fits[config] = fleet[offer] * instance.gpus[offer] // instance.config_gpus[config]
    return np.minimum(fits, most)


def _spanning(instance: FleetProblem) -> list[tuple[int, int]]:
    """Configurations on whole instances of an offer, and that offer."""
    if instance.config_offer is None:
        return []
    return [(c, k) for c, k in enumerate(instance.config_offer.tolist()) if k >= 0]


def _replicas(instance: FleetProblem, fleet: np.ndarray, most: np.ndarray) -> Iterator[np.ndarray]:
    """Every replica count that fits on the fleet and cannot be raised: more is never worse."""
    found: list[np.ndarray] = []
    for chosen in product(*(range(top, -1, -1) for top in _room(instance, fleet, most).tolist())):
        replicas = np.array(chosen, dtype=int)
        if any((replicas <= one).all() for one in found):
            continue
        if all(_fits(instance, fleet, replicas, pool) for pool in range(len(instance.availability))):
            found.append(replicas)
            yield replicas


def room(beta: float, replicas: int) -> float:
    """The largest tangent of the load a with a + beta sqrt(a) = n, at n = 1, 2, 4, ...; by bisection."""
    best, at = 0.0, 1
    while at < 2 * replicas:
        load = brentq(lambda a, n=at: a + beta * np.sqrt(a) - n, 0.0, at)
        best = max(best, load + (replicas - at) / (1 + beta / (2 * np.sqrt(load))))
        at *= 2
    return best


def _fits(instance: FleetProblem, fleet: np.ndarray, replicas: np.ndarray, pool: int) -> bool:
    left = fleet.copy()
    own = instance.config_pool == pool
    for config, offer in _spanning(instance):
        if own[config]:
            left[offer] -= replicas[config] * (instance.config_gpus[config] // instance.gpus[offer])
            own[config] = False
    if (left < 0).any():
        return False
    bins = [int(instance.gpus[k]) for k in np.flatnonzero(instance.pool_of_offer == pool) for _ in range(int(left[k]))]
    items = np.repeat(instance.config_gpus[own], replicas[own]).tolist()
    return sum(items) <= sum(bins) and packs(sorted(bins, reverse=True), sorted(items, reverse=True))


def _routes(instance: FleetProblem, period: int, replicas: np.ndarray) -> bool:
    """Whether shares exist: a linear program."""
    load = instance.load(period)
    rate = instance.rate[period]
    pairs = [(d, c) for d in np.flatnonzero(rate > 0) for c in range(instance.num_configs) if np.isfinite(load[d, c])]
    asked = np.flatnonzero(rate > 0)
    equal = np.array([[float(d == b) for d, _ in pairs] for b in asked])
    if not (equal.sum(axis=1) > 0).all() if len(pairs) else len(asked):
        return False
    rows = [[load[d, c] * (c == config) for d, c in pairs] for config in range(instance.num_configs)]
    held = replicas
    if instance.slack is not None:
        held = np.array([room(beta, int(n)) for beta, n in zip(instance.slack, replicas, strict=True)])
    limits = (instance.availability[instance.config_pool] * held).tolist()
    if instance.max_spot_share < 1:
        for model in range(len(instance.model_names)):
            own = instance.bucket_model == model
            rows.append([rate[d] * own[d] * instance.spot[instance.config_pool[c]] for d, c in pairs])
            limits.append(instance.max_spot_share * rate[own].sum())
    if not len(asked):
        return True
    found = linprog(np.zeros(len(pairs)), A_ub=rows, b_ub=limits, A_eq=equal, b_eq=np.ones(len(asked)), bounds=(0, 1))
    return bool(found.status == 0)


def random_problem(seed: int, zones: int = 0, **more: Any) -> FleetProblem:
    """At most 3 offers, 2 models, 3 sizes and 2 periods, with a few of all the limits; a third of them infeasible."""
    rng = np.random.default_rng(seed)
    num_offers, num_models = int(rng.integers(1, 4)), int(rng.integers(1, 3))
    shapes = rng.choice([1, 1, 2, 4], num_offers)
    rows = []
    for k, gpus in enumerate(shapes.tolist()):
        row: dict[str, Any] = {"name": f"o{k}", "device": "l4", "gpus": gpus, "watts": int(rng.integers(1, 5)) * 100}
        row["price_usd_per_hour"] = round(float(gpus * rng.uniform(0.5, 2.0)), 2)
        if rng.random() < 0.3:
            row["max_count"] = int(rng.integers(0, 4))
        if rng.random() < 0.1:
            row["min_count"] = min(1, row.get("max_count", 1))
        if rng.random() < 0.3:
            row |= {"market": "spot", "availability": float(rng.choice([0.5, 0.8, 1.0]))}
        rows.append(row)
    models = [{"name": f"m{m}", "min_replicas": int(rng.random() < 0.2)} for m in range(num_models)]
    sizes = [(m, 100 * (s + 1)) for m in range(num_models) for s in range(2 - m * int(rng.random() < 0.5))]
    periods = int(rng.integers(1, 3)) if rng.random() < 0.4 else 1
    asked, served = [], []
    for m, tokens in sizes:
        rates = np.round(rng.uniform(0.0, 1.2, periods), 2) + 0.05
        size = {"input_tokens": tokens, "output_tokens": 10}
        asked.append({**demand(rates.tolist() if periods > 1 else float(rates[0]), f"m{m}"), **size})
        for k, gpus in enumerate(shapes.tolist()):
            for used in sorted({1, gpus}):
                if rng.random() < 0.75:
                    rate = round(float(used ** rng.uniform(0.8, 1.2) * rng.uniform(0.3, 1.5)), 2)
                    served.append({**profile(f"o{k}", rate * (rng.random() < 0.9), f"m{m}", used), **size})
    for size, row in zip(sizes, asked, strict=True):
        if not any(one["model"] == row["model"] and one["input_tokens"] == size[1] for one in served):
            served.append({**profile("o0", 1.0, row["model"], 1), "input_tokens": size[1], "output_tokens": 10})
    limits: dict[str, Any] = {}
    if rng.random() < 0.3:
        limits["headroom"] = 0.2
    if rng.random() < 0.3:
        limits["spare_instances"] = 1
    if rng.random() < 0.2:
        limits["budget_usd_per_hour"] = round(float(rng.uniform(2, 8)), 1)
    if rng.random() < 0.2:
        limits["max_watts"] = int(rng.integers(3, 12)) * 100
    if rng.random() < 0.3:
        limits["max_spot_share"] = float(rng.choice([0.0, 0.5]))
    if rng.random() < 0.2:
        limits["quotas"] = [{"name": "q", "offers": ["o0"], "max_gpus": int(rng.integers(0, 6))}]
    if periods == 1 and rng.random() < 0.3:
        limits["current"] = {"o0": int(rng.integers(0, 3))}
        limits |= {"max_changes": int(rng.integers(1, 5))} if rng.random() < 0.5 else {"change_cost_usd_per_hour": 0.4}
    if zones:
        rows = [{**row, "zone": f"z{k % zones}"} for k, row in enumerate(rows)]
        limits["spare_zones"] = int(num_offers > 1)
    given = {"name": "random", "offers": rows, "models": models, "demand": asked, "profiles": served}
    return read_problem(FleetInstance(**{**given, **limits, **more}))
