"""`gpuplan check`: judge a stored plan anew."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.command import ExitCode, tell
from cli.options import CurrentOption, JsonOption, PlanArgument


def check(
    plan: PlanArgument,
    instance: Annotated[
        str | None,
        typer.Option(metavar="INSTANCE", help="what the plan answers; without it only its own rules are judged"),
    ] = None,
    current: CurrentOption = None,
    as_json: JsonOption = False,
) -> int:
    """Check a plan whatever made it, and judge it by the cost model.

    Exit codes: 0 it keeps every rule and budget, 6 it breaks one, 7 bad files.
    """
    from cli.instances import with_current
    from cli.render import console, print_verdict
    from cli.solving import print_json
    from formulations.planning import check_document, problem_of
    from planner.errors import OptionError
    from planner.plan import read_document

    if instance is None and current is not None:
        raise OptionError("--current needs --instance")
    if plan == "-" and instance == "-":
        raise OptionError("only one of PLAN.json and INSTANCE can be standard input")
    document = read_document(plan)
    problem = None
    if instance is not None:
        problem = problem_of(with_current(instance, current))
        if problem.sha256 != document.instance.sha256:
            tell(f"warning: {plan} was made for another instance than {instance} is now (sha256 differs)")
    verdict = check_document(document, problem)
    if as_json:
        print_json(verdict.model_dump(mode="json"))
    else:
        print_verdict(console(), plan, verdict)
    return ExitCode.OK if verdict.feasible else ExitCode.BROKEN
