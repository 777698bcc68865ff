"""Serving predictions over arrays of plans: time per output token, time to first token, memory, throughput.

For B sequences on an attention rank (as many as the cache admits), prompts of I and outputs of O tokens, p stages:

    step  = D(b) + b x (K(I + O/2) + state)                              b = max(B / p, 1)
    mixed = min(n, 1) x (P(b + c) - P(b)) + max(n - 1, 0) x P(c)         n = r x I / c
    tpot  = s x (step + (mixed + r x A(I)) / p)                          r = q x max(B - 1, 0) / O
    P1    = I / f x P(f) + A(I)                                          f = min(I, batched tokens)
    ttft  = first + k x P1 x (1 + burst x B) + w x step + queue
    queue = (asked / B - 1) x (P1 + tpot x O)                            Little's law beyond what the cache admits

D, P, K, A : fitted sums of the worker's curves; q : PROMPT_SHARE; s : 1 without speculation. With drafts, which give a
sequence T tokens a step (`ServingWorker.tokens_per_step`), s is 1 / T and q is T x PROMPT_SHARE. `mixed` is what
prefills of the other sequences cost a token under continuous batching: in the time of one output each of them runs one
prompt, so r prompts fall on a token. They run in n chunks of c = min(I x max(r, 1), batched tokens), prompts together
where there is room, and the first chunk together with the decode step. With two_batch_overlap `step` and P are less
what `planner.cost.serving.overlap` hides. `burst` stands for all clients of a closed loop
starting at once. Closed loop: the number of sequences is given. For arrivals at a rate see `planner.cost.queueing`.

What holds over the catalogue (tests): more sequences never lower step, tpot or ttft; a longer prompt lowers one of them
only where it lets fewer sequences run; more HBM bandwidth never raises any. What does not: throughput can fall with
concurrency by up to a quarter, where prompts are as short as a step that reads the weights takes along for nothing; and
a higher peak can raise the cache part, a difference of two kernel times, by a few percent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from planner.cost.serving.coefficients import DECODE_PARTS, Coefficients, fitted
from planner.cost.serving.curves import CONTEXT_PARTS, TOKEN_PARTS, WorkerCurves, compile_curves, place
from planner.cost.serving.memory import DEFAULT_MAX_NUM_BATCHED_TOKENS, WorkerMemory, worker_memory
from planner.cost.serving.overlap import halved, hidden_s
from planner.cost.serving.worker import ServingWorker
from planner.cost.serving.worker_tables import collapse, interpolated

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.intp]

#: Plans that are worked on at once: their arrays stay in the cache of a core.
BLOCK = 16384


@dataclass(frozen=True, slots=True, eq=False)
class ServingPlans:
    """Equal-length arrays: which worker, how many sequences it is asked to run at once, tokens of prompt and output."""

    worker: IntArray
    concurrency: FloatArray
    input_tokens: FloatArray
    output_tokens: FloatArray

    @classmethod
    def of(
        cls,
        worker: npt.ArrayLike,
        concurrency: npt.ArrayLike,
        input_tokens: npt.ArrayLike,
        output_tokens: npt.ArrayLike,
    ) -> ServingPlans:
        """Broadcast to one length; ValueError for a size below one."""
        index, *sizes = np.broadcast_arrays(worker, concurrency, input_tokens, output_tokens)
        made = [np.ravel(size).astype(np.float64) for size in sizes]
        for name, size in zip(("concurrency", "input_tokens", "output_tokens"), made, strict=True):
            if not (np.isfinite(size) & (size >= 1)).all():
                raise ValueError(f"{name} must be at least 1 and finite")
        return cls(np.ravel(index).astype(np.intp), *made)

    def __len__(self) -> int:
        return len(self.worker)

    def take(self, index: IntArray | slice) -> ServingPlans:
        """Some of the plans."""
        return ServingPlans(
            self.worker[index], self.concurrency[index], self.input_tokens[index], self.output_tokens[index]
        )


@dataclass(frozen=True, slots=True, eq=False)
class ServingPrediction:
    """Equal-length arrays, one entry a plan.

    tpot_s, ttft_s : means in a closed loop; step_s : a decode step alone, without other prompts.
    running_sequences : that run at once; admitted_sequences : that the cache could hold (0: not even one, and then
    the times are those of one sequence as if it fitted).
    output_tokens_per_s : of the worker; memory_bytes : on its fullest GPU, with the running sequences' cache.
    """

    tpot_s: FloatArray
    ttft_s: FloatArray
    step_s: FloatArray
    running_sequences: FloatArray
    admitted_sequences: FloatArray
    output_tokens_per_s: FloatArray
    output_tokens_per_s_per_gpu: FloatArray
    memory_bytes: FloatArray


class ServingModel:
    """Workers compiled once, plans of them predicted in bulk.

    workers : at least one; raises ValueError with all problems of all of them, DescriptionError for a device without
    a needed format. coefficients : by default those of the catalogue. memory : by default each engine's own rule.
    """

    def __init__(
        self,
        workers: Sequence[ServingWorker],
        coefficients: Coefficients | None = None,
        *,
        memory: Sequence[WorkerMemory] | None = None,
        max_num_batched_tokens: int = DEFAULT_MAX_NUM_BATCHED_TOKENS,
    ) -> None:
        problems = [problem for worker in workers for problem in worker.problems()]
        if not workers:
            problems.append("there must be at least one worker")
        if not max_num_batched_tokens >= 1:
            problems.append(f"max_num_batched_tokens is {max_num_batched_tokens}, but must be at least 1")
        if problems:
            raise ValueError("; ".join(dict.fromkeys(problems)))
        self.workers = tuple(workers)
        self.coefficients = fitted() if coefficients is None else coefficients
        if memory is None:
            memory = [worker_memory(worker, max_num_batched_tokens=max_num_batched_tokens) for worker in workers]
        self.memory = tuple(memory)
        self.curves = tuple(_curves(worker) for worker in workers)
        self.max_num_batched_tokens = float(max_num_batched_tokens)
        self._tables = collapse(self.workers, self.curves, self.memory, self.coefficients)

    def with_coefficients(self, coefficients: Coefficients) -> ServingModel:
        """The same compiled workers under other coefficients."""
        other = copy(self)
        other.coefficients = coefficients
        other._tables = collapse(self.workers, self.curves, self.memory, coefficients)
        return other

    @classmethod
    def joined(cls, models: Sequence[ServingModel]) -> ServingModel:
        """The compiled workers of several models of the same coefficients and batched tokens, one after another."""
        other = copy(models[0])
        other.workers = tuple(worker for one in models for worker in one.workers)
        other.curves = tuple(curve for one in models for curve in one.curves)
        other.memory = tuple(memory for one in models for memory in one.memory)
        other._tables = collapse(other.workers, other.curves, other.memory, other.coefficients)
        return other

    def only(self, index: Sequence[int]) -> ServingModel:
        """Some of the compiled workers."""
        other = copy(self)
        other.workers = tuple(self.workers[one] for one in index)
        other.curves = tuple(self.curves[one] for one in index)
        other.memory = tuple(self.memory[one] for one in index)
        other._tables = collapse(other.workers, other.curves, other.memory, other.coefficients)
        return other

    def table(self, name: str, worker: IntArray, at: FloatArray) -> FloatArray:
        """One fitted curve of each plan's worker, [plans].

        decode, prefill : seconds over the tokens of a step; context, prompt_attention : seconds of one sequence over
        its context or prompt; cache_bytes : of one sequence on a GPU.
        """
        return self._tables.at(name, worker, place(at))

    def prefill_s(
        self, worker: IntArray, input_tokens: FloatArray, prompts: FloatArray, step_tokens: FloatArray
    ) -> FloatArray:
        """Seconds in which a rank runs `prompts` together and nothing else, in steps of so many tokens, [plans]."""
        whole = prompts * input_tokens
        step = np.minimum(whole, step_tokens)
        attention = self.table("prompt_attention", worker, input_tokens)
        return whole / step * self.table("prefill", worker, step) + prompts * attention

    def first_token_s(self, worker: IntArray, alone_s: FloatArray, step_s: FloatArray) -> FloatArray:
        """Time to first token of a sequence alone on its rank, [plans]; alone_s : of its prompt, step_s : a step."""
        t = self._tables
        own = t.prompt[worker] * alone_s * (1.0 + t.burst[worker])
        return t.first_token[worker] + own + t.wait_steps[worker] * step_s

    def hidden_s(self, worker: IntArray, sequences: FloatArray, step_s: FloatArray) -> FloatArray:
        """Seconds of a decode step's exchange that its computing hides, [plans]; step_s : with all of the exchange."""
        t, found = self._tables, np.zeros(len(worker))
        some = np.flatnonzero(t.with_experts[worker])
        if some.size:
            exchange = t.at("exchange", worker[some], place(sequences[some]))
            found[some] = hidden_s(step_s[some] - exchange, exchange, t.with_experts[worker[some]])
        return found

    @property
    def sequence_s(self) -> FloatArray:
        """Seconds that a sequence adds to a step whatever its context, [workers]."""
        return self._tables.sequence

    def predict(self, plans: ServingPlans) -> ServingPrediction:
        """All predictions of `plans`, in blocks."""
        out = {one.name: np.empty(len(plans)) for one in fields(ServingPrediction)}
        for start in range(0, len(plans), BLOCK):
            part = slice(start, start + BLOCK)
            for name, values in self._predict_block(plans.take(part)).items():
                out[name][part] = values
        return ServingPrediction(**out)

    def _predict_block(self, plans: ServingPlans) -> dict[str, FloatArray]:
        t, w = self._tables, plans.worker
        prompt, output = plans.input_tokens, plans.output_tokens
        ranks, stages = t.data_parallel_size[w], t.pipeline_parallel_size[w]
        capacity, block = t.cache_capacity_bytes[w], t.block_tokens[w]
        each = t.at("cache_bytes", w, place(np.ceil((prompt + output * t.held_output_share[w]) / block) * block))
        on_rank = np.floor(capacity / each)
        # One whole sequence must fit as well; two held ones are never less than that.
        one = np.flatnonzero(on_rank == 1.0)
        whole = np.ceil((prompt + output)[one] / block[one]) * block[one]
        on_rank[one] = t.at("cache_bytes", w[one], place(whole)) <= capacity[one]
        asked = plans.concurrency / ranks
        sequences = np.minimum(asked, np.maximum(on_rank, 1.0))
        micro = np.maximum(sequences / stages, 1.0)
        here = place(micro)
        step = t.at("decode", w, here) + micro * (t.at("context", w, place(prompt + 0.5 * output)) + t.sequence[w])
        step -= self.hidden_s(w, micro, step)
        attention = t.at("prompt_attention", w, place(prompt))
        others = t.prompt_share[w] * np.maximum(sequences - 1.0, 0.0) / output
        chunk, chunks = self._chunks(prompt, others)
        mixed = np.minimum(chunks, 1.0) * (t.at("prefill", w, place(micro + chunk)) - t.at("prefill", w, here))
        # More than one chunk falls on a token only where chunks are full.
        more = np.flatnonzero(chunks > 1.0)
        mixed[more] += (chunks[more] - 1.0) * self._full_chunk(t.prefill)[w[more]]
        tpot = t.speculation[w] * (step + (mixed + others * attention) / stages)
        own = np.minimum(prompt, self.max_num_batched_tokens)
        alone = prompt / own * t.at("prefill", w, place(own)) + attention
        ttft = t.first_token[w] + t.prompt[w] * alone * (1.0 + t.burst[w] * sequences) + t.wait_steps[w] * step
        # Little's law: those beyond what runs wait for as many rounds of service.
        service = alone + tpot * output
        ttft = ttft + (asked / sequences - 1.0) * service
        rate = sequences * ranks * output / service
        return {
            "tpot_s": tpot,
            "ttft_s": ttft,
            "step_s": step,
            "running_sequences": sequences * ranks,
            "admitted_sequences": on_rank * ranks,
            "output_tokens_per_s": rate,
            "output_tokens_per_s_per_gpu": rate / t.num_gpus[w],
            "memory_bytes": t.fixed_bytes[w] + np.ceil(sequences) * each,
        }

    def _chunks(self, prompt: FloatArray, others: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Tokens of a chunk and chunks a token, where `others` prompts fall on a token."""
        chunk = np.minimum(prompt * np.maximum(others, 1.0), self.max_num_batched_tokens)
        return chunk, others * prompt / chunk

    def _full_chunk(self, table: FloatArray) -> FloatArray:
        """Seconds of a step of as many prompt tokens as it takes at most, [workers]."""
        size = np.full(len(table), self.max_num_batched_tokens)
        return interpolated(table, np.arange(len(table)), place(size))

    def first_token_parts(self, plans: ServingPlans) -> dict[str, FloatArray]:
        """What `ttft_s` is made of, [plans]: a prompt alone, a step, sequences on a rank, seconds in the queue."""
        t, w = self._tables, plans.worker
        found = self.predict(plans)
        budget = np.full(len(plans), self.max_num_batched_tokens)
        alone = self.prefill_s(w, plans.input_tokens, np.ones(len(plans)), budget)
        rounds = plans.concurrency / found.running_sequences - 1.0
        return {
            "alone": alone,
            "step": found.step_s,
            "sequences": found.running_sequences / t.data_parallel_size[w],
            "queue": np.maximum(rounds, 0.0) * (alone + found.tpot_s * plans.output_tokens),
        }

    def parts(self, plans: ServingPlans) -> Mapping[str, FloatArray]:
        """Seconds of each of coefficients.PARTS within `tpot_s` before speculation, coefficients applied, [plans]."""
        raw = self.unit_parts(plans)
        local = [self.coefficients.of_parts(worker) for worker in self.workers]
        made = {name: values * np.array([one[name] for one in local])[plans.worker] for name, values in raw.items()}
        if self._tables.with_experts[plans.worker].any():
            found, speculation = self.predict(plans), self._tables.speculation[plans.worker]
            seen = made["dispatch"] + found.step_s - sum(made[name] for name in DECODE_PARTS)
            made["dispatch"] = np.maximum(seen, 0.0)
            # May be below zero: prompts in a step hide some of its own exchange.
            made["prefill_communication"] += found.tpot_s / speculation - sum(made.values())
        return made

    def unit_parts(self, plans: ServingPlans) -> dict[str, FloatArray]:
        """Each part of `tpot_s` at a coefficient of one, [plans]: what a fit sees. Overheads are counts."""
        t, w = self._tables, plans.worker
        tokens, step = (np.stack([getattr(one, name) for one in self.curves]) for name in ("tokens", "step"))
        context = np.stack([one.context for one in self.curves])
        prompt, output = plans.input_tokens, plans.output_tokens
        sequences = self.predict(plans).running_sequences / t.data_parallel_size[w]
        stages = t.pipeline_parallel_size[w]
        micro = np.maximum(sequences / stages, 1.0)
        others = t.prompt_share[w] * np.maximum(sequences - 1.0, 0.0) / output
        chunk, chunks = self._chunks(prompt, others)

        def step_part(name: str) -> FloatArray:
            return interpolated(step[:, TOKEN_PARTS.index(name)], w, place(micro))

        def prompt_part(name: str) -> FloatArray:
            table = tokens[:, TOKEN_PARTS.index(name)]
            first = interpolated(table, w, place(micro + chunk)) - interpolated(table, w, place(micro))
            return (
                np.minimum(chunks, 1.0) * first + np.maximum(chunks - 1.0, 0.0) * self._full_chunk(table)[w]
            ) / stages

        def context_part(name: str, at: FloatArray) -> FloatArray:
            return interpolated(context[:, CONTEXT_PARTS.index(name)], w, place(at))

        products = np.array([one.num_products for one in self.curves], dtype=np.float64)[w]
        moe_layers = np.array([one.num_moe_layers for one in self.curves], dtype=np.float64)[w]
        state = np.array([one.state_s for one in self.curves])[w]
        return {
            "dense": step_part("dense") + step_part("head"),
            "moe": step_part("moe"),
            "all_reduce": step_part("all_reduce"),
            "dispatch": step_part("dispatch"),
            "cache": micro * context_part("cache", prompt + 0.5 * output),
            "latent": micro * context_part("latent", prompt + 0.5 * output),
            "state": micro * state,
            "kernel_overhead": products,
            "moe_overhead": moe_layers,
            "step_overhead": np.ones(len(plans)),
            "sequence_overhead": micro,
            "prefill_dense": prompt_part("dense"),
            "prefill_moe": prompt_part("moe"),
            "prefill_communication": prompt_part("all_reduce") + prompt_part("dispatch"),
            "prefill_attention": others * context_part("prompt_attention", prompt) / stages,
        }


def _curves(worker: ServingWorker) -> WorkerCurves:
    curves = compile_curves(worker)
    return halved(curves) if worker.two_batch_overlap else curves
