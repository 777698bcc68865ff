"""Deployments as a kind of instance: reading, and judging a plan."""

from __future__ import annotations

from formulations.deployment.formulation import DEPLOYMENT
from formulations.deployment.problem import DeployProblem
from formulations.deployment.reading import read_problem
from formulations.deployment.verdict import judge, judge_alone
from formulations.kinds import Kind
from planner.deploy_plan import DeployPlan
from planner.descriptions.deploy import DeployInstance
from planner.plan import DeployDocument

KIND: Kind[DeployInstance, DeployProblem, DeployPlan] = Kind(
    name="deploy",
    instance=DeployInstance,
    document=DeployDocument,
    formulation=DEPLOYMENT,
    read=read_problem,
    judge=judge,
    judge_alone=judge_alone,
)
