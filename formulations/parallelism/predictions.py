"""What the cost model knows of each predicted worker beyond its rate: spread, watts, and where time and memory go."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from planner.cost.energy import gpu_power_w
from planner.cost.serving.coefficients import DECODE_PARTS
from planner.cost.serving.predict import ServingModel, ServingPlans
from planner.parallel_plan import WorkerType


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """models : compiled workers by the names of the types that were made of them; tokens are those of a request."""

    models: Mapping[str, ServingModel]
    input_tokens: int
    output_tokens: int

    def time_parts(self, one: WorkerType) -> dict[str, float]:
        """Seconds of the worker's TPOT by part, as named in coefficients.PARTS; of a prefill worker those of its TTFT.

        Parts are scaled to the time that they add up to, so that what speeds up whole steps speeds up each part.
        """
        model = self.models[one.name]
        if one.role == "prefill":
            alone = float(model.first_token_parts(self._prompts(model))["alone"][0])
            whole = one.ttft_s or alone
            return {"prompt": min(alone, whole), "queue_and_transfer": max(whole - alone, 0.0)}
        parts = {name: float(values[0]) for name, values in model.parts(self._plans(one)).items()}
        if one.role == "decode":
            parts = {name: parts[name] for name in DECODE_PARTS}
        scale = (one.tpot_s or 0.0) / (sum(parts.values()) or 1.0)
        return {name: value * scale for name, value in parts.items()}

    def memory_parts(self, one: WorkerType) -> dict[str, float]:
        """Bytes on the worker's fullest GPU: weights, activations, runtime, cache of what runs, free."""
        model = self.models[one.name]
        held = model.memory[0]
        used = float(model.predict(self._plans(one)).memory_bytes[0])
        return {
            "weights": held.weight_bytes,
            "activations": held.activation_bytes,
            "runtime": held.runtime_bytes,
            "cache": used - held.fixed_bytes,
            "free": held.usable_bytes - used,
        }

    def annotated(self, types: Iterable[WorkerType], utilisation: Mapping[str, float]) -> tuple[WorkerType, ...]:
        """The types with the spread of their predictions, and watts where the board's power is known.

        utilisation : share of the time that a prefill or decode worker is busy, by role.
        """
        facts: dict[int, tuple[float, float, float]] = {}
        found = []
        for one in types:
            model = self.models[one.name]
            worker = model.workers[0]
            if id(model) not in facts:
                spread = (model.coefficients.spread_of(what, worker) for what in ("ttft", "tpot"))
                alone = float(model.first_token_parts(self._prompts(model))["alone"][0])
                facts[id(model)] = (*spread, alone / (worker.data_parallel_size * worker.pipeline_parallel_size))  # type: ignore[assignment]
            ttft_factor, tpot_factor, prompt_s = facts[id(model)]
            more: dict[str, float] = {}
            if one.role != "decode":
                more["ttft_factor"] = ttft_factor
            if one.role != "prefill":
                more["tpot_factor"] = tpot_factor
            board = worker.device.power_w
            if board is not None:
                prefill = 0.0 if one.role == "decode" else min(one.requests_per_s * prompt_s, 1.0)
                decode = {"both": 1.0 - prefill, "prefill": 0.0, "decode": utilisation["decode"]}[one.role]
                more["watts"] = worker.num_gpus * float(gpu_power_w(board, prefill, decode))
            found.append(one.model_copy(update=more))
        return tuple(found)

    def _plans(self, one: WorkerType) -> ServingPlans:
        if one.role == "prefill":
            return self._prompts(self.models[one.name])
        return ServingPlans.of(0, np.float64(one.max_batch_size or 1), self.input_tokens, self.output_tokens)

    def _prompts(self, model: ServingModel) -> ServingPlans:
        return ServingPlans.of(0, model.workers[0].data_parallel_size, self.input_tokens, 1)
