"""ParallelPlan: which workers serve a model, and how many of each."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, PositiveInt

from planner.descriptions.base import Description

Role = Literal["both", "prefill", "decode"]


class WorkerType(Description):
    """One kind of worker, and what it does alone. Parallel sizes are 1 where a candidate table does not tell them.

    requests_per_s : of one worker in its role; ttft_s : of prefill and mixed, tpot_s : of decode and mixed workers.
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


class ParallelPlan(Description):
    """The workers, and what they do together: the worst TTFT and TPOT among those that are used."""

    workers: tuple[Workers, ...]
    num_gpus: PositiveInt
    requests_per_s: FiniteFloat
    ttft_s: FiniteFloat | None
    tpot_s: FiniteFloat | None
    output_tokens_per_s: FiniteFloat
    output_tokens_per_s_per_gpu: FiniteFloat
    pareto: tuple[ParetoWorkers, ...] = ()
    runners_up: tuple[Alternative, ...] = ()
