"""Search over whole training plans beside Calculon, published configurations and large models; see benchmarks.training.

A plan of ours is compared with Calculon on Calculon's own clock: the time that it stored for that configuration, beside
the best that it stored of those that fit into memory.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np

from benchmarks.common import Row, data_folder
from benchmarks.training_rows import Fields, data_parallel_of, measured_steps, plans_of, published, virtual_of
from formulations.base import solve
from formulations.parallelism.training.search.formulation import TRAINING
from formulations.parallelism.training.search.pricing import pieces, price, step_of
from formulations.parallelism.training.search.problem import RECOMPUTE, TrainProblem
from formulations.parallelism.training.search.reading import read_problem
from formulations.parallelism.training.search.space import space
from planner.cost.training.coefficients import calibration
from planner.cost.training.memory import training_memory
from planner.cost.training.plans import TrainingPlans, problems
from planner.descriptions.training import TrainingInstance

SEQUENCE = 2048
MODELS: dict[str, dict[str, Any]] = {
    "gpt3-175B": {
        "num_hidden_layers": 96, "hidden_size": 12288, "num_attention_heads": 96, "intermediate_size": 49152,
        "vocab_size": 51200, "dropout": True,
    },
    "megatron-1T": {
        "num_hidden_layers": 128, "hidden_size": 25600, "num_attention_heads": 160, "intermediate_size": 102400,
        "vocab_size": 51200, "dropout": True,
    },
    "10T": {
        "num_hidden_layers": 200, "hidden_size": 65536, "num_attention_heads": 512, "intermediate_size": 262144,
        "vocab_size": 51200,
    },
}  # fmt: skip
#: Calculon's systems: our device, and its slow network in bytes/s of a GPU (calculon_meta.json).
SYSTEMS = {"a100_80g": ("a100_sxm", 25e9), "h100_80g_nvl8": ("h100_sxm", 50e9)}
#: Executions that Calculon runs in a CPU second here (reference measurement: 43-142, by how many fail early).
CALCULON_PER_S = 50.0


def scenario(name: str) -> TrainProblem:
    """One of Calculon's: model, GPUs, batch and system; unfused attention, 16-bit gradients, as it counts them."""
    model, gpus, batch, system = name.split("_", 3)
    device, slow = SYSTEMS[system]
    instance = {
        "name": name,
        "model": MODELS[model],
        "cluster": {
            "nodes": [
                {"device": device, "count": int(gpus) // 8, "gpus_per_node": 8, "nic_bandwidth_bytes_per_s": slow}
            ],
            "network": {"link": "ib_hdr"},
        },
        "precision": "fp16",
        "global_batch_size": int(batch),
        "sequence_length": SEQUENCE,
        "flash_attention": False,
        "gradient_bytes": 2,
        "fixed": {"context_parallel_size": 1},
    }
    return read_problem(TrainingInstance.model_validate(instance))


@cache
def executions() -> dict[str, list[dict[str, str]]]:
    """Calculon's stored executions by scenario."""
    found: dict[str, list[dict[str, str]]] = {}
    with (data_folder("training") / "calculon_feasible_executions.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["scenario"], []).append(row)
    return found


def calculon_plans(rows: list[dict[str, str]]) -> TrainingPlans:
    """Stored executions as plans of our cost model."""
    kinds = {"none": "none", "attn_only": "selective", "full": "full"}

    def numbers(name: str) -> list[int]:
        return [int(row[name]) for row in rows]

    return TrainingPlans.build(
        tensor_parallel_size=numbers("tensor_par"),
        pipeline_parallel_size=numbers("pipeline_par"),
        data_parallel_size=numbers("data_par"),
        virtual_pipeline_size=numbers("pipeline_interleaving"),
        micro_batch_size=numbers("microbatch_size"),
        global_batch_size=numbers("batch_size"),
        sequence_length=SEQUENCE,
        sequence_parallel=[row["tensor_par_comm_type"] == "rs_ag" for row in rows],
        zero_stage=[1 if row["optimizer_sharding"] == "True" else 0 for row in rows],
        recompute=[RECOMPUTE[kinds[row["activation_recompute"]]] for row in rows],
        flash_attention=False,
        gradient_bytes=2,
    )


def calculon(short: bool) -> Iterator[Row]:
    """Its six scenarios: our plan by its clock, what its best needs, and plans a second."""
    reference = "Calculon's best that fits, stored"
    for name, rows in executions().items():
        asked = scenario(name)
        times, plans = np.array([float(row["total_time"]) for row in rows]), calculon_plans(rows)
        # It interleaves where stages do not divide the micro-batches, which no schedule runs.
        for broken in problems(plans, asked.model):
            legal = ~broken.mask if len(broken.mask) == len(plans) else np.ones(len(plans), dtype=bool)
            times, plans = times[legal], plans[legal]
        memory = training_memory(asked.model, plans, asked.margin).total
        fits = memory <= asked.capacity_bytes
        started_s = time.process_time()
        every = space(asked)
        assert every is not None
        for piece in pieces(every):
            price(asked, piece)
        rate = len(every) / (time.process_time() - started_s)
        found = solve(TRAINING, asked)
        yield Row(name, "memory of its best plan", memory[times.argmin()] / 2**30, 80.0, "GPU", "GiB", "lower")
        if found.plan is None:
            yield Row(name, "its plans that fit", int(fits.sum()), 0.0, "ours: proven that none fits", "count", "lower")
            continue
        plan = found.plan
        same = plans.tensor_parallel_size == plan.tensor_parallel_size
        for size in ("pipeline_parallel_size", "virtual_pipeline_size", "data_parallel_size", "micro_batch_size"):
            same &= getattr(plans, size) == getattr(plan, size)
        same &= (plans.recompute == RECOMPUTE[plan.recompute]) & plans.sequence_parallel
        if same.any() and fits.any():
            ratio = times[same].min() / times[fits].min()
            yield Row(name, "our plan by its clock / its best", ratio, 1.01, "asked", "ratio", "lower")
        else:
            yield Row(name, "our plan, which it did not store", plan.step_s, None, "-", "s by ours", "lower")
        if fits.any():
            ours = step_of(asked, plans[fits]).step_s
            theirs = float(ours[times[fits].argmin()])
            yield Row(name, "step by our clock", plan.step_s, theirs, reference, "s", "lower")
        yield Row(name, "plans a CPU second", rate, CALCULON_PER_S, "Calculon, measured before", "1/s", "higher")


def configurations(short: bool) -> Iterator[Row]:
    """Published runs: predicted beside measured, and what the search would run on the same GPUs."""
    yield from _korthikanti_and_sc21(short)
    yield from _bloom()
    yield from _llama3()
    if not short:
        yield _deepseek()


def _korthikanti_and_sc21(short: bool) -> Iterator[Row]:
    rows = published(lambda row: row["source"] == "megatron_sc21" and row["metric"] == "iter_time_derived")
    for batch_rows, batch in measured_steps(rows):
        coefficients = calibration().coefficients(batch.device.name, "megatron")
        predicted = batch.predicted_s(coefficients)
        for row, ours, measured in zip(batch_rows, predicted, batch.step_s, strict=True):
            case = f"SC21 {row['model']} on {row['n_gpus']}"[:34]
            yield Row(case, "step, predicted", float(ours), float(measured), "measured", "s", "lower")
            if short:
                continue
            found = solve(TRAINING, _like(row))
            if found.plan is not None:
                told = "predicted for its own plan"
                yield Row(case, "step of our plan", found.plan.step_s, float(ours), told, "s", "lower")


def _like(row: Fields) -> TrainProblem:
    """The search for a row's model, GPUs and batch; attention unfused and gradients in 16 bits, as SC21 ran."""
    model = {
        "num_hidden_layers": int(row["layers"]), "hidden_size": int(row["hidden"]),
        "num_attention_heads": int(row["heads"]), "intermediate_size": int(row["ffn"]),
        "vocab_size": int(row["vocab"] or 51200), "tie_word_embeddings": True, "dropout": True,
    }  # fmt: skip
    nodes = {"device": "a100_sxm", "count": max(1, int(row["n_gpus"]) // 8), "gpus_per_node": 8}
    instance = {
        "name": row["model"],
        "model": model,
        "cluster": {"nodes": [nodes], "network": {"link": "ib_hdr"}},
        "precision": "fp16",
        "global_batch_size": int(row["gbs"]),
        "sequence_length": int(row["seq"]),
        "flash_attention": False,
        "gradient_bytes": 2,
    }
    return read_problem(TrainingInstance.model_validate(instance))


def _bloom() -> Iterator[Row]:
    """Of the measured configurations of each model, the one with the shortest prediction: how far from the best?"""
    rows = published(lambda row: row["source"] == "bloom_prequel" and row["metric"] == "iter_time")
    for batch_rows, batch in measured_steps(rows):
        predicted = batch.predicted_s(calibration().coefficients(batch.device.name, "megatron"))
        first = np.array([row["gbs"] == "2048" for row in batch_rows])
        if len({_sizes(row) for row, one in zip(batch_rows, first, strict=True) if one}) < 3:
            continue
        # The same configuration was run several times; the mean is what it takes.
        by_sizes: dict[tuple[str, ...], list[tuple[float, float]]] = {}
        for row, ours, measured, one in zip(batch_rows, predicted, batch.step_s, first, strict=True):
            if one:
                by_sizes.setdefault(_sizes(row), []).append((float(ours), float(measured)))
        means = [tuple(np.mean(runs, axis=0)) for runs in by_sizes.values()]
        chosen = min(means)[1]
        best = min(measured for _, measured in means)
        row = batch_rows[0]
        case = f"{row['model']} h{row['hidden']} a{row['heads']}: {len(means)} runs"
        yield Row(case, "chosen / measured best", chosen / best, 1.03, "asked", "ratio", "lower")


def _sizes(row: Fields) -> tuple[str, ...]:
    names = ("tp", "pp", "mbs", "precision", "layers", "zero")
    return (*(row[name] for name in names), str(data_parallel_of(row)), str(virtual_of(row)))


def _llama3() -> Iterator[Row]:
    """405B by the batch of its report: MFU of its own plan, predicted and measured, and our plan's."""
    for gpus, batch, length in ((8192, 2048, 8192), (16384, 2048, 8192), (16384, 128, 131072)):
        rows = published(
            lambda row, gpus=gpus, batch=batch: (
                row["source"] == "llama3_herd" and row["metric"] == "mfu" and row["n_gpus"] == str(gpus)
                and row["gbs"] == str(batch)
            )
        )  # fmt: skip
        instance = {
            "name": "405b",
            "model": "meta-llama/Llama-3.1-405B",
            "cluster": {"nodes": [{"device": "h100_sxm", "count": gpus // 8}], "network": {"link": "ib_ndr"}},
            "global_batch_size": batch,
            "sequence_length": length,
        }
        asked = read_problem(TrainingInstance.model_validate(instance))
        case = f"Llama 3 405B, {gpus} GPUs, {length}"
        times = step_of(asked, plans_of(rows[:1]))
        theirs, printed = 100 * float(times.mfu[0]), float(rows[0]["value"])
        yield Row(case, "MFU of its plan, predicted", theirs, printed, "measured", "%", "higher")
        found = solve(TRAINING, asked)
        assert found.plan is not None
        yield Row(case, "MFU of our plan", 100 * found.plan.mfu, theirs, "its plan, predicted", "%", "higher")


def _deepseek() -> Row:
    """DeepSeek-V3's GPU hours for a trillion tokens; its own FP8 kernels and overlap are not in the cost model."""
    instance = {
        "name": "671b",
        "model": "deepseek-ai/DeepSeek-V3",
        "cluster": {"nodes": [{"device": "h800_sxm", "count": 256}], "network": {"link": "ib_ndr"}},
        "precision": "fp8",
        "global_batch_size": 15360,
        "sequence_length": 4096,
    }
    found = solve(TRAINING, read_problem(TrainingInstance.model_validate(instance)))
    assert found.plan is not None
    hours = 2048 * 1e12 / found.plan.tokens_per_s / 3600 / 1e3
    return Row("DeepSeek-V3, 2048 H800", "GPU hours a trillion tokens", hours, 180.0, "its report", "1000 h", "lower")


def scale(short: bool) -> Iterator[Row]:
    """Large models: an answer, and how it grows with the GPUs."""
    for name, device, nodes, batch in (
        ("megatron-1T", "a100_sxm", 96, 3072),
        ("megatron-1T", "a100_sxm", 384, 3072),
        ("10T", "h100_sxm", 3125, 4800),
    ):
        instance = {
            "name": name,
            "model": MODELS[name],
            "cluster": {"nodes": [{"device": device, "count": nodes, "gpus_per_node": 8}]},
            "global_batch_size": batch,
            "sequence_length": SEQUENCE,
        }
        asked = read_problem(TrainingInstance.model_validate(instance))
        started_s, wall_s = time.process_time(), time.perf_counter()
        found = solve(TRAINING, asked)
        spent_s, wall_s = time.process_time() - started_s, time.perf_counter() - wall_s
        case = f"{name} on {8 * nodes} GPUs"
        yield Row(case, "wall clock of the search", wall_s, 30.0, "asked", "s", "lower")
        yield Row(case, "CPU of the search", spent_s, 30.0, "asked", "s", "lower")
        if found.plan is None:
            yield Row(case, "plans that fit", 0.0, None, "proven: " + found.reasons[0][:60], "count", "higher")
            continue
        assert found.bound is not None
        assert found.objective is not None
        yield Row(case, "step", found.objective.total, found.bound.value, "our bound", "s", "lower")
        yield Row(case, "plans priced", found.plan.plans_priced, None, "-", "count", "higher")
        rule = TRAINING.baseline(asked)[1]
        if rule is not None:
            yield Row(case, "step", found.objective.total, rule.step_s, "the plain rule", "s", "lower")
