"""Throughput of replicas from the cost model, where the instance gives no profiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from formulations.gpu_fleet.problem import FloatArray
from planner.cost.serving.capacity import max_rates
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


class Config(NamedTuple):
    """A model's replicas of some GPUs in a pool."""

    pool: int
    model: int
    gpus: int


def computed(
    instance: FleetInstance,
    specs: Sequence[ModelSpec],
    devices: Sequence[DeviceKind | None],
    largest: Sequence[int],
    regions: Sequence[str | None],
    buckets: Sequence[tuple[int, int, int]],
    coefficients: Coefficients | None = None,
) -> tuple[list[Config], FloatArray, list[str]]:
    """Configurations of every pool, requests/s of one replica by bucket [D, C], and what was assumed.

    devices, largest, regions : of each pool, with the GPUs of its largest offer; buckets : (model, input, output).
    A replica is tensor parallel over its GPUs. Sizes that the model cannot be split by are left out; ones that do not
    fit or keep the limits have throughput 0. coefficients : by default those of the catalogue.
    """
    configs: list[Config] = []
    columns: list[FloatArray] = []
    cache: dict[tuple[int, str, int], FloatArray | None] = {}
    for model, described in enumerate(instance.models):
        slo = described.slo or instance.slo or Slo()
        own = [(d, i, o) for d, (m, i, o) in enumerate(buckets) if m == model]
        for pool, device in enumerate(devices):
            allowed = described.regions is None or regions[pool] in described.regions
            if device is None or not allowed:
                continue
            for gpus in _sizes(described, largest[pool]):
                key = model, device.name, gpus
                if key not in cache:
                    worker = replica(described, specs[model], device, gpus)
                    cache[key] = _rates(worker, slo, own, len(buckets), coefficients)
                found = cache[key]
                if found is not None:
                    configs.append(Config(pool, model, gpus))
                    columns.append(found)
    throughput = np.stack(columns, axis=1) if columns else np.zeros((len(buckets), 0))
    notes = ["throughput from the cost model: Poisson arrivals, tensor parallelism inside an instance"]
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
    worker: ServingWorker,
    slo: Slo,
    own: Sequence[tuple[int, int, int]],
    num_buckets: int,
    coefficients: Coefficients | None,
) -> FloatArray | None:
    """Requests/s of one replica by bucket; None where the model cannot be split or computed like this."""
    if any(worker.problems()):
        return None
    try:
        compiled = ServingModel([worker], coefficients)
    except (OptionError, DescriptionError):
        return None
    rates = np.zeros(num_buckets)
    if own:
        place, prompt, output = (np.array(column) for column in zip(*own, strict=True))
        rates[place] = max_rates(compiled, ServingPlans.of(0, 1, prompt, output), slo)
    return rates
