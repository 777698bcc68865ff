"""What serving engines cannot run: splits of a worker that an engine has no setting for, or refuses."""

from __future__ import annotations

from planner.cost.serving.worker import Backend
from planner.parallel_plan import WorkerType


def unsupported(engine: Backend, worker: WorkerType) -> str | None:
    """Why the engine cannot run this worker; None where it can.

    Sources: vllm issues 52913 and 40674 (0.33: NixlConnector refuses pipeline stages), vLLM's expert parallel guide
    (experts over all GPUs of tensor x data parallelism, or none); TensorRT-LLM's `enable_attention_dp`, which makes
    every GPU of `--tp_size` a rank; `--ep_size` and `--ep-size` divide those GPUs. Context parallelism: vllm pull
    request 57075, still open (with data parallelism); TensorRT-LLM's Helix guide, which is for generation alone;
    SGLang's prefill CP guide; documented.
    """
    tensor, ranks, expert = worker.tensor_parallel_size, worker.data_parallel_size, worker.expert_parallel_size
    sharing = worker.context_parallel_size
    stage = tensor * ranks * sharing
    if stage % expert:
        return f"expert_parallel_size {expert} does not divide the {stage} GPUs of a stage"
    if sharing > 1:
        if worker.role != "prefill":
            return "ranks that share a prompt gain nothing in decoding: only prefill workers have them here"
        if engine == "trtllm":
            return "TensorRT-LLM has no context parallelism for prompts: Helix shares the cache of decoding alone"
        if engine == "vllm" and ranks > 1:
            return "vLLM shares prompts among ranks only without data parallelism"
    if engine == "vllm":
        if expert not in (1, stage):
            return f"vLLM spreads experts over all {stage} GPUs of a stage or none, not over {expert}"
        if worker.role != "both" and worker.pipeline_parallel_size > 1:
            return "vLLM's NixlConnector moves no caches of workers with pipeline stages"
    if engine == "trtllm" and worker.two_batch_overlap:
        return "TensorRT-LLM has no option that overlaps two batches"
    if engine == "trtllm" and worker.redundant_experts:
        return "TensorRT-LLM takes redundant experts from a placement file (moe_load_balancer.yaml), not as a number"
    if engine == "trtllm" and ranks > 1 and tensor > 1:
        return f"TensorRT-LLM's attention is either tensor or data parallel, not {tensor} x {ranks}"
    return None
