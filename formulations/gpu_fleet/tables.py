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
    pool_of_offer: Sequence[int],
    find: Callable[[Loc, str], None],
) -> tuple[list[Config], FloatArray, list[str]]:
    """Configurations, requests/s by bucket [D, C], and what was left out.

    offer_of_pool : an offer of each pool. find : called with the place of each demand that no worker has a row for.

    A worker of more GPUs than an instance of the pool has takes whole instances: of one of its largest offers, where
    they hold its tensor parallel groups and are always there. The table's figures are not those of smaller ones (cut or
    half used): more of what a worker spans would be joined by the network between nodes, which is slower.
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
            own = [offer for offer, of in enumerate(pool_of_offer) if of == pool]
            spanned = _spanned(instance, own, worker)
            if spanned is None:
                large[model.name] = large.get(model.name, 0) + 1
                continue
            role = ROLES.index(worker.role)
            configs += [Config(pool, index, worker.gpus, role, worker.name, offer) for offer in spanned]
            columns += [rates] * len(spanned)
    for place, bucket in enumerate(buckets):
        if (bucket.model, bucket.input_tokens, bucket.output_tokens) not in told:
            name = instance.models[bucket.model].name
            message = f"{name} {bucket.input_tokens}/{bucket.output_tokens} tokens is not in the table of workers"
            find(("demand", place), message)
    notes = [
        f"{count} workers of {name} fit neither into an instance nor on several whole ones, and are left out"
        for name, count in sorted(large.items())
    ]
    return configs, np.array(columns).reshape(len(configs), len(buckets)).T, notes


def _spanned(instance: FleetInstance, offers: Sequence[int], worker: ServiceWorker) -> list[int] | None:
    """Offers of which the worker takes whole instances, [-1] where it fits into one; None where there are none."""
    largest = max(instance.offers[offer].gpus for offer in offers)
    if worker.gpus <= largest:
        return [-1]
    groups = worker.sizes.get("tensor_parallel_size", 1)
    always = [k for k in offers if instance.offers[k].gpus == largest and instance.offers[k].availability == 1]
    return always if always and worker.gpus % largest == 0 and largest % groups == 0 else None


def device_name(name: str) -> str:
    """The catalogue's name of a device; one that it does not know keeps its own."""
    try:
        return catalog.device(name).name
    except (OptionError, DescriptionError):
        return name
