"""From an instance to a plan document, and from a plan document back to a verdict: what the CLI and notebooks call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from formulations.base import solve
from formulations.kinds import HOMES, Problem, kind, kind_name, read_instance
from formulations.outcome import OnProgress, Outcome, SolveOptions
from planner.cost.verdict import Verdict, Violation
from planner.descriptions.base import Description
from planner.files import SourceText, read_source
from planner.plan import BaselineRecord, InstanceReference, OutcomeRecord, PlanDocument
from planner.version import gpuplan_version


def load_problem(instance: Description | str | Path, base_dir: Path | None = None) -> Any:
    """Problem of an instance file ('-' is standard input), or of an instance built in Python."""
    if isinstance(instance, Description):
        source = None if base_dir is None else SourceText("instance", "{}", {}, base_dir)
        return kind(kind_name(instance)).read(instance, source)
    return problem_of(read_source(instance))


def problem_of(source: SourceText) -> Any:
    """The arrays of an instance's text. Raises DescriptionError with every problem found."""
    found, described = read_instance(source)
    return found.read(described, source)


def plan(
    instance: Description | Problem | str | Path,
    *,
    options: SolveOptions | None = None,
    hint: Any = None,
    on_progress: OnProgress | None = None,
) -> PlanDocument:
    """Solve one instance and judge the plan: the document that `gpuplan plan` writes.

    Raises DescriptionError (bad input) and OptionError (an option that cannot be honoured). An infeasible or unsolved
    instance is a document without a plan.
    """
    problem = load_problem(instance) if isinstance(instance, Description | str | Path) else instance
    outcome = solve(kind(problem.kind).formulation, problem, options, hint=hint, on_progress=on_progress)
    return document(problem, outcome)


def document(problem: Problem, outcome: Outcome[Any]) -> PlanDocument:
    """Wrap an outcome, with the baseline's worth and the cost model's verdict beside it."""
    found = kind(problem.kind)
    options = outcome.options
    return found.document(
        problem=HOMES[found.name].problem,
        instance=InstanceReference(name=problem.name, sha256=problem.sha256),
        gpuplan_version=gpuplan_version(),
        outcome=OutcomeRecord(
            status=outcome.status.value,
            stop=outcome.stop.value,
            objective=None if outcome.objective is None else outcome.objective.total,
            objective_unit=outcome.objective_unit,
            terms={} if outcome.objective is None else outcome.objective.terms,
            bound=None if outcome.bound is None else outcome.bound.value,
            bound_name=None if outcome.bound is None else outcome.bound.name,
            gap=outcome.gap,
            build_s=outcome.build_s,
            solve_s=outcome.solve_s,
            aside_s=outcome.aside_s,
            solver=outcome.solver,
            solver_version=outcome.solver_version,
            method=outcome.method,
            seed=options.seed,
            num_threads=options.num_threads,
            reasons=outcome.reasons,
            relaxations=outcome.relaxations,
        ),
        baseline=_baseline(problem),
        plan=outcome.plan,
        verdict=None if outcome.plan is None else found.judge(problem, outcome.plan),
    )


def _baseline(problem: Problem) -> BaselineRecord | None:
    """The plain rule's worth; None when it has no plan for this instance."""
    formulation = kind(problem.kind).formulation
    name, rule = formulation.baseline(problem)
    if rule is None:
        return None
    worth = formulation.objective(problem, rule)
    broken = tuple(formulation.check(problem, rule))
    return BaselineRecord(name=name, objective=worth.total, terms=worth.terms, violations=broken)


def judge(problem: Problem, plan: Description) -> Verdict:
    """The independent check of the rules and the cost model's judgement, as one verdict."""
    return kind(problem.kind).judge(problem, plan)


def check_document(document: PlanDocument, problem: Problem | None) -> Verdict:
    """Judge a stored plan anew; without an instance only the rules that need none are checked."""
    found = kind(document.kind_name)
    if document.plan is None:
        message = f"the document holds no plan (status {document.outcome.status})"
        return Verdict(violations=(Violation(rule="no_plan", subject="plan", message=message),))
    if problem is None:
        return found.judge_alone(document.plan)
    if problem.kind != document.kind_name:
        message = f"the plan answers a {document.kind_name!r} instance, this is a {problem.kind!r} one"
        return Verdict(violations=(Violation(rule="other_problem", subject="instance", message=message),))
    verdict = found.judge(problem, document.plan)
    if document.instance.sha256 == problem.sha256 and document.outcome.objective is not None and verdict.feasible:
        worth = found.formulation.objective(problem, document.plan).total
        if abs(worth - document.outcome.objective) > 1e-6 * max(1.0, abs(worth)):
            message = f"the document claims an objective of {document.outcome.objective:.9g}, it is {worth:.9g}"
            claim = Violation(rule="claimed_objective", subject="outcome", message=message)
            return verdict.model_copy(update={"violations": (claim,), "feasible": False})
    return verdict
