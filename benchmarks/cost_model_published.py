"""Serving predictions against published figures that no coefficient was fitted on.

The TensorRT-LLM tables are offline runs: so many requests of equal lengths are queued at once. A worker runs as many of
them as its cache admits and the benchmark's own limit allows, in waves; the last wave holds the rest. Requests, limit,
parallelism and cache formats are those of the tables' documents and of `trtllm-bench`; nothing was chosen by its error.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.common import Row, data_folder
from benchmarks.cost_model_facts import read_csv
from planner import catalog
from planner.cost.serving.arrivals import arrivals
from planner.cost.serving.memory import worker_memory
from planner.cost.serving.precision import kv_element_bytes, served
from planner.cost.serving.predict import ServingModel, ServingPlans
from planner.cost.serving.worker import Backend, ServingWorker
from planner.model import ModelSpec
from planner.readers.hf_config import from_mapping

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.intp]
Fields = Mapping[str, str]

#: Names of the tables in the catalogue.
MODELS = {
    "Llama-3.3-70B": "meta-llama/Llama-3.3-70B-Instruct",
    "Llama-3.3-70B-Instruct": "meta-llama/Llama-3.3-70B-Instruct",
    "Llama-3.1-70B-Instruct": "meta-llama/Llama-3.1-70B-Instruct",
    "Llama-3.1-405B": "meta-llama/Llama-3.1-405B-Instruct",
    "Llama-3.1-8B": "meta-llama/Llama-3.1-8B-Instruct",
    "Qwen3-235B-A22B": "Qwen/Qwen3-235B-A22B",
    "Qwen3-30B-A3B": "Qwen/Qwen3-30B-A3B",
    "gpt-oss-120b": "openai/gpt-oss-120b",
    "gpt-oss-20b": "openai/gpt-oss-20b",
    "DeepSeek-R1-0528": "deepseek-ai/DeepSeek-R1",
    "Llama-4-Maverick": "meta-llama/Llama-4-Maverick-17B-128E-Instruct",
}


def _llama(hidden: int, layers: int, heads: int, kv_heads: int, ffn: int, vocab: int) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": ffn,
        "vocab_size": vocab,
        "torch_dtype": "bfloat16",
    }


#: Models that the catalogue does not have. Source: their config.json on Hugging Face.
CONFIGS = {
    "LLaMA-7B": _llama(4096, 32, 32, 32, 11008, 32000),
    "LLaMA-70B": _llama(8192, 80, 64, 8, 28672, 32000),
    "Mistral-Large-2407 (123B)": _llama(12288, 88, 96, 8, 28672, 32768),
}
GPUS = {
    "B200": "b200_sxm",
    "GB200": "gb200",
    "H100": "h100_sxm",
    "H100 80GB": "h100_sxm",
    "H100-SXM-80GB": "h100_sxm",
    "H200": "h200_sxm",
    "RTX PRO 6000 Server": "rtx_pro_6000_server",
}
OLD, NEW = "TensorRT-LLM perf-overview (1.0)", "TensorRT-LLM perf-overview (1.2-era)"
#: Requests of an offline run by (prompt, output). Source: section "Preparing a Dataset" of the two documents; 1000/1000
#: is not in the newer list and taken from the older one.
REQUESTS = {
    OLD: {
        (128, 128): 30000, (128, 2048): 3000, (128, 4096): 1500, (500, 2000): 3000, (1000, 1000): 3000,
        (1000, 2000): 1500, (2048, 128): 3000, (2048, 2048): 1500, (5000, 500): 1500, (20000, 2000): 1000,
    },
    NEW: {
        (1000, 1000): 3000, (1024, 1024): 3000, (8192, 1024): 1500, (1024, 8192): 1500, (32768, 1024): 1000,
        (1024, 32768): 1000,
    },
}  # fmt: skip
#: Most sequences of an attention rank, all pipeline stages together. Source: `finetune_setting` of trtllm-bench, in
#: tensorrt_llm/bench/build/tuning.py.
MOST_SEQUENCES = 4096
#: Sequences that vLLM 0.6 runs and profiles its memory with. Source: default of its `max_num_seqs`.
VLLM_06_SEQUENCES = 256
#: Sequences that NIM runs at once however many clients there are. Source: Little's law where its throughput is flat:
#: 1.84 requests a second, of 500 tokens in 46.5 s.
NIM_SEQUENCES = 85.0


@dataclass(frozen=True, slots=True, eq=False)
class Compared:
    """Published figures beside ours: rows as published, values [rows] in one unit."""

    rows: tuple[Fields, ...]
    predicted: FloatArray
    published: FloatArray
    dense: npt.NDArray[np.bool_]

    @property
    def error(self) -> FloatArray:
        """Relative errors, [rows]."""
        return self.predicted / self.published - 1.0


def published_rows(source: str, *metrics: str) -> list[dict[str, str]]:
    """Rows of published_serving.csv whose source starts so, with one of the metrics (all if none is given)."""
    rows = read_csv(data_folder("inference") / "published_serving.csv")
    return [row for row in rows if row["source"].startswith(source) and (not metrics or row["metric"] in metrics)]


@cache
def _model(name: str, dense: str) -> ModelSpec:
    known = CONFIGS.get(name)
    return served(catalog.model(MODELS[name]) if known is None else from_mapping(known, name), dense)


def worker_of(row: Fields, backend: Backend) -> ServingWorker:
    """The engine instance of a row.

    MoE runs of TensorRT-LLM are with attention data parallelism over all GPUs, also where the older table calls it TP:
    `enable_attention_dp` is in the options of both documents. They let the cache of gpt-oss on Hopper be in 16 bits.
    """
    sizes = {name: int(size) for name, size in re.findall(r"\b(?:\d+DP x )?(TP|PP|DEP)(\d+)", row["parallelism"])}
    model = _model(row["model"], row["precision"].lower())
    tp, dp = sizes.get("TP", 1), sizes.get("DEP", 1)
    if row["source"] == OLD and model.num_moe_layers:
        tp, dp = 1, tp
    wide_cache = row["model"].startswith("gpt-oss") and row["gpu"] in ("H100", "H200") and backend == "trtllm"
    return ServingWorker(
        model=model,
        device=catalog.device(GPUS[row["gpu"]]),
        backend=backend,
        tensor_parallel_size=tp,
        pipeline_parallel_size=sizes.get("PP", 1),
        data_parallel_size=dp,
        moe_tensor_parallel_size=tp if dp == 1 else 1,
        expert_parallel_size=dp,
        kv_element_bytes=kv_element_bytes(model, backend, "bf16" if wide_cache else ""),
    )


def compiled(rows: Iterable[Fields], backend: Backend) -> tuple[ServingModel, IntArray]:
    """The distinct workers of the rows, and which one each row is of, [rows]."""
    places: dict[tuple[str, ...], int] = {}
    workers: list[ServingWorker] = []
    index = []
    for row in rows:
        key = tuple(row[name] for name in ("source", "model", "precision", "gpu", "parallelism"))
        if key not in places:
            places[key] = len(workers)
            workers.append(worker_of(row, backend))
        index.append(places[key])
    return ServingModel(workers), np.array(index, dtype=np.intp)


def column(rows: Iterable[Fields], name: str) -> FloatArray:
    """One column as numbers, [rows]."""
    return np.array([float(row[name]) for row in rows])


def closed_loop(rows: list[dict[str, str]], backend: Backend) -> tuple[ServingModel, ServingPlans]:
    """Rows that give a concurrency or a static batch, as plans."""
    model, index = compiled(rows, backend)
    sizes = (column(rows, name) for name in ("concurrency_or_batch", "isl", "osl"))
    return model, ServingPlans.of(index, *sizes)


def offline_tokens_per_s(model: ServingModel, plans: ServingPlans, requests: FloatArray) -> FloatArray:
    """Output tokens a second over whole runs of so many requests, queued at once; [plans].

    Concurrency of the plans is not used: slots are what the cache admits, at most MOST_SEQUENCES a rank.
    """
    most = MOST_SEQUENCES * np.array([one.data_parallel_size for one in model.workers])[plans.worker]
    slots = np.clip(np.minimum(model.predict(plans).admitted_sequences, most), 1.0, requests)
    waves, rest = np.divmod(requests, slots)

    def wave_s(sequences: FloatArray) -> FloatArray:
        at = ServingPlans.of(plans.worker, sequences, plans.input_tokens, plans.output_tokens)
        return sequences * plans.output_tokens / model.predict(at).output_tokens_per_s

    total_s = waves * wave_s(slots) + np.where(rest >= 1, wave_s(np.maximum(rest, 1.0)), 0.0)
    return requests * plans.output_tokens / total_s


def maximum_throughput() -> Compared:
    """The offline tables: output tokens a second and GPU."""
    rows = published_rows("TensorRT-LLM perf-overview")
    model, index = compiled(rows, "trtllm")
    plans = ServingPlans.of(index, 1.0, column(rows, "isl"), column(rows, "osl"))
    requests = np.array([REQUESTS[row["source"]][int(row["isl"]), int(row["osl"])] for row in rows], dtype=np.float64)
    gpus = column(rows, "n_gpus")
    per_gpu = np.array([row["unit"] == "tokens/s/GPU" for row in rows])
    value = column(rows, "value")
    return Compared(
        rows=tuple(rows),
        predicted=offline_tokens_per_s(model, plans, requests) / gpus,
        published=np.where(per_gpu, value, value / gpus),
        dense=np.array([not worker.model.num_moe_layers for worker in model.workers])[index],
    )


def published(short: bool) -> Iterator[Row]:
    """Maximum throughput, then closed loops, a static batch of 2023, and Poisson arrivals of an older engine."""
    yield from _maximum(short)
    yield from _closed_loops()
    yield from _arrivals()


def _maximum(short: bool) -> Iterator[Row]:
    found = maximum_throughput()
    error = found.error
    workstation = np.array(["RTX" in row["gpu"] for row in found.rows])
    everything = np.ones_like(workstation)
    case = "maximum throughput, TensorRT-LLM"
    for name, part, target in (
        ("dense, data-centre GPUs", found.dense & ~workstation, 9.0),
        ("dense", found.dense, 9.0),
        ("MoE", ~found.dense, None),
        ("all", everything, 20.0),
    ):
        yield _mape(case, f"{name}, {part.sum()} rows", error[part], target)
        yield Row(case, f"median, {name}", 100.0 * float(np.median(np.abs(error[part]))), None, "", "%", "lower")
    if short:
        return
    groups: dict[str, list[int]] = defaultdict(list)
    for at, row in enumerate(found.rows):
        groups[f"{row['model']} {row['gpu']}"].append(at)
    for name, members in groups.items():
        yield _mape(name, f"maximum throughput, {len(members)} rows", error[members])
        bias = 100.0 * float(np.expm1(np.log1p(error[members]).mean()))
        yield Row(name, "maximum throughput, bias", bias, None, "", "%", "lower")


def _closed_loops() -> Iterator[Row]:
    rows = published_rows("NVIDIA NIM", "ITL avg")
    model, plans = closed_loop(rows, "trtllm")
    found = model.predict(plans)
    case = f"NIM 1.8 Llama-70B 2xH100, {len(rows)} loads"
    yield _mape(case, "time between tokens", found.tpot_s * 1e3 / column(rows, "value") - 1.0)
    first = column(published_rows("NVIDIA NIM", "TTFT avg"), "value")
    yield _mape(case, "time to first token", found.ttft_s * 1e3 / first - 1.0)
    rate = column(published_rows("NVIDIA NIM", "output throughput"), "value")
    yield _mape(case, "throughput", found.output_tokens_per_s / rate - 1.0)
    yield _mape(case, "sequences admitted", found.admitted_sequences[:1] / NIM_SEQUENCES - 1.0)

    case = "InferenceX 828 gpt-oss 8xH100 vLLM"
    for metric, unit in (("TPOT", "time per token"), ("total throughput per GPU (in+out)", "throughput")):
        rows = published_rows("InferenceX", metric)
        model, plans = closed_loop(rows, "vllm")
        found = model.predict(plans)
        both = found.output_tokens_per_s_per_gpu * (1.0 + plans.input_tokens / plans.output_tokens)
        ours = found.tpot_s * 1e3 if metric == "TPOT" else both
        yield _mape(case, f"{unit}, {len(rows)} rows", ours / column(rows, "value") - 1.0)

    rows = published_rows("TensorRT-LLM 0.5.0")
    model, plans = closed_loop(rows, "trtllm")
    error = model.predict(plans).output_tokens_per_s / column(rows, "value") - 1.0
    yield _mape("TensorRT-LLM 0.5 (2023), static", f"throughput, {len(rows)} rows", error)


def _arrivals() -> Iterator[Row]:
    """vLLM 0.6 (2024) under Poisson arrivals; mean lengths of traces whose lengths vary."""
    errors: dict[str, list[float]] = defaultdict(list)
    for metric in ("TPOT mean", "TTFT mean"):
        rows = published_rows("APEX+", metric)
        newer, index = compiled(rows, "vllm")
        memory = [worker_memory(worker, max_num_seqs=VLLM_06_SEQUENCES) for worker in newer.workers]
        model = ServingModel(newer.workers, memory=memory)
        for row, at in zip(rows, index, strict=True):
            rate = float(re.search(r"Poisson ([\d.]+) req/s per replica", row["concurrency_or_batch"])[1])  # type: ignore[index]
            found = arrivals(model, int(at), rate, int(row["isl"]), int(row["osl"]), VLLM_06_SEQUENCES)
            ours = found.tpot_s() if metric == "TPOT mean" else found.ttft_s()
            errors[metric].append(ours * 1e3 / float(row["value"]) - 1.0)
    for metric, found_errors in errors.items():
        case, each = "vLLM 0.6 (2024), Poisson arrivals", np.array(found_errors)
        yield _mape(case, f"{metric}, {len(each)} rows", each)
        yield Row(case, f"{metric}, bias", 100.0 * float(np.expm1(np.log1p(each).mean())), None, "", "%", "lower")


def _mape(case: str, measure: str, error: FloatArray, target: float | None = None) -> Row:
    return Row(case, measure, 100.0 * float(np.abs(error).mean()), target, "target" if target else "", "%", "lower")
