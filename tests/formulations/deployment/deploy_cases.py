"""Small deployments in few words: services with a table of workers, offers, standing nodes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from formulations.base import solve
from formulations.deployment.formulation import DEPLOYMENT
from formulations.deployment.problem import DeployProblem
from formulations.deployment.reading import read_problem
from formulations.outcome import Outcome, SolveOptions
from planner.deploy_plan import DeployPlan
from planner.descriptions.deploy import DeployInstance
from planner.files import SourceText, to_json
from planner.plan import DeployDocument, InstanceReference, OutcomeRecord

HEAD = "worker,service,device,role,gpus,input_tokens,output_tokens,requests_per_s,moe_ep,expert_slots\n"
SIZE = {"input_tokens": 100, "output_tokens": 100}


def worker(name: str, rate: float, service: str = "m", gpus: int = 1, role: str = "A", device: str = "l4") -> str:
    """A row of the table."""
    return f"{name},{service},{device},{role},{gpus},100,100,{rate},,\n"


def offer(name: str, price: float, gpus: int = 1, **more: Any) -> dict[str, Any]:
    """An offer of l4."""
    return {"name": name, "device": "l4", "gpus": gpus, "price_usd_per_hour": price, **more}


def described(
    folder: Path,
    rates: Mapping[str, float | list[float]],
    workers: list[str],
    offers: list[dict[str, Any]] | None = None,
    **more: Any,
) -> DeployInstance:
    """An instance whose workers are used to the full; rates by service, of one size."""
    (folder / "workers.csv").write_text(HEAD + "".join(workers))
    services = [
        {"name": name, "demand": [{**SIZE, ("hourly" if isinstance(rate, list) else "rate_per_s"): rate}]}
        for name, rate in rates.items()
    ]
    said = {"name": "case", "services": services, "offers": offers or [], "workers": "workers.csv", "utilisation": 1.0}
    return DeployInstance.model_validate(said | more)


def problem(folder: Path, *arguments: Any, **more: Any) -> DeployProblem:
    """The arrays of `described(...)`."""
    return read_problem(described(folder, *arguments, **more), SourceText("d.yaml", "", {}, folder))


def run(instance: DeployProblem, **options: Any) -> Outcome[DeployPlan]:
    """Solve to the end, within the time."""
    return solve(DEPLOYMENT, instance, SolveOptions(**{"time_limit_s": 60.0, **options}))


def planned(instance: DeployProblem, **options: Any) -> tuple[float, DeployPlan]:
    """The proven optimum, USD/hour, and its plan."""
    outcome = run(instance, **options)
    assert outcome.status == "optimal", (outcome.status, outcome.reasons)
    assert outcome.objective is not None
    assert outcome.plan is not None
    return outcome.objective.total, outcome.plan


def written(folder: Path, plan: DeployPlan, name: str = "current.json") -> str:
    """The plan as a document in the folder, as a deployment in force."""
    outcome = OutcomeRecord(
        status="optimal", stop="proof", objective=plan.cost_usd_per_hour, objective_unit="USD/hour", bound=None,
        gap=None, build_s=0, solve_s=0, solver="", solver_version="", method="highs", seed=0, num_threads=1,
    )  # fmt: skip
    reference = InstanceReference(name="case", sha256="0" * 64)
    document = DeployDocument(problem="deploy", instance=reference, gpuplan_version="0", outcome=outcome, plan=plan)
    (folder / name).write_text(to_json(document))
    return name
