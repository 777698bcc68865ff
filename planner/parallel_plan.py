"""ParallelPlan: which workers serve a model, and how many of each."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, PositiveInt

from planner.descriptions.base import Description

Role = Literal["both", "prefill", "decode"]
Factor = Annotated[FiniteFloat, Field(ge=1)]


class WorkerType(Description):
    """One kind of worker, and what it does alone. Parallel sizes are 1 where a candidate table does not tell them.

    requests_per_s : of one worker in its role; ttft_s : of prefill and mixed, tpot_s : of decode and mixed workers.
    ttft_factor, tpot_factor : 80 % of measurements lie within the prediction / f to the prediction x f.
    watts : of the whole worker at its rate.
    """

    name: str
    role: Role
    device: str
    num_gpus: PositiveInt
    tensor_parallel_size: PositiveInt = 1
    pipeline_parallel_size: PositiveInt = 1
    data_parallel_size: PositiveInt = 1
    expert_parallel_size: PositiveInt = 1
    max_batch_size: PositiveInt | None = None
    requests_per_s: Annotated[FiniteFloat, Field(ge=0)]
    ttft_s: FiniteFloat | None = None
    tpot_s: FiniteFloat | None = None
    ttft_factor: Factor | None = None
    tpot_factor: Factor | None = None
    watts: Annotated[FiniteFloat, Field(ge=0)] | None = None


class Workers(WorkerType):
    """So many of one kind."""

    count: PositiveInt


class Alternative(Description):
    """Another plan and why it was not chosen."""

    workers: tuple[Workers, ...]
    requests_per_s: FiniteFloat
    num_gpus: int
    why: str


class ParetoWorkers(Description):
    """A worker of the frontier of one role."""

    name: str
    role: Role
    num_gpus: PositiveInt
    requests_per_s_per_gpu: FiniteFloat
    ttft_s: FiniteFloat | None
    tpot_s: FiniteFloat | None


class Tradeoff(Description):
    """The best plan under a tighter limit on the time of a token: a point of the frontier of plans.

    tpot_s, ttft_s : the worst among its workers. workers : how many of each, by name.
    """

    tpot_s: FiniteFloat
    ttft_s: FiniteFloat | None
    requests_per_s: FiniteFloat
    num_gpus: PositiveInt
    output_tokens_per_s_per_gpu: FiniteFloat
    workers: dict[str, PositiveInt]


class Relief(Description):
    """What a little more of one limit does to the objective, which is minimised; `gains` 0: the limit does not bind."""

    limit: str
    now: FiniteFloat
    relaxed: FiniteFloat
    objective: FiniteFloat
    gains: FiniteFloat


class Served(Description):
    """What the workers run, for launch commands: None where the instance does not say.

    model, precision : as in the instance; quantization : the format that the checkpoint's weights have to be converted
    to, None where they are served as stored; kv_cache_dtype : fp8, or None for the engine's own choice.
    """

    model: str | None = None
    precision: str | None = None
    quantization: str | None = None
    kv_cache_dtype: Literal["fp8"] | None = None
    backend: Literal["vllm", "sglang", "trtllm"] | None = None


class ParallelPlan(Served):
    """The workers, and what they do together: the worst TTFT and TPOT among those that are used.

    input_tokens, output_tokens : of a request; gpus_per_node : by device.
    """

    workers: tuple[Workers, ...]
    num_gpus: PositiveInt
    requests_per_s: FiniteFloat
    ttft_s: FiniteFloat | None
    tpot_s: FiniteFloat | None
    output_tokens_per_s: FiniteFloat
    output_tokens_per_s_per_gpu: FiniteFloat
    input_tokens: PositiveInt | None = None
    output_tokens: PositiveInt | None = None
    gpus_per_node: dict[str, PositiveInt] = Field(default_factory=dict)
    pareto: tuple[ParetoWorkers, ...] = ()
    tradeoffs: tuple[Tradeoff, ...] = ()
    reliefs: tuple[Relief, ...] = ()
    runners_up: tuple[Alternative, ...] = ()
