"""Deployments: the stored instances and their variants, and larger ones made of their workers and prices; all seeded.

What is made here: services that are scaled copies of the stored ones (throughput by device, demand), days, standing
nodes. What is real: the offers' prices. What a worker serves is predicted by aiconfigurator (`data/more/README.md`).
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.common import data_folder
from formulations.deployment.problem import DeployProblem
from formulations.deployment.reading import read_problem as read_deployment
from formulations.gpu_fleet.problem import FleetProblem
from formulations.gpu_fleet.reading import read_problem
from planner.descriptions.deploy import DeployInstance
from planner.descriptions.fleet import FleetInstance
from planner.files import SourceText

#: Price of a reserved instance, of that on demand. Source: `deploy-and-more.md`; assumed.
RESERVED = 0.63
#: Services of the standing cluster: the seven of "large", and three variants of the small ones.
TEN = ("8B", "32B", "70B", "405B", "30B-A3B", "235B-A22B", "DSV3", "8B", "32B", "30B-A3B")
STANDING_KINDS = ("h100_sxm", "h200_sxm", "a100_sxm", "l40s")

Rows = list[dict[str, str]]


def folder() -> Path:
    """Stored instances and their workers."""
    return data_folder("more") / "deploy"


@cache
def stored() -> Mapping[str, Mapping[str, Any]]:
    """The stored instances by name."""
    return {one["name"]: one for one in json.loads((folder() / "instances.json").read_text())}


def described(name: str) -> dict[str, Any]:
    """A stored instance as a fleet's."""
    one = stored()[name]
    demand = [
        {"model": row["service"], **{key: row[key] for key in ("input_tokens", "output_tokens", "rate_per_s")}}
        for row in one["demand"]
    ]
    return {
        "problem": "fleet",
        "name": name,
        "offers": [dict(offer) for offer in one["offers"]],
        "models": [{"name": service} for service in dict.fromkeys(row["model"] for row in demand)],
        "demand": demand,
        "workers": str(folder() / "workers.csv"),
        "headroom": 1 / one["rho"] - 1,
    }


def deployment(name: str) -> DeployProblem:
    """A stored instance as the deployment that it is."""
    one = stored()[name]
    services = [
        {
            "name": service,
            "slo": dict(one["slo"][service]),
            "demand": [
                {key: row[key] for key in ("input_tokens", "output_tokens", "rate_per_s")}
                for row in one["demand"]
                if row["service"] == service
            ],
        }
        for service in dict.fromkeys(row["service"] for row in one["demand"])
    ]
    given = {
        "name": name,
        "utilisation": one["rho"],
        "services": services,
        "offers": [dict(offer) for offer in one["offers"]],
        "workers": str(folder() / "workers.csv"),
    }
    return read_deployment(DeployInstance.model_validate(given), SourceText("benchmark", "", {}, Path()))


def problem(given: Mapping[str, Any]) -> FleetProblem:
    """The arrays of a fleet's instance."""
    return read_problem(FleetInstance.model_validate(given), SourceText("benchmark", "", {}, Path()))


def with_spare(name: str) -> FleetProblem:
    """A stored instance that survives the loss of any one instance."""
    return problem(described(name) | {"spare_instances": 1})


def with_hours(name: str, hours: int) -> FleetProblem:
    """A stored instance whose demand is the peak of a day of so many periods; instances on demand and reserved."""
    given = described(name)
    for place, row in enumerate(given["demand"]):
        peak = row.pop("rate_per_s")
        row["hourly"] = [round(peak * _day(hour / hours - 0.35 - 0.02 * place, 0.3), 4) for hour in range(hours)]
    given["offers"] += _reserved(given["offers"])
    return problem(given)


def many_services(seed: int, roles: str, scale: float, services: int = 100) -> FleetProblem:
    """Services that are stored ones of "large", each of its own speed by device and demand, on 600 to 1,000 nodes.

    roles : of the workers, A (all of a request), P and D. scale : of "large"'s demand, over all services.
    """
    rng = np.random.default_rng(seed)
    rows, large = _workers("large"), described("large")
    kinds = list(dict.fromkeys(row["service"] for row in rows))
    devices = sorted({row["device"] for row in rows})
    demand, made = [], []
    for place in range(services):
        kind, name = kinds[int(rng.integers(len(kinds)))], f"s{place}"
        size = rng.lognormal(0.0, 0.7) * scale * len(kinds) / services
        speed = dict(zip(devices, rng.lognormal(0.0, 0.15, len(devices)).tolist(), strict=True))
        demand += [
            {**row, "model": name, "rate_per_s": round(row["rate_per_s"] * size * rng.lognormal(0.0, 0.3), 4)}
            for row in large["demand"]
            if row["model"] == kind
        ]
        made += list(_copied(rows, kind, name, roles, speed))
    return _made(large | {"name": f"{services} services", "demand": demand}, made)


def standing(seed: int, scale: float = 1.5, hours: int = 24) -> FleetProblem:
    """Ten services and a day on 40 standing nodes of 4 kinds, half of them partly used, and offers to rent besides.

    scale : of "large"'s demand, at the peak. Standing nodes are offers without a price.
    """
    rng = np.random.default_rng(seed)
    rows, large = _workers("large"), described("large")
    devices = sorted({row["device"] for row in rows})
    demand, made = [], []
    for place, kind in enumerate(TEN):
        first, name = TEN.index(kind) == place, f"s{place} {kind}"
        speed = dict.fromkeys(devices, 1.0 if first else rng.uniform(0.6, 1.2))
        for row in large["demand"]:
            if row["model"] == kind:
                peak = row["rate_per_s"] * scale * (1.0 if first else 0.5)
                rates = [
                    round(peak * _day(hour / hours - 0.35 - 0.03 * place, 0.2) * rng.uniform(0.95, 1.05), 4)
                    for hour in range(hours)
                ]
                size = {key: row[key] for key in ("input_tokens", "output_tokens")}
                demand.append({"model": name, **size, "hourly": rates})
        made += list(_copied(rows, kind, name, "APD", speed))
    nodes = []
    for device in STANDING_KINDS:
        free = [8] * 5 + rng.integers(1, 8, 5).tolist()
        nodes += [
            {"name": f"{device}, {gpus} free", "device": device, "gpus": gpus, "price_usd_per_hour": 0.0,
             "max_count": free.count(gpus)}
            for gpus in sorted(set(free))
        ]  # fmt: skip
    return _made(large | {"name": "standing", "demand": demand, "offers": [*nodes, *large["offers"]]}, made)


def _day(at: float, least: float) -> float:
    """A day's rate as a share of its peak."""
    return (1 + least) / 2 + (1 - least) / 2 * math.sin(2 * math.pi * at)


def _reserved(offers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {**offer, "name": f"{offer['name']} reserved", "market": "reserved",
         "price_usd_per_hour": round(offer["price_usd_per_hour"] * RESERVED, 4)}
        for offer in offers
    ]  # fmt: skip


@cache
def _workers(name: str) -> Rows:
    with (folder() / "workers.csv").open() as lines:
        return [row for row in csv.DictReader(lines) if row["instance"] == name]


def _copied(rows: Rows, kind: str, name: str, roles: str, speed: Mapping[str, float]) -> Iterator[dict[str, Any]]:
    for row in rows:
        if row["service"] == kind and row["role"] in roles:
            rate = float(row["requests_per_s"]) * speed[row["device"]]
            yield {**row, "instance": "", "service": name, "requests_per_s": rate}


def _made(given: dict[str, Any], rows: list[dict[str, Any]]) -> FleetProblem:
    """The problem with a table of workers that is made for it."""
    names = dict.fromkeys(row["model"] for row in given["demand"])
    columns = [column for column in rows[0] if column != "instance"]
    with TemporaryDirectory() as place:
        path = Path(place, "workers.csv")
        with path.open("w", newline="") as lines:
            table = csv.DictWriter(lines, columns, extrasaction="ignore")
            table.writeheader()
            table.writerows(rows)
        return problem(given | {"models": [{"name": name} for name in names], "workers": str(path)})
