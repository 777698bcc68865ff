"""`trtllm` for serving plans: `trtllm-serve` commands, each with the YAML file that goes with it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from planner.cost.serving.memory import TRTLLM_MEMORY_FRACTION
from planner.plan import ParallelDocument
from planner.writers.serving_launch import MODEL, Engine, Launch, argv_lines, sized, write_script


def write(document: ParallelDocument, path: str) -> None:
    """Write the script; ExportError for plans that TensorRT-LLM cannot run."""
    write_script(document, path, ENGINE)


def _body(launch: Launch) -> Sequence[str]:
    worker, ranks = launch.worker, launch.worker.data_parallel_size
    stage = worker.tensor_parallel_size * ranks
    config = f"worker_{launch.place}.yaml"
    batch = launch.rank_batch
    # Each of the micro-batches that fill the stages has a batch of its own.
    batch = None if batch is None else -(-batch // worker.pipeline_parallel_size)
    flags = [
        *sized("--tp_size", stage),
        *sized("--pp_size", worker.pipeline_parallel_size),
        *sized("--ep_size", worker.expert_parallel_size),
        *([["--enable_attention_dp"]] if ranks > 1 else []),
        *([] if batch is None else [["--max_batch_size", str(batch)]]),
        ["--max_num_tokens", str(launch.step_tokens)],
        ["--max_seq_len", str(launch.most_tokens)],
        ["--enable_chunked_prefill"],
        ["--free_gpu_memory_fraction", str(TRTLLM_MEMORY_FRACTION)],
        *([["--kv_cache_dtype", "fp8"]] if launch.plan.kv_cache_dtype == "fp8" else []),
        ["--config", config],
    ]
    command = ["trtllm-serve", MODEL]
    if launch.nodes > 1:
        tasks = ["--ntasks", str(worker.num_gpus), "--ntasks-per-node", str(launch.node_gpus)]
        command = ["srun", "--nodes", str(launch.nodes), *tasks, "--mpi=pmix", "trtllm-llmapi-launch", *command]
    yaml = [f"  {shlex.quote(line)} \\" for line in _yaml(launch, batch)]
    return ["printf '%s\\n' \\", *yaml, f"  > {config}", *argv_lines(command, flags)]


def _yaml(launch: Launch, batch: int | None) -> list[str]:
    """Graphs for every batch up to the largest; for pairs, the exchange of caches with room for a whole prompt."""
    lines = ["cuda_graph_config:", "  enable_padding: true"]
    lines += [] if batch is None else [f"  max_batch_size: {batch}"]
    if launch.worker.draft_tokens:
        lines += ["speculative_config:", "  decoding_type: MTP"]
        lines += [f"  num_nextn_predict_layers: {launch.worker.draft_tokens}"]
    if launch.worker.role != "both":
        lines += ["cache_transceiver_config:", "  backend: DEFAULT"]
        lines += [f"  max_tokens_in_buffer: {launch.plan.input_tokens}"]
    if launch.worker.role == "prefill":
        lines += ["disable_overlap_scheduler: true"]
    return lines


ENGINE = Engine(
    to="trtllm",
    title="trtllm-serve",
    quantizes={},
    body=_body,
    pairs=(
        "prefill and decode: trtllm-serve disaggregated -c FILE with hostname, port, backend: pytorch, and",
        "  context_servers and generation_servers, each {num_instances: N, urls: [HOST:PORT, ...]}",
    ),
    benchmark=(
        *("python", "-m", "tensorrt_llm.serve.scripts.benchmark_serving", "--backend", "openai", "--model", MODEL),
        *("--dataset-name", "random", "--random-ids", "--ignore-eos"),
    ),
)
