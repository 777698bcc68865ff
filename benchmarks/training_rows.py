"""The published training measurements as plans of the cost model: what each source left unsaid is said here."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.common import data_folder
from planner.catalog import device
from planner.cost.training.calibration import MeasuredPeaks, MeasuredSteps
from planner.cost.training.communication import TrainingNetwork
from planner.cost.training.model import TrainingModel
from planner.cost.training.plans import Recompute, Schedule, TrainingPlans
from planner.hardware import DeviceKind

Fields = dict[str, str]


@dataclass(frozen=True)
class Source:
    """Facts about one source's runs that its table does not print.

    inter_node_gbit_per_s : network of one GPU. dropout, flash, tied, gradient_bytes : of its models and framework.
    both_gradients : precisions in which it keeps 16-bit and fp32 gradients.
    recompute : where a row does not say; zero_stage : overrides the row.
    """

    inter_node_gbit_per_s: float
    dropout: bool = False
    flash: bool = True
    tied: bool = True
    gradient_bytes: int = 4
    both_gradients: tuple[str, ...] = ()
    recompute: Recompute = Recompute.NONE
    zero_stage: int | None = None


#: SC21, Korthikanti: Selene, eight 200 Gbit/s HDR ports a node; Megatron-LM of 2021 and 2022 with unfused softmax and
#: dropout; SC21 trained in fp16 and reduced fp16 gradients.
#: BLOOM: Jean Zay, four 100 Gbit/s Omni-Path ports a node; Megatron-DeepSpeed, whose fp16 optimizer keeps fp16
#: gradients and whose bf16 optimizer keeps both.
#: llm_foundry: 1600 Gbit/s a node is printed for A100; H100 is taken as twice that; FSDP in bf16.
#: torchtitan, megatron_bridge: 400 Gbit/s a GPU, the usual H100 cluster. Llama 3: 400 Gbit/s RoCE (its paper).
#: MegaScale: 200 Gbit/s a GPU. MegaScale and Llama 3 say ZeRO-2 but reduce gradients once a step: ZeRO-1's traffic.
#: zero_bubble: RoCE; four nodes of eight A100, taken as 200 Gbit/s a GPU.
SOURCES = {
    "megatron_sc21": Source(200, dropout=True, flash=False, gradient_bytes=2),
    "korthikanti22": Source(200, dropout=True, flash=False),
    "bloom_prequel": Source(50, dropout=True, flash=False, gradient_bytes=2, both_gradients=("bf16",)),
    "llm_foundry": Source(200, gradient_bytes=2),
    "torchtitan": Source(400, tied=False),
    "llama3_herd": Source(400, tied=False, zero_stage=1),
    "megascale": Source(200, zero_stage=1),
    "zero_bubble": Source(200, dropout=True, flash=False),
    "megatron_bridge": Source(400, tied=False),
}
DEVICES = {"H100": "h100_sxm", "H100-96G-HBM2e": "h100_sxm", "H100-80G-SXM": "h100_sxm"}
RECOMPUTE = {"none": Recompute.NONE, "selective": Recompute.SELECTIVE, "full": Recompute.FULL}
SCHEDULES = {
    "gpipe": Schedule.GPIPE,
    "zb-1p": Schedule.ZB_1P,
    "zb-2p": Schedule.ZB_2P,
    "zb-v": Schedule.ZB_V,
}
#: Vocabulary where a source's table has none: GPT-2's, padded as Megatron does.
VOCABULARY = 51200


def published(keep: Callable[[Fields], bool], folder: Path | None = None) -> list[Fields]:
    """Rows of published_training.csv that `keep` accepts; those whose printed DP does not multiply are dropped."""
    path = (folder or data_folder("training")) / "published_training.csv"
    with path.open(newline="", encoding="utf-8") as lines:
        return [row for row in csv.DictReader(lines) if "does not multiply" not in row["note"] and keep(row)]


def model_of(row: Fields) -> TrainingModel:
    """The dense model of a row."""
    facts = SOURCES[row["source"]]
    return TrainingModel.dense(
        name=row["model"],
        layers=int(row["layers"]),
        hidden=int(row["hidden"]),
        heads=int(row["heads"]),
        kv_heads=int(row["kv_heads"] or row["heads"]),
        ffn=int(row["ffn"]),
        vocab=int(row["vocab"] or VOCABULARY),
        gated=row["gated_mlp"] == "1",
        tied=facts.tied,
        dropout=facts.dropout,
    )


def device_of(row: Fields) -> DeviceKind:
    """The catalogue's accelerator of a row."""
    return device(DEVICES.get(row["gpu"], row["gpu"]))


def network_of(row: Fields) -> TrainingNetwork:
    """The cluster of a row."""
    per_gpu = SOURCES[row["source"]].inter_node_gbit_per_s * 1e9 / 8
    if row["source"] == "llm_foundry" and row["gpu"].startswith("H100"):
        per_gpu *= 2
    return TrainingNetwork.of(device_of(row), inter_node_bytes_per_s=per_gpu, gpus_per_node=int(row["gpus_per_node"]))


def plans_of(rows: Iterable[Fields]) -> TrainingPlans:
    """The plans of rows of one source."""
    listed = list(rows)
    facts = SOURCES[listed[0]["source"]]

    def numbers(name: str, missing: int = 1) -> list[int]:
        return [int(row[name] or missing) for row in listed]

    return TrainingPlans.build(
        tensor_parallel_size=numbers("tp"),
        pipeline_parallel_size=numbers("pp"),
        virtual_pipeline_size=[virtual_of(row) for row in listed],
        context_parallel_size=numbers("cp"),
        data_parallel_size=[data_parallel_of(row) for row in listed],
        zero_stage=[zero_of(row) for row in listed],
        micro_batch_size=numbers("mbs"),
        global_batch_size=numbers("gbs"),
        sequence_length=numbers("seq"),
        sequence_parallel=[row["sp"] == "1" for row in listed],
        flash_attention=facts.flash,
        recompute=[RECOMPUTE.get(row["recompute"], facts.recompute) for row in listed],
        schedule=[SCHEDULES.get(row["schedule"], Schedule.ONE_F_ONE_B) for row in listed],
        gradient_bytes=[6 if row["precision"] in facts.both_gradients else facts.gradient_bytes for row in listed],
    )


def data_parallel_of(row: Fields) -> int:
    """Printed, or what is left of the GPUs."""
    rest = int(row["tp"]) * int(row["pp"]) * int(row["cp"] or 1)
    return int(row["dp"] or int(row["n_gpus"]) // rest)


def virtual_of(row: Fields) -> int:
    """Chunks a stage; a row that says interleaved without a number has two."""
    return int(row["vpp"] or (2 if row["schedule"].startswith("interleaved") else 1))


def zero_of(row: Fields) -> int:
    """ZeRO stage: what the source says overrides the row, FSDP shards everything, nothing printed is stage 1."""
    stated = SOURCES[row["source"]].zero_stage
    if stated is not None:
        return stated
    return 3 if row["zero"] == "fsdp" else int(row["zero"] or 1)


def step_s_of(row: Fields) -> float:
    """Seconds of a step from whichever metric the row has."""
    value, gpus = float(row["value"]), int(row["n_gpus"])
    sequences = int(row["gbs"])
    if row["metric"] in ("iter_time", "iter_time_derived"):
        return value
    if row["metric"] == "tflops_per_gpu":
        return float("nan")  # TFLOP/s count FLOP in each source's own way
    if row["metric"] == "tokens_per_gpu_s":
        return sequences * int(row["seq"]) / (gpus * value)
    if row["metric"] == "samples_per_gpu_s":
        return sequences / (gpus * value)
    raise ValueError(f"no step time in {row['metric']}")


def measured_steps(rows: Iterable[Fields], dtype: str = "bf16") -> Iterator[tuple[list[Fields], MeasuredSteps]]:
    """Rows with a step time in batches of one model and cluster, each with its rows."""
    for batch in _alike(rows, ("source", "model", "layers", "hidden", "heads", "gpu", "gpus_per_node")):
        steps = np.array([step_s_of(row) for row in batch])
        first = batch[0]
        yield (
            batch,
            MeasuredSteps(model_of(first), device_of(first), network_of(first), plans_of(batch), steps, dtype),
        )


def measured_peaks(rows: Iterable[Fields], unit_bytes: float) -> Iterator[tuple[list[Fields], MeasuredPeaks]]:
    """Rows with a peak memory in batches of one model, each with its rows."""
    for batch in _alike(rows, ("source", "model", "layers", "hidden", "heads", "gpu")):
        peaks = np.array([float(row["value"]) * unit_bytes for row in batch])
        yield batch, MeasuredPeaks(model_of(batch[0]), plans_of(batch), peaks)


def _alike(rows: Iterable[Fields], names: tuple[str, ...]) -> list[list[Fields]]:
    found: dict[tuple[str, ...], list[Fields]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in names), []).append(row)
    return list(found.values())
