"""Counts and memory against what others counted and measured: configurations of real models, vLLM's start-up report."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.common import Row, data_folder
from planner import catalog
from planner.cost.serving.memory import worker_memory
from planner.cost.serving.precision import kv_element_bytes, served
from planner.cost.serving.worker import ServingWorker
from planner.model import ModelSpec
from planner.readers.hf_config import read_model
from planner.units import GIB


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file, as text."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def counted(model: ModelSpec) -> dict[str, float]:
    """Our figure for each column of params.csv that holds an exact count."""
    full, window, _ = model.kv_elements_per_token
    parts = model.parameters_by_component
    return {
        "total_params": model.total_params,
        "active_params": model.active_params,
        "routed_expert_params": parts.get("routed_experts", 0),
        "vision_params": parts.get("vision", 0),
        "kv_bytes_per_token_full_bf16": 2 * full,
        "kv_bytes_per_token_window_bf16": 2 * window,
        "full_attention_layers": sum(layer.attention.kv_elements > 0 for layer in model.layers),
        "mtp_layers": len(model.mtp),
    }


def models(short: bool) -> Iterator[Row]:
    """How many of the exact figures of params.csv ours are equal to, by column."""
    folder = data_folder("models")
    rows = read_csv(folder / "params.csv")
    ours = [counted(read_model(folder / f"{row['model']}.json")) for row in rows]
    equal = known = 0
    for column in ours[0]:
        pairs = [(int(row[column]), one[column]) for row, one in zip(rows, ours, strict=True) if row[column]]
        same = sum(theirs == mine for theirs, mine in pairs)
        equal, known = equal + same, known + len(pairs)
        name = column.removesuffix("_bf16").replace("_", " ")
        yield Row("counts of config.json", name, same, len(pairs), "exact figures", "count", "higher")
    yield Row(
        "counts of config.json", f"all, {len(rows)} configurations", equal, known, "exact figures", "count", "higher"
    )


#: Checkpoints that vLLM was started with: the model of the catalogue with the same architecture, and their format.
MEASURED = {
    "openai--gpt-oss-20b": ("openai/gpt-oss-20b", ""),
    "openai--gpt-oss-120b": ("openai/gpt-oss-120b", ""),
    "RedHatAI--Llama-3.3-70B-Instruct-FP8-dynamic": ("meta-llama/Llama-3.3-70B-Instruct", "fp8"),
    "meta-llama--Meta-Llama-3.1-8B": ("meta-llama/Llama-3.1-8B-Instruct", ""),
    "Qwen--Qwen3-0.6B": ("Qwen/Qwen3-0.6B", ""),
    "Qwen--Qwen3-32B": ("Qwen/Qwen3-32B", ""),
    "mistralai--Mistral-Small-3.2-24B-Instruct-2506": ("mistralai/Devstral-Small-2507", ""),
}
#: Parts of a GPU's memory, as the report and as `WorkerMemory` have them.
MEMORY_PARTS = {
    "weights": ("weights_gib", "weight_bytes"),
    "activations": ("activation_gib", "activation_bytes"),
    "KV cache": ("kv_cache_gib", "cache_capacity_bytes"),
}


def memory_pairs() -> Iterator[tuple[str, dict[str, tuple[float, float]]]]:
    """Name of each run and its (predicted, measured) parts, GiB on a GPU."""
    for row in read_csv(data_folder("models") / "memory_measured.csv"):
        name, dense = MEASURED[row["model"]]
        tp = int(row["tp"])
        model = served(catalog.model(name), dense)
        worker = ServingWorker(
            model=model,
            device=catalog.device("h100_sxm"),
            backend="vllm",
            tensor_parallel_size=tp,
            moe_tensor_parallel_size=tp,
            kv_element_bytes=kv_element_bytes(model, "vllm"),
        )
        found = worker_memory(worker, memory_fraction=float(row["gpu_memory_utilization"]))
        pairs = {
            part: (getattr(found, ours) / GIB, float(row[theirs])) for part, (theirs, ours) in MEMORY_PARTS.items()
        }
        yield f"{row['model'].partition('--')[2]} TP{tp}", pairs


def memory(short: bool) -> Iterator[Row]:
    """Parts of a GPU's memory against vLLM's report on an H100; the sampler's constant was fitted to the same runs."""
    runs = dict(memory_pairs())
    for part in MEMORY_PARTS:
        errors = {name: 100.0 * abs(pairs[part][0] / pairs[part][1] - 1.0) for name, pairs in runs.items()}
        worst = max(errors, key=lambda name: errors[name])
        case = f"memory of {len(runs)} vLLM runs"
        yield Row(case, f"{part}, MAPE", float(np.mean(list(errors.values()))), None, "", "%", "lower")
        yield Row(case, f"{part}, worst", errors[worst], None, worst, "%", "lower")
        off = [abs(pairs[part][0] - pairs[part][1]) for pairs in runs.values()]
        yield Row(case, f"{part}, mean distance", float(np.mean(off)), None, "", "GiB", "lower")
