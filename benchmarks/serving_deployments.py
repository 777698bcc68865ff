"""Published deployments of serving beside our prediction of the same workers, and beside the workers that we choose.

Nothing here is fitted to these figures. What differs between them and us is told in docs/parallel.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.common import Row
from formulations.planning import load_problem, plan
from planner import catalog
from planner.cost.serving.memory import worker_memory
from planner.cost.serving.precision import served
from planner.cost.serving.predict import ServingModel
from planner.cost.serving.worker import ServingWorker
from planner.descriptions.parallel import ParallelInstance
from planner.parallel_plan import ParallelPlan, WorkerType

V3, LLAMA = "deepseek-ai/DeepSeek-V3", "meta-llama/Llama-3.1-405B-Instruct"
#: An NPU of CloudMatrix384 is two dies, each a rank. Source: arXiv 2506.12708; half of the catalogue's ascend_910c.
DIE = {
    "name": "ascend_910c_die", "base": "ascend_910c", "memory_bytes": "64GB", "hbm_bandwidth_bytes_per_s": "1600GB/s",
    "flop_per_s": {"bf16": 376e12, "fp16": 376e12, "int8": 752e12}, "scale_up_bandwidth_bytes_per_s": "196GB/s",
    "scale_up_domain_gpus": 768,
}  # fmt: skip
#: Chance that CloudMatrix's one draft is right. Source: assumed by the paper; documented.
CLOUD_ACCEPTANCE = 0.7


@dataclass(frozen=True, slots=True)
class Deployment:
    """What was run and published: tokens/s of `unit` GPUs of one worker. ranks, redundant : of its experts."""

    name: str
    device: str
    nodes: int
    prompt: int
    output: int
    role: str
    ranks: int
    redundant: int
    tokens_per_s: float
    unit: int
    why: str
    tpot_s: float | None = None


#: Source: LMSYS blog of 2025-05-05; deepseek-ai/open-infra-index; arXiv 2506.12708; documented.
PUBLISHED = (
    Deployment("SGLang DeepSeek-V3, H100, prefill EP32", "h100_sxm", 4, 2000, 100, "prefill", 32, 32, 52_300.0, 8,
               "published"),
    Deployment("SGLang DeepSeek-V3, H100, decode EP72", "h100_sxm", 9, 2000, 100, "decode", 72, 32, 22_300.0, 8,
               "published; 100 output tokens are assumed"),
    Deployment("DeepSeek-V3 production, H800, prefill EP32", "h800_sxm", 4, 4989, 1000, "prefill", 32, 32,
               73_700.0 * (1 - 0.563), 8, "published less its 56.3 % of cached prompt tokens"),
    Deployment("DeepSeek-V3 production, H800, decode EP144", "h800_sxm", 18, 4489, 1000, "decode", 144, 32, 14_800.0, 8,
               "published, an average over day and night; context of 4,989"),
    Deployment("CloudMatrix384 DeepSeek-R1, prefill EP32", DIE["name"], 2, 4096, 256, "prefill", 32, 32, 6_688.0, 2,
               "published, per NPU of two dies"),
    Deployment("CloudMatrix384 DeepSeek-R1, decode EP320", DIE["name"], 20, 4096, 256, "decode", 320, 64, 1_943.0, 2,
               "published, TPOT below 50 ms", 0.050),
    Deployment("CloudMatrix384 DeepSeek-R1, decode EP320", DIE["name"], 20, 4096, 256, "decode", 320, 64, 538.0, 2,
               "published, TPOT below 15 ms", 0.015),
)  # fmt: skip
#: Prompt, and published seconds of prefill on 16 nodes that share it, 8 GPUs each. Source: arXiv 2411.01783; measured.
SHARED = ((1_000_000, 77.0), (128_000, 3.8))


def deployments(short: bool) -> Iterator[Row]:
    """Each worker as it was deployed, and the best of ours for the same role and limit."""
    for one in PUBLISHED[:: 3 if short else 1]:
        yield from _deployment(one)
    yield from _shared_prompts(short)
    if not short:
        yield from _whole_plan()


def _deployment(one: Deployment) -> Iterator[Row]:
    die = one.device == DIE["name"]
    speculation = {"draft_tokens": 1, "acceptance": CLOUD_ACCEPTANCE} if die and one.role == "decode" else None
    problem = _problem(
        V3, one.device, one.nodes, 16 if die else 8, one.prompt, one.output, speculation, die, one.tpot_s
    )
    own = [
        worker
        for worker in problem.workers
        if worker.role == one.role and (one.tpot_s is None or (worker.tpot_s or 0.0) <= one.tpot_s)
    ]
    same = [
        worker
        for worker in own
        if (worker.data_parallel_size, worker.expert_parallel_size) == (one.ranks, one.ranks)
        and worker.redundant_experts == one.redundant
    ]
    tokens = one.prompt if one.role == "prefill" else one.output
    for draft, overlap in sorted({(worker.draft_tokens, worker.two_batch_overlap) for worker in same}):
        part = [worker for worker in same if (worker.draft_tokens, worker.two_batch_overlap) == (draft, overlap)]
        name = "the same worker" + (", one draft at 70 %" if draft else "") + (", overlapped" if overlap else "")
        yield Row(one.name, name, _best(part, tokens, one.unit), one.tokens_per_s, one.why, "1/s", "higher")
    yield Row(one.name, "our best worker", _best(own, tokens, one.unit), one.tokens_per_s, one.why, "1/s", "higher")


def _best(workers: Sequence[WorkerType], tokens: int, unit: int) -> float:
    """Tokens/s of `unit` GPUs, at the whole rate of the best worker."""
    rates = (unit * tokens * one.requests_per_s / one.num_gpus / (one.utilisation or 1.0) for one in workers)
    return max(rates, default=float("nan"))


def _shared_prompts(short: bool) -> Iterator[Row]:
    """A prompt on 16 nodes that share it, FP8 weights and 16-bit attention; then on one node alone, for comparison."""
    spec = served(catalog.model(LLAMA), "fp8", "fp8")
    for prompt, published_s in SHARED[:: 2 if short else 1]:
        for ranks, reference in ((16, published_s), (1, None)):
            worker = ServingWorker(
                model=spec,
                device=catalog.device("h100_sxm"),
                backend="vllm",
                tensor_parallel_size=8,
                context_parallel_size=ranks,
                kv_element_bytes=2.0,
            )
            step = prompt if ranks > 1 else 8192
            memory = worker_memory(worker, max_num_batched_tokens=step)
            model = ServingModel([worker], memory=[memory])
            at, one = np.zeros(1, dtype=np.intp), np.ones(1)
            seconds = float(model.prefill_s(at, prompt * one, one, step * one)[0])
            case = f"Llama-3.1-405B, H100, {prompt:,} tokens"
            yield Row(case, f"prefill, TP8 x CP{ranks}", seconds, reference, "published", "s", "lower")


def _whole_plan() -> Iterator[Row]:
    """What we would run on SGLang's 13 nodes, at the output length where its two sides are as fast as each other."""
    prompt, rate = 2000, 4 * 52_300.0 / 2000
    output = round(9 * 22_300.0 / rate)
    problem = _problem(V3, "h100_sxm", 13, 8, prompt, output, None, False)
    found = plan(problem).plan
    assert isinstance(found, ParallelPlan)
    case = f"SGLang DeepSeek-V3, 104 H100, {prompt}/{output} tokens"
    told = " + ".join(f"{one.count} {one.name}" for one in found.workers)
    yield Row(case, told, found.requests_per_s, rate, "published sides together", "1/s", "higher")


def _problem(
    model: str,
    device: str,
    nodes: int,
    per_node: int,
    prompt: int,
    output: int,
    speculation: Any,
    die: bool,
    tpot_s: float | None = None,
) -> Any:
    group: dict[str, Any] = {"device": device, "count": nodes, "gpus_per_node": per_node}
    cluster: dict[str, Any] = {"nodes": [group]}
    if die:
        group |= {"scale_up_domain_gpus": nodes * per_node}
        cluster["devices"] = [DIE]
    said: Mapping[str, Any] = {
        "name": "published",
        "model": model,
        "cluster": cluster,
        "workload": {"input_tokens": prompt, "output_tokens": output},
        "backend": "sglang",
        "speculation": speculation,
        "two_batch_overlap": True,
        "slo": {"tpot_s": tpot_s},
        "margin": 0.0,
        "precision": "int8" if die else None,
    }
    return load_problem(ParallelInstance.model_validate(said))
