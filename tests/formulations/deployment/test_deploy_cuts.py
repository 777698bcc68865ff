"""Cuts are restrictions: no cut plan is cheaper than the whole, on random deployments and on stored ones."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
from deploy_cases import SIZE, offer, planned, problem, worker, written

from formulations.deployment.cuts import CUTS, couplings
from formulations.deployment.problem import DeployProblem
from formulations.deployment.reading import read_problem
from formulations.outcome import SolveOptions
from planner.deploy_plan import DeployPlan
from planner.descriptions.deploy import DeployInstance
from planner.files import SourceText

SHORT = SolveOptions(time_limit_s=20)
NEAR = 1e-6


def compared(instance: DeployProblem, whole: float, plan: DeployPlan) -> None:
    """Every cut that changes something is solved, and none is below the whole."""
    found = couplings(instance, plan, CUTS, SHORT)
    assert {"sharing", "workers", "nodes"} <= {one.cut for one in found}
    for one in found:
        if one.usd_per_hour is not None:
            assert one.usd_per_hour >= whole * (1 - NEAR) - NEAR, one
            assert one.extra is None or one.extra >= -NEAR


@pytest.mark.parametrize("seed", range(8))
def test_no_cut_is_cheaper(tmp_path: Path, seed: int) -> None:
    """Two services, one with prefill and decode apart, with what the seed adds: a loss to survive, hours, least counts
    of an offer, a deployment in force whose moves cost, demand that is left out."""
    random = Random(seed)
    rows = [worker(f"a{g}", 2 * g * random.choice([0.9, 1.1]), "a", g) for g in (1, 2, 4)]
    rows += [worker(f"{role[0]}{g}", 3 * g, "b", g, role) for g in (1, 2) for role in ("prefill", "decode")]
    rows += [worker("b2", 3, "b", 2)]
    found = [offer("one", 1.1), offer("four", 4, 4, min_count=seed % 2)]
    more: dict[str, Any] = {}
    rates: dict[str, Any] = {"a": random.randint(1, 9), "b": random.randint(1, 9)}
    if seed in (2, 3):
        more["spare"] = 1
    if seed in (4, 5):
        rates = {name: [float(rate), 1.0, 4.0] for name, rate in rates.items()}
    if seed == 6:
        found = [offer("one", 1.1, max_count=3), offer("four", 4, 4, max_count=1)]
        more["unserved"] = "by_priority"
        rates = {"a": 10, "b": 12}
    if seed == 7:
        _, before = planned(problem(tmp_path, {"a": 3, "b": 8}, rows, [offer("one", 1.1), offer("four", 4.8, 4)]))
        more |= {"current": written(tmp_path, before), "move_cost_usd_per_gpu_hour": 0.5}
    instance = problem(tmp_path, rates, rows, found, **more)
    whole, plan = planned(instance)
    compared(instance, whole, plan)


def test_a_cut_serves_what_the_plan_serves(tmp_path: Path) -> None:
    """Two GPUs are all there is. Together the services fill one each; apart on pairs there is one pair, so a cut would
    leave one of them out: no plan, in place of a cheaper one."""
    rows = [worker("v", 5, "a"), worker("w", 5, "b")]
    services = [{"name": name, "demand": [{**SIZE, "rate_per_s": rate}]} for name, rate in (("a", 9), ("b", 5))]
    instance = problem(
        tmp_path, {}, rows, [offer("pair", 3, 2, max_count=1)], services=services, unserved="by_priority"
    )
    whole, plan = planned(instance)
    assert whole == pytest.approx(3)
    (apart,) = couplings(instance, plan, ["sharing"], SHORT)
    assert (apart.status, apart.usd_per_hour) == ("infeasible", None)


@pytest.mark.parametrize("name", ["startup", "moe"])
def test_no_cut_of_a_stored_deployment_is_cheaper(shared_data: Path, tmp_path: Path, name: str) -> None:
    """Whole plans within 0.01 % of their bounds, so that much cheaper a cut may be."""
    folder = shared_data / "more" / "deploy"
    (told,) = (one for one in json.loads((folder / "instances.json").read_text()) if one["name"] == name)
    services = list(dict.fromkeys(one["service"] for one in told["demand"]))
    keys = ("input_tokens", "output_tokens", "rate_per_s")
    said = {
        "name": name,
        "utilisation": told["rho"],
        "offers": told["offers"],
        "workers": str(folder / "workers.csv"),
        "services": [
            {
                "name": service,
                "slo": told["slo"][service],
                "demand": [{key: one[key] for key in keys} for one in told["demand"] if one["service"] == service],
            }
            for service in services
        ],
    }
    instance = read_problem(DeployInstance.model_validate(said), SourceText("d.yaml", "", {}, tmp_path))
    whole, plan = planned(instance, relative_gap=1e-4)
    compared(instance, whole * (1 - 1e-4), plan)
