"""`gpuplan parallel`: which workers serve a model, and how many, from flags or an instance with flags over it."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

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
    from planner.files import Loc
    from planner.overlay import Flag

WHAT, LOAD, GOAL = "Model and cluster", "Requests and limits", "Goal and choices"
TRAIN = "Training"


class Engine(StrEnum):
    """Serving engine."""

    VLLM = "vllm"
    SGLANG = "sglang"
    TRTLLM = "trtllm"


class Disaggregated(StrEnum):
    """Whether prefill and decode may, must or must not have workers of their own."""

    ALLOW = "allow"
    ONLY = "only"
    NEVER = "never"


class Task(StrEnum):
    """What the GPUs do."""

    SERVE = "serve"
    TRAIN = "train"


class GoalName(StrEnum):
    """What is best."""

    STEP_TIME = "step_time"
    THROUGHPUT = "throughput"
    GPUS = "gpus"
    COST = "cost"
    JOULES = "joules"


def parallel(
    instance: Annotated[
        str | None,
        typer.Argument(metavar="INSTANCE", help="instance file that the flags override; - is standard input"),
    ] = None,
    task: Annotated[Task | None, _flag("what the GPUs do; default: serve", WHAT)] = None,
    name: Annotated[str | None, _flag("name of the instance", WHAT, "TEXT")] = None,
    model: Annotated[
        str | None, _flag("catalogue name, or path of a config.json or of its folder", WHAT, "NAME|config.json")
    ] = None,
    checkpoint: Annotated[
        str | None, _flag("what workers load: an id of the hub, or a path where they run; default: the model", WHAT)
    ] = None,
    precision: Annotated[
        str | None, _flag("of the weights: bf16, fp8, fp8_block, nvfp4, ...; default: the checkpoint's", WHAT, "NAME")
    ] = None,
    backend: Annotated[Engine | None, _flag("serving engine; default: vllm", WHAT)] = None,
    cluster: Annotated[str | None, _flag("a cluster file", WHAT, "CLUSTER.yaml")] = None,
    device: Annotated[str | None, _flag("or a kind of GPU", WHAT, "NAME")] = None,
    nodes: Annotated[int | None, _flag("nodes of --device; default: 1", WHAT, "N")] = None,
    gpus_per_node: Annotated[int | None, _flag("GPUs of each; default: the scale-up domain", WHAT, "N")] = None,
    input_tokens: Annotated[int | None, _flag("of each prompt", LOAD, "N")] = None,
    output_tokens: Annotated[int | None, _flag("of each answer", LOAD, "N")] = None,
    rate: Annotated[float | None, _flag("requests a second to serve; default: as many as can be", LOAD, "R")] = None,
    mix: Annotated[
        list[str] | None,
        _flag("requests of another size, W of them for each of --input-tokens; repeatable", LOAD, "INPUT/OUTPUT=W"),
    ] = None,
    hourly: Annotated[
        str | None, _flag("requests a second of each hour, in place of --rate: a plan for each", LOAD, "R,R,...")
    ] = None,
    ttft: Annotated[str | None, _flag("most time to the first token, such as 2s", LOAD, "S", "--ttft")] = None,
    tpot: Annotated[str | None, _flag("most time of each next token, such as 30ms", LOAD, "S", "--tpot")] = None,
    margin: Annotated[
        float | None, _flag("predictions count so much longer against the limits; default: 0.05", LOAD, "X")
    ] = None,
    slo_confidence: Annotated[
        float | None,
        _flag("share of measurements that are to keep a limit, such as 0.9; in place of --margin", LOAD, "P"),
    ] = None,
    objective: Annotated[GoalName | None, _flag("default: throughput, or with --rate the fewest GPUs", GOAL)] = None,
    price: Annotated[
        list[str] | None, _flag("USD/hour of one GPU, such as h100_sxm=2.5; repeatable", GOAL, "DEVICE=USD")
    ] = None,
    disaggregated: Annotated[
        Disaggregated | None, _flag("separate workers for prefill and decode; default: allow", GOAL)
    ] = None,
    candidates: Annotated[
        str | None, _flag("workers to choose from, measured or predicted elsewhere", GOAL, "WORKERS.csv")
    ] = None,
    max_workers: Annotated[int | None, _flag("most workers in all", GOAL, "N")] = None,
    draft_tokens: Annotated[
        int | None, _flag("drafts of the model's MTP layer that a step may verify; default: none", GOAL, "N")
    ] = None,
    acceptance: Annotated[
        float | None, _flag("chance that a draft is right; default: the model's published one", GOAL, "X")
    ] = None,
    two_batch_overlap: Annotated[
        bool | None,
        _flag("experts over several nodes may overlap exchange and computing", GOAL, None, "--two-batch-overlap"),
    ] = None,
    expert_imbalance: Annotated[
        float | None, _flag("busiest GPU over the mean with redundant experts; default: 1.15", GOAL, "X")
    ] = None,
    current: Annotated[
        str | None, _flag("plan document of what runs now: prints the steps from there", GOAL, "PLAN.json")
    ] = None,
    change_cost: Annotated[
        float | None, _flag("of a GPU whose worker starts: hours of what is minimised (GPUs, USD/hour, W)", GOAL, "X")
    ] = None,
    calibration: Annotated[
        str | None, _flag("your own measurements, from `gpuplan calibrate`", LOAD, "efficiency.yaml")
    ] = None,
    batch_size: Annotated[int | None, _flag("sequences of a step", TRAIN, "N")] = None,
    sequence_length: Annotated[int | None, _flag("tokens of a sequence", TRAIN, "N")] = None,
    framework: Annotated[str | None, _flag("megatron, torchtitan, deepspeed; default: megatron", TRAIN, "NAME")] = None,
    link: Annotated[str | None, _flag("network between nodes of --device, such as ib_ndr", TRAIN, "NAME")] = None,
    fix: Annotated[
        list[str] | None, _flag("size that is decided, such as tensor_parallel_size=8; repeatable", TRAIN, "NAME=N")
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
    """Choose the workers that serve a model: role, GPU kind, parallel sizes, batch, and how many of each.

    The instance comes from flags, or from a file that the flags override. Exact over all counts of every worker that
    the cost model, or the table of --candidates, has. With `task: train` it asks how to split training instead.

    Exit codes: 0 a plan, 2 usage, 3 proven infeasible, 4 short of the asked gap, 5 no plan found, 7 bad files.
    """
    from pathlib import Path

    from cli.instances import beside, merge, save
    from cli.solving import Delivery, run_plan
    from formulations.kinds import kind_name
    from formulations.planning import problem_of
    from planner.overlay import Flag

    delivery = Delivery(output, as_json, quiet)
    if model is not None and Path(model, "config.json").is_file():
        model = str(Path(model, "config.json"))
    if instance is None and name is None:
        name = _default_name(checkpoint or model, candidates)
    flags = {
        ("task",): Flag("--task", task),
        ("name",): Flag("--name", name),
        ("model",): Flag("--model", beside(instance, model) if model and model.endswith(".json") else model),
        ("checkpoint",): Flag("--checkpoint", checkpoint),
        ("precision",): Flag("--precision", precision),
        ("backend",): Flag("--backend", backend),
        ("cluster",): _cluster(instance, cluster, device, nodes, gpus_per_node, link),
        ("workload",): Flag("--input-tokens and --output-tokens"),
        ("global_batch_size",): Flag("--batch-size", batch_size),
        ("sequence_length",): Flag("--sequence-length", sequence_length),
        ("framework",): Flag("--framework", framework),
        **_fixed(fix or []),
        ("workload", "input_tokens"): Flag("--input-tokens", input_tokens),
        ("workload", "output_tokens"): Flag("--output-tokens", output_tokens),
        ("workload", "rate_per_s"): Flag("--rate", rate),
        ("current",): Flag("--current", beside(instance, current)),
        ("change_cost",): Flag("--change-cost", change_cost),
        **_demand(mix or [], hourly),
        ("margin",): Flag("--margin", margin),
        ("slo_confidence",): Flag("--slo-confidence", slo_confidence),
        ("objective",): Flag("--objective", objective),
        ("disaggregated",): Flag("--disaggregated", disaggregated),
        ("candidates",): Flag("--candidates", beside(instance, candidates)),
        ("max_workers",): Flag("--max-workers", max_workers),
        ("speculation", "draft_tokens"): Flag("--draft-tokens", draft_tokens),
        ("speculation", "acceptance"): Flag("--acceptance", acceptance),
        ("two_batch_overlap",): Flag("--two-batch-overlap", two_batch_overlap),
        ("expert_imbalance",): Flag("--expert-imbalance", expert_imbalance),
        ("calibration",): Flag("--calibration", beside(instance, calibration)),
        **_quantities(ttft, tpot, price or []),
    }
    source = merge(instance, flags, problem="parallel")
    options = solve_options(kind_name(source), time_limit, work_limit, seed, threads, gap, method)
    problem = problem_of(source)
    save(source, save_instance)
    return run_plan(problem, options, delivery)


def _default_name(model: str | None, candidates: str | None) -> str:
    from pathlib import PurePath

    path = PurePath(model or candidates or "parallel")
    # Every checkpoint's configuration has the same name; its folder's tells them apart.
    return (path.parent.name if path.name == "config.json" else path.stem if path.suffix == ".csv" else path.name) or (
        "parallel"
    )


def _fixed(sizes: list[str]) -> dict[Loc, Flag]:
    """Sizes of --fix; DescriptionError with all that cannot be read."""
    from cli.flags import FlagReader
    from planner.overlay import Flag

    reader, found = FlagReader(), {}
    for text in sizes:
        name, _, value = text.partition("=")
        if not (name and value.isdecimal()):
            reader.tell("--fix", f"is {text!r}, but must be NAME=N, such as tensor_parallel_size=8")
            continue
        found["fixed", name] = Flag("--fix", int(value))
    reader.refuse()
    return found


def _cluster(
    instance: str | None,
    cluster: str | None,
    device: str | None,
    nodes: int | None,
    gpus_per_node: int | None,
    link: str | None,
) -> Flag:
    """The cluster of the flags: a file, or equal nodes of one device, with the link between them."""
    from cli.instances import beside
    from planner.errors import OptionError
    from planner.overlay import Flag

    if cluster is not None and device is not None:
        raise OptionError("choose one of --cluster and --device")
    if device is None:
        if nodes is not None or gpus_per_node is not None or link is not None:
            raise OptionError("--nodes, --gpus-per-node and --link go with --device")
        return Flag("--cluster" if cluster else "--cluster or --device", beside(instance, cluster))
    sizes = {"count": nodes, "gpus_per_node": gpus_per_node}
    network = {} if link is None else {"network": {"link": link}}
    nodes_of = {"device": device} | {k: v for k, v in sizes.items() if v is not None}
    return Flag("--device", {"nodes": [nodes_of], **network})


def _demand(mixes: list[str], hourly: str | None) -> dict[Loc, Flag]:
    """Other sizes of requests and rates by the hour; DescriptionError with all that cannot be read."""
    from cli.flags import FlagReader
    from cli.instances import Flag

    reader = FlagReader()
    others: list[dict[str, float]] = []
    for text in mixes:
        size, _, weight = text.partition("=")
        prompt, _, output = size.partition("/")
        try:
            sizes = {"input_tokens": int(prompt), "output_tokens": int(output), "weight": float(weight or 1)}
        except ValueError:
            reader.tell("--mix", f"is {text!r}, but must be INPUT/OUTPUT=WEIGHT, such as 500/200=2")
            continue
        others.append(sizes)
    rates: list[float] | None = None
    if hourly is not None:
        rates = reader.take("--hourly", lambda: [float(rate) for rate in hourly.split(",")])
    reader.refuse()
    return {
        ("workload", "others"): Flag("--mix", others or None),
        ("workload", "hourly"): Flag("--hourly", rates),
    }


def _quantities(ttft: str | None, tpot: str | None, prices: list[str]) -> dict[Loc, Flag]:
    """Flags with units, in SI; DescriptionError with all that cannot be read."""
    from cli.flags import FlagReader
    from planner.overlay import Flag
    from planner.units import PRICE_UNITS, TIME_UNITS, parse_quantity

    reader = FlagReader()

    def read(flag: str, text: str | None, units: Any, what: str) -> Flag:
        return Flag(flag, None if text is None else reader.take(flag, lambda: parse_quantity(text, units, what)))

    found: dict[Loc, Flag] = {
        ("slo", "ttft_s"): read("--ttft", ttft, TIME_UNITS, "a time in seconds"),
        ("slo", "tpot_s"): read("--tpot", tpot, TIME_UNITS, "a time in seconds"),
    }
    for text in prices:
        device, equals, amount = text.partition("=")
        if not (device and equals):
            reader.tell("--price", f"is {text!r}, but must be DEVICE=USD, such as h100_sxm=2.5")
            continue
        units = {**PRICE_UNITS, "$": 1.0}
        found["prices_usd_per_gpu_hour", device] = read("--price", amount, units, "a price in USD per hour")
    reader.refuse()
    return found
