"""Memory as the engines account for it: what is left for the cache, and how many sequences are admitted.

    vLLM      budget = gpu_memory_utilization x usable; cache = budget - weights - activation peak - runtime
    SGLang    cache = usable - reserve - weights - runtime; the reserve (10 GiB on large GPUs) is for everything else
    TRT-LLM   cache = free_gpu_memory_fraction x (usable - weights - activation peak - runtime)

A sequence is admitted with room for its prompt and all its output (TRT-LLM reserves it), or for its prompt and half
its output (vLLM and SGLang hand out blocks as it grows, so that is what running sequences hold on average). One whole
sequence must fit in any case.

The activation peak of a vLLM start-up is the sampler's: in the eight measurements of memory_measured.csv it is in
proportion to the vocabulary and not to the model's width (Qwen3-0.6B 5.56 GiB, Qwen3-32B 5.64 GiB, Llama-3.1-8B
4.76 GiB, gpt-oss 7.38 GiB at 151,936 / 151,936 / 128,256 / 201,088 words and 1,024 sequences).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from planner.cost.serving.sharding import cache_bytes, weight_bytes
from planner.cost.serving.worker import Backend, ServingWorker
from planner.units import GIB

FloatArray = npt.NDArray[np.float64]

#: Bytes that sampling keeps for each sequence and word. vLLM: logits and probabilities in 32 bits, sorted values,
#: 64-bit indices; fitted to memory_measured.csv; measured. The others sample in place: logits and probabilities;
#: modelled.
SAMPLER_BYTES_PER_LOGIT: dict[Backend, float] = {"vllm": 38.6, "sglang": 8.0, "trtllm": 8.0}
#: Bytes of a hidden vector's copies that a layer keeps for each token of a step: input, residual, norm, and twice the
#: widest of the projections in 16 bits. Source: torch memory of one decoder layer; modelled.
HIDDEN_COPIES = 6.0
#: Sequences that vLLM's sampler is profiled with on GPUs of 70 GiB and more, and on smaller ones. Source: vLLM 0.10+
#: defaults; documented.
DEFAULT_MAX_NUM_SEQS, SMALL_MAX_NUM_SEQS, SMALL_GPU_BYTES = 1024, 256, 70 * GIB
#: Tokens of a step. Source: default of all three engines on these GPUs; documented.
DEFAULT_MAX_NUM_BATCHED_TOKENS = 8192
#: CUDA context, NCCL buffers and workspaces: with one GPU, and what a group adds. Source: memory_measured.csv
#: (`non_torch_gib`: 0.13 and 0.55 a GPU beyond the context that `usable` already leaves out); measured.
RUNTIME_BYTES, GROUP_RUNTIME_BYTES = 0.13 * GIB, 0.42 * GIB
#: CUDA graphs. Source: memory_measured.csv, 0 to 1 GiB; vLLM does not count them in its budget; measured.
GRAPH_BYTES = 0.5 * GIB
#: Tokens of a cache block. Source: vLLM 16, TRT-LLM 32, SGLang 1; documented.
BLOCK_TOKENS: dict[Backend, int] = {"vllm": 16, "trtllm": 32, "sglang": 1}
#: Share of memory that the engine may use: of all (vLLM) or of what is free after loading (TRT-LLM).
#: Source: default of vLLM; TRT-LLM 0.95 in the InferenceX recipes; documented.
VLLM_MEMORY_FRACTION, TRTLLM_MEMORY_FRACTION = 0.90, 0.95
#: What SGLang leaves free where no mem_fraction_static is given, on GPUs of 60 GiB and more, and as a share of smaller
#: ones. Source: SGLang's server arguments (88 % of an 80 GB card); documented.
SGLANG_RESERVE_BYTES, SGLANG_RESERVE_SHARE = 10 * GIB, 0.12


@dataclass(frozen=True, slots=True)
class WorkerMemory:
    """Bytes on the fullest GPU of a worker, and what the cache may take of them.

    usable_bytes : what the driver reports; budget_bytes : what the engine may use of it, overheads included.
    cache_capacity_bytes : negative when weights and overheads alone are too large.
    """

    usable_bytes: float
    weight_bytes: float
    activation_bytes: float
    runtime_bytes: float
    cache_capacity_bytes: float

    @property
    def fixed_bytes(self) -> float:
        """Everything but the cache."""
        return self.weight_bytes + self.activation_bytes + self.runtime_bytes


def worker_memory(
    worker: ServingWorker,
    *,
    memory_fraction: float | None = None,
    max_num_seqs: int | None = None,
    max_num_batched_tokens: int = DEFAULT_MAX_NUM_BATCHED_TOKENS,
) -> WorkerMemory:
    """Memory of one GPU of a worker by its engine's own rule; `max_num_seqs` None is the engine's default."""
    device, backend = worker.device, worker.backend
    # Cards report 0.99 to 1.07 of the decimal gigabytes that they are sold by.
    usable = device.usable_memory_bytes or device.memory_bytes
    if max_num_seqs is None:
        max_num_seqs = DEFAULT_MAX_NUM_SEQS if usable >= SMALL_GPU_BYTES else SMALL_MAX_NUM_SEQS
    weights = weight_bytes(worker)
    activations = activation_bytes(worker, max_num_seqs, max_num_batched_tokens)
    group = worker.num_gpus > 1
    runtime = RUNTIME_BYTES + GROUP_RUNTIME_BYTES * group
    if backend == "vllm":
        fraction = VLLM_MEMORY_FRACTION if memory_fraction is None else memory_fraction
        capacity = fraction * usable - weights - activations - runtime
    elif backend == "sglang":
        # The reserve is for activations and graphs; steps that need more need a larger one.
        reserve = max(min(SGLANG_RESERVE_BYTES, SGLANG_RESERVE_SHARE * usable), activations + GRAPH_BYTES)
        static = usable - reserve if memory_fraction is None else memory_fraction * usable
        capacity = static - weights - runtime
    else:
        fraction = TRTLLM_MEMORY_FRACTION if memory_fraction is None else memory_fraction
        capacity = fraction * (usable - weights - activations - runtime - GRAPH_BYTES)
    return WorkerMemory(usable, weights, activations, runtime + GRAPH_BYTES, capacity)


def activation_bytes(worker: ServingWorker, max_num_seqs: int, max_num_batched_tokens: int) -> float:
    """Peak of what a step keeps beside weights and cache: the sampler's buffers or a layer's, whichever is larger."""
    model, tp = worker.model, worker.tensor_parallel_size
    sampler = SAMPLER_BYTES_PER_LOGIT[worker.backend] * max_num_seqs * model.vocab_size
    widest = max(
        (tensor.rows / tp * tensor.active for layer, _ in model.layer_groups() for tensor in layer.tensors), default=0.0
    )
    tokens = max_num_batched_tokens / worker.context_parallel_size
    layer = tokens * 2.0 * (HIDDEN_COPIES * model.hidden_size + 2.0 * widest)
    return max(sampler, layer)


def held_tokens(backend: Backend, input_tokens: npt.ArrayLike, output_tokens: npt.ArrayLike) -> FloatArray:
    """Tokens of cache that a running sequence takes by its engine's rule, whole blocks."""
    prompt, output = np.asarray(input_tokens, dtype=np.float64), np.asarray(output_tokens, dtype=np.float64)
    return _whole_blocks(backend, prompt + output * (1.0 if backend == "trtllm" else 0.5))


def whole_tokens(backend: Backend, input_tokens: npt.ArrayLike, output_tokens: npt.ArrayLike) -> FloatArray:
    """Tokens of cache that a sequence takes at its end, whole blocks."""
    return _whole_blocks(backend, np.asarray(input_tokens, dtype=np.float64) + np.asarray(output_tokens))


def _whole_blocks(backend: Backend, tokens: FloatArray) -> FloatArray:
    block = BLOCK_TOKENS[backend]
    return np.asarray(np.ceil(tokens / block) * block)


def admitted_sequences(
    worker: ServingWorker, memory: WorkerMemory, input_tokens: npt.ArrayLike, output_tokens: npt.ArrayLike
) -> FloatArray:
    """Sequences that the whole worker runs at once, all attention ranks together; 0 when not even one fits."""
    capacity = max(memory.cache_capacity_bytes, 0.0)
    each = np.maximum(cache_bytes(worker, held_tokens(worker.backend, input_tokens, output_tokens)), 1.0)
    whole = cache_bytes(worker, whole_tokens(worker.backend, input_tokens, output_tokens))
    return np.asarray(np.where(whole <= capacity, np.floor(capacity / each), 0.0) * worker.data_parallel_size)
