"""Workers as the search chooses from them: each split at every batch and load, priced by the cost model at once.

    mixed    a closed loop of so many sequences
    decode   the same sequences without any prompt between their steps, at DECODE_UTILISATION of their rate
    prefill  up to n prompts in a step, or a long prompt in several, at a load u of the rate n / S(n): S from the cost
             model, the queue from `planner.cost.queueing.batch_service`, and behind it the cache's way to the decode
             worker

Arrays over [splits, batches] and [splits, step sizes, loads]; then, of each split and role, those that another one of
it beats in rate and latency are dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from formulations.parallelism.pareto import undominated
from formulations.parallelism.problem import BoolArray, FloatArray, IntArray
from planner.cost.queueing.batch_service import batch_sojourn_s
from planner.cost.serving.memory import worker_memory
from planner.cost.serving.predict import ServingModel, ServingPlans
from planner.cost.serving.worker import ServingWorker
from planner.descriptions.parallel import ServingLoad
from planner.parallel_plan import Role, WorkerType

#: Sequences of an attention rank at most, half octaves.
BATCHES = np.unique(np.round(2.0 ** np.arange(0, 10.5, 0.5)))
#: Tokens of a prefill step on a rank at most, and prompts in it. Source: 8,192 is every engine's default, 16,384 that
#: of SGLang's large-scale prefill (LMSYS blog of 2025-05-05), of which this is twice; documented.
MOST_STEP_TOKENS, MOST_PROMPTS = 32_768, 256
#: Tokens of a prefill step where requests have several sizes.
COMMON_STEPS = np.array([8192.0, 16384.0, MOST_STEP_TOKENS])
#: Shares of its highest rate that a prefill worker may be given.
LOADS = np.array([0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95])
#: Of decode likewise. Source: AIConfigurator, 0.92; modelled.
DECODE_UTILISATION = 0.92


def worker_types(
    model: ServingModel,
    load: ServingLoad,
    disaggregated: str,
    kv_bandwidth_bytes_per_s: Mapping[str, float],
    *,
    every_batch: bool = False,
) -> list[WorkerType]:
    """What each compiled split can be; none where it holds not even one sequence of this length.

    every_batch : workers at all batches and loads, not only those that no other one beats, and prefill in the same
    steps whatever the size of a prompt: types that can be compared between sizes.
    """
    made: list[WorkerType] = []
    sharing = np.array([one.context_parallel_size > 1 for one in model.workers])
    drafting = np.array([one.draft_tokens > 0 for one in model.workers])
    whole = np.flatnonzero(~sharing)
    made += _decoding_and_mixed(model, load, disaggregated, whole, every_batch)
    if disaggregated != "never":
        steps = COMMON_STEPS if every_batch else _step_tokens(load.input_tokens)
        made += _prefilling(model, load, np.flatnonzero(~drafting), kv_bandwidth_bytes_per_s, steps, every_batch)
    return made


def _decoding_and_mixed(
    model: ServingModel, load: ServingLoad, disaggregated: str, of: IntArray, every_batch: bool
) -> list[WorkerType]:
    workers = [model.workers[index] for index in of]
    ranks = np.array([one.data_parallel_size for one in workers])
    at_once = ranks[:, None] * BATCHES
    plans = ServingPlans.of(of[:, None], at_once, load.input_tokens, load.output_tokens)
    found = model.predict(plans)

    def table(values: FloatArray) -> FloatArray:
        return values.reshape(at_once.shape)

    runs = table(found.admitted_sequences) >= at_once
    made: list[WorkerType] = []
    if disaggregated != "only":
        rate, ttft, tpot = (
            table(found.output_tokens_per_s) / load.output_tokens,
            table(found.ttft_s),
            table(found.tpot_s),
        )
        for row, best in _undominated(runs, rate, ttft, tpot, every_batch):
            made += [
                _type(workers[row], "both", at_once[row, b], rate[row, b], ttft[row, b], tpot[row, b]) for b in best
            ]
    if disaggregated != "never":
        tokens = np.array([one.tokens_per_step for one in workers])
        tpot = table(found.step_s) / tokens[:, None]
        rate = DECODE_UTILISATION * at_once / (tpot * load.output_tokens)
        for row, best in _undominated(runs, rate, np.zeros_like(rate), tpot, every_batch):
            made += [_type(workers[row], "decode", at_once[row, b], rate[row, b], None, tpot[row, b]) for b in best]
    return made


def _prefilling(
    model: ServingModel,
    load: ServingLoad,
    of: IntArray,
    kv_bandwidth_bytes_per_s: Mapping[str, float],
    steps: FloatArray,
    every_batch: bool,
) -> list[WorkerType]:
    """Whole prompts together in a step where they fit, else one prompt in several; never cut among sharing ranks."""
    workers = [model.workers[index] for index in of]
    shape = (len(workers), len(steps))
    sharing = np.array([one.context_parallel_size > 1 for one in workers])[:, None]
    index, prompt = np.repeat(of, shape[1]), np.full(shape, float(load.input_tokens))
    step = np.where(sharing, np.maximum(steps, prompt), np.broadcast_to(steps, shape))
    prompts = np.maximum(np.floor(step / prompt), 1.0)

    def seconds(number: FloatArray) -> FloatArray:
        return model.prefill_s(index, prompt.ravel(), number.ravel(), step.ravel()).reshape(shape)

    alone, together = seconds(np.ones(shape)), seconds(prompts)
    added = np.where(prompts > 1, np.maximum(together - alone, 0.0) / np.maximum(prompts - 1, 1.0), alone)
    cache: FloatArray = model.table("cache_bytes", index, prompt.ravel()).reshape(shape)
    runs = (
        np.array(
            [
                [_capacity_bytes(model, w, worker, int(most)) for most in tokens]
                for w, worker, tokens in zip(of.tolist(), workers, step, strict=True)
            ]
        )
        >= prompts * cache
    )
    # The stages of a worker are at different steps: one begins as often as a stage takes.
    stages, ranks = (
        np.array([getattr(one, name) for one in workers], dtype=np.float64)[:, None]
        for name in ("pipeline_parallel_size", "data_parallel_size")
    )
    most = prompts / (together / stages)
    rate = LOADS * most[..., None]
    first, more = (value[..., None] for value in (alone / stages, added / stages))
    waiting = batch_sojourn_s(rate, first, more, prompts[..., None]) - first
    lone = model.predict(ServingPlans.of(of, ranks[:, 0], load.input_tokens, 1)).step_s
    own = model.first_token_s(index, alone.ravel(), np.repeat(lone, shape[1])).reshape(shape)
    # The cache goes to another worker, all GPUs of a rank sending at once.
    network = np.array([kv_bandwidth_bytes_per_s[one.device.name] for one in workers])[:, None]
    ttft = (own + cache / network)[..., None] + waiting
    rate = rate * ranks[..., None]
    kept = np.broadcast_to(runs[..., None], rate.shape).reshape(shape[0], -1)
    flat_rate, flat_ttft = (value.reshape(shape[0], -1) for value in (rate, ttft))
    made = []
    for row, best in _undominated(kept, flat_rate, flat_ttft, np.zeros_like(flat_rate), every_batch):
        for place in best:
            which, at = divmod(place, len(LOADS))
            made.append(
                _type(
                    workers[row],
                    "prefill",
                    prompts[row, which] * workers[row].data_parallel_size,
                    flat_rate[row, place],
                    flat_ttft[row, place],
                    None,
                    step_tokens=int(step[row, which]),
                    utilisation=float(LOADS[at]),
                )
            )
    return made


def _step_tokens(input_tokens: int) -> FloatArray:
    """Steps of 1, 2, 4, ... whole prompts, and for longer prompts than a step those that cut them, rising."""
    steps = {input_tokens * 2**power for power in range(MOST_PROMPTS.bit_length())}
    steps |= (
        {MOST_STEP_TOKENS // 4, MOST_STEP_TOKENS // 2, MOST_STEP_TOKENS}
        if input_tokens > MOST_STEP_TOKENS // 4
        else set()
    )
    fit = sorted(
        step for step in steps if step <= MOST_STEP_TOKENS and (step < input_tokens or step % input_tokens == 0)
    )
    return np.array(fit, dtype=np.float64)


def _capacity_bytes(model: ServingModel, index: int, worker: ServingWorker, step_tokens: int) -> float:
    """Room for caches on a GPU beside the activations of such a step."""
    if step_tokens <= model.max_num_batched_tokens:
        return model.memory[index].cache_capacity_bytes
    return worker_memory(worker, max_num_batched_tokens=step_tokens).cache_capacity_bytes


def _undominated(
    runs: BoolArray, rate: FloatArray, ttft: FloatArray, tpot: FloatArray, every: bool = False
) -> Iterator[tuple[int, Sequence[int]]]:
    """Of each row, the columns that run and that no other of it beats; or every one that runs."""
    for row in range(len(runs)):
        kept = np.flatnonzero(runs[row])
        if not every:
            kept = kept[undominated(rate[row, kept], ttft[row, kept], tpot[row, kept], np.zeros(kept.size))]
        yield row, kept.tolist()


def _type(
    worker: ServingWorker,
    role: Role,
    batch: float,
    rate: float,
    ttft: float | None,
    tpot: float | None,
    *,
    step_tokens: int | None = None,
    utilisation: float | None = None,
) -> WorkerType:
    sizes = f"tp{worker.tensor_parallel_size}"
    for short, size, least in (
        ("pp", worker.pipeline_parallel_size, 1),
        ("dp", worker.data_parallel_size, 1),
        ("cp", worker.context_parallel_size, 1),
        ("ep", worker.expert_parallel_size, 1),
        ("r", worker.redundant_experts, 0),
        ("mtp", worker.draft_tokens, 0),
        ("b", int(batch) if role != "prefill" else 0, 0),
        ("s", step_tokens or 0, 0),
        ("u", 0 if utilisation is None else round(100 * utilisation), 0),
    ):
        sizes += f"-{short}{size}" if size > least else ""
    return WorkerType(
        name=f"{role}-{worker.device.name}-{sizes}",
        role=role,
        device=worker.device.name,
        num_gpus=worker.num_gpus,
        tensor_parallel_size=worker.tensor_parallel_size,
        pipeline_parallel_size=worker.pipeline_parallel_size,
        data_parallel_size=worker.data_parallel_size,
        context_parallel_size=worker.context_parallel_size,
        expert_parallel_size=worker.expert_parallel_size,
        redundant_experts=worker.redundant_experts,
        draft_tokens=worker.draft_tokens,
        max_batch_size=int(batch),
        max_num_batched_tokens=step_tokens,
        utilisation=utilisation,
        requests_per_s=float(rate),
        ttft_s=None if ttft is None else float(ttft),
        tpot_s=None if tpot is None else float(tpot),
    )
