"""Throughput of replicas from the profiles that an instance gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from formulations.gpu_fleet.problem import FloatArray
from formulations.gpu_fleet.stages import ROLES
from formulations.gpu_fleet.throughput import Bucket, Config
from planner.descriptions.fleet import FleetInstance, Profile
from planner.files import Loc


def profiled(
    instance: FleetInstance,
    buckets: Sequence[Bucket],
    pool_of_offer: Sequence[int],
    find: Callable[[Loc, str], None],
) -> tuple[list[Config], FloatArray, dict[Config, Loc], list[str]]:
    """Configurations, requests/s by bucket [D, C], where the first profile of each stands, and what was assumed.

    find : called with the place of each demand of a size that was not profiled.
    """
    offers = [offer.name for offer in instance.offers]
    models = [model.name for model in instance.models]
    rows: dict[Config, list[tuple[int, Profile]]] = {}
    for index, profile in enumerate(instance.profiles):
        place = offers.index(profile.offer)
        offer, model = instance.offers[place], instance.models[models.index(profile.model)]
        gpus = profile.gpus or offer.gpus
        here = model.regions is None or offer.region in model.regions
        if here and gpus in (model.gpus_per_replica or (gpus,)):
            config = Config(pool_of_offer[place], models.index(model.name), gpus, ROLES.index(profile.role))
            rows.setdefault(config, []).append((index, profile))
    configs = sorted(rows)
    throughput = np.zeros((len(buckets), len(configs)))
    round_up = instance.unprofiled == "round_up"
    for d, bucket in enumerate(buckets):
        known = False
        for c, config in enumerate(configs):
            if config.model != bucket.model:
                continue
            found = _nearest([profile for _, profile in rows[config]], bucket, round_up)
            if found is not None:
                known = True
                throughput[d, c] = found.max_rate_per_s
        if not known:
            size = f"{bucket.input_tokens}/{bucket.output_tokens} tokens"
            rule = "larger than any profiled size" if round_up else "not profiled"
            hint = "" if round_up else "; `unprofiled: round_up` takes the next larger size"
            find(("demand", d), f"{models[bucket.model]} {size} is {rule} on any offer{hint}")
    notes = ["sizes that were not profiled count as the next larger profiled size"] if round_up else []
    return configs, throughput, {one: ("profiles", found[0][0], "gpus") for one, found in rows.items()}, notes


def _nearest(profiles: Sequence[Profile], bucket: Bucket, round_up: bool) -> Profile | None:
    """The profile of a bucket's size; else, where rounded up, the smallest by tokens in times out that covers it."""
    exact = [
        one for one in profiles if (one.input_tokens, one.output_tokens) == (bucket.input_tokens, bucket.output_tokens)
    ]
    if exact or not round_up:
        return exact[0] if exact else None
    covering = [
        one for one in profiles if one.input_tokens >= bucket.input_tokens and one.output_tokens >= bucket.output_tokens
    ]
    return min(covering, key=lambda one: (one.input_tokens * one.output_tokens, one.input_tokens), default=None)
