"""`sglang` for serving plans: `sglang.launch_server` commands (0.5.23), with its prefill and decode modes."""

from __future__ import annotations

from collections.abc import Sequence

from planner.cost.serving.memory import DEFAULT_MAX_NUM_BATCHED_TOKENS
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
    stage = worker.tensor_parallel_size * ranks
    batch = launch.rank_batch
    flags = [
        # SGLang counts the attention ranks inside --tp-size, and shares the batch and the chunk out to them.
        *sized("--tp-size", stage),
        *sized("--attn-dp-size", ranks),
        *sized("--pp-size", worker.pipeline_parallel_size),
        *sized("--ep-size", worker.expert_parallel_size),
        *([] if batch is None else [["--max-running-requests", str(batch * ranks)]]),
        ["--chunked-prefill-size", str(DEFAULT_MAX_NUM_BATCHED_TOKENS * ranks)],
        ["--context-length", str(launch.most_tokens)],
        *([["--kv-cache-dtype", "fp8_e4m3"]] if launch.plan.kv_cache_dtype == "fp8" else []),
        *quantized(ENGINE, launch.plan),
        *([] if worker.role == "both" else [["--disaggregation-mode", worker.role]]),
    ]
    if launch.nodes > 1:
        address = Variable(f'"$MASTER_ADDR:{PORT}"')
        flags += [["--nnodes", str(launch.nodes)], ["--node-rank", NODE_RANK], ["--dist-init-addr", address]]
    return argv_lines(["python", "-m", "sglang.launch_server", "--model-path", MODEL], flags)


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
