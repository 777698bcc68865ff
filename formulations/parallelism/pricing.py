"""Workers as the search chooses from them: each split at every batch and load, priced by the cost model at once.

    mixed    a closed loop of so many sequences
    decode   the same sequences without any prompt between their steps, at DECODE_UTILISATION of their rate
    prefill  up to n prompts in a step, or a long prompt in several, at a load u of the rate n / S(n): S from the cost
             model, the queue from `planner.cost.queueing.batch_service`, and behind it the cache's way to the decode
             worker

Batches are half octaves, loads coarse; between them, of each split the largest batch and the highest load in whole
percent at which memory and the limits are kept, by bisection: neither latency falls with either. Arrays over [splits,
batches] and [splits, step sizes, loads]; then, of each split and role, those that another one of
it beats in rate and latency are dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

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
#: Loads between which the highest that keeps a limit is looked for, percent.
LEAST_LOAD, MOST_LOAD = 5, 95
#: Of decode likewise. Source: AIConfigurator, 0.92; modelled.
DECODE_UTILISATION = 0.92


def worker_types(
    model: ServingModel,
    load: ServingLoad,
    disaggregated: str,
    kv_bandwidth_bytes_per_s: Mapping[str, float],
    limits: Sequence[FloatArray] = (),
    *,
    every_batch: bool = False,
) -> list[WorkerType]:
    """What each compiled split can be; none where it holds not even one sequence of this length.

    limits : pairs of TTFT and TPOT, seconds [splits, 2] each, of which the largest batches and loads are looked for.
    every_batch : workers at all batches and loads, not only those that no other one beats, and prefill in the same
    steps whatever the size of a prompt: types that can be compared between sizes.
    """
    made: list[WorkerType] = []
    sharing = np.array([one.context_parallel_size > 1 for one in model.workers])
    drafting = np.array([one.draft_tokens > 0 for one in model.workers])
    whole = np.flatnonzero(~sharing)
    latencies = [one[whole] for one in limits]
    if disaggregated != "only":
        made += _decoding_or_mixed(model, load, "both", whole, latencies, every_batch)
    if disaggregated != "never":
        made += _decoding_or_mixed(model, load, "decode", whole, latencies, every_batch)
    if disaggregated != "never":
        steps = COMMON_STEPS if every_batch else _step_tokens(load.input_tokens)
        plain = np.flatnonzero(~drafting)
        latest = [one[plain, 0] for one in limits]
        made += _prefilling(model, load, plain, kv_bandwidth_bytes_per_s, steps, latest, every_batch)
    return made


def _decoding_or_mixed(
    model: ServingModel, load: ServingLoad, role: Role, of: IntArray, limits: Sequence[FloatArray], every_batch: bool
) -> list[WorkerType]:
    workers = [model.workers[index] for index in of]
    ranks = np.array([one.data_parallel_size for one in workers], dtype=np.float64)[:, None]
    tokens = np.array([one.tokens_per_step for one in workers])[:, None]

    def at(batch: FloatArray | IntArray) -> tuple[BoolArray, FloatArray, FloatArray, FloatArray]:
        """Whether batches [splits, k] of a rank fit, their requests/s, TTFT and TPOT."""
        plans = ServingPlans.of(of[:, None], ranks * batch, load.input_tokens, load.output_tokens)
        found = model.predict(plans)
        fit, rate, ttft, tpot, step = (
            value.reshape(batch.shape)
            for value in (
                found.admitted_sequences, found.output_tokens_per_s, found.ttft_s, found.tpot_s, found.step_s
            )
        )  # fmt: skip
        runs = fit >= ranks * batch
        if role == "both":
            return runs, rate / load.output_tokens, ttft, tpot
        alone = step / tokens
        return runs, DECODE_UTILISATION * ranks * batch / (alone * load.output_tokens), np.zeros_like(alone), alone

    def keeps(limit: FloatArray, batch: IntArray) -> BoolArray:
        runs, _, ttft, tpot = at(batch)
        return runs & (ttft <= limit[:, :1]) & (tpot <= limit[:, 1:])

    shape = (len(workers), 1)
    most = int(BATCHES[-1])
    exact = [largest(partial(keeps, limit), np.full(shape, 1), np.full(shape, most)) for limit in limits]
    batches = np.concatenate([np.broadcast_to(BATCHES, (len(workers), BATCHES.size)), *exact], axis=1)
    runs, rate, ttft, tpot = at(batches)
    return [
        _type(
            workers[row],
            role,
            ranks[row, 0] * batches[row, b],
            rate[row, b],
            ttft[row, b] if role == "both" else None,
            tpot[row, b],
        )
        for row, best in _undominated(runs, rate, ttft, tpot, every_batch)
        for b in best
    ]


def largest(holds: Callable[[IntArray], BoolArray], least: IntArray, most: IntArray) -> IntArray:
    """Of each entry the largest integer from `least` to `most` that holds; `least` where none does.

    holds : of each entry by itself, true up to some integer and not beyond.
    """
    low, high = least.copy(), most.copy()
    while (low < high).any():
        middle = (low + high + 1) // 2
        good = holds(middle)
        low, high = np.where(good, middle, low), np.where(good, high, np.maximum(middle - 1, low))
    return low


def _prefilling(
    model: ServingModel,
    load: ServingLoad,
    of: IntArray,
    kv_bandwidth_bytes_per_s: Mapping[str, float],
    steps: FloatArray,
    limits: Sequence[FloatArray],
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
    first, more = (value[..., None] for value in (alone / stages, added / stages))
    lone = model.predict(ServingPlans.of(of, ranks[:, 0], load.input_tokens, 1)).step_s
    own = model.first_token_s(index, alone.ravel(), np.repeat(lone, shape[1])).reshape(shape)
    # The cache goes to another worker, all GPUs of a rank sending at once.
    network = np.array([kv_bandwidth_bytes_per_s[one.device.name] for one in workers])[:, None]

    def first_token(loads: FloatArray | IntArray) -> FloatArray:
        """TTFT at loads [splits, step sizes, k]."""
        waiting = batch_sojourn_s(loads * most[..., None], first, more, prompts[..., None]) - first
        return np.asarray((own + cache / network)[..., None] + waiting)

    def keeps(limit: FloatArray, percent: IntArray) -> BoolArray:
        return first_token(percent / 100) <= limit[:, None, None]

    least, highest = (np.full((*shape, 1), load) for load in (LEAST_LOAD, MOST_LOAD))
    exact = [largest(partial(keeps, limit), least, highest) / 100 for limit in limits]
    loads = np.concatenate([np.broadcast_to(LOADS, (*shape, LOADS.size)), *exact], axis=2)
    rate, ttft = loads * (most * ranks)[..., None], first_token(loads)
    kept = np.broadcast_to(runs[..., None], rate.shape).reshape(shape[0], -1)
    flat_rate, flat_ttft = (value.reshape(shape[0], -1) for value in (rate, ttft))
    made = []
    for row, best in _undominated(kept, flat_rate, flat_ttft, np.zeros_like(flat_rate), every_batch):
        for place in best:
            which, at = divmod(place, loads.shape[2])
            made.append(
                _type(
                    workers[row],
                    "prefill",
                    prompts[row, which] * workers[row].data_parallel_size,
                    flat_rate[row, place],
                    flat_ttft[row, place],
                    None,
                    step_tokens=int(step[row, which]),
                    utilisation=float(loads[row, which, at]),
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
        ("tbo", 2 if worker.two_batch_overlap else 0, 0),
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
        two_batch_overlap=worker.two_batch_overlap,
        max_batch_size=int(batch),
        max_num_batched_tokens=step_tokens,
        utilisation=utilisation,
        requests_per_s=float(rate),
        ttft_s=None if ttft is None else float(ttft),
        tpot_s=None if tpot is None else float(tpot),
    )
