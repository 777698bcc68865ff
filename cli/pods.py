"""`gpuplan pods`: where pods go, from kubectl output, or from an instance with flags over it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

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

WHAT, GOAL = "Nodes and pods", "Goal"


class GoalName(StrEnum):
    """What is best."""

    PRIORITY = "priority"
    ALLOCATION = "allocation"
    CONSOLIDATE = "consolidate"
    FRAGMENTS = "fragments"


class Counted(StrEnum):
    """What consolidation counts."""

    GPUS = "gpus"
    NODES = "nodes"
    PRICE = "price"


def pods(
    instance: Annotated[
        str | None,
        typer.Argument(metavar="INSTANCE", help="instance file that the flags override; - is standard input"),
    ] = None,
    name: Annotated[str | None, _flag("name of the instance", WHAT, "TEXT")] = None,
    nodes: Annotated[
        str | None, _flag("`kubectl get nodes -o json`: file, folder, YAML, or - ; or openb CSV", WHAT, "FILE")
    ] = None,
    pods: Annotated[
        str | None, _flag("`kubectl get pods -A -o json`: file, folder, YAML, or - ; or openb CSV", WHAT, "FILE")
    ] = None,
    objects: Annotated[
        list[str] | None,
        _flag("more files: disruption budgets, pod groups, priority classes, namespaces; repeatable", WHAT, "FILE"),
    ] = None,
    objective: Annotated[GoalName | None, _flag("default: priority", GOAL)] = None,
    powered: Annotated[Counted | None, _flag("what consolidation counts of nodes in use; default: gpus", GOAL)] = None,
    moves: Annotated[
        int | None, _flag("running pods that may be moved or evicted, at most; default: none", GOAL, "N", "--moves")
    ] = None,
    evict: Annotated[
        bool | None,
        _flag("with --moves: pods of lower priority may be left without a place", GOAL, None, "--evict"),
    ] = None,
    headroom: Annotated[
        str | None,
        _flag("how many more pods like this pending one fit, now and after --moves; no plan is made", GOAL, "POD"),
    ] = None,
    time_slice: Annotated[float | None, _flag("most seconds for one tier of the goal", GOAL, "S")] = None,
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
    """Give pending pods a place, down to the GPU: most by priority, most GPU allocated, or fewest nodes in use.

    With `fragments`, move VMs on machines of two NUMA nodes so that fewer free cores are fragments.

    Reads what kubectl prints. Pods that run stay where they are, but for --moves. Every pod without a place is told
    with its reason. Nothing is changed in any cluster.

    Exit codes: 0 a plan, 2 usage, 3 proven infeasible, 4 short of the asked gap, 5 no plan found, 7 bad files.
    """
    from cli.instances import Flag, beside, merge, save
    from cli.solving import Delivery, run_plan
    from formulations.kinds import kind_name
    from formulations.planning import problem_of
    from planner.errors import OptionError

    delivery = Delivery(output, as_json, quiet)
    options = solve_options("pods", time_limit, work_limit, seed, threads, gap, method)
    if [instance, nodes, pods].count("-") > 1 and (instance == "-" or nodes != pods):
        raise OptionError("only one of INSTANCE, --nodes and --pods can be standard input")

    def path(text: str | None) -> str | None:
        return text if text == "-" else beside(instance, text)

    if instance is None and name is None:
        name = "pods"
    flags = {
        ("name",): Flag("--name", name),
        ("nodes",): Flag("--nodes", path(nodes)),
        ("pods",): Flag("--pods", path(pods)),
        ("objects",): Flag("--objects", [path(one) for one in objects] if objects else None),
        ("objective",): Flag("--objective", objective),
        ("powered",): Flag("--powered", powered),
        ("moves", "allowed"): Flag("--moves", None if moves is None else True),
        ("moves", "max"): Flag("--moves", moves),
        ("moves", "evict"): Flag("--evict", evict),
        ("time_slice_s",): Flag("--time-slice", time_slice),
    }
    source = merge(instance, flags, problem="pods")
    if kind_name(source) != "pods":
        raise OptionError("this is an instance of another problem; `gpuplan plan` takes any")
    save(source, save_instance)
    if headroom is not None:
        from cli.pods_headroom import tell_headroom

        return tell_headroom(problem_of(source), headroom, options, delivery)
    return run_plan(problem_of(source), options, delivery)
