"""`sglang` for serving plans: `sglang.launch_server` commands (0.5.23), with its prefill and decode modes."""

from __future__ import annotations

from collections.abc import Sequence

from planner.plan import ParallelDocument
from planner.writers.serving_launch import (
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

#: SGLang's own default. Source: its multi-node examples.
PORT = 5000


def write(document: ParallelDocument, path: str) -> None:
    """Write the script; ExportError for plans that SGLang cannot run."""
    write_script(document, path, ENGINE)


def _body(launch: Launch) -> Sequence[str]:
    worker, ranks = launch.worker, launch.worker.data_parallel_size
    stage = worker.tensor_parallel_size * ranks * worker.context_parallel_size
    batch = launch.rank_batch
    flags = [
        # SGLang counts the attention ranks inside --tp-size, and shares the batch and the chunk out to them.
        *sized("--tp-size", stage),
        *sized("--attn-dp-size", ranks),
        *sized("--pp-size", worker.pipeline_parallel_size),
        *sized("--attn-cp-size", worker.context_parallel_size),
        *([["--enable-prefill-cp"], ["--cp-strategy", "zigzag"]] if worker.context_parallel_size > 1 else []),
        *sized("--ep-size", worker.expert_parallel_size),
        *_experts(launch),
        *_drafts(worker.draft_tokens),
        *([] if batch is None else [["--max-running-requests", str(batch * ranks)]]),
        ["--chunked-prefill-size", str(launch.step_tokens * ranks)],
        *([["--max-prefill-tokens", str(launch.step_tokens)]] if worker.role == "prefill" else []),
        ["--context-length", str(launch.most_tokens)],
        *([["--kv-cache-dtype", "fp8_e4m3"]] if launch.plan.kv_cache_dtype == "fp8" else []),
        *quantized(ENGINE, launch.plan),
        *([] if worker.role == "both" else [["--disaggregation-mode", worker.role]]),
    ]
    if launch.nodes > 1:
        address = Variable(f'"$MASTER_ADDR:{PORT}"')
        flags += [["--nnodes", str(launch.nodes)], ["--node-rank", NODE_RANK], ["--dist-init-addr", address]]
    return argv_lines(["python", "-m", "sglang.launch_server", "--model-path", MODEL], flags)


def _experts(launch: Launch) -> list[list[str]]:
    """Between nodes by DeepEP, as predicted; redundant experts are placed by load."""
    worker = launch.worker
    between = launch.nodes > 1 and worker.expert_parallel_size > 1 and worker.data_parallel_size > 1
    flags = [["--moe-a2a-backend", "deepep"]] if between else []
    if worker.two_batch_overlap:
        flags += [["--enable-two-batch-overlap"]]
    if worker.redundant_experts:
        flags += [["--enable-eplb"], ["--ep-num-redundant-experts", str(worker.redundant_experts)]]
    return flags


def _drafts(number: int) -> list[list[str]]:
    """The model's own MTP layer, a chain of drafts. Source: SGLang's guide to speculative decoding (NEXTN)."""
    if not number:
        return []
    return [
        ["--speculative-algorithm", "NEXTN"],
        ["--speculative-num-steps", str(number)],
        ["--speculative-eagle-topk", "1"],
        ["--speculative-num-draft-tokens", str(number + 1)],
    ]


ENGINE = Engine(
    to="sglang",
    title="sglang.launch_server",
    quantizes={"fp8": ("--quantization", "fp8")},
    body=_body,
    pairs=(
        "prefill and decode: python -m sglang_router.launch_router --pd-disaggregation --prefill URL --decode URL",
        "  with the URL of every worker; several prefill workers on a host differ in --disaggregation-bootstrap-port",
    ),
    benchmark=(
        *("python", "-m", "sglang.bench_serving", "--backend", "sglang", "--model", MODEL),
        *("--dataset-name", "random", "--random-range-ratio", "1"),
    ),
)
