"""What stands in the way of a latency limit that no worker keeps: the fastest of them, and what its time is made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from formulations.parallelism.predictions import Predictions
from formulations.parallelism.problem import BoolArray
from planner.cost.serving.coefficients import DECODE_PARTS
from planner.cost.serving.judge import BOTTLENECKS
from planner.parallel_plan import WorkerType
from planner.units import format_seconds


def floors(
    predictions: Predictions,
    workers: Sequence[WorkerType],
    limits: Mapping[str, float | None],
    late: BoolArray,
) -> Iterator[str]:
    """For each limit that no worker keeps: the fastest one's time, its largest part, and the physical bound.

    limits : ttft_s and tpot_s; late : workers that miss each, [W, 2]. The bound is what the hardware cannot go below
    whatever the engine does: for a token the weights that it uses, read once at the full memory bandwidth of the
    worker's GPUs; for a prompt its FLOP at their highest dense rate.
    """
    for side, (name, limit) in enumerate(limits.items()):
        timed = [index for index, one in enumerate(workers) if getattr(one, name) is not None]
        if limit is None or not timed or not late[timed, side].all():
            continue
        fastest = min((workers[index] for index in timed), key=lambda one: float(getattr(one, name)))
        if predictions.model_of(fastest) is None:
            continue
        lead = f"the fastest, {fastest.name}, has a {name} of {format_seconds(getattr(fastest, name))}"
        told = _first_token if name == "ttft_s" else _next_token
        yield f"{lead}; {told(predictions, fastest)}"


def _next_token(predictions: Predictions, one: WorkerType) -> str:
    parts = {name: seconds for name, seconds in predictions.time_parts(one).items() if name in DECODE_PARTS}
    largest = max(parts, key=lambda name: parts[name])
    model = predictions.model_of(one)
    assert model is not None
    worker = model.workers[0]
    read = worker.model.weight_bytes * worker.model.active_params_without_embedding / worker.model.total_params
    # Every attention rank reads its own weights, and stages come one after another.
    seconds = read / (worker.tensor_parallel_size * worker.device.hbm_bandwidth_bytes_per_s) / worker.tokens_per_step
    share = parts[largest] / sum(parts.values())
    return (
        f"{share:.0%} of it is {BOTTLENECKS[largest]}; only to read the weights of a token"
        f" at the full bandwidth of {worker.tensor_parallel_size} {one.device} takes {format_seconds(seconds)}"
    )


def _first_token(predictions: Predictions, one: WorkerType) -> str:
    model = predictions.model_of(one)
    assert model is not None
    worker, prompt = model.workers[0], float(predictions.input_tokens)
    step = np.array([float(one.max_num_batched_tokens or model.max_num_batched_tokens)])
    alone = float(model.prefill_s(np.zeros(1, dtype=np.intp), np.array([prompt]), np.ones(1), step)[0])
    flop = worker.model.linear_flops_per_token * prompt + float(worker.model.prompt_attention_flops(prompt))
    # Other attention ranks have other prompts, and stages come one after another.
    gpus = worker.tensor_parallel_size * worker.context_parallel_size
    seconds = flop / (gpus * max(worker.device.flop_per_s.values()))
    return (
        f"{alone / (one.ttft_s or 1.0):.0%} of it is the prompt itself; its FLOP at the highest rate of {gpus}"
        f" {one.device} alone take {format_seconds(seconds)}"
    )
