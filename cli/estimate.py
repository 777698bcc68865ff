"""`gpuplan estimate`: the cost model alone, for one worker, one training run, or a table of workers."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

import typer

from cli.options import JsonOption
from cli.options import panel_option as _flag

TABLE, WHAT, SPLIT = "A table, instead of flags", "Model and hardware", "Parallelism"
SERVING, TRAINING, JUDGED = "Serving load", "Training", "Limits and prices"


class Task(StrEnum):
    """What is estimated."""

    SERVE = "serve"
    TRAIN = "train"


class Engine(StrEnum):
    """Serving engine."""

    VLLM = "vllm"
    SGLANG = "sglang"
    TRTLLM = "trtllm"


class KvDtype(StrEnum):
    """Format of the cache."""

    BF16 = "bf16"
    FP8 = "fp8"


class RecomputeMode(StrEnum):
    """What the backward pass computes again."""

    NONE = "none"
    SELECTIVE = "selective"
    FULL = "full"


class ScheduleName(StrEnum):
    """Order of passes in a pipeline."""

    GPIPE = "gpipe"
    ONE_F_ONE_B = "1f1b"
    ZB_1P = "zb-1p"
    ZB_2P = "zb-2p"
    ZB_V = "zb-v"


#: Flags that say something in one form of the command alone, and those that form needs.
SERVE_ONLY = (
    "backend", "moe_tp", "moe_precision", "kv_dtype", "input_tokens", "output_tokens", "concurrency", "rate",
    "percentile", "ttft", "tpot", "price_per_gpu_hour", "memory_fraction", "max_num_seqs", "max_num_batched_tokens",
)  # fmt: skip
TRAIN_ONLY = (
    "cp", "vpp", "micro_batch_size", "global_batch_size", "sequence_length", "zero", "recompute", "schedule",
    "framework", "gpus_per_node", "inter_node_bandwidth",
)  # fmt: skip
TABLE_ONLY = ("models", "output")
SHARED = ("model", "device", "tp", "pp", "dp", "ep", "precision")
SERVE_NEEDS = ("model", "device", "input_tokens", "output_tokens")
TRAIN_NEEDS = ("model", "device", "global_batch_size", "sequence_length")


def estimate(
    model: Annotated[str | None, _flag("catalogue name, or path of a config.json", WHAT, "NAME|config.json")] = None,
    device: Annotated[str | None, _flag("catalogue name, or a file that describes one", WHAT, "NAME|FILE")] = None,
    task: Annotated[Task, _flag("what to estimate", WHAT)] = Task.SERVE,
    precision: Annotated[
        str | None, _flag("of the weights: bf16, fp8, fp8_block, nvfp4, ...; default: the checkpoint's", WHAT, "NAME")
    ] = None,
    moe_precision: Annotated[str | None, _flag("of the routed experts, where it differs", WHAT, "NAME")] = None,
    kv_dtype: Annotated[KvDtype | None, _flag("of the cache; default: what the engine would take", WHAT)] = None,
    backend: Annotated[Engine | None, _flag("serving engine; default: vllm", WHAT)] = None,
    calibration: Annotated[
        str | None, _flag("your own measurements, from `gpuplan calibrate`", WHAT, "efficiency.yaml")
    ] = None,
    tp: Annotated[int | None, _flag("tensor-parallel GPUs", SPLIT, "N", "--tp")] = None,
    pp: Annotated[int | None, _flag("pipeline stages", SPLIT, "N", "--pp")] = None,
    dp: Annotated[
        int | None, _flag("data-parallel ranks; serving: of the attention, inside the worker", SPLIT, "N", "--dp")
    ] = None,
    ep: Annotated[int | None, _flag("expert-parallel GPUs, within TP x DP", SPLIT, "N", "--ep")] = None,
    moe_tp: Annotated[int | None, _flag("GPUs that share each expert; default: TP x DP / EP", SPLIT, "N")] = None,
    cp: Annotated[int | None, _flag("context-parallel GPUs (training)", SPLIT, "N", "--cp")] = None,
    vpp: Annotated[int | None, _flag("virtual stages of a GPU (training)", SPLIT, "N", "--vpp")] = None,
    input_tokens: Annotated[int | None, _flag("of each prompt", SERVING, "N")] = None,
    output_tokens: Annotated[int | None, _flag("of each answer", SERVING, "N")] = None,
    concurrency: Annotated[int | None, _flag("sequences at once, a closed loop", SERVING, "N")] = None,
    rate: Annotated[float | None, _flag("or requests a second, Poisson arrivals", SERVING, "R")] = None,
    memory_fraction: Annotated[
        float | None, _flag("of a GPU's memory for the engine, by its own rule", SERVING, "F")
    ] = None,
    max_num_seqs: Annotated[int | None, _flag("most sequences of a rank", SERVING, "N")] = None,
    max_num_batched_tokens: Annotated[int | None, _flag("most tokens of a step", SERVING, "N")] = None,
    global_batch_size: Annotated[int | None, _flag("sequences of a step", TRAINING, "N")] = None,
    micro_batch_size: Annotated[int | None, _flag("sequences of a forward pass; default: 1", TRAINING, "N")] = None,
    sequence_length: Annotated[int | None, _flag("tokens of a sequence", TRAINING, "N")] = None,
    zero: Annotated[
        int | None, _flag("ZeRO stage, 3 is FSDP; default: 1, the optimizer is sharded", TRAINING, "0..3", "--zero")
    ] = None,
    recompute: Annotated[RecomputeMode | None, _flag("in the backward pass; default: none", TRAINING)] = None,
    schedule: Annotated[ScheduleName | None, _flag("of the pipeline; default: 1f1b", TRAINING)] = None,
    framework: Annotated[
        str | None,
        _flag("whose coefficients to use: megatron (default), llm_foundry (FSDP), or your own", TRAINING, "NAME"),
    ] = None,
    gpus_per_node: Annotated[int | None, _flag("default: the scale-up domain", TRAINING, "N")] = None,
    inter_node_bandwidth: Annotated[
        str | None, _flag("of one GPU to other nodes, such as 400Gbit/s", TRAINING, "RATE")
    ] = None,
    ttft: Annotated[str | None, _flag("most time to the first token, such as 2s", JUDGED, "S", "--ttft")] = None,
    tpot: Annotated[str | None, _flag("most time of each next token, such as 30ms", JUDGED, "S", "--tpot")] = None,
    percentile: Annotated[
        float | None, _flag("of requests that keep the limits, with --rate; default: the mean", JUDGED, "P")
    ] = None,
    price_per_gpu_hour: Annotated[str | None, _flag("such as $2.5", JUDGED, "$")] = None,
    rows: Annotated[
        str | None, _flag("predict each row of a table of serving runs; - is standard input", TABLE, "ROWS.csv")
    ] = None,
    models: Annotated[
        str | None, _flag("folder of <org>--<name>.json configs, asked before the catalogue", TABLE, "DIR")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="OUT.csv", help="default: standard output", rich_help_panel=TABLE),
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Predict times, memory, throughput and cost, without searching for a plan.

    Serving: one worker of TP x PP x DP GPUs under one load. Training: one step of one run. With --rows: every
    row of a table of serving runs, with the predictions as more columns.
    """
    given = {name: value for name, value in locals().items() if value is not None and name not in ("task", "as_json")}
    if rows is not None:
        _refuse(given, (*SHARED, *SERVE_ONLY, *TRAIN_ONLY), "--rows: the table says it")
        if as_json or task is not Task.SERVE:
            _refuse({"json": as_json, "task": task}, ("json",) if as_json else ("task",), "--rows")
        from cli.estimate_table import estimate_table

        return estimate_table(rows, models, output, calibration)
    _refuse(given, TABLE_ONLY, "flags, only with --rows")
    if task is Task.TRAIN:
        _refuse(given, SERVE_ONLY, "--task train")
        _need(given, TRAIN_NEEDS)
        from cli.estimate_training import TrainingFlags, show_training

        return show_training(TrainingFlags(**given), as_json)
    _refuse(given, TRAIN_ONLY, "--task serve")
    _need(given, SERVE_NEEDS)
    from planner.errors import OptionError

    if (concurrency is None) == (rate is None):
        raise OptionError("give either --concurrency or --rate")
    if percentile is not None and rate is None:
        raise OptionError("--percentile is for --rate: a closed loop is judged by its mean")
    from cli.estimate_serving import ServingFlags, show_serving

    return show_serving(ServingFlags(**given), as_json)


def _name(flag: str) -> str:
    return f"--{flag.replace('_', '-')}"


def _refuse(given: Mapping[str, Any], flags: tuple[str, ...], where: str) -> None:
    """A flag that would have no effect is a mistake."""
    from planner.errors import OptionError

    wrong = [_name(flag) for flag in flags if flag in given]
    if wrong:
        raise OptionError(f"{', '.join(wrong)} cannot be used with {where}")


def _need(given: Mapping[str, Any], flags: tuple[str, ...]) -> None:
    from planner.errors import OptionError

    missing = [_name(flag) for flag in flags if flag not in given]
    if missing:
        raise OptionError(f"{', '.join(missing)} must be given; or --rows for a table")
