"""What the cost model knows of each predicted worker beyond its rate: spread, watts, and where time and memory go."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from planner.cost.energy import gpu_power_w
from planner.cost.serving.coefficients import DECODE_PARTS
from planner.cost.serving.memory import worker_memory
from planner.cost.serving.predict import ServingModel, ServingPlans
from planner.cost.serving.sharding import expert_weight_bytes
from planner.cost.serving.worker import ServingWorker
from planner.descriptions.parallel import RequestSize
from planner.parallel_plan import WorkerType

#: What tells compiled workers apart: device, then sizes as in WorkerType.
Shape = tuple[str | int, ...]
SIZES = (
    "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "context_parallel_size",
    "expert_parallel_size", "redundant_experts", "draft_tokens", "two_batch_overlap",
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """models : compiled workers by shape; tokens are those of a request."""

    models: Mapping[Shape, ServingModel]
    input_tokens: int
    output_tokens: int

    @classmethod
    def of(cls, models: Iterable[ServingModel], load: RequestSize) -> Predictions:
        """Of models of one worker each."""
        by_shape = {_shape(one.workers[0], one.workers[0].device.name): one for one in models}
        return cls(by_shape, load.input_tokens, load.output_tokens)

    def time_parts(self, one: WorkerType) -> dict[str, float]:
        """Seconds of the worker's TPOT by part, as named in coefficients.PARTS; of a prefill worker those of its TTFT.

        Parts are scaled to the time that they add up to, so that what speeds up whole steps speeds up each part.
        """
        model = self._known(one)
        if one.role == "prefill":
            budget = float(one.max_num_batched_tokens or model.max_num_batched_tokens)
            number = np.ones(1)
            zero, prompt, step = np.zeros(1, dtype=np.intp), self.input_tokens * number, budget * number
            alone = float(model.prefill_s(zero, prompt, number, step)[0])
            whole = one.ttft_s or alone
            return {"prompt": min(alone, whole), "queue_and_transfer": max(whole - alone, 0.0)}
        parts = {name: float(values[0]) for name, values in model.parts(self._plans(one)).items()}
        if one.role == "decode":
            parts = {name: parts[name] for name in DECODE_PARTS}
        scale = (one.tpot_s or 0.0) / (sum(parts.values()) or 1.0)
        return {name: value * scale for name, value in parts.items()}

    def memory_parts(self, one: WorkerType) -> dict[str, float]:
        """Bytes on the worker's fullest GPU: weights, activations, runtime, cache of what runs, free."""
        model = self._known(one)
        held, plans = model.memory[0], self._plans(one)
        if (one.max_num_batched_tokens or 0) > model.max_num_batched_tokens:
            held = worker_memory(model.workers[0], max_num_batched_tokens=one.max_num_batched_tokens or 1)
        cache = float(model.predict(plans).memory_bytes[0]) - model.memory[0].fixed_bytes
        return {
            "weights": held.weight_bytes,
            "activations": held.activation_bytes,
            "runtime": held.runtime_bytes,
            "cache": cache,
            "free": held.usable_bytes - held.fixed_bytes - cache,
        }

    def model_of(self, one: WorkerType) -> ServingModel | None:
        """The compiled worker of a type's device and sizes; None where there is none."""
        return self.models.get(_shape(one, one.device))

    def weight_parts(self, one: WorkerType) -> tuple[float, float] | None:
        """Bytes on a GPU of dense weights and of routed experts; None for a worker of other sizes than the known."""
        model = self.model_of(one)
        if model is None:
            return None
        experts = expert_weight_bytes(model.workers[0])
        return model.memory[0].weight_bytes - experts, experts

    def annotated(self, types: Iterable[WorkerType], decode_utilisation: float) -> tuple[WorkerType, ...]:
        """The types with the spread of their predictions, and watts where the board's power is known.

        decode_utilisation : share of the time that a decode worker is busy.
        """
        facts: dict[Shape, tuple[float, float, float]] = {}
        found = []
        for one in types:
            model = self._known(one)
            worker, shape = model.workers[0], _shape(one, one.device)
            if shape not in facts:
                ttft, tpot = (model.coefficients.spread_of(what, worker) for what in ("ttft", "tpot"))
                alone = float(model.first_token_parts(self._prompts(model))["alone"][0])
                facts[shape] = ttft, tpot, alone / (worker.data_parallel_size * worker.pipeline_parallel_size)
            ttft_factor, tpot_factor, prompt_s = facts[shape]
            more: dict[str, float] = {}
            if one.role != "decode":
                more["ttft_factor"] = ttft_factor
            if one.role != "prefill":
                more["tpot_factor"] = tpot_factor
            board = worker.device.power_w
            if board is not None:
                prompts = min(one.requests_per_s * prompt_s, 1.0)
                prefill = {"both": prompts, "prefill": one.utilisation or prompts, "decode": 0.0}[one.role]
                decode = {"both": 1.0 - prompts, "prefill": 0.0, "decode": decode_utilisation}[one.role]
                more["watts"] = worker.num_gpus * float(gpu_power_w(board, prefill, decode))
            found.append(one.model_copy(update=more))
        return tuple(found)

    def _known(self, one: WorkerType) -> ServingModel:
        model = self.model_of(one)
        if model is None:
            raise KeyError(one.name)
        return model

    def _plans(self, one: WorkerType) -> ServingPlans:
        batch, answer = np.float64(one.max_batch_size or one.data_parallel_size), self.output_tokens
        return ServingPlans.of(0, batch, self.input_tokens, 1 if one.role == "prefill" else answer)

    def _prompts(self, model: ServingModel) -> ServingPlans:
        return ServingPlans.of(0, model.workers[0].data_parallel_size, self.input_tokens, 1)


def _shape(one: WorkerType | ServingWorker, device: str) -> Shape:
    return (device, *(getattr(one, size) for size in SIZES))
