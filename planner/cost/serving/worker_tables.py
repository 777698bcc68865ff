"""Compiled workers as tables: curves with their coefficients applied and summed, which predictions look up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from planner.cost.serving.coefficients import Coefficients
from planner.cost.serving.curves import CONTEXT_PARTS, NODES, TOKEN_PARTS, WorkerCurves
from planner.cost.serving.memory import WorkerMemory, held_tokens
from planner.cost.serving.overlap import PROMPT_EXCHANGE_SHARE, cut, hidden_s, share_with_experts
from planner.cost.serving.sharding import cache_bytes
from planner.cost.serving.worker import Backend, ServingWorker

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.intp]

#: Share of the others' prompts that falls between a sequence's own tokens. An engine that mixes prompts into decode
#: steps: all. SGLang runs prompts first: all with lengths that vary, half when all sequences run in lockstep (equal
#: lengths in a closed loop); the middle is taken, as the load does not say. Source: simulation; modelled.
PROMPT_SHARE: dict[Backend, float] = {"trtllm": 1.0, "vllm": 1.0, "sglang": 0.75}


@dataclass(frozen=True, slots=True, eq=False)
class WorkerTables:
    """Curves with their coefficients applied and summed, [workers, nodes]; facts of each worker, [workers].

    decode holds the whole exchange, of which `exchange` may be hidden behind computing; prefill what is left of it.
    """

    decode: FloatArray
    prefill: FloatArray
    exchange: FloatArray
    context: FloatArray
    prompt_attention: FloatArray
    cache_bytes: FloatArray
    sequence: FloatArray
    prompt_share: FloatArray
    speculation: FloatArray
    first_token: FloatArray
    prompt: FloatArray
    burst: FloatArray
    wait_steps: FloatArray
    cache_capacity_bytes: FloatArray
    fixed_bytes: FloatArray
    held_output_share: FloatArray
    block_tokens: FloatArray
    data_parallel_size: FloatArray
    pipeline_parallel_size: FloatArray
    num_gpus: FloatArray
    with_experts: FloatArray

    def at(self, name: str, worker: IntArray, place: tuple[IntArray, FloatArray]) -> FloatArray:
        """Linear interpolation of one table."""
        return interpolated(getattr(self, name), worker, place)


def collapse(
    workers: Sequence[ServingWorker],
    curves: Sequence[WorkerCurves],
    memory: Sequence[WorkerMemory],
    coefficients: Coefficients,
) -> WorkerTables:
    rows: list[dict[str, FloatArray | float]] = []
    for worker, curve, room in zip(workers, curves, memory, strict=True):
        c, values = coefficients.of_parts(worker), coefficients.values
        tokens, step = (dict(zip(TOKEN_PARTS, part, strict=True)) for part in (curve.tokens, curve.step))
        context = dict(zip(CONTEXT_PARTS, curve.context, strict=True))
        overhead = (
            c["kernel_overhead"] * curve.num_products + c["moe_overhead"] * curve.num_moe_layers + c["step_overhead"]
        )
        computing = c["prefill_dense"] * tokens["dense"] + c["prefill_moe"] * tokens["moe"]
        computing = computing + c["prefill_communication"] * tokens["all_reduce"]
        exchange = c["prefill_communication"] * tokens["dispatch"]
        with_experts = share_with_experts(worker)
        rows.append(
            {
                "decode": overhead
                + c["dense"] * (step["dense"] + step["head"])
                + c["moe"] * step["moe"]
                + c["all_reduce"] * step["all_reduce"]
                + c["dispatch"] * step["dispatch"],
                "prefill": computing
                + exchange
                - hidden_s(computing, (1.0 - PROMPT_EXCHANGE_SHARE) * cut(exchange), with_experts),
                "exchange": cut(c["dispatch"] * step["dispatch"]) * (with_experts > 0),
                "context": c["cache"] * context["cache"] + c["latent"] * context["latent"],
                "prompt_attention": c["prefill_attention"] * context["prompt_attention"],
                "cache_bytes": np.maximum(cache_bytes(worker, NODES), 1.0),
                "sequence": c["state"] * curve.state_s + c["sequence_overhead"],
                # A step gives each sequence several tokens, in whose time as many more of the others' prompts fall.
                "prompt_share": PROMPT_SHARE[worker.backend] * worker.tokens_per_step,
                "speculation": (values["speculation"] if worker.speculative else 1.0) / worker.tokens_per_step,
                "first_token": coefficients.of_ttft("first_token", worker),
                "prompt": coefficients.of_ttft("prompt", worker),
                "burst": values["burst"],
                "wait_steps": coefficients.of_ttft("wait_steps", worker),
                "cache_capacity_bytes": max(room.cache_capacity_bytes, 0.0),
                "fixed_bytes": room.fixed_bytes,
                "held_output_share": float(held_tokens(worker.backend, 0, 1e6)) / 1e6,
                "block_tokens": float(held_tokens(worker.backend, 1, 0)),
                "data_parallel_size": float(worker.data_parallel_size),
                "pipeline_parallel_size": float(worker.pipeline_parallel_size),
                "num_gpus": float(worker.num_gpus),
                "with_experts": with_experts,
            }
        )
    return WorkerTables(**{one.name: np.array([row[one.name] for row in rows]) for one in fields(WorkerTables)})


def interpolated(table: FloatArray, worker: IntArray, place: tuple[IntArray, FloatArray]) -> FloatArray:
    """Linear interpolation of each plan's row of a table [workers, nodes] at a `curves.place`, [plans]."""
    low, share = place
    index = worker * table.shape[1] + low
    flat = table.reshape(-1)
    left = flat.take(index)
    value: FloatArray = left + share * (flat.take(index + 1) - left)
    return value
