"""The `fleet` instance: what can be rented, what is served, how much of it, and within which limits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat

from planner.descriptions.base import Description, Problem
from planner.units import UsdPerHour, Watts
from planner.workload import Slo

NonNegative = Annotated[FiniteFloat, Field(ge=0)]
Positive = Annotated[FiniteFloat, Field(gt=0)]
#: Requests a second. The limit keeps loads within what solvers compute with.
Rate = Annotated[FiniteFloat, Field(ge=0, le=1e8)]
#: Smallest throughput that is not zero, requests a second: one request in twelve days.
LEAST_RATE_PER_S = 1e-6
Share = Annotated[FiniteFloat, Field(ge=0, le=1)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Count = Annotated[int, Field(ge=0, le=1_000_000)]
Priority = Annotated[int, Field(ge=-1000, le=1000)]
#: GPUs that are joined: larger than any scale-up domain sold.
Gpus = Annotated[int, Field(ge=1, le=65_536)]
#: A request is at most as long as the longest contexts sold.
Tokens = Annotated[int, Field(ge=1, le=1 << 24)]


#: What a replica does of a request.
Role = Literal["both", "prefill", "decode", "attention", "experts"]
BytesPerS = Annotated[FiniteFloat, Field(gt=0, le=1e18)]


class Offer(Description):
    """One thing to rent: an instance of some GPUs at a price. GPUs of an instance are joined; instances are not."""

    name: Name
    device: Annotated[Name, Field(description="GPU, by its catalogue name")]
    gpus: Gpus = 1
    price_usd_per_hour: Annotated[UsdPerHour, Field(le=1e9, description="of one instance")]
    max_count: Annotated[Count | None, Field(description="instances that can be had; absent is unknown, not zero")] = (
        None
    )
    min_count: Count = 0
    region: Name | None = None
    zone: Annotated[Name | None, Field(description="what fails together; default: the region")] = None
    market: Literal["on_demand", "spot", "reserved"] = "on_demand"
    availability: Annotated[Share, Field(description="share of the time that a spot instance is there")] = 1.0
    start_cost_usd: Annotated[
        NonNegative, Field(le=1e9, description="of each instance that is started from one hour to the next")
    ] = 0.0
    watts: Annotated[Watts | None, Field(le=1e9, description="of one instance; default: the GPUs' board power")] = None
    network_bytes_per_s: Annotated[
        BytesPerS | None, Field(description="of one instance to others, each way; absent: not limited")
    ] = None

    def problems(self) -> Iterator[Problem]:
        """Counts in order."""
        if self.max_count is not None and self.min_count > self.max_count:
            yield ("min_count",), f"{self.min_count} is above max_count {self.max_count}"
        if self.availability == 0:
            yield ("availability",), "an offer that is never there serves nothing; leave it out"


class ServedModel(Description):
    """A model that is served. Without profiles, `model` says what the cost model computes its throughput from.

    roles : of the replicas that are computed; attention and experts apart need profiles.
    """

    name: Name
    model: Annotated[Name | None, Field(description="catalogue name, or config.json")] = None
    backend: Literal["vllm", "sglang", "trtllm"] = "vllm"
    precision: Annotated[Name | None, Field(description="format of the weights; default: the checkpoint's")] = None
    gpus_per_replica: Annotated[
        tuple[Gpus, ...] | None,
        Field(min_length=1, description="replica sizes to choose from; default: 1, 2, 4, 8, or those of its profiles"),
    ] = None
    roles: Annotated[tuple[Literal["both", "prefill", "decode"], ...], Field(min_length=1)] = ("both",)
    min_replicas: Count = 0
    slo: Annotated[Slo | None, Field(description="default: the instance's")] = None
    regions: Annotated[tuple[Name, ...] | None, Field(description="where it may run; default: anywhere")] = None
    kv_bytes_per_token: Annotated[
        Positive | None, Field(description="of a prompt's cache, prefill to decode; default: that of `model`")
    ] = None
    activation_bytes_per_token: Annotated[
        Positive | None, Field(description="of an output token over all layers, attention to experts")
    ] = None
    priority: Annotated[Priority, Field(description="higher is served first where not all can be")] = 0


Burst = Annotated[FiniteFloat, Field(ge=1, le=1001)]


class Requests(Description):
    """Requests of one size: a constant rate, or one for each hour."""

    input_tokens: Tokens
    output_tokens: Tokens
    rate_per_s: Rate | None = None
    hourly: Annotated[tuple[Rate, ...] | None, Field(min_length=1, max_length=8784)] = None
    burst: Annotated[
        Burst | tuple[Burst, ...] | None,
        Field(description="rate to be ready for, as a multiple, of all hours or of each; stands instead of headroom"),
    ] = None
    priority: Annotated[Priority | None, Field(description="default: the model's")] = None

    def problems(self) -> Iterator[Problem]:
        """Exactly one rate, and a burst for each hour or one for all."""
        if isinstance(self.burst, tuple) and len(self.burst) != len(self.hourly or ()):
            message = f"{len(self.burst)} are given for {len(self.hourly or ())} hourly rates"
            yield ("burst",), message
        if (self.rate_per_s is None) == (self.hourly is None):
            yield (), "give exactly one of rate_per_s and hourly"


class Demand(Requests):
    """Requests of one size for one model."""

    model: Name


class Profile(Description):
    """Highest rate of requests of one size that a replica on an offer serves within the SLO; 0: not within it."""

    offer: Name
    model: Name
    input_tokens: Tokens
    output_tokens: Tokens
    max_rate_per_s: Rate
    gpus: Annotated[Gpus | None, Field(description="GPUs of the replica; default: all of the offer's")] = None
    role: Annotated[Role, Field(description="what the replica does of a request; both: all of it")] = "both"

    def problems(self) -> Iterator[Problem]:
        """Zero is an answer, almost zero is a mistake."""
        if 0 < self.max_rate_per_s < LEAST_RATE_PER_S:
            message = f"{self.max_rate_per_s:g} is below {LEAST_RATE_PER_S:g}; 0 says: not within the SLO"
            yield ("max_rate_per_s",), message


class Link(Description):
    """Bandwidth from one region to another; regions without a link hand nothing to one another."""

    from_region: Name
    to_region: Name
    bytes_per_s: BytesPerS


class Quota(Description):
    """A limit on GPUs over several offers together."""

    name: Name
    offers: Annotated[tuple[Name, ...], Field(min_length=1)]
    max_gpus: Count


class PoolSlack(Description):
    """Slack of each pool of replicas against arrivals that are independent of one another; small pools need more."""

    window_s: Annotated[FiniteFloat, Field(ge=0.01, le=86400, description="about as long as a request is served")]
    quantile: Annotated[FiniteFloat, Field(ge=0.5, lt=1, description="share of the windows to hold")] = 0.95


class Power(Description):
    """How `max_watts` is filled: by what instances are expected to draw, which is less than what they could draw."""

    draw: Annotated[
        Literal["phases"] | Annotated[FiniteFloat, Field(gt=0, le=1)],
        Field(description="a share of an instance's watts, or phases: by what runs, from the cost model"),
    ]
    margin: Annotated[FiniteFloat, Field(ge=0, lt=1, description="share of max_watts left free by that")] = 0.1


class FleetLimits(Description):
    """What limits a fleet beside its offers, and what may be given up."""

    unserved: Annotated[
        Literal["refuse", "by_priority"],
        Field(description="where not all can be served: no plan, or the lowest priorities are left out first"),
    ] = "refuse"
    calibration: Annotated[
        Name | None, Field(description="efficiency.yaml of `gpuplan calibrate`, for throughput from the cost model")
    ] = None
    pool_slack: PoolSlack | None = None
    spare_zones: Annotated[
        Literal[0, 1], Field(description="1: the loss of any one zone is survived, by re-routing")
    ] = 0
    budget_usd_per_hour: UsdPerHour | None = None
    max_watts: Watts | None = None
    power: Power | None = None
    max_spot_share: Annotated[Share | None, Field(description="of each model's requests, on spot instances")] = None
    quotas: tuple[Quota, ...] = ()
    links: Annotated[tuple[Link, ...], Field(description="between regions; inside one nothing limits")] = ()
    max_starts: Annotated[Count | None, Field(description="most instances started from one hour to the next")] = None
    max_stops: Annotated[Count | None, Field(description="most instances stopped from one hour to the next")] = None
    cyclic: Annotated[bool, Field(description="the first hour follows the last one, as in a day that repeats")] = False


class FleetInstance(FleetLimits):
    """Rent the cheapest instances that serve the demand within the SLO."""

    problem: Literal["fleet"] = "fleet"
    name: Name
    offers: Annotated[tuple[Offer, ...], Field(min_length=1)]
    models: Annotated[tuple[ServedModel, ...], Field(min_length=1)]
    slo: Slo | None = None
    demand: Annotated[tuple[Demand, ...], Field(min_length=1)]
    profiles: tuple[Profile, ...] = ()
    workers: Annotated[
        Name | None, Field(description="table of workers by model and size (CSV), in place of profiles")
    ] = None
    unprofiled: Annotated[
        Literal["refuse", "round_up"],
        Field(description="a demand of a size that was not profiled: an error, or the next larger profiled size"),
    ] = "refuse"
    headroom: Annotated[NonNegative, Field(le=1000, description="capacity kept free, as a share of the demand")] = 0.0
    spare_instances: Annotated[
        Literal[0, 1], Field(description="1: the loss of any one instance is survived, by re-routing")
    ] = 0
    current: Annotated[dict[Name, Count] | None, Field(description="instances in force, by offer")] = None
    max_changes: Annotated[Count | None, Field(description="most instances added or dropped")] = None
    change_cost_usd_per_hour: Annotated[NonNegative, Field(description="price of one instance added or dropped")] = 0.0

    def problems(self) -> Iterator[Problem]:
        """Names are known and unique, hours agree, and every demand has a model."""
        offers = [offer.name for offer in self.offers]
        models = [model.name for model in self.models]
        for place, names in (("offers", offers), ("models", models)):
            for name in sorted({name for name in names if names.count(name) > 1}):
                yield (place,), f"two are named {name!r}"
        for index, demand in enumerate(self.demand):
            if demand.model not in models:
                yield ("demand", index, "model"), f"no model is named {demand.model!r}"
        hours = {len(demand.hourly) for demand in self.demand if demand.hourly is not None}
        if len(hours) > 1:
            yield ("demand",), f"hourly rates differ in length: {sorted(hours)}"
        seen: set[tuple[str, int, int]] = set()
        for index, demand in enumerate(self.demand):
            key = demand.model, demand.input_tokens, demand.output_tokens
            if key in seen:
                yield ("demand", index), f"{key[0]} {key[1]}/{key[2]} tokens is given twice; add the rates up"
            seen.add(key)
        if not any(max(demand.hourly or (demand.rate_per_s or 0.0,)) > 0 for demand in self.demand):
            yield ("demand",), "all rates are zero: there is nothing to serve"
        if self.power is not None and self.max_watts is None:
            yield ("power",), "says how max_watts is filled, which is not given"
        given = self.profiles or self.workers is not None
        if self.power is not None and self.power.draw == "phases" and given:
            yield ("power", "draw"), "phases come from the cost model, and profiles are given: give a share"
        if self.profiles and self.workers is not None:
            yield ("workers",), "profiles are given too: one of the two"
        yield from self._zone_problems()
        switching = self.max_starts is not None or self.max_stops is not None
        if not hours and (switching or any(offer.start_cost_usd for offer in self.offers)):
            yield ("demand",), "start costs, max_starts and max_stops are of hours: give hourly rates"
        for index, offer in enumerate(self.offers):
            if offer.start_cost_usd and offer.market == "reserved":
                yield ("offers", index, "start_cost_usd"), "reserved instances run in all hours: none is started"
        yield from self._model_problems()
        yield from self._profile_problems(dict(zip(offers, self.offers, strict=True)), set(models))
        for index, quota in enumerate(self.quotas):
            for name in quota.offers:
                if name not in offers:
                    yield ("quotas", index, "offers"), f"no offer is named {name!r}"
        yield from self._link_problems()
        for name in self.current or {}:
            if name not in offers:
                yield ("current",), f"no offer is named {name!r}"
        if self.current is None and (self.max_changes is not None or self.change_cost_usd_per_hour):
            yield ("current",), "max_changes and change_cost_usd_per_hour need a current fleet"

    def _link_problems(self) -> Iterator[Problem]:
        regions = {offer.region for offer in self.offers}
        seen: set[tuple[str, str]] = set()
        for index, link in enumerate(self.links):
            for key in ("from_region", "to_region"):
                if getattr(link, key) not in regions:
                    yield ("links", index, key), f"no offer is in {getattr(link, key)!r}"
            if link.from_region == link.to_region:
                yield ("links", index), "offers of one region are joined; limit them by network_bytes_per_s"
            if (link.from_region, link.to_region) in seen:
                yield ("links", index), "is given twice"
            seen.add((link.from_region, link.to_region))

    def _zone_problems(self) -> Iterator[Problem]:
        if not self.spare_zones:
            return
        zones = [offer.zone or offer.region for offer in self.offers]
        for index, zone in enumerate(zones):
            if zone is None:
                yield ("offers", index, "zone"), "is needed where the loss of a zone is to be survived (or a region)"
        if len(set(zones)) == 1 and zones[0] is not None:
            yield ("spare_zones",), f"all offers are in {zones[0]!r}: nothing is left when it is lost"

    def _model_problems(self) -> Iterator[Problem]:
        regions = {offer.region for offer in self.offers}
        asked = {demand.model for demand in self.demand}
        for index, model in enumerate(self.models):
            for name in model.regions or ():
                if name not in regions:
                    yield ("models", index, "regions"), f"no offer is in {name!r}"
            if (self.profiles or self.workers is not None) and model.roles != ("both",):
                yield ("models", index, "roles"), "changes nothing: profiles say their roles"
            if set(model.roles) & {"prefill", "decode"} and not {"prefill", "decode"} <= set(model.roles):
                yield ("models", index, "roles"), "prefill and decode need one another"
            if model.min_replicas and model.name not in asked:
                message = "needs a demand, of rate 0 if need be: it says for which sizes the replicas must do"
                yield ("models", index, "min_replicas"), message

    def _profile_problems(self, offers: dict[str, Offer], models: set[str]) -> Iterator[Problem]:
        seen: set[tuple[str, str, int, int, int, str]] = set()
        for index, profile in enumerate(self.profiles):
            offer = offers.get(profile.offer)
            if offer is None:
                yield ("profiles", index, "offer"), f"no offer is named {profile.offer!r}"
                continue
            if profile.model not in models:
                yield ("profiles", index, "model"), f"no model is named {profile.model!r}"
            gpus = profile.gpus or offer.gpus
            if gpus > offer.gpus:
                yield ("profiles", index, "gpus"), f"a replica of {gpus} GPUs is larger than {profile.offer}"
            key = profile.offer, profile.model, profile.input_tokens, profile.output_tokens, gpus, profile.role
            if key in seen:
                yield ("profiles", index), "is given twice"
            seen.add(key)
        if not self.profiles and self.workers is None:
            for index, model in enumerate(self.models):
                if model.model is None:
                    yield ("models", index), f"{model.name} has neither profiles nor a `model` to compute them from"
            if self.slo is None and any(model.slo is None for model in self.models):
                yield ("slo",), "is needed to compute throughput; or give profiles"
