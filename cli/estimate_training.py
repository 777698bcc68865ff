"""`gpuplan estimate --task train`: one step of one training plan, and where its seconds and gigabytes go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Console

from cli.command import ExitCode
from cli.estimate_render import closing, headline, print_document, shares
from cli.flags import FlagReader
from cli.render import console
from planner import catalog
from planner.cost.training.coefficients import TrainingCoefficients, calibration
from planner.cost.training.communication import TrainingNetwork
from planner.cost.training.judge import MEMORY_PARTS, STEP_WORDS, evaluate_training
from planner.cost.training.model import TrainingModel
from planner.cost.training.plans import Recompute, Schedule, TrainingPlans, problems
from planner.cost.verdict import Verdict
from planner.descriptions.efficiency import read_efficiency
from planner.hardware import DeviceKind
from planner.plausibility import bandwidth_notes, device_notes
from planner.units import BANDWIDTH_UNITS, format_bytes, format_seconds

MAX_SIZE = 1 << 24
DTYPES = ("bf16", "fp16", "fp8")
SCHEDULES = {
    "gpipe": Schedule.GPIPE,
    "1f1b": Schedule.ONE_F_ONE_B,
    "zb-1p": Schedule.ZB_1P,
    "zb-2p": Schedule.ZB_2P,
    "zb-v": Schedule.ZB_V,
}
#: Flags by the word that a plan's problem begins with.
FLAG_OF = {
    "tensor_parallel_size": "--tp",
    "pipeline_parallel_size": "--pp",
    "context_parallel_size": "--cp",
    "expert_parallel_size": "--ep",
    "global_batch_size": "--global-batch-size",
    "interleaving": "--vpp",
    "ZB_V": "--vpp",
    "GPIPE,": "--schedule",
}
MEMORY_WORDS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer states",
    "activations": "activations in flight",
    "logits": "logits",
    "working": "gathered or recomputed layers",
    "margin": "allocator, context and buffers",
}


@dataclass(frozen=True, kw_only=True)
class TrainingFlags:
    """The command's flags as they were given, and the defaults of the others."""

    model: str
    device: str
    global_batch_size: int
    sequence_length: int
    tp: int = 1
    pp: int = 1
    dp: int = 1
    ep: int = 1
    cp: int = 1
    vpp: int = 1
    micro_batch_size: int = 1
    zero: int = 1
    recompute: str = "none"
    schedule: str = "1f1b"
    precision: str = "bf16"
    framework: str = "megatron"
    gpus_per_node: int | None = None
    inter_node_bandwidth: str | None = None
    calibration: str | None = None


def show_training(flags: TrainingFlags, as_json: bool) -> ExitCode:
    """Print the estimate; errors are told by the caller."""
    inputs, verdict = estimate_training(flags)
    if as_json:
        print_document("train", inputs, verdict)
    else:
        _print(console(), inputs, verdict)
    return ExitCode.OK if verdict.feasible else ExitCode.BROKEN


def estimate_training(flags: TrainingFlags) -> tuple[dict[str, Any], Verdict]:
    """Inputs with defaults filled in, and the verdict. DescriptionError with every mistake at its flag."""
    reader = FlagReader()
    spec = reader.take("--model", lambda: catalog.model(flags.model))
    device = reader.device("--device", flags.device)
    sizes = {"--tp": flags.tp, "--pp": flags.pp, "--dp": flags.dp, "--ep": flags.ep, "--cp": flags.cp}
    sizes |= {"--vpp": flags.vpp, "--micro-batch-size": flags.micro_batch_size}
    sizes |= {"--global-batch-size": flags.global_batch_size, "--sequence-length": flags.sequence_length}
    before = len(reader.findings)
    for flag, size in sizes.items():
        reader.whole(flag, size, most=MAX_SIZE)
    reader.whole("--gpus-per-node", flags.gpus_per_node, most=MAX_SIZE)
    reader.whole("--zero", flags.zero, least=0, most=3)
    sound = len(reader.findings) == before
    if flags.precision not in DTYPES:
        reader.tell("--precision", f"is {flags.precision!r}, but must be one of {', '.join(DTYPES)}")
    model = None if spec is None else TrainingModel.from_spec(spec)
    plan = _plan(flags) if sound else None
    if model is not None and plan is not None:
        for problem in problems(plan, model):
            reader.tell(FLAG_OF[problem.reason.split()[0]], problem.reason)
    network = None if device is None or plan is None else _network(reader, flags, device, int(plan.num_gpus[0]))
    coefficients = None if device is None else _coefficients(reader, flags, device)
    reader.refuse()
    assert model is not None
    assert device is not None
    assert plan is not None
    assert network is not None
    assert coefficients is not None
    margin = calibration().memory.margin
    verdict = evaluate_training(model, device, network, plan, coefficients, margin, flags.precision)
    doubts = device_notes(device)
    if flags.inter_node_bandwidth is not None:
        doubts += bandwidth_notes("--inter-node-bandwidth", network.inter_node_bytes_per_s, None)
    verdict = verdict.model_copy(update={"assumptions": (*verdict.assumptions, *doubts)})
    names: tuple[str, ...] = (
        "tensor_parallel_size",
        "pipeline_parallel_size",
        "virtual_pipeline_size",
        "context_parallel_size",
    )
    names += ("expert_parallel_size", "data_parallel_size", "zero_stage", "micro_batch_size", "global_batch_size")
    return {
        "model": model.name,
        "device": device.name,
        "num_gpus": int(plan.num_gpus[0]),
        **{name: int(getattr(plan, name)[0]) for name in (*names, "sequence_length")},
        "recompute": flags.recompute,
        "schedule": flags.schedule,
        "precision": flags.precision,
        "framework": flags.framework,
        "gpus_per_node": network.gpus_per_node,
        "inter_node_bytes_per_s": network.inter_node_bytes_per_s if flags.inter_node_bandwidth else None,
        "coefficients": coefficients.model_dump(mode="json"),
    }, verdict


def _plan(flags: TrainingFlags) -> TrainingPlans:
    return TrainingPlans.build(
        tensor_parallel_size=flags.tp,
        pipeline_parallel_size=flags.pp,
        virtual_pipeline_size=flags.vpp,
        context_parallel_size=flags.cp,
        expert_parallel_size=flags.ep,
        data_parallel_size=flags.dp,
        zero_stage=flags.zero,
        micro_batch_size=flags.micro_batch_size,
        global_batch_size=flags.global_batch_size,
        sequence_length=flags.sequence_length,
        recompute=Recompute[flags.recompute.upper()],
        schedule=SCHEDULES[flags.schedule],
    )


def _network(reader: FlagReader, flags: TrainingFlags, device: DeviceKind, num_gpus: int) -> TrainingNetwork | None:
    flag = "--inter-node-bandwidth"
    outside = reader.quantity(flag, flags.inter_node_bandwidth, BANDWIDTH_UNITS, "a bandwidth of one GPU")
    inside = device.scale_up_bandwidth_bytes_per_s or device.pcie_bandwidth_bytes_per_s
    if inside is None:
        reader.tell("--device", f"{device.name} has neither a scale-up nor a PCIe bandwidth")
        return None
    per_node = flags.gpus_per_node or device.scale_up_domain_gpus
    if outside is None and num_gpus > per_node:
        reader.tell(flag, f"must be given, such as 400Gbit/s: {num_gpus} GPUs do not fit a node of {per_node}")
    if per_node < 1 or (outside is not None and outside <= 0):
        return None
    return TrainingNetwork.of(device, inter_node_bytes_per_s=outside or inside, gpus_per_node=per_node)


def _coefficients(reader: FlagReader, flags: TrainingFlags, device: DeviceKind) -> TrainingCoefficients | None:
    shipped, path = calibration(), flags.calibration
    if path is not None:
        own = reader.take("--calibration", lambda: read_efficiency(path))
        found = None if own is None else own.of_training(device.name, flags.framework)
        if own is not None and found is None:
            reader.tell("--calibration", f"{path} has no training entry for {device.name}, {flags.framework}")
        return found
    known = sorted({row.framework for row in shipped.times})
    if flags.framework not in known:
        reader.tell("--framework", f"no measurements of {flags.framework!r}; known: {', '.join(known)}")
    return shipped.coefficients(device.name, flags.framework)


def _print(out: Console, inputs: dict[str, Any], verdict: Verdict) -> None:
    found = {metric.name: metric.value for metric in verdict.metrics}
    headline(out, f"{inputs['model']} on {inputs['num_gpus']} x {inputs['device']}, training", verdict)
    rate, per_gpu = found["tokens_per_s"], found["tokens_per_s_per_gpu"]
    lines = {
        "step": format_seconds(found["step_s"]),
        "throughput": f"{rate:,.0f} tokens/s, {per_gpu:,.0f} a GPU",
        "MFU": f"{found['mfu']:.1%}" + ("" if inputs["recompute"] == "none" else f", HFU {found['hfu']:.1%}"),
        "memory": f"{format_bytes(found['memory_bytes'])} on the fullest GPU",
    }
    for label, text in lines.items():
        out.print(f"  {label:<12} {text}", soft_wrap=True)
    step = {words: found[f"step.{name}"] for name, words in STEP_WORDS.items()}
    out.print(shares("a step's time", step, format_seconds))
    sizes = {MEMORY_WORDS[name]: found[f"memory.{name}"] for name in MEMORY_PARTS} | {"free": found["memory.free"]}
    out.print(shares("a GPU's memory", sizes, format_bytes, ordered=True))
    closing(out, verdict)
