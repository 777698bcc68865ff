"""Workers for requests of several sizes: what each type does with every size, from the cost model.

size_rate[m, w] is the rate of a worker that serves no other size, 0 where it does not hold a sequence of that size or
misses a limit with it. A type's own rate is that of all sizes in their shares, one after the other:
1 / sum_m share[m] / size_rate[m, w].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from formulations.parallelism.candidates import DoesNotFit, Variants, predicted_workers
from formulations.parallelism.pareto import least
from formulations.parallelism.predictions import SIZES, Predictions, Shape
from formulations.parallelism.problem import FloatArray, IntArray
from planner.cluster import Cluster
from planner.cost.serving.coefficients import Coefficients
from planner.cost.serving.predict import ServingModel
from planner.descriptions.parallel import ParallelInstance
from planner.model.spec import ModelSpec
from planner.parallel_plan import WorkerType


@dataclass(frozen=True, slots=True, eq=False)
class SizedWorkers:
    """types : with the worst latencies of the sizes that they serve; latencies : TTFT and TPOT by size, [M, W, 2].

    sizes [M, 2], share [M] and size_rate [M, W] as in the problem, limits aside.
    """

    types: tuple[WorkerType, ...]
    sizes: IntArray
    share: FloatArray
    size_rate: FloatArray
    latencies: FloatArray
    notes: tuple[str, ...]
    predictions: Predictions

    def only(self, index: Sequence[int]) -> SizedWorkers:
        """Some of the types."""
        return replace(
            self,
            types=tuple(self.types[w] for w in index),
            size_rate=self.size_rate[:, index],
            latencies=self.latencies[:, index],
        )

    def within(self, ttft_s: float | None, tpot_s: float | None, margins: FloatArray) -> SizedWorkers:
        """The same types where they keep the limits, with margins as shares [W, 2]: size_rate is 0 where a size misses
        one, and a type's own rate and latencies are those of the sizes that it still serves."""
        limits = np.array([np.inf if limit is None else limit for limit in (ttft_s, tpot_s)])
        kept = (self.latencies * (1.0 + margins) <= limits).all(axis=2)
        rate = np.where(kept, self.size_rate, 0.0)
        worst = np.where((rate > 0)[:, :, None], self.latencies, 0.0).max(axis=0)
        types = []
        for one, each, (ttft, tpot) in zip(self.types, blended(rate, self.share).tolist(), worst.tolist(), strict=True):
            told = {"requests_per_s": each, "ttft_s": ttft or one.ttft_s, "tpot_s": tpot or one.tpot_s}
            types.append(one.model_copy(update=told))
        return replace(self, types=tuple(types), size_rate=rate)


def sized_workers(
    instance: ParallelInstance,
    cluster: Cluster,
    spec: ModelSpec,
    coefficients: Coefficients | None,
    variants: Variants | None = None,
) -> SizedWorkers:
    """Every type that can serve some size. Raises what `predicted_workers` does."""
    by_size: list[dict[str, WorkerType]] = []
    models: dict[Shape, ServingModel] = {}
    loads = instance.workload.sizes
    for load in loads:
        size = {"input_tokens": load.input_tokens, "output_tokens": load.output_tokens}
        alone = instance.model_copy(update={"workload": instance.workload.model_copy(update=size)})
        try:
            types, notes, known = predicted_workers(
                alone, cluster, spec, coefficients, every_batch=True, variants=variants
            )
        except DoesNotFit as error:
            raise DoesNotFit(f"requests of {load.input_tokens}/{load.output_tokens} tokens: {error}") from None
        by_size.append({one.name: one for one in types})
        models = {**known.models, **models}
    # What is told of a worker beyond its rate is that of the main size, or of the last that it serves.
    told = {name: one for each in reversed(by_size) for name, one in each.items()}
    names = list(told)
    rate = np.array([[getattr(types.get(name), "requests_per_s", 0.0) for name in names] for types in by_size])
    latencies = np.array([[_latencies(types.get(name)) for name in names] for types in by_size])
    kept = _best(list(told.values()), rate, latencies)
    share = np.array([load.weight for load in loads])
    return SizedWorkers(
        types=tuple(told[names[w]] for w in kept.tolist()),
        sizes=np.array([(load.input_tokens, load.output_tokens) for load in loads], dtype=np.int64),
        share=share / share.sum(),
        size_rate=rate[:, kept],
        latencies=latencies[:, kept],
        notes=(
            *notes,
            f"{len(loads)} sizes of requests; a worker serves one at a time, as fast as if there were no other",
        ),
        predictions=Predictions(models, loads[0].input_tokens, loads[0].output_tokens),
    )


def blended(size_rate: FloatArray, share: FloatArray) -> FloatArray:
    """Requests/s of all sizes in their shares by one worker of each type, [W]; 0 where it cannot serve some."""
    with np.errstate(divide="ignore"):
        return np.asarray(1.0 / (share[:, None] / size_rate).sum(axis=0))


def _latencies(one: WorkerType | None) -> tuple[float, float]:
    return (0.0, 0.0) if one is None else (one.ttft_s or 0.0, one.tpot_s or 0.0)


def _best(types: list[WorkerType], rate: FloatArray, latencies: FloatArray) -> IntArray:
    """Types that no other batch of the same worker beats for every size."""
    shape = ("role", "device", *SIZES)
    groups: dict[tuple[object, ...], list[int]] = {}
    for w, one in enumerate(types):
        groups.setdefault(tuple(getattr(one, name) for name in shape), []).append(w)
    kept: list[int] = []
    for members in groups.values():
        own = np.array(members)
        # A size that is not served is no faster for it.
        late = np.where(rate[:, own, None] > 0, latencies[:, own], np.inf).reshape(len(rate), own.size, 2)
        columns = np.concatenate([-rate[:, own], late[:, :, 0], late[:, :, 1]]).T
        kept += own[least(columns)].tolist()
    return np.array(sorted(kept), dtype=np.int64)
