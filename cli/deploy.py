"""`gpuplan deploy`: one plan from demand to placed pods, from an instance with flags over it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import (
    GapOption,
    JsonOption,
    MethodOption,
    OutputOption,
    QuietOption,
    SaveInstanceOption,
    SeedOption,
    ThreadsOption,
    TimeLimitOption,
    WorkLimitOption,
    solve_options,
)
from cli.options import panel_option as _flag

if TYPE_CHECKING:
    from formulations.deployment.cuts import Cut
    from planner.plan import DeployDocument

WHAT, LIMITS, CHANGE, STUDIES = "Inventory and demand", "Limits", "A deployment in force", "Studies"

#: Keys that a file of --services may give.
SERVICES_KEYS = ("services", "slo", "hours", "utilisation", "loads")


def deploy(
    instance: Annotated[
        str | None,
        typer.Argument(metavar="INSTANCE", help="instance file that the flags override; - is standard input"),
    ] = None,
    name: Annotated[str | None, _flag("name of the instance", WHAT, "TEXT")] = None,
    services: Annotated[
        str | None, _flag("what is served, to whom, how fast: a file with `services:`", WHAT, "FILE")
    ] = None,
    nodes: Annotated[
        str | None, _flag("what stands: `kubectl get nodes -o json`, file or folder", WHAT, "FILE")
    ] = None,
    pods: Annotated[
        str | None, _flag("what runs there: `kubectl get pods -A -o json`, file or folder", WHAT, "FILE")
    ] = None,
    offers: Annotated[
        str | None, _flag("what can be rented: a file with `offers:`, as `gpuplan import prices` writes", WHAT, "FILE")
    ] = None,
    workers: Annotated[
        str | None, _flag("table of workers by service and size, in place of the serving search", WHAT, "CSV")
    ] = None,
    calibration: Annotated[
        str | None, _flag("your own measurements, from `gpuplan calibrate`", WHAT, "efficiency.yaml")
    ] = None,
    utilisation: Annotated[
        float | None, _flag("share of its throughput that a worker is given at most; default: 0.8", LIMITS, "X")
    ] = None,
    budget: Annotated[str | None, _flag("most USD in any hour", LIMITS, "$/h")] = None,
    max_watts: Annotated[str | None, _flag("most power in any hour, such as 20kW", LIMITS, "W")] = None,
    spare: Annotated[int | None, _flag("1: survive the loss of any one node", LIMITS, "0|1")] = None,
    current: Annotated[str | None, _flag("plan document of the deployment in force", CHANGE, "PLAN.json")] = None,
    max_moves: Annotated[int | None, _flag("most workers started beside those in force", CHANGE, "N")] = None,
    move_cost: Annotated[
        float | None, _flag("price of each GPU of a worker that is started, USD/hour", CHANGE, "$")
    ] = None,
    ablate: Annotated[
        list[str] | None,
        _flag(
            "also: what the plan costs with one coupling cut: sharing, workers, nodes, experts, pd, hours, or all;"
            " repeatable, each within the time limit",
            STUDIES,
            "CUT",
        ),
    ] = None,
    output: OutputOption = None,
    time_limit: TimeLimitOption = 30.0,
    work_limit: WorkLimitOption = None,
    seed: SeedOption = 0,
    threads: ThreadsOption = None,
    gap: GapOption = None,
    method: MethodOption = None,
    save_instance: SaveInstanceOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Plan a whole deployment: nodes to rent or use, workers, their pods to the device, experts in their slots.

    One optimisation with a bound, not stages in a row. With a deployment in force: as few moves as are worth it, in an
    order in which no less is served than now.

    Exit codes: 0 a plan, 2 usage, 3 proven infeasible, 4 short of the asked gap, 5 no plan found, 7 bad files.
    """
    from cli.fleet import OFFERS_KEYS, file_flags
    from cli.instances import beside, merge, save
    from cli.solving import Delivery, run_plan
    from formulations.planning import problem_of
    from planner.overlay import Flag

    delivery = Delivery(output, as_json, quiet)
    options = solve_options("deploy", time_limit, work_limit, seed, threads, gap, method)
    cuts = _cuts(ablate)
    flags = {
        ("name",): Flag("--name", name or (None if instance is not None else "deployment")),
        **file_flags(instance, {"--offers": (offers, OFFERS_KEYS), "--services": (services, SERVICES_KEYS)}),
        ("nodes",): Flag("--nodes", beside(instance, nodes)),
        ("pods",): Flag("--pods", beside(instance, pods)),
        ("workers",): Flag("--workers", beside(instance, workers)),
        ("calibration",): Flag("--calibration", beside(instance, calibration)),
        ("utilisation",): Flag("--utilisation", utilisation),
        ("budget_usd_per_hour",): Flag("--budget", budget),
        ("max_watts",): Flag("--max-watts", max_watts),
        ("spare",): Flag("--spare", spare),
        ("current",): Flag("--current", beside(instance, current)),
        ("max_moves",): Flag("--max-moves", max_moves),
        ("move_cost_usd_per_gpu_hour",): Flag("--move-cost", move_cost),
    }
    source = merge(instance, flags, problem="deploy")
    problem = problem_of(source)
    save(source, save_instance)

    def finish(document: DeployDocument) -> DeployDocument:
        from formulations.deployment.cuts import couplings

        if document.plan is None or not cuts:
            return document
        found = couplings(problem, document.plan, cuts, options)
        return document.model_copy(update={"plan": document.plan.model_copy(update={"couplings": found})})

    return run_plan(problem, options, delivery, finish)


def _cuts(given: list[str] | None) -> tuple[Cut, ...]:
    """The couplings of --ablate. OptionError for others."""
    from formulations.deployment.cuts import CUTS
    from planner.errors import OptionError

    asked = [name for one in given or () for name in one.split(",")]
    unknown = sorted(set(asked) - {*CUTS, "all"})
    if unknown:
        raise OptionError(f"--ablate {unknown[0]!r}: choose from {', '.join(CUTS)}, all")
    return tuple(cut for cut in CUTS if cut in asked or "all" in asked)
