"""The studies of `gpuplan experts`: held-out scenarios, slot counts, balance against communication."""

from __future__ import annotations

from dataclasses import asdict
from typing import Literal

from cli.command import ExitCode
from cli.progress import watched
from cli.render import console, number, printable, ratio, table
from cli.solving import Delivery, print_json, run_plan
from formulations.expert_placement.pareto import pareto
from formulations.expert_placement.problem import ExpertPlacementProblem
from formulations.expert_placement.sizing import find_slots
from formulations.expert_placement.validation import leave_out
from formulations.outcome import SolveOptions
from planner.experts_plan import ParetoPoint
from planner.plan import ExpertsDocument


def validate(
    problem: ExpertPlacementProblem,
    options: SolveOptions,
    by: Literal["scenario", "cluster"],
    delivery: Delivery,
) -> ExitCode:
    """Balancedness on scenarios that the plan was not fitted to."""
    with watched(delivery.quiet) as on_progress:
        held = leave_out(problem, options, by=by, on_progress=on_progress)
    known = [row.hindsight for row in held if row.hindsight is not None]
    mean = {
        "plan": sum(row.plan for row in held) / len(held),
        "baseline": sum(row.baseline for row in held) / len(held),
        "hindsight": sum(known) / len(known) if len(known) == len(held) else None,
    }
    if delivery.as_json:
        print_json({"rows": [asdict(row) for row in held], "mean": mean})
        return ExitCode.OK
    rows = [
        (
            printable(row.name),
            str(len(row.fitted_on)),
            ratio(row.plan),
            ratio(row.baseline),
            ratio(row.hindsight),
        )
        for row in held
    ]
    rows.append(("mean", "", ratio(mean["plan"]), ratio(mean["baseline"]), ratio(mean["hindsight"])))
    out = console()
    out.print(f"{printable(problem.name)}: mean balancedness on the {by} left out", style="bold", soft_wrap=True)
    out.print(table(("held out", "fitted on", "plan", "eplb", "hindsight"), rows))
    out.print(
        "fitted on: scenarios the plan and eplb saw; hindsight: a plan fitted to the held-out one",
        soft_wrap=True,
    )
    return ExitCode.OK


def size(problem: ExpertPlacementProblem, options: SolveOptions, target: float, delivery: Delivery) -> ExitCode:
    """Fewest slots that reach a balancedness; infeasible when none can."""
    with watched(delivery.quiet) as on_progress:
        found = find_slots(problem, target, options, on_progress=on_progress)
    if delivery.as_json:
        print_json(asdict(found))
    else:
        rows = [
            (
                str(trial.num_slots),
                ratio(trial.balancedness),
                ratio(trial.bound),
                "yes" if trial.reached else "no",
            )
            for trial in found.trials
        ]
        if found.num_slots is not None:
            known = "no smaller count can" if found.proven else "a smaller count is not ruled out"
            text = f"{found.num_slots} slots reach {number(target)} mean balancedness; {known}"
        elif found.proven:
            text = f"no slot count can reach {number(target)} mean balancedness (proven)"
        else:
            text = f"no slot count was found to reach {number(target)} mean balancedness, and none is ruled out"
        out = console()
        out.print(f"{printable(problem.name)}: {text}", style="bold", soft_wrap=True)
        if rows:
            out.print(table(("slots", "balancedness", "at most", "reached"), rows))
    if found.num_slots is not None:
        return ExitCode.OK
    return ExitCode.INFEASIBLE if found.proven else ExitCode.NO_PLAN


def sweep(problem: ExpertPlacementProblem, options: SolveOptions, delivery: Delivery) -> ExitCode:
    """Balance against communication; with an output also the instance's own plan, with the points in it."""
    with watched(delivery.quiet) as on_progress:
        points = pareto(problem, options, on_progress=on_progress)
    if delivery.output is None and delivery.as_json:
        print_json({"pareto": [point.model_dump() for point in points]})
    elif not (delivery.as_json or delivery.output == "-" or (delivery.quiet and delivery.output)):
        rows = [
            (number(point.communication_weight), ratio(point.balancedness_mean), number(point.communication))
            for point in points
        ]
        out = console()
        out.print(f"{printable(problem.name)}: balance against communication", style="bold", soft_wrap=True)
        out.print(table(("communication weight", "balancedness mean", "cost of a token"), rows))
    if delivery.output is not None:
        return run_plan(problem, options, delivery, lambda document: _with_points(document, points))
    return ExitCode.OK if points else ExitCode.NO_PLAN


def _with_points(document: ExpertsDocument, points: tuple[ParetoPoint, ...]) -> ExpertsDocument:
    if document.plan is None:
        return document
    return document.model_copy(update={"plan": document.plan.model_copy(update={"pareto": points})})
