"""What one GPU of a worker holds and multiplies: its matrices after fusing, its weight bytes, its cache bytes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from planner.cost.serving.worker import ROW_PARALLEL, ServingWorker, largest_share
from planner.model.formats import WeightFormat
from planner.model.layers import Attention, AttentionKind, Component, FloatArray, Layer, Tensor

#: Arithmetic of a matrix product, by the format that its weights are stored in (see planner.cost.operators.gemm).
QUANT_OF_FORMAT = {
    "bfloat16": "bf16",
    "float16": "bf16",
    "float32": "bf16",
    "fp8": "fp8",
    "fp8_channel": "fp8",
    "fp8_block": "fp8_block",
    "mxfp8": "fp8",
    "nvfp4": "nvfp4",
    "mxfp4": "mxfp4",
    "int8": "int8",
    "int4": "int4",
}
#: Weights that are not part of a layer's dense products: looked up, tiny, or the expert operator's own.
_NOT_DENSE = frozenset({Component.ROUTED_EXPERTS, Component.ROUTER, Component.EMBEDDING, Component.HEAD})


@dataclass(frozen=True, slots=True)
class LocalGemm:
    """One product on one GPU, [m, k] x [k, n], `count` times a step; `shared_expert` ones run beside the experts."""

    n: int
    k: int
    count: int
    quant: str
    component: Component


def quant_of(form: WeightFormat) -> str:
    """Arithmetic of a weight format; other integer widths compute like the 4-bit ones, in 16 bits."""
    return QUANT_OF_FORMAT.get(form.name, "int4" if form.name.startswith("int") else "bf16")


def dense_gemms(worker: ServingWorker) -> tuple[LocalGemm, ...]:
    """The products of all layers but the routed experts and routers, fused as engines fuse them.

    Matrices of one block that read the same input become one product: q, k and v; gate and up; the low-rank pair.
    """
    made: list[LocalGemm] = []
    for layer, count in worker.model.layer_groups():
        fused: dict[tuple[str, str, int, str, Component], int] = defaultdict(int)
        for tensor in layer.tensors:
            if tensor.role != "linear" or tensor.component in _NOT_DENSE:
                continue
            rows, columns = worker.local_shape(tensor, layer)
            parent, _, last = tensor.name.rpartition(".")
            alone = tensor.name if last in ROW_PARALLEL else ""
            key = (parent, alone, columns, quant_of(tensor.format), tensor.component)
            fused[key] += rows * tensor.active
        for (_, _, columns, quant, component), rows in fused.items():
            made.append(LocalGemm(rows, columns, count, quant, component))
    return tuple(made)


def head_gemm(worker: ServingWorker) -> LocalGemm | None:
    """The output head on one GPU; None for a model without one."""
    for tensor in worker.model.outer:
        if tensor.component is Component.HEAD:
            rows, columns = worker.local_shape(tensor)
            return LocalGemm(rows, columns, 1, quant_of(tensor.format), Component.HEAD)
    return None


def weight_bytes(worker: ServingWorker) -> float:
    """Bytes of weights on the fullest GPU: an even share of the layers (rounded up) with embedding, head and vision.

    Layers count with their mean size, whichever stage they are on. MTP layers are loaded where they are used.
    """
    layers = sum(
        _local_bytes(worker, tensor, layer) * n for layer, n in worker.model.layer_groups() for tensor in layer.tensors
    )
    model, stages = worker.model, worker.pipeline_parallel_size
    outer = [_local_bytes(worker, tensor, None) for tensor in model.outer]
    # With several stages the embedding is on the first, the head and the norm on the last: one holds the larger.
    small = sum(_local_bytes(worker, tensor, None) for tensor in model.outer if tensor.role == "vector")
    ends = sum(outer) if stages == 1 else max(outer, default=0.0) + small
    vision = sum(_local_bytes(worker, tensor, None) for tensor in model.vision)
    drafts = model.mtp if worker.speculative or worker.draft_tokens else ()
    mtp = sum(_local_bytes(worker, tensor, layer) for layer in drafts for tensor in layer.tensors)
    return layers * _fullest_stage(worker) + ends + vision + mtp


def expert_weight_bytes(worker: ServingWorker) -> float:
    """Bytes of routed experts among the weights of a GPU, of an even share of the layers."""
    layers = sum(
        _local_bytes(worker, tensor, layer) * n
        for layer, n in worker.model.layer_groups()
        for tensor in layer.tensors
        if tensor.component is Component.ROUTED_EXPERTS
    )
    return layers * _fullest_stage(worker)


def _fullest_stage(worker: ServingWorker) -> float:
    """Share of the layers on the stage with the most."""
    layers = worker.model.num_hidden_layers
    return largest_share(layers, worker.pipeline_parallel_size) / layers


def _local_bytes(worker: ServingWorker, tensor: Tensor, layer: Layer | None) -> float:
    if not tensor.stored:
        return 0.0
    rows, columns = worker.local_shape(tensor, layer)
    bias = tensor.bias_format.matrix_bytes(rows, 1) if tensor.bias else 0
    return float(worker.local_copies(tensor) * (tensor.format.matrix_bytes(rows, columns) + bias))


def cache_share(worker: ServingWorker, attention: Attention) -> float:
    """Part of a layer's cache that one GPU of the tensor-parallel group holds.

    GQA: split by head, copied where there are more GPUs than KV heads. MLA and compressed caches are not split.
    Recurrent states are split by head.
    """
    tp = worker.tensor_parallel_size
    if attention.kind in (AttentionKind.MLA, AttentionKind.COMPRESSED):
        return 1.0
    if attention.kind in (AttentionKind.LINEAR, AttentionKind.MAMBA):
        return 1.0 / tp
    heads = max(attention.num_key_value_heads, 1)
    return largest_share(heads, tp) / heads


def cache_bytes(worker: ServingWorker, context: FloatArray) -> FloatArray:
    """Cache and state bytes of one sequence of `context` tokens on one GPU of the fullest stage; any shape.

    Ranks that share a prompt's tokens share its cache evenly.
    """
    tokens = np.asarray(context, dtype=np.float64)
    total = np.zeros_like(tokens)
    for one, count in _attentions(worker):
        size = one.cached_elements(tokens) * worker.kv_element_bytes + one.state_bytes
        total = total + size * cache_share(worker, one) * count
    return total * _fullest_stage(worker) / worker.context_parallel_size


def state_bytes(worker: ServingWorker) -> float:
    """Recurrent-state bytes of one sequence on one GPU, over all layers."""
    return float(sum(one.state_bytes * cache_share(worker, one) * n for one, n in _attentions(worker)))


def _attentions(worker: ServingWorker) -> Iterator[tuple[Attention, int]]:
    """Layers with a cache, and how many there are of each; the MTP layer has one where it drafts."""
    yield from ((layer.attention, count) for layer, count in worker.model.layer_groups())
    yield from ((layer.attention, 1) for layer in worker.model.mtp[: bool(worker.draft_tokens)])
