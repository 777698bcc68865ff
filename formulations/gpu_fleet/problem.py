"""The fleet problem as arrays.

Sets    t in periods (hours of equal demand, merged), k in offers, p in pools (offers whose instances are alike but for
        size and price), m in models, d in buckets (a model's requests of one size), c in configurations (a model's
        replicas of some GPUs in a pool)
Data    rate[t, d]        requests a second
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
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from planner.workload import read_only

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False, kw_only=True)
class FleetProblem:
    """Everything a search may know; arrays are read-only. See the module docstring for the symbols.

    Shapes: offers [K], pools [P], models [M], buckets [D], configurations [C], periods [T]; quota_offers [Q, K].
    availability : share of the time that a pool's instances are there, [P].
    link_bytes_per_s : [sites, sites], inf inside one and 0 where they are not joined. network_bytes_per_s : of one GPU,
    [P], inf if unknown. handed_bytes : of a request, [handovers, D]; NaN if unknown, which no limit then needs.
    """

    kind: ClassVar[str] = "fleet"

    name: str
    sha256: str
    offer_names: tuple[str, ...]
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
    site_names: tuple[str | None, ...]
    site_of_pool: IntArray
    link_bytes_per_s: FloatArray
    network_bytes_per_s: FloatArray
    handed_bytes: FloatArray
    throughput: FloatArray
    headroom: float = 0.0
    spare_instances: int = 0
    budget_usd_per_hour: float = np.inf
    max_watts: float = np.inf
    max_spot_share: float = 1.0
    quota_names: tuple[str, ...] = ()
    quota_offers: BoolArray
    quota_gpus: FloatArray
    current: IntArray | None = None
    max_changes: int | None = None
    change_cost: float = 0.0
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

    def load(self, period: int) -> FloatArray:
        """Replicas that a bucket's whole demand takes of a configuration, headroom included, [D, C]; inf: it cannot."""
        need = (1.0 + self.headroom) * self.rate[period][:, None]
        possible = self.throughput > 0
        return np.where(possible, need / np.where(possible, self.throughput, 1.0), np.inf)

    def sizes(self, pool: int) -> IntArray:
        """Replica sizes in a pool, ascending; each divides the next, so that packing is exact by counting."""
        return np.unique(self.config_gpus[self.config_pool == pool])

    def bucket_name(self, bucket: int) -> str:
        """A bucket in the user's words."""
        model = self.model_names[self.bucket_model[bucket]]
        return f"{model} {self.input_tokens[bucket]}/{self.output_tokens[bucket]} tokens"

    def tiers(self) -> list[int]:
        """Priorities with a demand, the highest first."""
        asked = (self.rate > 0).any(axis=0)
        return sorted(set(self.priority[asked].tolist()), reverse=True)

    @property
    def decoupled(self) -> bool:
        """Nothing ties the periods to one another: each can be solved alone."""
        return not self.reserved.any() and self.current is None
