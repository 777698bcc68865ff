"""From a `fleet` instance to the arrays of the problem, with every mistake located."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from formulations.gpu_fleet.pools import slack_of
from formulations.gpu_fleet.power import by_phases, by_share, prefill_seconds
from formulations.gpu_fleet.problem import Draw, FleetProblem, FloatArray, IntArray
from formulations.gpu_fleet.profiles import profiled
from formulations.gpu_fleet.stages import HANDOVERS, ROLES
from formulations.gpu_fleet.tables import tabled
from formulations.gpu_fleet.throughput import Bucket, Config, computed
from formulations.reading import Reading
from planner import catalog
from planner.cost.serving.precision import WEIGHT_FORMATS, kv_element_bytes
from planner.descriptions.efficiency import calibrated
from planner.descriptions.fleet import FleetInstance, Offer
from planner.errors import DescriptionError, OptionError
from planner.files import Loc, SourceText, canonical_json
from planner.fleet_plan import RentedOffer
from planner.hardware import DeviceKind
from planner.readers.service_workers import ServiceWorker, read_service_workers

#: Roles that need another one of the same model, and which.
NEEDS = {
    "prefill": {"decode", "attention"},
    "decode": {"prefill"},
    "attention": {"experts"},
    "experts": {"attention"},
}
#: Pools are kept apart by what their replicas and prices depend on.
PoolKey = tuple[object, ...]


def read_problem(instance: FleetInstance, source: SourceText | None = None) -> FleetProblem:
    """Read the models and devices that the instance names and build the arrays.

    Raises DescriptionError with all problems found.
    """
    return FleetReading(instance, source).problem()


def _zone(offer: Offer) -> str:
    """What fails together with an offer's instances."""
    return str(offer.zone or offer.region)


class FleetReading(Reading):
    """Builds the arrays and collects findings at the keys that cause them.

    workers : what the table of workers would hold, where a caller has them already.
    """

    def __init__(
        self, instance: FleetInstance, source: SourceText | None, workers: Sequence[ServiceWorker] | None = None
    ) -> None:
        super().__init__(source)
        self.instance, self.workers = instance, workers
        self.assumptions: list[str] = []
        self.prefill_s: FloatArray | None = None

    def problem(self) -> FleetProblem:
        instance = self.instance
        devices = [self._device(index, offer) for index, offer in enumerate(instance.offers)]
        self.stop_if_wrong()
        watts = np.array(
            [self._watts(k, offer, kind) for k, (offer, kind) in enumerate(zip(instance.offers, devices, strict=True))]
        )
        model_names = tuple(model.name for model in instance.models)
        buckets = [Bucket(model_names.index(one.model), one.input_tokens, one.output_tokens) for one in instance.demand]
        pools = [
            self._pool(k, offer, kind) for k, (offer, kind) in enumerate(zip(instance.offers, devices, strict=True))
        ]
        keys = list(dict.fromkeys(pools))
        if instance.profiles:
            pool_of_offer = [keys.index(pool) for pool in pools]
            configs, throughput, places, notes = profiled(instance, buckets, pool_of_offer, self.find)
            self._refuse_uneven_sizes(configs, places)
            self.assumptions += notes
        elif instance.workers is not None:
            configs, throughput = self._tabled(buckets, pools, keys)
        else:
            configs, throughput = self._computed(devices, buckets, pools, keys)
        self.stop_if_wrong()
        # A configuration that serves nothing is no replica, not even one of min_replicas.
        useful = np.flatnonzero((throughput > 0).any(axis=0))
        configs, throughput = [configs[index] for index in useful], throughput[:, useful]
        rate, burst, share, hours = self._periods()
        slack = None
        if instance.pool_slack is not None:
            rule = instance.pool_slack
            slack = slack_of(throughput, share @ rate, rule.window_s, rule.quantile)
            self.assumptions.append("requests to a pool are independent of those to others, but for headroom or burst")
        first = [pools.index(key) for key in keys]
        quotas = instance.quotas
        return FleetProblem(
            name=instance.name,
            sha256=self._sha256(),
            offer_names=tuple(offer.name for offer in instance.offers),
            described_offers=tuple(
                RentedOffer(device=one.device, gpus=one.gpus, region=one.region, zone=one.zone, market=one.market)
                for one in instance.offers
            ),
            pool_of_offer=np.array([keys.index(pool) for pool in pools]),
            gpus=np.array([offer.gpus for offer in instance.offers]),
            price=np.array([offer.price_usd_per_hour for offer in instance.offers], dtype=np.float64),
            watts=watts,
            least=np.array([offer.min_count for offer in instance.offers], dtype=np.float64),
            most=np.array([np.inf if one.max_count is None else one.max_count for one in instance.offers]),
            reserved=np.array([offer.market == "reserved" for offer in instance.offers]),
            availability=np.array([instance.offers[index].availability for index in first]),
            spot=np.array([instance.offers[index].market == "spot" for index in first]),
            model_names=model_names,
            min_replicas=np.array([model.min_replicas for model in instance.models]),
            bucket_model=np.array([bucket.model for bucket in buckets]),
            input_tokens=np.array([bucket.input_tokens for bucket in buckets]),
            output_tokens=np.array([bucket.output_tokens for bucket in buckets]),
            priority=np.array(
                [
                    instance.models[bucket.model].priority if one.priority is None else one.priority
                    for bucket, one in zip(buckets, instance.demand, strict=True)
                ]
            ),
            leave_unserved=instance.unserved == "by_priority",
            rate=rate,
            share=share,
            hours=hours,
            config_pool=np.array([config.pool for config in configs], dtype=np.int64),
            config_model=np.array([config.model for config in configs], dtype=np.int64),
            config_gpus=np.array([config.gpus for config in configs], dtype=np.int64),
            config_role=np.array([config.role for config in configs], dtype=np.int64),
            config_worker=tuple(config.worker for config in configs),
            config_offer=np.array([config.offer for config in configs], dtype=np.int64),
            **self._joined(configs, buckets, first),
            throughput=throughput,
            headroom=instance.headroom,
            burst=burst,
            slack=slack,
            spare_instances=instance.spare_instances,
            **self._zones(first),
            budget_usd_per_hour=np.inf if instance.budget_usd_per_hour is None else instance.budget_usd_per_hour,
            draw=self._draw(watts, pools, keys, configs, useful, len(buckets)),
            watt_margin=0.0 if instance.power is None else instance.power.margin,
            max_watts=np.inf if instance.max_watts is None else instance.max_watts,
            max_spot_share=1.0 if instance.max_spot_share is None else instance.max_spot_share,
            quota_names=tuple(quota.name for quota in quotas),
            quota_offers=np.array(
                [[offer.name in quota.offers for offer in instance.offers] for quota in quotas], dtype=np.bool_
            ).reshape(len(quotas), len(instance.offers)),
            quota_gpus=np.array([quota.max_gpus for quota in quotas], dtype=np.float64),
            start_cost=np.array([offer.start_cost_usd for offer in instance.offers]),
            max_starts=instance.max_starts,
            max_stops=instance.max_stops,
            cyclic=instance.cyclic,
            current=self._current(len(hours)),
            max_changes=instance.max_changes,
            change_cost=instance.change_cost_usd_per_hour,
            assumptions=tuple(self.assumptions),
        )

    def _joined(self, configs: list[Config], buckets: list[Bucket], first: list[int]) -> dict[str, Any]:
        """Sites, the links between them, and what is handed over; a size that a limit needs must be known.

        first : an offer of each pool.
        """
        instance = self.instance
        sites = list(dict.fromkeys(offer.region for offer in instance.offers))
        link = np.where(np.eye(len(sites), dtype=np.bool_), np.inf, 0.0)
        for one in instance.links:
            link[sites.index(one.from_region), sites.index(one.to_region)] = one.bytes_per_s
        offers = [instance.offers[index] for index in first]
        network = np.array(
            [np.inf if one.network_bytes_per_s is None else one.network_bytes_per_s / one.gpus for one in offers]
        )
        limited = bool(instance.links) or bool(np.isfinite(network).any())
        handed = np.full((len(HANDOVERS), len(buckets)), np.nan)
        for index, model in enumerate(instance.models):
            roles = {ROLES[config.role] for config in configs if config.model == index}
            if roles <= {"both"}:
                continue
            for role, others in NEEDS.items():
                if role in roles and not roles & others:
                    message = f"{model.name} has replicas for {role}, but none for {' or '.join(sorted(others))}"
                    self.find(("models", index), message)
            kv, activations = self._kv_bytes_per_token(index), model.activation_bytes_per_token
            if limited and kv is None and "prefill" in roles:
                self.find(("models", index), f"links limit {model.name}: say kv_bytes_per_token, or a `model`")
            if limited and activations is None and "attention" in roles:
                self.find(("models", index), f"links limit {model.name}: say activation_bytes_per_token")
            for d, bucket in enumerate(buckets):
                if bucket.model == index:
                    handed[0, d] = np.nan if kv is None else kv * bucket.input_tokens
                    handed[1, d] = np.nan if activations is None else activations * bucket.output_tokens
        self.stop_if_wrong()
        return {
            "site_names": tuple(sites),
            "site_of_pool": np.array([sites.index(offer.region) for offer in offers]),
            "link_bytes_per_s": link,
            "network_bytes_per_s": network,
            "handed_bytes": handed,
        }

    def _kv_bytes_per_token(self, index: int) -> float | None:
        """As told, else of the catalogue's model."""
        model = self.instance.models[index]
        if model.kv_bytes_per_token is not None or model.model is None:
            return model.kv_bytes_per_token
        try:
            spec = catalog.model(self._model_path(model.model))
        except (OptionError, DescriptionError) as error:
            self.find(("models", index, "model"), str(error))
            return None
        return spec.kv_bytes_per_token(kv_element_bytes(spec, model.backend))

    def _model_path(self, name: str) -> str | Path:
        """A config.json lies beside the instance."""
        base = None if self.source is None else self.source.base_dir
        return base / name if base is not None and name.endswith(".json") else name

    def _device(self, index: int, offer: Offer) -> DeviceKind | None:
        """The offer's GPU; needed for computed throughput and for watts, else a name will do."""
        try:
            return catalog.device(offer.device)
        except (OptionError, DescriptionError) as error:
            if not self.instance.profiles and self.instance.workers is None:
                self.find(("offers", index, "device"), str(error))
            return None

    def _watts(self, index: int, offer: Offer, device: DeviceKind | None) -> float:
        """Of one instance; NaN where nobody says, which a limit on watts does not allow."""
        if offer.watts is not None:
            return offer.watts
        if device is not None and device.power_w is not None:
            return device.power_w * offer.gpus
        if self.instance.max_watts is not None:
            message = f"the power of {offer.device!r} is not known, and max_watts is given: say `watts`"
            self.find(("offers", index, "device"), message)
        return math.nan

    def _draw(
        self,
        watts: FloatArray,
        pools: list[PoolKey],
        keys: list[PoolKey],
        configs: list[Config],
        useful: IntArray,
        num_buckets: int,
    ) -> Draw | None:
        power = self.instance.power
        if power is None:
            return None
        self.assumptions.append(
            f"max_watts is kept by expected draw with a margin of {power.margin:.0%}: "
            + ("by phase, modelled" if power.draw == "phases" else f"{power.draw:.0%} of the watts of each instance")
        )
        if not isinstance(power.draw, str):
            return by_share(watts, power.draw, num_buckets, len(configs))
        assert self.prefill_s is not None
        gpus = np.array([offer.gpus for offer in self.instance.offers])
        pool_of_offer = np.array([keys.index(pool) for pool in pools])
        return by_phases(watts, gpus, pool_of_offer, configs, self.prefill_s[:, useful])

    def _pool(self, index: int, offer: Offer, device: DeviceKind | None) -> PoolKey:
        """Profiled offers are pools of their own: what was measured on one need not hold on another."""
        if self.instance.profiles or (device is None and self.instance.workers is None):
            return (index,)
        network = None if offer.network_bytes_per_s is None else offer.network_bytes_per_s / offer.gpus
        zone = _zone(offer) if self.instance.spare_zones else None
        name = offer.device if device is None else device.name
        return name, offer.region, zone, offer.market == "spot", offer.availability, network

    def _zones(self, first: list[int]) -> dict[str, Any]:
        """The zone of each pool, where one is to be survived; first : an offer of each pool."""
        if not self.instance.spare_zones:
            return {}
        zones = [_zone(self.instance.offers[index]) for index in first]
        names = tuple(dict.fromkeys(zones))
        return {"zone_names": names, "zone_of_pool": np.array([names.index(zone) for zone in zones])}

    def _refuse_uneven_sizes(self, configs: list[Config], places: dict[Config, Loc]) -> None:
        """Packing by counting is exact only where the sizes of a pool divide one another."""
        found: dict[Loc, str] = {}
        for pool in sorted({config.pool for config in configs}):
            shared = [one for one in configs if one.pool == pool and one.offer < 0]
            sizes = sorted({one.gpus for one in shared})
            for small, large in pairwise(sizes):
                if large % small:
                    place = next(places[one] for one in shared if one.gpus == large)
                    found[place] = f"replicas of {small} and {large} GPUs on one offer: sizes must divide one another"
        for place, message in found.items():
            self.find(place, message)

    def _tabled(
        self, buckets: list[Bucket], pools: list[PoolKey], keys: list[PoolKey]
    ) -> tuple[list[Config], FloatArray]:
        """Configurations and throughput from a table of workers."""
        instance = self.instance
        workers = self.workers
        if workers is None:
            workers = read_service_workers(self.path(str(instance.workers)), instance.name)
        first, pool_of_offer = [pools.index(key) for key in keys], [keys.index(pool) for pool in pools]
        configs, throughput, notes = tabled(instance, workers, buckets, first, pool_of_offer, self.find)
        self._refuse_uneven_sizes(configs, dict.fromkeys(configs, ("workers",)))
        self.assumptions += notes
        return configs, throughput

    def _computed(
        self, devices: list[DeviceKind | None], buckets: list[Bucket], pools: list[PoolKey], keys: list[PoolKey]
    ) -> tuple[list[Config], FloatArray]:
        """Configurations and throughput from the cost model."""
        instance = self.instance
        largest = [
            max(one.gpus for one, pool in zip(instance.offers, pools, strict=True) if pool == key) for key in keys
        ]
        kinds = [devices[pools.index(key)] for key in keys]
        regions = [instance.offers[pools.index(key)].region for key in keys]
        specs = []
        for index, model in enumerate(instance.models):
            try:
                specs.append(catalog.model(self._model_path(str(model.model))))
            except (OptionError, DescriptionError) as error:
                self.find(("models", index, "model"), str(error))
            if model.precision is not None and model.precision not in WEIGHT_FORMATS:
                message = f"unknown precision {model.precision!r}; known: {', '.join(sorted(WEIGHT_FORMATS))}"
                self.find(("models", index, "precision"), message)
        coefficients = None
        if instance.calibration is not None:
            coefficients = calibrated(self.path(instance.calibration))
            self.assumptions.append(f"calibrated by {instance.calibration}")
        self.stop_if_wrong()
        configs, throughput, notes = computed(instance, specs, kinds, largest, regions, buckets, coefficients)
        self._refuse_uneven_sizes(configs, {one: ("models", one.model, "gpus_per_replica") for one in configs})
        self.assumptions += notes
        if instance.power is not None and instance.power.draw == "phases":
            self.prefill_s = prefill_seconds(instance, specs, kinds, buckets, configs, coefficients)
        return configs, throughput

    def _periods(self) -> tuple[FloatArray, FloatArray | None, FloatArray, tuple[tuple[int, ...], ...]]:
        """Rates and bursts of each distinct hour, its share of all, and which hours it stands for.

        Merging loses nothing, but where switching counts: then all hours stay, in order.
        """
        demand = self.instance.demand
        hours = max((len(one.hourly) for one in demand if one.hourly is not None), default=1)
        rates = np.array(
            [
                np.full(hours, one.rate_per_s) if one.hourly is None else np.array(one.hourly, dtype=np.float64)
                for one in demand
            ],
            dtype=np.float64,
        ).T
        # A burst is 1 at least: 0 stands for none, as NaN is unlike itself.
        bursts = np.array([np.broadcast_to(0.0 if one.burst is None else one.burst, (hours,)) for one in demand]).T
        if self._switching():
            told = np.where(bursts > 0, bursts, np.nan) if bursts.any() else None
            return rates, told, np.full(hours, 1 / hours), tuple((hour,) for hour in range(hours))
        distinct, place = np.unique(np.hstack([rates, bursts]), axis=0, return_inverse=True)
        distinct, bursts = np.hsplit(distinct, 2)
        members = [tuple(np.flatnonzero(place.ravel() == period).tolist()) for period in range(len(distinct))]
        share = np.array([len(one) / hours for one in members])
        return distinct, np.where(bursts > 0, bursts, np.nan) if bursts.any() else None, share, tuple(members)

    def _switching(self) -> bool:
        instance = self.instance
        limited = instance.max_starts is not None or instance.max_stops is not None
        return limited or any(offer.start_cost_usd for offer in instance.offers)

    def _current(self, num_periods: int) -> np.ndarray[tuple[int], np.dtype[np.int64]] | None:
        current = self.instance.current
        if current is None:
            return None
        if num_periods > 1:
            self.find(("current",), "a current fleet goes with one constant rate, not with hourly ones")
            self.stop_if_wrong()
        return np.array([current.get(offer.name, 0) for offer in self.instance.offers], dtype=np.int64)

    def _sha256(self) -> str:
        said = self.instance.model_dump(mode="json", exclude_defaults=True)
        digest = hashlib.sha256(canonical_json(said).encode())
        for name in self._files():
            digest.update(name.encode())
        return digest.hexdigest()

    def _files(self) -> Iterator[str]:
        """Contents of the files that are named."""
        for name in (self.instance.calibration, None if self.workers is not None else self.instance.workers):
            if name is not None:
                yield self.path(name).read_text(encoding="utf-8")
        for model in self.instance.models:
            if model.model is not None and model.model.endswith(".json") and self.source is not None:
                yield (self.source.base_dir / model.model).read_text(encoding="utf-8")
