"""From an instance to a plan document, and from a plan document back to a verdict: what the CLI and notebooks call."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from formulations.base import solve
from formulations.expert_placement.formulation import EXPERT_PLACEMENT
from formulations.expert_placement.problem import ExpertPlacementProblem
from formulations.expert_placement.reading import read_problem
from formulations.outcome import OnProgress, Outcome, SolveOptions
from planner.cost.evaluate import evaluate_expert_placement
from planner.cost.verdict import Verdict, Violation
from planner.descriptions.experts import ExpertsInstance
from planner.errors import DescriptionError
from planner.files import SourceText, read_source, validate
from planner.plan import BaselineRecord, ExpertPlacement, InstanceReference, OutcomeRecord, PlanDocument

#: Broken rules after which a plan has no loads to speak of.
UNPRICEABLE = {"shape", "expert_ids", "every_expert_placed", "replicas"}


def gpuplan_version() -> str:
    """Version of the installed distribution, or `0+unknown` in a source tree that is not installed."""
    try:
        return version("gpuplan")
    except PackageNotFoundError:
        return "0+unknown"


def read_instance(source: SourceText) -> ExpertsInstance:
    """Validate an instance file by its `problem` key."""
    kind = source.value.get("problem") if isinstance(source.value, dict) else None
    if kind != "experts":
        known = "experts"
        place = ("problem",) if isinstance(source.value, dict) and "problem" in source.value else ()
        raise DescriptionError([source.finding(place, f"problem must be one of: {known} (got {kind!r})")])
    return validate(source, ExpertsInstance)


def load_problem(instance: ExpertsInstance | str | Path, base_dir: Path | None = None) -> ExpertPlacementProblem:
    """Problem of an instance file ('-' is standard input), or of an instance built in Python."""
    if isinstance(instance, ExpertsInstance):
        if base_dir is None:
            return read_problem(instance)
        return read_problem(instance, SourceText("instance", "{}", {}, base_dir))
    source = read_source(instance)
    return read_problem(read_instance(source), source)


def plan(
    instance: ExpertsInstance | ExpertPlacementProblem | str | Path,
    *,
    options: SolveOptions | None = None,
    hint: ExpertPlacement | None = None,
    on_progress: OnProgress | None = None,
) -> PlanDocument:
    """Solve one instance and judge the plan: the document that `gpuplan plan` writes.

    Raises DescriptionError (bad input) and OptionError (an option that cannot be honoured). An infeasible or unsolved
    instance is a document without a plan.
    """
    problem = instance if isinstance(instance, ExpertPlacementProblem) else load_problem(instance)
    outcome = solve(EXPERT_PLACEMENT, problem, options, hint=hint, on_progress=on_progress)
    return document(problem, outcome)


def document(problem: ExpertPlacementProblem, outcome: Outcome[ExpertPlacement]) -> PlanDocument:
    """Wrap an outcome, with the baseline's worth and the cost model's verdict beside it."""
    name, rule = EXPERT_PLACEMENT.baseline(problem)
    worth = EXPERT_PLACEMENT.objective(problem, rule)
    options = outcome.options
    return PlanDocument(
        problem="experts",
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
            solver=outcome.solver,
            solver_version=outcome.solver_version,
            method=outcome.method,
            seed=options.seed,
            num_threads=options.num_threads,
            reasons=outcome.reasons,
            relaxations=outcome.relaxations,
        ),
        baseline=BaselineRecord(name=name, objective=worth.total, terms=worth.terms),
        plan=outcome.plan,
        verdict=None if outcome.plan is None else judge(problem, outcome.plan),
    )


def judge(problem: ExpertPlacementProblem, placement: ExpertPlacement) -> Verdict:
    """The independent check of the rules and the cost model's judgement, as one verdict."""
    broken = EXPERT_PLACEMENT.check(problem, placement)
    if any(violation.rule in UNPRICEABLE for violation in broken):
        return Verdict(violations=tuple(broken))
    loads = {name: np.asarray(load) for name, load in zip(problem.scenario_names, problem.load, strict=True)}
    verdict = evaluate_expert_placement(
        placement,
        loads,
        speed=problem.speed,
        trace=problem.trace,
        expert_bytes=problem.expert_bytes,
        gpu_memory_bytes=problem.gpu_memory_bytes,
        step=problem.step,
    )
    rules = {violation.rule for violation in verdict.violations}
    merged = [violation for violation in broken if violation.rule not in rules]
    return Verdict(
        metrics=verdict.metrics,
        violations=(*verdict.violations, *merged),
        bottleneck=verdict.bottleneck,
        assumptions=verdict.assumptions,
    )


def check_document(document: PlanDocument, problem: ExpertPlacementProblem | None) -> Verdict:
    """Judge a stored plan anew; without an instance only the rules that need none are checked."""
    placement = document.plan
    if placement is None:
        message = f"the document holds no plan (status {document.outcome.status})"
        return Verdict(violations=(Violation(rule="no_plan", subject="plan", message=message),))
    if problem is None:
        return _check_alone(placement)
    verdict = judge(problem, placement)
    if document.instance.sha256 == problem.sha256 and document.outcome.objective is not None and verdict.feasible:
        worth = EXPERT_PLACEMENT.objective(problem, placement).total
        if abs(worth - document.outcome.objective) > 1e-6 * max(1.0, abs(worth)):
            message = f"the document claims an objective of {document.outcome.objective:.9g}, it is {worth:.9g}"
            claim = Violation(rule="claimed_objective", subject="outcome", message=message)
            return verdict.model_copy(update={"violations": (claim,), "feasible": False})
    return verdict


def _check_alone(placement: ExpertPlacement) -> Verdict:
    """Rules of a placement that no instance is needed for: a uniform load has the same shape."""
    problem = ExpertPlacementProblem.from_arrays(
        np.ones((len(placement.layer_ids), placement.num_experts)),
        num_gpus=placement.num_gpus,
        gpus_per_node=placement.gpus_per_node,
        num_slots=placement.num_slots,
        layer_ids=placement.layer_ids,
        num_decoder_layers=placement.num_decoder_layers,
        split=placement.split,
    )
    broken = EXPERT_PLACEMENT.check(problem, placement.model_copy(update={"moves": None}))
    assumption = "no instance given: loads, memory and moves are not judged"
    return Verdict(violations=tuple(broken), assumptions=(assumption,))
