"""ServingWorker: one engine instance, that is a model in its formats on a device, split in a certain way."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from planner.hardware import DeviceKind
from planner.model.layers import AttentionKind, Component, Layer, MlpKind, Tensor
from planner.model.spec import ModelSpec

Backend = Literal["vllm", "sglang", "trtllm"]
BACKENDS: tuple[Backend, ...] = ("trtllm", "vllm", "sglang")

#: Matrices whose input features are split over the tensor-parallel group (their output is summed by an all-reduce).
ROW_PARALLEL = frozenset({"o_proj", "out_proj", "down_proj", "o_b_proj"})
#: Matrices that every GPU of the group holds whole: low-rank down projections, routers, one-head caches, indexers.
REPLICATED = frozenset(
    {"q_a_proj", "kv_a_proj_with_mqa", "kv_proj", "gate", "shared_expert_gate", "f_a_proj", "fn"}
    | {"latent_down_proj", "latent_up_proj"}
)
#: Matrices with one block of rows a KV head, which are copied where there are more GPUs than KV heads.
PER_KV_HEAD = frozenset({"k_proj", "v_proj"})

#: Busiest expert rank over the mean where redundant experts are placed by load. Source: EPLB on recorded counts of
#: DeepSeek-V3, 288 slots on 144 GPUs (`benchmarks.experts --case two_slots`, balancedness 0.868); 1.01 on 32 GPUs, and
#: up to 1.2 on loads that it has not seen; measured.
EXPERT_IMBALANCE = 1.15


@dataclass(frozen=True, kw_only=True)
class ServingWorker:
    """One engine instance on tp x pp x dp GPUs of one kind.

    model : with its weights in the formats that are served (`planner.cost.serving.precision`).
    data_parallel_size : ranks of attention data parallelism; each serves its own sequences, all share the experts.
    moe_tensor_parallel_size x expert_parallel_size : split of the experts over the tp x dp GPUs of a stage.
    kv_element_bytes : bytes of one cache element.
    speculative : the engine predicts several tokens a step (MTP); how many is not known.
    context_parallel_size : ranks that share the tokens of each prompt; their caches go round a ring between them. For
    workers that prefill: decoding gains nothing from it here.
    redundant_experts : second copies of busy experts, placed by load (EPLB); the busiest of the expert ranks then has
    expert_imbalance times the mean. Without them, tokens fall as the routing of the operator tables has them.
    two_batch_overlap : each step runs as two halves, and one computes while the other's tokens are exchanged.
    draft_tokens : that the model's own MTP layer proposes in each step; draft_acceptance : chance that one is right
    whose predecessors are.
    """

    model: ModelSpec
    device: DeviceKind
    backend: Backend
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    data_parallel_size: int = 1
    moe_tensor_parallel_size: int = 1
    expert_parallel_size: int = 1
    kv_element_bytes: float = 2.0
    speculative: bool = False
    context_parallel_size: int = 1
    redundant_experts: int = 0
    expert_imbalance: float = EXPERT_IMBALANCE
    draft_tokens: int = 0
    draft_acceptance: float = 0.0
    two_batch_overlap: bool = False

    @property
    def num_gpus(self) -> int:
        """GPUs of the whole worker."""
        return self.stage_gpus * self.pipeline_parallel_size

    @property
    def stage_gpus(self) -> int:
        """GPUs of one pipeline stage: those that share experts."""
        return self.tensor_parallel_size * self.token_ranks

    @property
    def token_ranks(self) -> int:
        """Ranks that have different tokens: other sequences, or other parts of a prompt."""
        return self.data_parallel_size * self.context_parallel_size

    @property
    def tokens_per_step(self) -> float:
        """Tokens that a sequence gets in a step: one, and each draft whose predecessors are all right."""
        return sum(self.draft_acceptance**place for place in range(self.draft_tokens + 1))

    def problems(self) -> Iterator[str]:
        """What makes this split impossible, in the user's words."""
        tp, pp, model = self.tensor_parallel_size, self.pipeline_parallel_size, self.model
        sizes = {
            "tensor_parallel_size": tp,
            "pipeline_parallel_size": pp,
            "data_parallel_size": self.data_parallel_size,
            "moe_tensor_parallel_size": self.moe_tensor_parallel_size,
            "expert_parallel_size": self.expert_parallel_size,
            "context_parallel_size": self.context_parallel_size,
        }
        wrong = [f"{name} is {size}, but must be at least 1" for name, size in sizes.items() if size < 1]
        if not 0 < self.kv_element_bytes < math.inf:
            wrong.append(f"kv_element_bytes is {self.kv_element_bytes:g}, but must be positive and finite")
        for name, size in (("redundant_experts", self.redundant_experts), ("draft_tokens", self.draft_tokens)):
            wrong += [f"{name} is {size}, but must not be negative"] if size < 0 else []
        if not 1 <= self.expert_imbalance < math.inf:
            wrong.append(f"expert_imbalance is {self.expert_imbalance:g}, but must be at least 1 and finite")
        if not 0 <= self.draft_acceptance <= 1:
            wrong.append(f"draft_acceptance is {self.draft_acceptance:g}, but must be from 0 to 1")
        if wrong:
            yield from wrong
            return
        yield from self._draft_problems()
        yield from self._overlap_problems()
        if pp > model.num_hidden_layers:
            yield f"pipeline_parallel_size {pp} is more than the {model.num_hidden_layers} layers of {model.name}"
        heads = {layer.attention.num_attention_heads for layer, _ in model.layer_groups()} - {0}
        yield from (
            f"tensor_parallel_size {tp} does not divide the {count} attention heads of {model.name}"
            for count in sorted(heads)
            if count % tp
        )
        key_heads = {layer.attention.num_key_value_heads for layer, _ in model.layer_groups() if _grouped(layer)} - {0}
        yield from (
            f"tensor_parallel_size {tp} and the {count} KV heads of {model.name} do not divide one another"
            for count in sorted(key_heads)
            if tp % count and count % tp
        )
        if model.num_moe_layers:
            yield from self._expert_problems()

    def _draft_problems(self) -> Iterator[str]:
        if not self.draft_tokens:
            return
        if not self.model.mtp:
            yield f"draft_tokens is {self.draft_tokens}, but {self.model.name} has no MTP layer to propose them"
        if self.pipeline_parallel_size > 1:
            yield "draft_tokens and pipeline stages do not go together: the MTP layer is on the last stage alone"

    def _overlap_problems(self) -> Iterator[str]:
        if not self.two_batch_overlap:
            return
        if not self.model.num_moe_layers or self.token_ranks == 1:
            yield "two_batch_overlap needs experts that several ranks share: there is no exchange to hide"
        if self.pipeline_parallel_size > 1:
            yield "two_batch_overlap and pipeline stages do not go together: stages have their own halves under way"

    def _expert_problems(self) -> Iterator[str]:
        moe_tp, ep = self.moe_tensor_parallel_size, self.expert_parallel_size
        if moe_tp * ep != self.stage_gpus:
            yield (
                f"moe_tensor_parallel_size {moe_tp} x expert_parallel_size {ep} must be the {self.stage_gpus} GPUs of "
                f"tensor_parallel_size {self.tensor_parallel_size} x data_parallel_size {self.data_parallel_size}"
                + (f" x context_parallel_size {self.context_parallel_size}" if self.context_parallel_size > 1 else "")
            )
        more = self.redundant_experts
        for count in sorted({layer.mlp.num_experts for layer, _ in self.model.layer_groups()} - {0}):
            if (count + more) % ep:
                told = f"{count} experts" + (f" and {more} redundant ones" if more else "")
                yield f"expert_parallel_size {ep} does not divide the {told} of {self.model.name}"

    def local_shape(self, tensor: Tensor, layer: Layer | None = None) -> tuple[int, int]:
        """[rows, columns] of one copy of a weight on one GPU."""
        last = tensor.name.rpartition(".")[2]
        rows, columns = tensor.rows, tensor.columns
        if tensor.component is Component.ROUTED_EXPERTS:
            split = self.moe_tensor_parallel_size
            return (
                (rows, largest_share(columns, split)) if last in ROW_PARALLEL else (largest_share(rows, split), columns)
            )
        tp = self.tensor_parallel_size
        if last in REPLICATED or tensor.role == "vector" or tensor.component is Component.INDEXER or tp == 1:
            return rows, columns
        if last in ROW_PARALLEL:
            return rows, largest_share(columns, tp)
        if last in PER_KV_HEAD and layer is not None and layer.attention.num_key_value_heads:
            heads = layer.attention.num_key_value_heads
            return rows * largest_share(heads, tp) // heads, columns
        return largest_share(rows, tp), columns

    def local_copies(self, tensor: Tensor) -> int:
        """Copies of a weight on one GPU: its share of the experts, else all."""
        routed = tensor.component is Component.ROUTED_EXPERTS
        slots = tensor.copies + self.redundant_experts
        return largest_share(slots, self.expert_parallel_size) if routed else tensor.copies


def largest_share(size: int, parts: int) -> int:
    """Of `size` things dealt to `parts`, what the fullest gets."""
    return -(-size // parts)


def _grouped(layer: Layer) -> bool:
    return layer.attention.kind in (AttentionKind.FULL, AttentionKind.SLIDING, AttentionKind.CHUNKED)


def is_moe(layer: Layer) -> bool:
    """The layer has routed experts."""
    return layer.mlp.kind is MlpKind.MOE
