"""`vllm` for serving plans: `vllm serve` commands (0.33). Prefill and decode workers exchange caches over NIXL."""

from __future__ import annotations

import json
from collections.abc import Sequence

from planner.cost.serving.memory import VLLM_MEMORY_FRACTION
from planner.errors import ExportError
from planner.plan import ParallelDocument
from planner.writers.serving_launch import (
    MASTER_ADDR,
    MODEL,
    NODE_RANK,
    Engine,
    Launch,
    Variable,
    argv_lines,
    quantized,
    sized,
    write_script,
)

#: Both sides have the same role: which one prefills is the router's choice. Source: vLLM's NixlConnector guide.
TRANSFER = {"kv_connector": "NixlConnector", "kv_role": "kv_both"}


def write(document: ParallelDocument, path: str) -> None:
    """Write the script; ExportError for plans that vLLM cannot run."""
    write_script(document, path, ENGINE)


def _body(launch: Launch) -> Sequence[str]:
    worker = launch.worker
    flags = [
        *sized("--tensor-parallel-size", worker.tensor_parallel_size),
        *sized("--pipeline-parallel-size", worker.pipeline_parallel_size),
        *sized("--data-parallel-size", worker.data_parallel_size),
        *sized("--prefill-context-parallel-size", worker.context_parallel_size),
        *_experts(launch),
        *_drafts(worker.draft_tokens),
        *([] if launch.rank_batch is None else [["--max-num-seqs", str(launch.rank_batch)]]),
        ["--max-num-batched-tokens", str(launch.step_tokens)],
        ["--max-model-len", str(launch.most_tokens)],
        ["--gpu-memory-utilization", str(VLLM_MEMORY_FRACTION)],
        *([["--kv-cache-dtype", "fp8"]] if launch.plan.kv_cache_dtype == "fp8" else []),
        *quantized(ENGINE, launch.plan),
        *([] if worker.role == "both" else [["--kv-transfer-config", json.dumps(TRANSFER)]]),
    ]
    if launch.nodes == 1:
        return argv_lines(["vllm", "serve", MODEL], flags)
    rank = worker.tensor_parallel_size * worker.pipeline_parallel_size * worker.context_parallel_size
    if worker.data_parallel_size == 1:
        flags += [["--nnodes", str(launch.nodes)], ["--node-rank", NODE_RANK], ["--master-addr", MASTER_ADDR]]
    elif launch.node_gpus % rank == 0:
        local = launch.node_gpus // rank
        start = Variable(f'"$((NODE_RANK * {local}))"')
        flags += [["--data-parallel-size-local", str(local)], ["--data-parallel-address", MASTER_ADDR]]
        flags += [["--data-parallel-start-rank", start]]
    else:
        raise ExportError(f"{worker.name}: vLLM keeps each data-parallel rank in a node, and one has {rank} GPUs here")
    return ["# on nodes other than the first: --headless too", *argv_lines(["vllm", "serve", MODEL], flags)]


def _experts(launch: Launch) -> list[list[str]]:
    """Experts over the stage; between nodes by DeepEP, as predicted: in large chunks for prompts, else quickly."""
    worker = launch.worker
    if worker.expert_parallel_size == 1:
        return []
    flags = [["--enable-expert-parallel"]]
    if launch.nodes > 1 and worker.data_parallel_size > 1:
        way = "deepep_high_throughput" if worker.role == "prefill" else "deepep_low_latency"
        flags += [["--all2all-backend", way]]
    if worker.two_batch_overlap:
        flags += [["--enable-dbo"]]
    if worker.redundant_experts:
        flags += [["--enable-eplb"], ["--eplb-config", json.dumps({"num_redundant_experts": worker.redundant_experts})]]
    return flags


def _drafts(number: int) -> list[list[str]]:
    """The model's own MTP layer. Source: vLLM's guide to speculative decoding, `method: mtp`."""
    config = {"method": "mtp", "num_speculative_tokens": number}
    return [["--speculative-config", json.dumps(config)]] if number else []


ENGINE = Engine(
    to="vllm",
    title="vllm serve",
    quantizes={"fp8": ("--quantization", "fp8")},
    body=_body,
    pairs=(
        "prefill and decode: a router (vllm-router, llm-d, Dynamo) sends each request to one and then the other;",
        "  each worker needs its own VLLM_NIXL_SIDE_CHANNEL_HOST and VLLM_NIXL_SIDE_CHANNEL_PORT",
    ),
    benchmark=("vllm", "bench", "serve", "--model", MODEL, "--dataset-name", "random", "--ignore-eos"),
)
