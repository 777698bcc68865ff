"""`gpuplan estimate --task serve`: one worker under one load, and where its milliseconds and gigabytes go."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cli.command import ExitCode
from cli.flags import FlagReader
from cli.render import console
from planner import catalog
from planner.cost.serving.arrivals import Arrivals, arrivals, evaluate_arrivals
from planner.cost.serving.coefficients import Coefficients, fitted, key_of
from planner.cost.serving.economics import economics
from planner.cost.serving.judge import Load, evaluate_serving
from planner.cost.serving.memory import DEFAULT_MAX_NUM_BATCHED_TOKENS, worker_memory
from planner.cost.serving.notes import widened
from planner.cost.serving.precision import kv_element_bytes, served
from planner.cost.serving.predict import ServingModel
from planner.cost.serving.worker import Backend, ServingWorker
from planner.cost.verdict import Verdict
from planner.descriptions.efficiency import read_efficiency
from planner.errors import Finding
from planner.plausibility import device_notes
from planner.readers.serving_rows import QUANT_NAMES
from planner.units import PRICE_UNITS, TIME_UNITS
from planner.workload import Slo

MAX_TOKENS, MAX_GPUS = 1 << 24, 1 << 16
#: Flags by the words that ServingWorker.problems begins with.
FLAG_OF = {
    "tensor_parallel_size": "--tp",
    "pipeline_parallel_size": "--pp",
    "data_parallel_size": "--dp",
    "expert_parallel_size": "--ep",
    "moe_tensor_parallel_size": "--moe-tp",
}


@dataclass(frozen=True, kw_only=True)
class ServingFlags:
    """The command's flags as they were given; None where they were not."""

    model: str
    device: str
    input_tokens: int
    output_tokens: int
    backend: Backend = "vllm"
    tp: int = 1
    pp: int = 1
    dp: int = 1
    ep: int = 1
    moe_tp: int | None = None
    precision: str | None = None
    moe_precision: str | None = None
    kv_dtype: str | None = None
    concurrency: int | None = None
    rate: float | None = None
    percentile: float | None = None
    ttft: str | None = None
    tpot: str | None = None
    price_per_gpu_hour: str | None = None
    memory_fraction: float | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    calibration: str | None = None


@dataclass(frozen=True)
class Estimate:
    """What is asked and the answer. arrivals : with --rate alone; its means are in the verdict."""

    model: ServingModel
    load: Load
    slo: Slo
    verdict: Verdict
    arrivals: Arrivals | None

    @property
    def worker(self) -> ServingWorker:
        """The only worker."""
        return self.model.workers[0]

    def inputs(self) -> dict[str, Any]:
        """What was judged, defaults filled in, SI units."""
        worker = self.worker
        asked: dict[str, Any] = {"concurrency": self.load.concurrency}
        if self.arrivals is not None:
            asked = {"rate_per_s": self.arrivals.rate_per_s}
        return {
            "model": worker.model.name,
            "device": worker.device.name,
            "backend": worker.backend,
            "num_gpus": worker.num_gpus,
            **{name: getattr(worker, name) for name in FLAG_OF},
            "weight_bytes_by_format": dict(worker.model.weight_bytes_by_format),
            "kv_element_bytes": worker.kv_element_bytes,
            "input_tokens": self.load.input_tokens,
            "output_tokens": self.load.output_tokens,
            **asked,
            "max_num_batched_tokens": int(self.model.max_num_batched_tokens),
            "slo": self.slo.model_dump(mode="json"),
        }


def show_serving(flags: ServingFlags, as_json: bool) -> ExitCode:
    """Print the estimate; errors are told by the caller."""
    from cli.estimate_render import print_document, print_serving

    found = estimate_serving(flags)
    if as_json:
        print_document("serve", found.inputs(), found.verdict)
    else:
        print_serving(console(), found)
    return ExitCode.OK if found.verdict.feasible else ExitCode.BROKEN


def estimate_serving(flags: ServingFlags) -> Estimate:
    """Read the flags, compile the worker and judge it. DescriptionError with every mistake at its flag."""
    reader = FlagReader()
    worker = _worker(reader, flags)
    limits = {
        name: reader.quantity(f"--{name}", text, TIME_UNITS, "a time in seconds")
        for name, text in (("ttft", flags.ttft), ("tpot", flags.tpot))
    }
    units = {**PRICE_UNITS, "$": 1.0}
    price = reader.quantity("--price-per-gpu-hour", flags.price_per_gpu_hour, units, "a price in USD per hour")
    for flag, value in (("--input-tokens", flags.input_tokens), ("--output-tokens", flags.output_tokens)):
        reader.whole(flag, value, most=MAX_TOKENS)
    reader.whole("--concurrency", flags.concurrency, most=MAX_TOKENS)
    if flags.rate is not None and not 0 < flags.rate < 1e9:
        reader.tell("--rate", f"is {flags.rate:g} requests a second, but must be above 0")
    if flags.percentile is not None and not 0 < flags.percentile < 100:
        reader.tell("--percentile", f"is {flags.percentile:g}, but must be between 0 and 100")
    if flags.memory_fraction is not None and not 0 < flags.memory_fraction <= 1:
        reader.tell("--memory-fraction", f"is {flags.memory_fraction:g}, but must be above 0 and at most 1")
    reader.whole("--max-num-seqs", flags.max_num_seqs, most=MAX_TOKENS)
    reader.whole("--max-num-batched-tokens", flags.max_num_batched_tokens, most=MAX_TOKENS)
    most = None if flags.max_num_seqs is None else flags.max_num_seqs * flags.dp
    if most is not None and flags.concurrency is not None and flags.concurrency > most >= 1:
        told = (
            f"--concurrency {flags.concurrency} is more than {flags.max_num_seqs} on each of {flags.dp} ranks may run"
        )
        reader.tell("--max-num-seqs", told)
    coefficients = _coefficients(reader, flags.calibration)
    reader.refuse()
    assert worker is not None
    assert coefficients is not None
    batched = flags.max_num_batched_tokens or DEFAULT_MAX_NUM_BATCHED_TOKENS
    memory = worker_memory(
        worker,
        memory_fraction=flags.memory_fraction,
        max_num_seqs=flags.max_num_seqs,
        max_num_batched_tokens=batched,
    )
    model = ServingModel([worker], coefficients, memory=[memory], max_num_batched_tokens=batched)
    slo = Slo(ttft_s=limits["ttft"], tpot_s=limits["tpot"], percentile=flags.percentile)
    if flags.rate is None:
        assert flags.concurrency is not None
        load = Load(flags.concurrency, flags.input_tokens, flags.output_tokens)
        verdict, found = evaluate_serving(model, 0, load, slo), None
    else:
        most_seqs = float("inf") if flags.max_num_seqs is None else float(flags.max_num_seqs)
        found = arrivals(model, 0, flags.rate, flags.input_tokens, flags.output_tokens, most_seqs)
        load = Load(max(1, round(found.sequences)), flags.input_tokens, flags.output_tokens)
        verdict = evaluate_arrivals(model, 0, found, load, slo)
    money = economics(model, 0, load, price, verdict.metric("output_tokens_per_s"))
    verdict = verdict.model_copy(
        update={
            "metrics": (*verdict.metrics, *money),
            "assumptions": (*verdict.assumptions, *_notes(model, flags.calibration)),
        }
    )
    return Estimate(model, load, slo, verdict, found)


def _worker(reader: FlagReader, flags: ServingFlags) -> ServingWorker | None:
    spec = reader.take("--model", lambda: catalog.model(flags.model))
    device = reader.device("--device", flags.device)
    formats = {}
    for flag, text in (("--precision", flags.precision), ("--moe-precision", flags.moe_precision)):
        formats[flag] = QUANT_NAMES.get((text or "").lower())
        if formats[flag] is None:
            reader.tell(flag, f"unknown precision {text!r}; known: {', '.join(sorted(filter(None, QUANT_NAMES)))}")
    sizes = {"--tp": flags.tp, "--pp": flags.pp, "--dp": flags.dp, "--ep": flags.ep, "--moe-tp": flags.moe_tp}
    before = len(reader.findings)
    for flag, size in sizes.items():
        reader.whole(flag, size, most=MAX_GPUS)
    if spec is None or device is None or None in formats.values() or len(reader.findings) > before:
        return None
    spec = served(spec, formats["--precision"] or "", formats["--moe-precision"] or "")
    stage = flags.tp * flags.dp
    rest = max(1, stage // flags.ep) if spec.num_moe_layers else 1
    worker = ServingWorker(
        model=spec,
        device=device,
        backend=flags.backend,
        tensor_parallel_size=flags.tp,
        pipeline_parallel_size=flags.pp,
        data_parallel_size=flags.dp,
        moe_tensor_parallel_size=rest if flags.moe_tp is None else flags.moe_tp,
        expert_parallel_size=flags.ep,
        kv_element_bytes=kv_element_bytes(spec, flags.backend, flags.kv_dtype or ""),
    )
    if not spec.num_moe_layers and (flags.ep > 1 or (flags.moe_tp or 1) > 1):
        reader.tell("--ep" if flags.ep > 1 else "--moe-tp", f"{spec.name} has no routed experts")
    reader.findings += [Finding(FLAG_OF[told.split()[0]], told) for told in worker.problems()]
    return worker


def _coefficients(reader: FlagReader, path: str | None) -> Coefficients | None:
    if path is None:
        return fitted()
    return reader.take("--calibration", lambda: read_efficiency(path).over(fitted()))


def _notes(model: ServingModel, calibration: str | None) -> Iterator[str]:
    """What else is worth telling: widened formats, doubtful numbers of a device, a calibration of something else."""
    worker = model.workers[0]
    yield from widened(worker)
    yield from device_notes(worker.device)
    if calibration is not None and model.coefficients.adjustment(worker) is None:
        yield f"{calibration} has no runs of {', '.join(key_of(worker))}: predicted without it"
