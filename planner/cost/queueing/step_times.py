"""How long one engine iteration takes, and what the scheduler may put into it: all that queueing needs to know."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from planner.errors import OptionError

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

#: Token budget of one iteration: SGLang's default chunked prefill size and TensorRT-LLM's max_num_tokens, vLLM 8192
#: on large GPUs (engine documentation; confidence: datasheet).
MAX_NUM_BATCHED_TOKENS = 8192


def refuse(broken: object, message: str) -> None:
    """OptionError when the condition holds for any plan."""
    if np.any(np.asarray(broken)):
        raise OptionError(message)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class StepTimes:
    """A linear model of one iteration of one replica, around its operating point. Fields broadcast: one entry a plan.

    An iteration with B decoding sequences that attend to K tokens in all, and a chunk of c prompt tokens behind h
    tokens already cached, takes

        base + B per_sequence + K per_kv_token + c per_token + c (h + c/2) per_token_pair      seconds.

    Errors: OptionError for a negative or non-finite coefficient, or a base that is not positive.
    """

    decode_base_s: FloatArray
    decode_per_sequence_s: FloatArray
    decode_per_kv_token_s: FloatArray
    prefill_per_token_s: FloatArray
    prefill_per_token_pair_s: FloatArray

    def __post_init__(self) -> None:
        for field in fields(self):
            value = np.asarray(getattr(self, field.name), dtype=np.float64)
            refuse(~np.isfinite(value) | (value < 0), f"{field.name} must be finite and not negative")
            object.__setattr__(self, field.name, value)
        refuse(self.decode_base_s <= 0, "decode_base_s must be above zero: an iteration always takes time")

    def of_plan(self, index: int) -> StepTimes:
        """The step model of one plan, without the plans' axis."""
        return StepTimes(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    def step(
        self,
        num_decodes: npt.ArrayLike,
        kv_tokens: npt.ArrayLike,
        chunk_tokens: npt.ArrayLike = 0,
        chunk_history: npt.ArrayLike = 0,
    ) -> FloatArray:
        """Seconds of one iteration. kv_tokens: tokens that all decoding sequences together attend to."""
        decode = self.decode_per_sequence_s * np.asarray(num_decodes)
        decode = decode + self.decode_per_kv_token_s * np.asarray(kv_tokens)
        return np.asarray(self.decode_base_s + decode + self.prefill(chunk_tokens, chunk_history))

    def prefill(self, chunk_tokens: npt.ArrayLike, chunk_history: npt.ArrayLike = 0) -> FloatArray:
        """Seconds that a chunk of a prompt adds to an iteration. A prompt costs the same in all, however it is cut."""
        chunk = np.asarray(chunk_tokens, dtype=np.float64)
        pairs = chunk * (np.asarray(chunk_history) + chunk / 2)
        return np.asarray(self.prefill_per_token_s * chunk + self.prefill_per_token_pair_s * pairs)

    def per_decode(self, context: npt.ArrayLike) -> FloatArray:
        """Seconds that one decoding sequence with so much context adds to an iteration."""
        return np.asarray(self.decode_per_sequence_s + self.decode_per_kv_token_s * np.asarray(context))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Scheduler:
    """The rules by which an engine fills its iterations. Fields broadcast: one entry a plan.

    max_num_batched_tokens : most tokens of one iteration, prompt chunks and decoding sequences together.
    chunked_prefill : a prompt may be cut at the budget; else it waits for an iteration that takes it whole.
    prefill_first : SGLang: while prompts wait, iterations hold prompts only and decoding stands still. Else prompts
        share their iteration with the decoding sequences, which go first (vLLM, TensorRT-LLM).
    max_num_seqs : most admitted requests.
    kv_capacity_tokens : KV slots of the replica.
    reserve_full : admission holds ISL + OSL from the start (TensorRT-LLM's guaranteed-no-evict). Else the prompt alone
        and a token a step; when memory runs out, the newest request is dropped and computed again (vLLM).
    Errors: OptionError for sizes below one.
    """

    max_num_batched_tokens: npt.NDArray[np.float64] | float = MAX_NUM_BATCHED_TOKENS
    chunked_prefill: BoolArray | bool = True
    prefill_first: BoolArray | bool = False
    max_num_seqs: npt.NDArray[np.float64] | float = np.inf
    kv_capacity_tokens: npt.NDArray[np.float64] | float = np.inf
    reserve_full: BoolArray | bool = True

    def __post_init__(self) -> None:
        for name in ("max_num_batched_tokens", "max_num_seqs", "kv_capacity_tokens"):
            value = np.asarray(getattr(self, name), dtype=np.float64)
            refuse(~(value >= 1), f"{name} must be at least 1")
            object.__setattr__(self, name, value)
        refuse(np.isinf(self.max_num_batched_tokens), "max_num_batched_tokens must be finite")
        for name in ("chunked_prefill", "prefill_first", "reserve_full"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.bool_))
