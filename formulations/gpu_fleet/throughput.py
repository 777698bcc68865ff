"""Throughput of replicas from the cost model, where the instance gives no profiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from formulations.gpu_fleet.problem import FloatArray
from formulations.gpu_fleet.stages import ROLES
from planner.cost.serving.capacity import Part, max_rates
from planner.cost.serving.coefficients import Coefficients
from planner.cost.serving.precision import kv_element_bytes, served
from planner.cost.serving.predict import ServingModel, ServingPlans
from planner.cost.serving.worker import ServingWorker
from planner.descriptions.fleet import FleetInstance, ServedModel
from planner.errors import DescriptionError, OptionError
from planner.hardware import DeviceKind
from planner.model.spec import ModelSpec
from planner.workload import Slo

#: Replica sizes that are tried where the instance names none: a node's GPUs in powers of two.
DEFAULT_SIZES = (1, 2, 4, 8)


#: Device and GPUs of a replica.
WorkerKey = tuple[str, int]


class Bucket(NamedTuple):
    """A model's requests of one size."""

    model: int
    input_tokens: int
    output_tokens: int


class Config(NamedTuple):
    """A model's replicas of some GPUs and one role in a pool.

    worker : its name in a table of workers, or ''; offer : of which it takes whole instances, or -1.
    """

    pool: int
    model: int
    gpus: int
    role: int = 0
    worker: str = ""
    offer: int = -1


def computed(
    instance: FleetInstance,
    specs: Sequence[ModelSpec],
    devices: Sequence[DeviceKind | None],
    largest: Sequence[int],
    regions: Sequence[str | None],
    buckets: Sequence[Bucket],
    coefficients: Coefficients | None = None,
) -> tuple[list[Config], FloatArray, list[str]]:
    """Configurations of every pool, requests/s of one replica by bucket [D, C], and what was assumed.

    devices, largest, regions : of each pool, with the GPUs of its largest offer.
    A replica is tensor parallel over its GPUs. Sizes that the model cannot be split by are left out; ones that do not
    fit or keep the limits have throughput 0. coefficients : by default those of the catalogue.
    """
    configs: list[Config] = []
    columns: list[FloatArray] = []
    for model, described in enumerate(instance.models):
        slo = described.slo or instance.slo or Slo()
        own = [(d, i, o) for d, (m, i, o) in enumerate(buckets) if m == model]
        wanted = [
            (pool, device, gpus)
            for pool, device in enumerate(devices)
            if device is not None and (described.regions is None or regions[pool] in described.regions)
            for gpus in _sizes(described, largest[pool])
        ]
        workers = {(device.name, gpus): replica(described, specs[model], device, gpus) for _, device, gpus in wanted}
        for role in dict.fromkeys(described.roles):
            rates = _rates(workers, slo, own, len(buckets), coefficients, role)
            for pool, device, gpus in wanted:
                if (device.name, gpus) in rates:
                    configs.append(Config(pool, model, gpus, ROLES.index(role)))
                    columns.append(rates[device.name, gpus])
    throughput = np.stack(columns, axis=1) if columns else np.zeros((len(buckets), 0))
    notes = ["throughput from the cost model: Poisson arrivals, tensor parallelism inside an instance"]
    if any(set(one.roles) != {"both"} for one in instance.models):
        notes.append("prefill apart: prompt and first decoded token may each take half of TTFT; caches move at once")
    return configs, throughput, notes


def _sizes(model: ServedModel, largest: int) -> list[int]:
    return sorted({size for size in model.gpus_per_replica or DEFAULT_SIZES if size <= largest})


def replica(described: ServedModel, spec: ModelSpec, device: DeviceKind, gpus: int) -> ServingWorker:
    """The worker that one replica is: tensor parallel over its GPUs."""
    precision = described.precision or ""
    model = served(spec, precision, precision)
    return ServingWorker(
        model=model,
        device=device,
        backend=described.backend,
        tensor_parallel_size=gpus,
        moe_tensor_parallel_size=gpus,
        kv_element_bytes=kv_element_bytes(model, described.backend),
    )


def _rates(
    workers: Mapping[WorkerKey, ServingWorker],
    slo: Slo,
    own: Sequence[tuple[int, int, int]],
    num_buckets: int,
    coefficients: Coefficients | None,
    part: Part,
) -> dict[WorkerKey, FloatArray]:
    """Requests/s of one replica by bucket, of those workers that the model can be split over and computed for."""
    possible = {key: worker for key, worker in workers.items() if _compiled([worker], coefficients) is not None}
    compiled = _compiled(list(possible.values()), coefficients)
    rates = np.zeros((len(possible), num_buckets))
    if own and compiled is not None:
        place, prompt, output = (np.array(column) for column in zip(*own, strict=True))
        # All workers at once: what takes time is the number of steps, not of plans.
        each = np.repeat(np.arange(len(possible)), len(own))
        plans = ServingPlans.of(each, 1, np.tile(prompt, len(possible)), np.tile(output, len(possible)))
        rates[:, place] = max_rates(compiled, plans, slo, part=part).reshape(len(possible), len(own))
    return dict(zip(possible, rates, strict=True))


def _compiled(workers: Sequence[ServingWorker], coefficients: Coefficients | None) -> ServingModel | None:
    """None where the model cannot be split or computed like this."""
    if not workers or any(any(worker.problems()) for worker in workers):
        return None
    try:
        return ServingModel(workers, coefficients)
    except (OptionError, DescriptionError):
        return None
