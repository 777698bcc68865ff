"""Descriptions, plans and the cost model. Imports no solver and nothing of `formulations`."""

from planner.cost.verdict import Metric, Verdict, Violation
from planner.descriptions.experts import Communication, ExpertsInstance, LoadSource, TraceSource
from planner.errors import DescriptionError, PlannerError
from planner.experts_plan import ExpertPlacement
from planner.files import read_as
from planner.plan import ExpertsDocument, PlanDocument, read_document
from planner.workload import ExpertLoad, RoutingTrace

__all__ = [
    "Communication",
    "DescriptionError",
    "ExpertLoad",
    "ExpertPlacement",
    "ExpertsDocument",
    "ExpertsInstance",
    "LoadSource",
    "Metric",
    "PlanDocument",
    "PlannerError",
    "RoutingTrace",
    "TraceSource",
    "Verdict",
    "Violation",
    "read_as",
    "read_document",
]
