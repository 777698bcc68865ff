"""Training predictions against published runs: fitted sources held out by configuration, the others without a refit."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from benchmarks.common import Row, data_folder, main, seconds
from benchmarks.refit.training import FITS, held_out_peaks, held_out_steps
from benchmarks.training_rows import Fields, measured_peaks, measured_steps, published
from planner.catalog import device
from planner.cost.training.calibration import MeasuredSteps
from planner.cost.training.coefficients import MemoryMargin, TrainingCoefficients, calibration
from planner.cost.training.communication import TrainingNetwork
from planner.cost.training.memory import training_memory, training_memory_by_stage
from planner.cost.training.model import TrainingModel
from planner.cost.training.plans import TrainingPlans
from planner.cost.training.step import training_step

TARGETS = {
    "megatron": 0.04,
    "a100_sxm llm_foundry": 0.10,
    "a100_sxm_40gb llm_foundry": 0.10,
    "h100_sxm llm_foundry": 0.15,
}
#: Plans of the speed test.
SPEED_PLANS = 400_000


def _percent(case: str, measure: str, error: float, reference: float | None, name: str) -> Row:
    return Row(case, measure, 100.0 * error, None if reference is None else 100.0 * reference, name, "%", "lower")


def held_out_rows(short: bool) -> Iterable[Row]:
    """Fitted sources with each configuration left out, and for FSDP each cluster size too."""
    folder = data_folder("training")
    for fitted in FITS:
        case = f"{fitted.gpu} {fitted.framework}"
        target = TARGETS.get(case, TARGETS.get(fitted.framework))
        errors = held_out_steps(fitted, folder)
        yield _percent(case, f"step time, {fitted.split.split(';')[0]}", _mape(errors), target, "target")
        if fitted.framework == "llm_foundry":
            errors = held_out_steps(fitted, folder, lambda row: row["n_gpus"])
            yield _percent(case, "step time, cluster size left out", _mape(errors), target, "target")
    errors = held_out_peaks(folder)
    yield _percent("bloom_prequel", "peak memory, row left out", _mape(errors), 0.06, "target")
    errors = held_out_peaks(folder, lambda row: f"{row['model']} {row['tp']} {row['pp']} {row['precision']}")
    yield _percent("bloom_prequel", "peak memory, configuration left out", _mape(errors), 0.06, "target")


def activation_rows(short: bool) -> Iterable[Row]:
    """Korthikanti's Figure 1: activations and states of the first stage, by formula alone; and the OOM of BLOOM."""
    bare = MemoryMargin(fixed_bytes=0.0, states_factor=1.0, activations_factor=1.0)
    for metric, name in (("mem_activations", "activations"), ("mem_params_opt", "states")):
        errors = []
        for _, batch in measured_peaks(_metric("korthikanti22", metric), 2.0**30):
            first = _first_stage(batch.model, batch.plans, bare, name)
            errors.extend(first / batch.peak_bytes - 1.0)
        yield _percent("korthikanti22 fig1", f"{name}, largest error", float(np.abs(errors).max()), 0.0, "target")
    margin = calibration().memory.margin
    oom = [
        training_memory(batch.model, batch.plans, margin).total / 1e9
        for _, batch in measured_peaks(_metric("bloom_prequel", "oom"), 1.0)
    ]
    least = float(np.concatenate(oom).min())
    yield Row("bloom_prequel", "least memory of the runs that broke", least, 80.0, "GPU size", "GB", "higher")


def _first_stage(model: TrainingModel, plans: TrainingPlans, margin: MemoryMargin, part: str) -> np.ndarray:
    """Bytes of the first stage without the embedding, which the figure leaves out."""
    stages = training_memory_by_stage(model, plans, margin)
    if part == "activations":
        return stages.activations[:, 0]
    embedding = 18.0 * model.embedding_parameters / plans.tensor_parallel_size
    return stages.states[:, 0] - embedding


def other_rows(short: bool) -> Iterable[Row]:
    """Sources that nothing was fitted on, with coefficients from elsewhere: MAPE and bias."""
    for other in OTHERS:
        rows = published(lambda row, other=other: row["source"] == other.source and other.keep(row))
        errors = []
        for batch_rows, batch in measured_steps(rows, other.dtype):
            coefficients = calibration().coefficients(batch.device.name, other.framework)
            errors.append(_errors(batch_rows, batch, coefficients))
        joined = np.concatenate(errors)
        name = f"fitted on {other.fitted_on}"
        yield _percent(other.name, f"step time MAPE, {joined.size} rows", _mape(joined), None, name)
        yield _percent(other.name, "step time bias", float(joined.mean()), None, name)


def _errors(rows: list[Fields], batch: MeasuredSteps, coefficients: TrainingCoefficients) -> np.ndarray:
    """Relative errors; rows that print TFLOP/s a GPU are compared by MFU, which counts the same FLOP."""
    if rows[0]["metric"] != "tflops_per_gpu":
        return batch.predicted_s(coefficients) / batch.step_s - 1.0
    predicted = training_step(batch.model, batch.device, batch.network, batch.plans, coefficients, batch.dtype)
    printed = np.array([float(row["value"]) * 1e12 for row in rows])
    return printed / (predicted.mfu * batch.device.peak_flop_per_s(batch.dtype)) - 1.0


def speed_rows(short: bool) -> Iterable[Row]:
    """Plans a second of step time and memory together, on one thread."""
    rng = np.random.default_rng(0)
    n = SPEED_PLANS
    stages = 2 ** rng.integers(0, 5, n)
    data, batch = 2 ** rng.integers(0, 5, n), 2 ** rng.integers(0, 3, n)
    plans = TrainingPlans.build(
        tensor_parallel_size=2 ** rng.integers(0, 4, n),
        pipeline_parallel_size=stages,
        virtual_pipeline_size=np.where(stages > 1, rng.integers(1, 4, n), 1),
        data_parallel_size=data,
        micro_batch_size=batch,
        global_batch_size=stages * 2 ** rng.integers(0, 4, n) * batch * data,
        sequence_length=2048,
        recompute=rng.integers(0, 3, n),
        zero_stage=rng.integers(0, 4, n),
    )
    model = TrainingModel.dense(layers=96, hidden=12288, heads=96, ffn=49152, vocab=51200)
    gpu = device("a100_sxm")
    network = TrainingNetwork.of(gpu, inter_node_bytes_per_s=25e9)
    shipped = calibration()
    coefficients, margin = shipped.coefficients("a100_sxm", "megatron"), shipped.memory.margin

    def both() -> None:
        training_step(model, gpu, network, plans, coefficients)
        training_memory(model, plans, margin)

    rate = n / seconds(both) / 1e6
    yield Row("speed", "step time and memory, one thread", rate, 1.0, "target", "M/s", "higher")


def _mape(errors: np.ndarray) -> float:
    return float(np.abs(errors).mean())


def _metric(source: str, metric: str) -> list[Fields]:
    return published(lambda row: row["source"] == source and row["metric"] == metric)


@dataclass(frozen=True)
class Other:
    """A source that nothing was fitted on, and whose coefficients predict it."""

    name: str
    source: str
    keep: Callable[[Fields], bool]
    framework: str
    fitted_on: str
    dtype: str = "bf16"


def _seconds_of(note: str) -> Callable[[Fields], bool]:
    return lambda row: row["metric"] == "iter_time" and note in row["note"]


def _tokens_in(precision: str) -> Callable[[Fields], bool]:
    """Dense runs that print everything the model needs."""

    def keep(row: Fields) -> bool:
        whole = row["metric"] == "tokens_per_gpu_s" and bool(row["layers"]) and bool(row["mbs"])
        return whole and row["precision"].lower().startswith(precision)

    return keep


def _on(hopper: bool, keep: Callable[[Fields], bool]) -> Callable[[Fields], bool]:
    return lambda row: row["gpu"].startswith("H") == hopper and keep(row)


A100_MEGATRON, H100_FSDP = "A100 Megatron-LM", "H100 llm-foundry"
OTHERS = (
    Other("bloom_prequel", "bloom_prequel", _seconds_of(""), "megatron", A100_MEGATRON),
    Other("megascale: Megatron-LM", "megascale", _seconds_of("Megatron"), "megatron", A100_MEGATRON),
    Other("megascale: MegaScale", "megascale", _seconds_of("MegaScale"), "megatron", A100_MEGATRON),
    Other("zero_bubble", "zero_bubble", lambda row: row["metric"] == "samples_per_gpu_s", "megatron", A100_MEGATRON),
    Other("llama3_herd", "llama3_herd", lambda row: row["metric"] == "tflops_per_gpu", "megatron", A100_MEGATRON),
    Other("bridge H100 fp8", "megatron_bridge", _on(True, _tokens_in("fp8")), "megatron", A100_MEGATRON, "fp8"),
    Other("bridge Blackwell fp8", "megatron_bridge", _on(False, _tokens_in("fp8")), "megatron", A100_MEGATRON, "fp8"),
    Other("torchtitan bf16", "torchtitan", _tokens_in("bf16"), "llm_foundry", H100_FSDP),
    Other("torchtitan fp8", "torchtitan", _tokens_in("fp8"), "llm_foundry", H100_FSDP, "fp8"),
    Other("llm_foundry fp8", "llm_foundry", _tokens_in("fp8"), "llm_foundry", H100_FSDP, "fp8"),
)


CASES: dict[str, Callable[[bool], Iterable[Row]]] = {
    "held_out": held_out_rows,
    "activations": activation_rows,
    "others": other_rows,
    "speed": speed_rows,
}

if __name__ == "__main__":
    main("cost_model_training", CASES)
