"""ParallelPlan: which workers serve a model, and how many of each."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, NonNegativeInt, PositiveInt

from planner.descriptions.base import Description

Role = Literal["both", "prefill", "decode"]
Factor = Annotated[FiniteFloat, Field(ge=1)]


class WorkerType(Description):
    """One kind of worker, and what it does alone. Parallel sizes are 1 where a candidate table does not tell them.

    context_parallel_size : ranks that share the tokens of a prompt; redundant_experts : second copies of busy ones;
    draft_tokens : that the model's own MTP layer proposes in a step. two_batch_overlap : half of a step computes while
    the tokens of the other half are exchanged.
    max_batch_size : sequences at once, of prefill workers prompts in a step; max_num_batched_tokens : of a step of an
    attention rank, where it is not the engine's default; utilisation : share of its highest rate that it is given.
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
    context_parallel_size: PositiveInt = 1
    expert_parallel_size: PositiveInt = 1
    redundant_experts: NonNegativeInt = 0
    draft_tokens: NonNegativeInt = 0
    two_batch_overlap: bool = False
    max_batch_size: PositiveInt | None = None
    max_num_batched_tokens: PositiveInt | None = None
    utilisation: Annotated[FiniteFloat, Field(gt=0, le=1)] | None = None
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


class Routing(Description):
    """Requests/s of one size that the workers of one type serve together, in their role."""

    input_tokens: PositiveInt
    output_tokens: PositiveInt
    worker: str
    requests_per_s: Annotated[FiniteFloat, Field(ge=0)]


class Period(Description):
    """What runs in some hours (indices of the hourly demand), which all ask for the same rate."""

    hours: tuple[Annotated[int, Field(ge=0)], ...]
    rate_per_s: Annotated[FiniteFloat, Field(ge=0)]
    workers: tuple[Workers, ...]
    routing: tuple[Routing, ...] = ()
    requests_per_s: FiniteFloat
    num_gpus: Annotated[int, Field(ge=0)]


class Step(Description):
    """Workers by name that start, or that stop, together; what can be served after it, and on how many GPUs.

    requests_per_s : None for requests of several sizes, for which that depends on who serves which.
    """

    start: dict[str, PositiveInt] = Field(default_factory=dict)
    stop: dict[str, PositiveInt] = Field(default_factory=dict)
    requests_per_s: FiniteFloat | None
    num_gpus: Annotated[int, Field(ge=0)]


class Change(Description):
    """From one set of workers to the next, in an order in which the capacity falls short of the demand by the least.

    Of several sizes of requests, GPUs that run stand for the capacity, and `short_per_s` is not told.
    hour : before which; 0 with a `current` plan is from that. short_per_s : what the capacity lacks at worst.
    started_gpus : of workers that start. loaded_bytes, loaded_expert_bytes : weights, and of them routed experts, that
    started GPUs do not hold yet from a worker that stopped on them; cache_bytes : of the sequences that run on stopped
    workers, to drain or to move. None where a table of workers does not tell.
    """

    hour: Annotated[int, Field(ge=0)]
    steps: tuple[Step, ...]
    short_per_s: FiniteFloat | None
    started_gpus: Annotated[int, Field(ge=0)]
    loaded_bytes: FiniteFloat | None = None
    loaded_expert_bytes: FiniteFloat | None = None
    cache_bytes: FiniteFloat | None = None


class Served(Description):
    """What the workers run, for launch commands: None where the instance does not say.

    model, checkpoint, precision : as in the instance; quantization : the format that the checkpoint's weights have to
    be converted to, None where they are served as stored; kv_cache_dtype : fp8, or None for the engine's own choice.
    """

    model: str | None = None
    checkpoint: str | None = None
    precision: str | None = None
    quantization: str | None = None
    kv_cache_dtype: Literal["fp8"] | None = None
    backend: Literal["vllm", "sglang", "trtllm"] | None = None


class ParallelPlan(Served):
    """The workers, and what they do together: the worst TTFT and TPOT among those that are used.

    With a demand for each hour these are those of the hour that asks for most, and `periods` has all. routing : which
    workers serve requests of which size, where there are several. changes : between hours, and from a current plan.
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
    routing: tuple[Routing, ...] = ()
    periods: tuple[Period, ...] = ()
    changes: tuple[Change, ...] = ()
    pareto: tuple[ParetoWorkers, ...] = ()
    tradeoffs: tuple[Tradeoff, ...] = ()
    reliefs: tuple[Relief, ...] = ()
    runners_up: tuple[Alternative, ...] = ()
