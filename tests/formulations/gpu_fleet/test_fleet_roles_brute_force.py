"""Random fleets of split roles: every backend finds what trying all counts finds, and bandwidth never hurts."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
from fleet_cases import demand, does, offers, problem, room, run
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from formulations.gpu_fleet.problem import FleetProblem
from formulations.gpu_fleet.stages import HANDOVERS, ROLES

METHODS = ("highs", "scip", "cbc")
#: What else an instance may ask for.
MORE = [{"spare_zones": 1}, {"pool_slack": {"window_s": 4.0, "quantile": 0.9}, "headroom": 0.2}]


def oracle(instance: FleetProblem) -> float:
    """The cheapest fleet of single GPUs, by trying all replica counts; a linear program routes."""
    need = np.where(np.isfinite(instance.load(0)), instance.load(0), 0.0).sum(axis=0)
    if instance.slack is not None:
        need = need + 1.1 * instance.slack * np.sqrt(need) + (need > 0)
    carried = (instance.needed(0) * instance.handed_bytes).sum(axis=1).max()
    need = np.maximum(need, np.minimum(carried / instance.network_bytes_per_s[instance.config_pool], 5) * (need > 0))
    price = np.array([instance.price[instance.pool_of_offer == pool].min() for pool in instance.config_pool])
    most = np.array([instance.most[instance.pool_of_offer == pool].sum() for pool in range(len(instance.availability))])
    # A network that limits takes more replicas than the load.
    upper = np.where(need > 0, np.minimum(np.ceil(need) + 1, most[instance.config_pool]), 0).astype(int)
    every = np.array(list(product(*(range(top + 1) for top in upper.tolist()))))
    for counts in every[np.argsort(every @ price, kind="stable")]:
        used = np.bincount(instance.config_pool, weights=counts, minlength=len(most))
        left = [np.where(instance.zone_of_config == zone, 0, counts) for zone in range(len(instance.zone_names))]
        if (used <= most).all() and all(routes(instance, one) for one in (counts, *left)):
            return float(counts @ price)
    return math.inf


def routes(instance: FleetProblem, counts: np.ndarray) -> bool:
    """One variable for every way of a request: the replicas of its stages."""
    load, rate = instance.load(0), instance.needed(0)
    site = instance.site_of_pool[instance.config_pool]
    role = [ROLES[one] for one in instance.config_role]
    ways: list[tuple[int, tuple[int, ...]]] = []
    for d in range(len(rate)):
        can = {name: [c for c in range(len(role)) if role[c] == name and np.isfinite(load[d, c])] for name in ROLES}
        found = [(c,) for c in can["both"]] + list(product(can["prefill"], can["decode"]))
        found += list(product(can["prefill"], can["attention"], can["experts"]))
        for way in found:
            if counts[list(way)].all() and all(instance.link_bytes_per_s[site[a], site[b]] for a, b in pairwise(way)):
                ways.append((d, way))
    if {d for d, _ in ways} != set(np.flatnonzero(rate > 0).tolist()):
        return False
    rows, limits = [], []
    for c in range(len(role)):
        rows.append([load[d, c] if c in way else 0.0 for d, way in ways])
        limits.append(float(counts[c]) if instance.slack is None else room(float(instance.slack[c]), int(counts[c])))
        network = float(instance.network_bytes_per_s[instance.config_pool[c]])
        for number, kind in enumerate(HANDOVERS):
            if math.isfinite(network) and role[c] in kind.senders + kind.receivers:
                rows.append([rate[d] * instance.handed_bytes[number, d] if c in way else 0.0 for d, way in ways])
                limits.append(network * counts[c])
    for a, b in zip(*np.nonzero(np.isfinite(instance.link_bytes_per_s) & (instance.link_bytes_per_s > 0)), strict=True):
        rows.append(
            [
                sum(
                    rate[d] * instance.handed_bytes[h, d]
                    for h, pair in enumerate(pairwise(way))
                    if (site[pair[0]], site[pair[1]]) == (a, b)
                )
                for d, way in ways
            ]
        )
        limits.append(float(instance.link_bytes_per_s[a, b]))
    equal = [[float(d == one) for d, _ in ways] for one in np.flatnonzero(rate > 0)]
    scale = np.maximum(np.abs(rows).max(axis=1), 1e-9)
    found = linprog(
        np.zeros(len(ways)),
        np.array(rows) / scale[:, None],
        np.array(limits) / scale + 1e-9,
        equal,
        np.ones(len(equal)),
    )
    return bool(found.status == 0)


def random_roles(seed: int, **more: Any) -> FleetProblem:
    """Two sizes, three single GPUs of one or two regions, and two to five configurations of mixed roles."""
    rng = np.random.default_rng(seed)
    rows = offers(**{f"o{k}": {"price": round(float(rng.uniform(0.5, 2)), 2)} for k in range(3)})
    for k, row in enumerate(rows):
        if "spare_zones" in more:
            row["zone"] = f"z{k % 2}"
        if rng.random() < 0.7:
            row["region"] = str(rng.choice(["east", "west"]))
        else:
            row["region"] = "east"
        if rng.random() < 0.4:
            row["network_bytes_per_s"] = float(rng.choice([2e4, 5e4, 2e5]))
    long = {"input_tokens": 200, "output_tokens": 20}
    asked = [demand(round(float(rng.uniform(0.2, 1.2)), 2)), demand(round(float(rng.uniform(0.1, 0.6)), 2), **long)]
    deep = rng.random() < 0.4
    roles = ["prefill", "attention", "experts"] if deep else ["prefill", "decode"]
    pairs = [(f"o{k % 3}", role) for k, role in enumerate(roles)]
    pairs += [(f"o{rng.integers(3)}", str(rng.choice([*roles, "both"]))) for _ in range(2)]
    served = [
        {**does(offer, role, round(float(rng.uniform(0.4, 1.5)), 2)), **size}
        for offer, role in dict.fromkeys(pairs)
        for size in ({}, long)
        if rng.random() < 0.9
    ]
    if not all(any((row["input_tokens"], row["role"]) == (100, role) for row in served) for role in roles):
        return random_roles(seed + 1000, **more)
    if not any(row["input_tokens"] == 200 for row in served):
        return random_roles(seed + 1000, **more)
    regions = {row["region"] for row in rows}
    links = [
        {"from_region": a, "to_region": b, "bytes_per_s": float(rng.choice([3e4, 1e5, 1e6]))}
        for a, b in (("east", "west"), ("west", "east"))
        if regions == {"east", "west"} and rng.random() < 0.7
    ]
    model = {"name": "m", "kv_bytes_per_token": 500, "activation_bytes_per_token": 700}
    return problem(rows, asked, served, models=[model], links=links, **more)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(8))
def test_every_backend_finds_what_trying_all_finds(seed: int, method: str) -> None:
    enclosed(random_roles(seed), known(seed), method)


@pytest.mark.parametrize("more", MORE, ids=lambda one: "-".join(one))
@pytest.mark.parametrize("seed", range(20, 28))
def test_with_zones_slack_and_bursts(seed: int, more: dict[str, Any]) -> None:
    made = random_roles(seed, **more)
    enclosed(made, oracle(made), "scip" if seed % 2 else "highs")


@cache
def known(seed: int) -> float:
    return oracle(random_roles(seed))


def enclosed(instance: FleetProblem, truth: float, method: str) -> None:
    outcome = run(instance, method)
    if math.isinf(truth):
        assert outcome.status == "infeasible"
        return
    assert outcome.objective is not None
    assert outcome.objective.total == pytest.approx(truth, abs=1e-5)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 900), factor=st.floats(1.1, 5))
def test_more_bandwidth_never_costs_more(seed: int, factor: float) -> None:
    made = random_roles(seed)
    wider = replace(
        made, link_bytes_per_s=made.link_bytes_per_s * factor, network_bytes_per_s=made.network_bytes_per_s * factor
    )
    before, after = (
        math.inf if outcome.objective is None else outcome.objective.total
        for outcome in (run(made, "scip"), run(wider, "scip"))
    )
    assert after <= before + 1e-6
