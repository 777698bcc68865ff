"""`gpuplan experts`: place MoE experts from flags, or from an instance with flags over it."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import (
    CurrentOption,
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
    from planner.files import SourceText

CLUSTER, LOADS, COMMUNICATION, REPLANNING = "GPUs and slots", "Loads", "Communication", "Replanning"
STUDIES = "Studies, instead of one plan"


class Split(StrEnum):
    """Dispatch of a replicated expert."""

    EVEN = "even"
    LP = "lp"


class CommunicationKind(StrEnum):
    """How a token's travel is charged."""

    CHAIN = "chain"
    FANOUT = "fanout"


class LeaveOut(StrEnum):
    """What is held out at a time."""

    ONE = "leave-one-out"
    CLUSTER = "leave-cluster-out"


def experts(
    instance: Annotated[
        str | None,
        typer.Argument(metavar="INSTANCE", help="instance file that the flags override; - is standard input"),
    ] = None,
    name: Annotated[str | None, _flag("name of the instance", LOADS, "TEXT")] = None,
    loads: Annotated[
        list[str] | None,
        _flag(
            "tokens per expert of one scenario: SGLang .json/.pt, .npy, .csv; repeatable",
            LOADS,
            "FILE[:weight]",
        ),
    ] = None,
    sample: Annotated[
        str | None,
        _flag("a few thousand tokens of the workload to come, to adapt the loads to", LOADS, "FILE"),
    ] = None,
    split: Annotated[Split | None, _flag("how replicas share an expert's tokens", LOADS)] = None,
    num_gpus: Annotated[int | None, _flag("GPUs of the expert-parallel group", CLUSTER, "N")] = None,
    gpus_per_node: Annotated[int | None, _flag("default: all in one node", CLUSTER, "N")] = None,
    num_slots: Annotated[int | None, _flag("physical experts of a layer, over all GPUs", CLUSTER, "N")] = None,
    redundant: Annotated[int | None, _flag("instead of --num-slots: slots beyond one per expert", CLUSTER, "R")] = None,
    expert_bytes: Annotated[
        str | None, _flag("weights of one expert of one layer, such as 42MiB", CLUSTER, "SIZE")
    ] = None,
    gpu_memory: Annotated[str | None, _flag("memory of a GPU for expert weights", CLUSTER, "SIZE")] = None,
    num_groups: Annotated[int | None, _flag("expert groups (config.json n_group)", CLUSTER, "N")] = None,
    group_spread: Annotated[int | None, _flag("most nodes that one group may lie on", CLUSTER, "N")] = None,
    trace: Annotated[
        str | None, _flag("experts that each token took, .npy [tokens, layers, k]", COMMUNICATION, "FILE")
    ] = None,
    documents: Annotated[str | None, _flag("document of each token, .npy [tokens]", COMMUNICATION, "FILE")] = None,
    comm: Annotated[
        CommunicationKind | None,
        _flag("charge travel from layer to layer, or to all k experts", COMMUNICATION),
    ] = None,
    comm_weight: Annotated[float | None, _flag("price of communication against balance", COMMUNICATION, "W")] = None,
    current: CurrentOption = None,
    max_moves: Annotated[int | None, _flag("most replicas that may be loaded anew", REPLANNING, "N")] = None,
    move_cost: Annotated[
        float | None, _flag("price of a moved replica, in evenly loaded layers", REPLANNING, "C")
    ] = None,
    validate: Annotated[LeaveOut | None, _flag("plan without each scenario and score the plan on it", STUDIES)] = None,
    find_slots: Annotated[
        float | None, _flag("fewest slots whose plan reaches this mean balancedness", STUDIES, "TARGET")
    ] = None,
    pareto: Annotated[
        bool,
        _flag(
            "balance against communication; with -o also a plan, with the points in it",
            STUDIES,
            None,
            "--pareto",
        ),
    ] = False,
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
    """Place MoE experts and their replicas on GPUs.

    The instance comes from flags, or from a file that the flags override. With a study, the time and work
    limits hold for each plan that it makes.
    """
    from cli import studies
    from cli.instances import beside, load_source, merge, save, with_slots
    from cli.solving import Delivery, run_plan
    from formulations.planning import problem_of
    from planner.errors import OptionError
    from planner.overlay import Flag

    chosen = [bool(validate), find_slots is not None, pareto]
    if sum(chosen) > 1:
        raise OptionError("choose one of --validate, --find-slots and --pareto")
    if output is not None and (validate or find_slots is not None):
        raise OptionError("-o is for plans; --validate and --find-slots print tables, or --json")
    if redundant is not None and num_slots is not None:
        raise OptionError("choose one of --num-slots and --redundant")
    options = solve_options("experts", time_limit, work_limit, seed, threads, gap, method)
    delivery = Delivery(output, as_json, quiet)
    given_loads = [load_source(instance, text) for text in loads or ()] or None
    if instance is None and name is None:
        name = _default_name(loads, trace)
    source = merge(
        instance,
        {
            ("name",): Flag("--name", name),
            ("loads",): Flag("--loads", given_loads),
            ("sample",): Flag("--sample", None if sample is None else {"file": beside(instance, sample)}),
            ("split",): Flag("--split", split),
            ("num_gpus",): Flag("--num-gpus", num_gpus),
            ("gpus_per_node",): Flag("--gpus-per-node", gpus_per_node),
            ("num_slots",): Flag("--num-slots", num_slots),
            ("expert_bytes",): Flag("--expert-bytes", expert_bytes),
            ("gpu_memory_bytes",): Flag("--gpu-memory", gpu_memory),
            ("num_groups",): Flag("--num-groups", num_groups),
            ("group_spread",): Flag("--group-spread", group_spread),
            ("trace", "file"): Flag("--trace", beside(instance, trace)),
            ("trace", "documents"): Flag("--documents", beside(instance, documents)),
            ("communication", "model"): Flag("--comm", comm),
            ("communication", "weight"): Flag("--comm-weight", comm_weight),
            ("current",): Flag("--current", beside(instance, current)),
            ("max_moves",): Flag("--max-moves", max_moves),
            ("move_cost",): Flag("--move-cost", move_cost),
        },
    )
    if redundant is not None or (find_slots is not None and _lacks_slots(source)):
        source = with_slots(source, redundant)
    problem = problem_of(source)
    save(source, save_instance)
    if validate is not None:
        return studies.validate(problem, options, "scenario" if validate is LeaveOut.ONE else "cluster", delivery)
    if find_slots is not None:
        return studies.size(problem, options, find_slots, delivery)
    if pareto:
        return studies.sweep(problem, options, delivery)
    return run_plan(problem, options, delivery)


def _default_name(loads: list[str] | None, trace: str | None) -> str:
    from pathlib import PurePath

    first = loads[0] if loads else trace or "experts"
    return PurePath(first).name.split(".")[0] or "experts"


def _lacks_slots(source: SourceText) -> bool:
    return isinstance(source.value, dict) and source.value.get("num_slots") is None
