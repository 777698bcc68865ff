"""The fleet problem as arrays.

Sets    t in periods (hours of equal demand, merged), k in offers, p in pools (offers whose instances are alike but for
        size and price), m in models, d in buckets (a model's requests of one size), c in configurations (a model's
        replicas of some GPUs in a pool; of more GPUs than an instance has: on whole instances of one offer)
Data    rate[t, d]        requests a second
        burst[t, d]       rate to be ready for, as a multiple; NaN: 1 + headroom
        share[t]          of the hours, summing to 1
        throughput[d, c]  requests a second of a bucket that one replica serves within the SLO; 0: it cannot
        gpus[k], price[k], watts[k]     of one instance; watts is NaN where unknown
        least[k], most[k]               instances; most is inf where unknown
        role[c]           what a configuration does of a request, see `stages`; site[p], link[s, s'], network[p], and
                          bytes[h, d] that are handed over: see `handovers`
        priority[d]       of a bucket, higher first, where demand may stay unserved
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import pairwise
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from planner.fleet_plan import RentedOffer
from planner.workload import read_only

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
#: Sums of fractions that are off a whole number by less are whole.
ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class Draw:
    """What a fleet is expected to draw: W of an instance [K], W more of a replica [C], J more of a request [D, C]."""

    idle: FloatArray
    running: FloatArray
    joules: FloatArray


@dataclass(frozen=True, eq=False, kw_only=True)
class FleetProblem:
    """Everything a search may know; arrays are read-only. See the module docstring for the symbols.

    Shapes: offers [K], pools [P], models [M], buckets [D], configurations [C], periods [T]; quota_offers [Q, K].
    availability : share of the time that a pool's instances are there, [P].
    link_bytes_per_s : [sites, sites], inf inside one and 0 where they are not joined. network_bytes_per_s : of one GPU,
    [P], inf if unknown. handed_bytes : of a request, [handovers, D]; NaN if unknown, which no limit then needs.
    burst : [T, D], or None where headroom counts everywhere. slack : beta of `pools`, [C]; None: pools keep none.
    draw, watt_margin : see `power`; None: max_watts is kept by the watts of all instances.
    config_offer : of which a replica takes whole instances, [C]; -1: a part of any instance of its pool. None: all -1.
    described_offers : what their instances are, for plans to say [K].
    start_cost : USD of each instance of an offer that is started from one hour to the next, [K]; with it, or with a
        limit on starts or stops, every period is one hour, and they are in order (in a circle where `cyclic`).
    running : replicas in force of each configuration, [C], for one period; move_cost : USD/hour of each replica that is
        started beside them, [C]; max_moves : how many may be.
    zone_of_pool : index into zone_names, [P]; None where no loss of a zone is asked to be survived.
    """

    kind: ClassVar[str] = "fleet"

    name: str
    sha256: str
    offer_names: tuple[str, ...]
    described_offers: tuple[RentedOffer, ...]
    pool_of_offer: IntArray
    gpus: IntArray
    price: FloatArray
    watts: FloatArray
    least: FloatArray
    most: FloatArray
    reserved: BoolArray
    availability: FloatArray
    spot: BoolArray
    model_names: tuple[str, ...]
    min_replicas: IntArray
    bucket_model: IntArray
    input_tokens: IntArray
    output_tokens: IntArray
    priority: IntArray
    leave_unserved: bool = False
    rate: FloatArray
    share: FloatArray
    hours: tuple[tuple[int, ...], ...]
    config_pool: IntArray
    config_model: IntArray
    config_gpus: IntArray
    config_role: IntArray
    config_worker: tuple[str, ...] = ()
    config_offer: IntArray | None = None
    site_names: tuple[str | None, ...]
    site_of_pool: IntArray
    link_bytes_per_s: FloatArray
    network_bytes_per_s: FloatArray
    handed_bytes: FloatArray
    throughput: FloatArray
    headroom: float = 0.0
    burst: FloatArray | None = None
    slack: FloatArray | None = None
    spare_instances: int = 0
    zone_names: tuple[str, ...] = ()
    zone_of_pool: IntArray | None = None
    budget_usd_per_hour: float = np.inf
    max_watts: float = np.inf
    draw: Draw | None = None
    watt_margin: float = 0.0
    max_spot_share: float = 1.0
    quota_names: tuple[str, ...] = ()
    quota_offers: BoolArray
    quota_gpus: FloatArray
    start_cost: FloatArray | None = None
    max_starts: int | None = None
    max_stops: int | None = None
    cyclic: bool = False
    current: IntArray | None = None
    max_changes: int | None = None
    change_cost: float = 0.0
    running: IntArray | None = None
    move_cost: FloatArray | None = None
    max_moves: int | None = None
    assumptions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray):
                read_only(value)

    @property
    def num_offers(self) -> int:
        """Offers."""
        return len(self.offer_names)

    @property
    def num_periods(self) -> int:
        """Periods of differing demand."""
        return len(self.rate)

    @property
    def num_configs(self) -> int:
        """Configurations."""
        return len(self.config_pool)

    def needed(self, period: int) -> FloatArray:
        """Requests a second of each bucket to be ready for, [D]."""
        times = np.full(self.rate.shape[1], np.nan) if self.burst is None else self.burst[period]
        return np.asarray(np.where(np.isnan(times), 1.0 + self.headroom, times) * self.rate[period])

    def load(self, period: int) -> FloatArray:
        """Replicas that a bucket's whole demand takes of a configuration, headroom included, [D, C]; inf: it cannot."""
        need = self.needed(period)[:, None]
        possible = self.throughput > 0
        return np.where(possible, need / np.where(possible, self.throughput, 1.0), np.inf)

    def worker(self, config: int) -> str | None:
        """Name of a configuration in a table of workers; None without one."""
        return (self.config_worker[config] or None) if self.config_worker else None

    def sizes(self, pool: int) -> IntArray:
        """Sizes of a pool's replicas that share instances, ascending; each divides the next, so counting is exact."""
        return np.unique(self.config_gpus[(self.config_pool == pool) & ~self.whole.any(axis=1)])

    @property
    def whole(self) -> IntArray:
        """Instances of each offer that one replica takes whole, [C, K]."""
        taken = np.zeros((self.num_configs, self.num_offers), dtype=np.int64)
        if self.config_offer is not None:
            bound = np.flatnonzero(self.config_offer >= 0)
            offer = self.config_offer[bound]
            taken[bound, offer] = self.config_gpus[bound] // self.gpus[offer]
        return taken

    @property
    def held(self) -> FloatArray:
        """Replicas of each configuration that an instance of each offer holds, [C, K]; a fraction: it takes several."""
        inside = self.pool_of_offer == self.config_pool[:, None]
        whole = self.whole
        shared = inside & ~whole.any(axis=1, keepdims=True)
        several = np.divide(1.0, whole, out=np.zeros(whole.shape), where=whole > 0)
        return np.where(shared, self.gpus // self.config_gpus[:, None], several)

    def room(self, instances: FloatArray) -> FloatArray:
        """Replicas of each configuration that fit on instances [K] where nothing else runs, [C]."""
        return np.asarray(np.floor(self.held @ instances + ROUNDING))

    def slots(self, pool: int, size: int) -> IntArray:
        """GPUs in slots of a size or more that one replica takes of a pool, [C]."""
        whole = self.whole
        shared = np.where(whole.any(axis=1) | (self.config_gpus < size), 0, self.config_gpus)
        return np.where(self.config_pool == pool, shared + whole @ (size * (self.gpus // size)), 0)

    def bucket_name(self, bucket: int) -> str:
        """A bucket in the user's words."""
        model = self.model_names[self.bucket_model[bucket]]
        return f"{model} {self.input_tokens[bucket]}/{self.output_tokens[bucket]} tokens"

    def tiers(self) -> list[int]:
        """Priorities with a demand, the highest first."""
        asked = (self.rate > 0).any(axis=0)
        return sorted(set(self.priority[asked].tolist()), reverse=True)

    @property
    def zone_of_offer(self) -> IntArray:
        """Index into zone_names, [K]; -1 where zones do not matter."""
        none = np.full(self.num_offers, -1, dtype=np.int64)
        return none if self.zone_of_pool is None else self.zone_of_pool[self.pool_of_offer]

    @property
    def zone_of_config(self) -> IntArray:
        """Index into zone_names, [C]; -1 where zones do not matter."""
        none = np.full(self.num_configs, -1, dtype=np.int64)
        return none if self.zone_of_pool is None else self.zone_of_pool[self.config_pool]

    @property
    def decoupled(self) -> bool:
        """Nothing ties the periods to one another: each can be solved alone."""
        return not self.reserved.any() and self.current is None and not self.switching

    @property
    def switching(self) -> bool:
        """Periods are hours in order: what is started and stopped between them has a price or a limit."""
        priced = self.start_cost is not None and bool(self.start_cost.any())
        return priced or self.max_starts is not None or self.max_stops is not None

    def start_usd_per_hour(self, counts: FloatArray) -> float:
        """What starts cost, on the mean of the hours; counts : instances of every hour in order, [T, K]."""
        if self.start_cost is None:
            return 0.0
        started = sum(np.maximum(counts[after] - counts[before], 0.0) for before, after in self.steps)
        return float(np.dot(self.start_cost, started)) / self.num_periods if self.steps else 0.0

    @property
    def steps(self) -> list[tuple[int, int]]:
        """Pairs of an hour and the next one, where switching counts."""
        hours = range(self.num_periods)
        pairs = [*pairwise(hours), *([(hours[-1], 0)] if self.cyclic and len(hours) > 1 else [])]
        return pairs if self.switching else []
