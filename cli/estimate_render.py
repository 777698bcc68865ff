"""Estimates as text: a headline, and where a token's time, a step's time and a GPU's memory go."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich.console import Console

from cli.estimate_serving import Estimate
from cli.render import printable, table
from planner.cost.serving.judge import BOTTLENECKS
from planner.cost.serving.notes import memory_note
from planner.cost.verdict import Metric, Verdict
from planner.units import format_bytes, format_seconds
from planner.version import gpuplan_version

#: Characters of a bar that is a whole.
BAR = 30
#: Parts below this share of the whole are told in one line.
LEAST_SHARE = 0.005
MEMORY_WORDS = {
    "weights": "weights",
    "activations": "activations and sampling",
    "runtime": "context, communication and graphs",
    "cache": "cache of the running sequences",
    "free": "free, or set aside by the engine",
}


def print_document(task: str, inputs: Mapping[str, Any], verdict: Verdict) -> None:
    """The estimate as JSON on stdout."""
    document = {
        "schema_version": 1,
        "gpuplan_version": gpuplan_version(),
        "task": task,
        "inputs": dict(inputs),
        "verdict": verdict.model_dump(mode="json"),
    }
    sys.stdout.write(json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def print_serving(out: Console, estimate: Estimate) -> None:
    """One worker under one load, for people."""
    verdict, worker = estimate.verdict, estimate.worker
    found = {metric.name: metric for metric in verdict.metrics}
    split = ", ".join(f"{name} {size}" for name, size in _split(estimate).items() if size > 1)
    name = f"{worker.model.name} on {worker.num_gpus} x {worker.device.name}, {worker.backend}"
    headline(out, name + (f" ({split})" if split else ""), verdict)
    for label, text in _serving_lines(estimate, found):
        out.print(f"  {label:<12} {text}", soft_wrap=True)
    parts = {one.name.removeprefix("tpot."): one.value for one in verdict.metrics if one.name.startswith("tpot.")}
    out.print(shares("a token's time", {BOTTLENECKS[name]: value for name, value in parts.items()}, format_seconds))
    sizes = {words: found[f"memory.{name}"].value for name, words in MEMORY_WORDS.items()}
    out.print(shares("a GPU's memory", sizes, format_bytes, ordered=True))
    closing(out, verdict)


def headline(out: Console, name: str, verdict: Verdict) -> None:
    """What is judged, and whether every budget holds."""
    count = len(verdict.violations)
    judgement = "" if verdict.feasible else f": {count} budget{'' if count == 1 else 's'} broken"
    out.print(printable(name) + judgement, style="bold", soft_wrap=True)


def closing(out: Console, verdict: Verdict) -> None:
    """Broken budgets, the bottleneck, what was assumed, and where the times come from."""
    for violation in verdict.violations:
        out.print(f"  VIOLATION    {violation.rule}: {printable(violation.message)}", soft_wrap=True)
    if verdict.bottleneck is not None:
        out.print(f"  bottleneck   {printable(verdict.bottleneck)}", soft_wrap=True)
    out.print(f"  source       {verdict.metrics[0].source}", soft_wrap=True)
    for line in verdict.assumptions:
        out.print(f"  - {printable(line)}", soft_wrap=True)


def shares(title: str, parts: Mapping[str, float], written: Any, *, ordered: bool = False) -> Any:
    """Parts of a whole as a table, the largest first unless they have an order; tiny ones together."""
    whole = sum(parts.values()) or 1.0
    items = list(parts.items()) if ordered else sorted(parts.items(), key=lambda item: -item[1])
    shown = [(name, value) for name, value in items if value >= LEAST_SHARE * whole or (ordered and value != 0)]
    rest = sum(value for name, value in items if (name, value) not in shown)
    if rest > 0:
        shown.append(("everything else", rest))
    rows = [
        (name, written(value), f"{value / whole:.1%}", "#" * max(0, round(BAR * value / whole)))
        for name, value in shown
    ]
    made = table((title, "", "share", ""), rows)
    made.columns[-1].justify = "left"
    return made


def _split(estimate: Estimate) -> dict[str, int]:
    worker = estimate.worker
    return {
        "TP": worker.tensor_parallel_size,
        "PP": worker.pipeline_parallel_size,
        "DP": worker.data_parallel_size,
        "EP": worker.expert_parallel_size,
    }


def _serving_lines(estimate: Estimate, found: Mapping[str, Metric]) -> Iterator[tuple[str, str]]:
    load, slo, arrivals = estimate.load, estimate.slo, estimate.arrivals
    for name, limit in (("tpot", slo.tpot_s), ("ttft", slo.ttft_s)):
        if f"{name}_s" in found:
            yield name.upper(), _time(found, name) + ("" if limit is None else f"; limit {format_seconds(limit)}")
    rate = found["output_tokens_per_s"].value
    per_gpu = found["output_tokens_per_s_per_gpu"].value
    yield "throughput", f"{rate:,.0f} output tokens/s, {per_gpu:,.0f} a GPU"
    running, admitted = found["running_sequences"].value, found["admitted_sequences"].value
    if arrivals is None:
        note = memory_note(load.concurrency, running, admitted)
        yield "sequences", (note or f"all {load.concurrency} run at once") + f"; the cache admits {admitted:,.0f}"
    else:
        use = (
            f"{arrivals.rate_per_s:g} requests/s of at most {arrivals.max_rate_per_s:.3g} ({arrivals.utilisation:.0%})"
        )
        yield "arrivals", use
        yield "sequences", f"{running:,.3g} run at once on average; the cache admits {admitted:,.0f}"
    yield from _economic_lines(found)


def _time(found: Mapping[str, Metric], name: str) -> str:
    metric = found[f"{name}_s"]
    text = format_seconds(metric.value)
    if metric.low is not None and metric.high is not None:
        text += f" (80 % of measurements: {format_seconds(metric.low)} to {format_seconds(metric.high)})"
    tails = [(f"p{share}", found.get(f"{name}_p{share}_s")) for share in (50, 90, 99)]
    told = ", ".join(f"{label} {format_seconds(one.value)}" for label, one in tails if one is not None)
    return f"{text}; {told}" if told else text


def _economic_lines(found: Mapping[str, Metric]) -> Iterable[tuple[str, str]]:
    if "usd_per_million_output_tokens" in found:
        yield "price", f"${found['usd_per_million_output_tokens'].value:,.3g} a million output tokens"
    if "gpu_power_w" in found:
        joules, watts = found["joules_per_output_token"].value, found["gpu_power_w"].value
        yield "energy", f"{joules:.3g} J an output token, {watts:,.0f} W a GPU"
