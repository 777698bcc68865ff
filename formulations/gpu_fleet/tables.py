"""Throughput of replicas from a table of workers by model and request size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from formulations.gpu_fleet.problem import FloatArray
from formulations.gpu_fleet.stages import ROLES
from formulations.gpu_fleet.throughput import Bucket, Config
from planner import catalog
from planner.descriptions.fleet import FleetInstance
from planner.errors import DescriptionError, OptionError
from planner.files import Loc
from planner.readers.service_workers import ServiceWorker


def tabled(
    instance: FleetInstance,
    workers: Iterable[ServiceWorker],
    buckets: Sequence[Bucket],
    offer_of_pool: Sequence[int],
    largest: Sequence[int],
    find: Callable[[Loc, str], None],
) -> tuple[list[Config], FloatArray, list[str]]:
    """Configurations, requests/s by bucket [D, C], and what was left out.

    offer_of_pool : an offer of each pool; largest : GPUs of its largest instance. find : called with the place of each
    demand that no worker has a row for.
    """
    models = {model.name: (index, model) for index, model in enumerate(instance.models)}
    devices = [device_name(instance.offers[offer].device) for offer in offer_of_pool]
    regions = [instance.offers[offer].region for offer in offer_of_pool]
    configs: list[Config] = []
    columns: list[FloatArray] = []
    told: set[tuple[int, int, int]] = set()
    large: dict[str, int] = {}
    for worker in workers:
        if worker.service not in models:
            continue
        index, model = models[worker.service]
        told |= {(index, *size) for size in worker.rates}
        if model.gpus_per_replica is not None and worker.gpus not in model.gpus_per_replica:
            continue
        rates = np.array(
            [worker.rates.get((one.input_tokens, one.output_tokens), 0.0) * (one.model == index) for one in buckets]
        )
        device = device_name(worker.device)
        for pool, (kind, region) in enumerate(zip(devices, regions, strict=True)):
            if kind != device or (model.regions is not None and region not in model.regions):
                continue
            if worker.gpus > largest[pool]:
                large[model.name] = large.get(model.name, 0) + 1
                continue
            configs.append(Config(pool, index, worker.gpus, ROLES.index(worker.role), worker.name))
            columns.append(rates)
    for place, bucket in enumerate(buckets):
        if (bucket.model, bucket.input_tokens, bucket.output_tokens) not in told:
            name = instance.models[bucket.model].name
            message = f"{name} {bucket.input_tokens}/{bucket.output_tokens} tokens is not in the table of workers"
            find(("demand", place), message)
    notes = [
        f"{count} workers of {name} take more GPUs than an instance has, and are left out"
        for name, count in sorted(large.items())
    ]
    return configs, np.array(columns).reshape(len(configs), len(buckets)).T, notes


def device_name(name: str) -> str:
    """The catalogue's name of a device; one that it does not know keeps its own."""
    try:
        return catalog.device(name).name
    except (OptionError, DescriptionError):
        return name
