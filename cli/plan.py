"""`gpuplan plan`: solve an instance file."""

from __future__ import annotations

from cli.options import (
    CurrentOption,
    GapOption,
    InstanceArgument,
    JsonOption,
    MethodOption,
    OutputOption,
    QuietOption,
    SeedOption,
    ThreadsOption,
    TimeLimitOption,
    WorkLimitOption,
    solve_options,
)


def plan(
    instance: InstanceArgument,
    output: OutputOption = None,
    time_limit: TimeLimitOption = 30.0,
    work_limit: WorkLimitOption = None,
    seed: SeedOption = 0,
    threads: ThreadsOption = None,
    gap: GapOption = None,
    method: MethodOption = None,
    current: CurrentOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Plan an instance file, or a filled-in workbook; -o plan.xlsx writes a workbook.

    Prints the answer, the plain rule beside it, and what is proven of it.

    Exit codes: 0 a plan, 2 usage, 3 proven infeasible, 4 short of the asked gap, 5 no plan found,
    7 bad files.
    """
    from cli.instances import with_current
    from cli.solving import Delivery, run_plan
    from cli.workbook import is_workbook, write_workbook
    from formulations.kinds import kind_name
    from formulations.planning import problem_of
    from planner.errors import OptionError

    delivery = Delivery(output, as_json, quiet)
    source = with_current(instance, current)
    options = solve_options(kind_name(source), time_limit, work_limit, seed, threads, gap, method)
    if output is not None and is_workbook(output):
        if as_json:
            raise OptionError("--json prints a plan document; -o plan.xlsx writes a workbook: choose one")
        return write_workbook(source, None, options, output, quiet=quiet)
    return run_plan(problem_of(source), options, delivery)
