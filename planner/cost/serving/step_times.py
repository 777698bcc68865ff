"""The serving model as a linear step model: what queueing, rates and disaggregation are worked out with.

    a step of B sequences with K cached tokens in all and a chunk of c prompt tokens behind h cached ones takes
    base + B per_sequence + K per_kv_token + c per_token + c (h + c/2) per_token_pair

Secants through the operating point: exact for one sequence and for the plan's batch, at their mean context, and for a
whole chunk of the prompt; in between the curves are nearly straight.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from planner.cost.queueing.step_times import Scheduler, StepTimes
from planner.cost.serving.predict import ServingModel, ServingPlans

FloatArray = npt.NDArray[np.float64]

#: The base of a step is at least this share of a step of one sequence, however steep the curve. Source: modelled.
LEAST_BASE_SHARE = 0.05


def step_times(
    model: ServingModel,
    plans: ServingPlans,
    batch: FloatArray | None = None,
    prompt_tokens: FloatArray | None = None,
) -> StepTimes:
    """Step model of one attention rank of each plan's worker, around a batch and the plan's lengths; [plans].

    batch : sequences of a rank, [plans], at least 2 are taken; by default those that run.
    prompt_tokens : of an iteration with prompts in it, [plans]; by default one chunk of one prompt.
    With p pipeline stages a rank's sequences take turns in p groups, and a step is the passage of one group.
    """
    w = plans.worker
    ranks = np.array([worker.data_parallel_size for worker in model.workers])[w]
    running = model.predict(plans).running_sequences / ranks if batch is None else batch
    batch = np.maximum(running, 2.0)
    # Seconds of a decode step, for each of the tokens that it gives a sequence.
    faster = np.array(
        [
            (model.coefficients.values["speculation"] if one.speculative else 1.0) / one.tokens_per_step
            for one in model.workers
        ]
    )[w]
    stages = np.array([worker.pipeline_parallel_size for worker in model.workers])[w]
    chunk = np.minimum(plans.input_tokens, model.max_num_batched_tokens)
    if prompt_tokens is not None:
        chunk = np.clip(prompt_tokens, chunk, model.max_num_batched_tokens)
    context = plans.input_tokens + 0.5 * plans.output_tokens
    micro = np.maximum(batch / stages, 1.0)
    one, many = (model.table("decode", w, at) for at in (np.ones_like(micro), micro))
    cached = micro * (model.table("context", w, context) + model.sequence_s[w])
    many = many - model.hidden_s(w, micro, many + cached)
    per_sequence = np.maximum(many - one, 0.0) / (batch - 1.0)
    added = model.table("prefill", w, micro + chunk) - model.table("prefill", w, micro)
    return StepTimes(
        decode_base_s=faster * np.maximum(one - per_sequence, LEAST_BASE_SHARE * one),
        decode_per_sequence_s=faster * (per_sequence + model.sequence_s[w] / stages),
        decode_per_kv_token_s=faster * model.table("context", w, context) / context / stages,
        prefill_per_token_s=np.maximum(added, 0.0) / chunk / stages,
        prefill_per_token_pair_s=model.table("prompt_attention", w, plans.input_tokens)
        / (plans.input_tokens**2 / 2.0)
        / stages,
    )


def scheduler(model: ServingModel, plans: ServingPlans) -> Scheduler:
    """How each plan's engine fills a step of one attention rank; only the cache limits the sequences."""
    workers = [model.workers[index] for index in plans.worker]
    held = plans.input_tokens + plans.output_tokens
    per_token = model.table("cache_bytes", plans.worker, held) / held
    capacity = np.array([memory.cache_capacity_bytes for memory in model.memory])[plans.worker]
    return Scheduler(
        max_num_batched_tokens=model.max_num_batched_tokens,
        prefill_first=np.array([one.backend == "sglang" for one in workers]),
        kv_capacity_tokens=np.maximum(capacity / per_token, 1.0),
        reserve_full=np.array([one.backend == "trtllm" for one in workers]),
    )
