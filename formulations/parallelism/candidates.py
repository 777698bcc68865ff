"""Every legal worker type of a model on a cluster, priced by the cost model in bulk: `splits`, then `pricing`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain

import numpy as np

from formulations.parallelism.margins import ceilings
from formulations.parallelism.predictions import Predictions
from formulations.parallelism.pricing import DECODE_UTILISATION, LEAST_LOAD, MOST_LOAD, worker_types
from formulations.parallelism.splits import legal_workers
from planner.cluster import Cluster
from planner.cost.serving.coefficients import Coefficients
from planner.cost.serving.intervals import factors, source
from planner.cost.serving.precision import WEIGHT_FORMATS, kv_element_bytes, served
from planner.cost.serving.predict import ServingModel
from planner.cost.serving.worker import ServingWorker
from planner.descriptions.parallel import ParallelInstance
from planner.engines import unsupported
from planner.errors import DescriptionError, OptionError
from planner.model.spec import ModelSpec
from planner.parallel_plan import Served, WorkerType

#: Network of one GPU on a single node without one: 400 Gbit/s. Source: ConnectX-7 datasheet; datasheet.
DEFAULT_KV_BANDWIDTH = 50e9


#: More workers beside a legal one.
Variants = Callable[[ServingWorker], Iterable[ServingWorker]]


class DoesNotFit(OptionError):
    """The model fits at no split of the cluster."""


def predicted_workers(
    instance: ParallelInstance,
    cluster: Cluster,
    spec: ModelSpec,
    coefficients: Coefficients | None = None,
    *,
    every_batch: bool = False,
    variants: Variants | None = None,
) -> tuple[tuple[WorkerType, ...], tuple[str, ...], Predictions]:
    """Worker types with their predicted rates and latencies, what was assumed, and what else is known of them.

    coefficients : by default those of the catalogue. every_batch : dominated ones are kept: requests of other sizes
    may want them. variants : more workers to price beside each legal one.

    Raises OptionError for an unknown precision, DoesNotFit where the model fits nowhere.
    """
    precision = instance.precision or ""
    if precision and precision not in WEIGHT_FORMATS:
        raise OptionError(f"unknown precision {precision!r}; known: {', '.join(sorted(WEIGHT_FORMATS))}")
    model = served(spec, precision, precision)
    kept, refused = _compiled(instance, cluster, model, coefficients, variants)
    if not kept:
        kept, _ = _compiled(instance, cluster, model, coefficients, variants, staged=True)
    if not kept:
        raise DoesNotFit(refused)
    given = instance.kv_bandwidth_bytes_per_s
    network = {
        nodes.device.name: given or nodes.nic_bandwidth_bytes_per_s or DEFAULT_KV_BANDWIDTH
        for nodes in cluster.resolved()
    }
    joined = ServingModel.joined(kept)
    spread = np.stack([factors(joined.coefficients, joined.workers, what) for what in ("ttft", "tpot")], axis=1)
    limits = [] if every_batch else ceilings(instance, spread)
    priced = worker_types(joined, instance.workload, instance.disaggregated, network, limits, every_batch=every_batch)
    made = tuple(one for one in priced if unsupported(instance.backend, one) is None)
    if not made:
        raise DoesNotFit("no worker holds even one sequence of this length; shorten it or use larger GPUs")
    notes = [
        f"{len(kept)} worker shapes, {len(made)} worker types after dropping dominated batches",
        f"{len(priced) - len(made)} more that {instance.backend} cannot run are left out",
        f"prefill workers run at a load of {LEAST_LOAD}% to {MOST_LOAD}%, decode workers at"
        f" {DECODE_UTILISATION:.0%} of their rate",
    ]
    if any(one.redundant_experts for one in made):
        busiest = kept[0].workers[0].expert_imbalance
        notes.append(f"with redundant experts, the busiest GPU gets {busiest:g} times the mean of the tokens")
    guessed = {one.workers[0].device.name for one in kept if source(one.workers[0], one.coefficients) == "datasheet"}
    notes += [f"{name} was never measured: datasheet peaks with typical efficiencies" for name in sorted(guessed)]
    if instance.speculation is not None:
        notes.append(f"a draft is right with a chance of {instance.speculation.acceptance:g}, whichever it is")
    predictions = Predictions.of(kept, instance.workload)
    return predictions.annotated(made, DECODE_UTILISATION), tuple(notes), predictions


def as_served(spec: ModelSpec, asked: Served) -> Served:
    """What is asked for, with the formats that weights and cache then have; its precision is known."""
    precision = asked.precision
    model = served(spec, precision or "", precision or "")
    narrow = kv_element_bytes(model, asked.backend or "vllm") == 1.0
    formats = {
        "quantization": WEIGHT_FORMATS[precision].name if precision and model is not spec else None,
        "kv_cache_dtype": "fp8" if narrow else None,
    }
    return asked.model_copy(update=formats)


def _compiled(
    instance: ParallelInstance,
    cluster: Cluster,
    model: ModelSpec,
    coefficients: Coefficients | None,
    variants: Variants | None,
    *,
    staged: bool = False,
) -> tuple[list[ServingModel], str]:
    """Splits with room for a cache; where there is none, why."""
    compiled, refused = [], f"{model.name} cannot be split over the GPUs of this cluster"
    for nodes in cluster.resolved():
        legal = legal_workers(instance, model, nodes, staged=staged)
        for worker in chain.from_iterable((one, *(variants(one) if variants else ())) for one in legal):
            try:
                compiled.append(ServingModel([worker], coefficients))
            except (OptionError, DescriptionError) as error:
                refused = str(error)
    kept = [one for one in compiled if one.memory[0].cache_capacity_bytes > 0]
    return kept, _too_large(model, compiled) if compiled else refused


def _too_large(model: ModelSpec, compiled: list[ServingModel]) -> str:
    least = min(compiled, key=lambda one: one.memory[0].fixed_bytes)
    memory, worker = least.memory[0], least.workers[0]
    return (
        f"{model.name} fits at no split: on {worker.num_gpus} x {worker.device.name} weights and overheads alone take"
        f" {memory.fixed_bytes / 1e9:.0f} of {memory.usable_bytes / 1e9:.0f} GB a GPU; narrow the weights or add GPUs"
    )
