"""The cheapest fleet as a mixed-integer linear program.

Sets and data: see `problem`. L[d, c] is the load of a bucket on a configuration: (1 + headroom) rate / throughput.

Variables, in each period t (left out below)
    y[k]     instances of an offer, integer; one for all periods where it is reserved
    z[c]     replicas of a configuration, integer
    x[d, c]  share of a bucket's requests on a configuration, continuous, only where throughput allows
    u[d]     share that stays unserved, continuous, only where the instance allows it (see `tiers`)

Objective
    minimise  sum_t share[t] sum_k price[k] y[k]  +  change cost x (instances added or dropped)

Constraints
    serve     sum_c x[d, c] + u[d] = 1                                             every bucket with a demand
              over the roles that begin a request, all where none is split; other stages follow by `handovers`
    capacity  sum_d L[d, c] x[d, c] <= availability[pool] z[c]                     every configuration
    running   x[d, c] <= z[c]    where L[d, c] is so small that a solver would take z = 0 for enough
    packing   sum_{c: gpus >= s} gpus[c] z[c] <= sum_k s floor(gpus[k] / s) y[k]   every pool and replica size s
              exact without a variable for any node, because the sizes of a pool divide one another
    limits    least <= y <= most, quotas on GPUs, budget, watts, least replicas of a model,
              share of a model's served requests on spot instances, in every stage
    changes   y[k] - current[k] = added - dropped, their sum limited and priced (one period)
    survival  (spare_instances = 1) for every offer k that is used (u[k] = 1, y[k] <= most u[k]): replicas z' <= z and
              shares x' that serve everything with one instance less of k; replicas may be packed anew

Left out without loss: configurations that smaller replicas on the same GPUs replace. Added by `covers`, for several
models: rows that whole replicas keep. Many periods are solved apart, see `hours`.

Continuous shares make this small: counts are the only integers. Slicing the demand (Mélange) approximates them from
above; see `melange`. Ignored: start-up time of instances, requests that are not yet known, interference of sizes on one
replica beyond added loads.

Reference: Griffin et al., Mélange, arXiv 2404.14527, for buckets and loads.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from formulations.backends.linear import IntArray as Columns
from formulations.backends.linear import LinearBuilder, LinearModel
from formulations.gpu_fleet.handovers import FlowColumns, add_handovers
from formulations.gpu_fleet.problem import BoolArray, FleetProblem, FloatArray
from formulations.gpu_fleet.stages import STAGES, has_role, network_need

#: Row within a family, column, value.
Entries = tuple[npt.ArrayLike, npt.ArrayLike, npt.ArrayLike]
#: Instances of one offer that no plan needs more of, where its own bound is not smaller.
MOST_INSTANCES = 1e6
#: Replicas of a load that is near to a solver's tolerance (1e-6).
SMALL_LOAD = 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class PeriodColumns:
    """Columns of one period: y [K], z [C], x of the pairs (bucket, config) [N]; a lost offer's z' and x' by offer.

    u : of the buckets with a demand (asked); empty where all must be served.
    """

    y: Columns
    z: Columns
    x: Columns
    u: Columns
    asked: Columns
    flows: FlowColumns
    bucket: Columns
    config: Columns
    lost_z: dict[int, Columns]
    lost_x: dict[int, Columns]
    lost_flows: dict[int, FlowColumns]


@dataclass(frozen=True, slots=True, eq=False)
class FleetModel:
    """The model of some periods, where its variables are, and each period's packing rows: (row, pool, size).

    changed : columns of instances added and dropped; empty without a current fleet.
    """

    model: LinearModel
    periods: tuple[int, ...]
    columns: tuple[PeriodColumns, ...]
    packing: tuple[tuple[tuple[int, int, int], ...], ...]
    changed: Columns


def needless_configs(problem: FleetProblem) -> BoolArray:
    """Configurations whose every replica is as well replaced by smaller ones on the same GPUs, [C].

    A replica of r x g GPUs is, where r replicas of g GPUs serve at least as much of every bucket. No limit speaks
    against it: instances stay as they are, replicas only become more.
    """
    found = np.zeros(problem.num_configs, dtype=np.bool_)
    asked = problem.throughput[(problem.rate > 0).any(axis=0)]
    for config in range(problem.num_configs):
        same = (
            (problem.config_pool == problem.config_pool[config])
            & (problem.config_model == problem.config_model[config])
            & (problem.config_role == problem.config_role[config])
        )
        smaller = np.flatnonzero(same & (problem.config_gpus < problem.config_gpus[config]))
        times = problem.config_gpus[config] // problem.config_gpus[smaller]
        found[config] = (asked[:, config, None] <= asked[:, smaller] * times).all(axis=0).any()
    return found


class FleetBuilder:
    """Builds the rows of some periods.

    relaxed : a family whose limits get a priced slack (see `explain`); unserved : demand may be left out, unpriced.
    """

    def __init__(
        self, problem: FleetProblem, periods: tuple[int, ...], relaxed: str | None = None, unserved: bool = False
    ) -> None:
        self.problem, self.periods, self.relaxed, self.unserved = problem, periods, relaxed, unserved
        self.builder = LinearBuilder()
        self.slack: Columns = np.zeros(0, dtype=np.int64)
        self.share = problem.share[list(periods)] / problem.share[list(periods)].sum()
        self.needless = needless_configs(problem)
        self.most = self._most_useful()
        self.packing_rows: list[tuple[tuple[int, int, int], ...]] = []

    def build(self) -> FleetModel:
        """All families of rows."""
        price = self.problem.price * (self.relaxed is None)
        reserved = self.problem.reserved
        fixed = self._instances(np.where(reserved, price, 0.0))
        columns = []
        for place, period in enumerate(self.periods):
            own = self._instances(np.where(reserved, 0.0, price) * self.share[place])
            columns.append(self._period(period, np.where(reserved, fixed, own)))
        changed = self._changes(columns)
        return FleetModel(self.builder.build(), self.periods, tuple(columns), tuple(self.packing_rows), changed)

    def at_least(self, columns: Columns, value: FloatArray, least: float) -> None:
        """One more row, sum value x columns >= least; it is in the next `builder.build()`."""
        self.builder.sparse_rows([least], np.inf, (0, columns, value))

    def load(self, period: int) -> FloatArray:
        """Load of a bucket on a configuration, [D, C]; inf where it cannot be or need not."""
        return np.where(self.needless, np.inf, self.problem.load(period))

    def _instances(self, cost: FloatArray) -> Columns:
        problem, builder = self.problem, self.builder
        if self.relaxed != "max_count":
            upper = np.maximum(self.most, problem.least)
            return builder.variables((problem.num_offers,), lower=problem.least, upper=upper, cost=cost, integer=True)
        made = builder.variables((problem.num_offers,), lower=problem.least, upper=self.most, integer=True)
        more = self._slacks(problem.num_offers, MOST_INSTANCES, 1.0)
        builder.rows(-np.inf, problem.most, (made[:, None], 1.0), (more[:, None], -1.0))
        return made

    def _most_useful(self) -> FloatArray:
        """A bound on the instances of an offer: its cap, or as many as would serve everything alone with a spare."""
        problem = self.problem
        needed = np.zeros(problem.num_configs)
        for period in self.periods:
            load = problem.load(period)
            needed = np.maximum(needed, np.where(np.isfinite(load), load, 0.0).sum(axis=0))
            needed = np.maximum(needed, network_need(problem, period))
        replicas = np.maximum(np.ceil(needed / problem.availability[problem.config_pool] - 1e-9), needed > 0)
        by_pool = np.bincount(
            problem.config_pool, weights=replicas * problem.config_gpus, minlength=len(problem.availability)
        )
        least_replicas = float((problem.min_replicas * 8).sum())
        useful = by_pool[problem.pool_of_offer] + least_replicas + problem.spare_instances
        kept = 0 if problem.current is None else problem.current
        useful = np.maximum(np.minimum(useful, MOST_INSTANCES), np.maximum(problem.least, kept))
        return useful if self.relaxed == "max_count" else np.asarray(np.minimum(problem.most, useful))

    def _period(self, period: int, y: Columns) -> PeriodColumns:
        problem, builder = self.problem, self.builder
        load = self.load(period)
        z = builder.variables((problem.num_configs,), upper=self._replica_bound(), integer=True)
        bucket, config = np.nonzero(np.isfinite(load) & (problem.rate[period] > 0)[:, None])
        x = builder.variables((bucket.size,))
        asked = np.flatnonzero(problem.rate[period] > 0)
        u = builder.variables((asked.size * self.unserved,))
        begins = has_role(problem, STAGES["prefill"])[config]
        self._serve(period, bucket[begins], x[begins], u)
        flows = add_handovers(problem, builder, period, bucket, config, x, z)
        self._capacity(load, bucket, config, x, z)
        self.packing_rows.append(self._packing(z, y, None))
        self._limits(period, y, z, bucket, config, x, u)
        lost_z: dict[int, Columns] = {}
        lost_x: dict[int, Columns] = {}
        lost_flows: dict[int, FlowColumns] = {}
        if problem.spare_instances:
            used = builder.variables((problem.num_offers,), integer=True)
            # y <= most u: an offer that is used has an instance to lose.
            builder.rows(-np.inf, 0.0, (y[:, None], 1.0), (used[:, None], -self.most[:, None]))
            for offer in np.flatnonzero(self.most > 0).tolist():
                kept = builder.variables((problem.num_configs,), upper=self._replica_bound(), integer=True)
                routed = builder.variables((bucket.size,))
                every = np.arange(kept.size)
                builder.sparse_rows(np.full(kept.size, -np.inf), 0.0, (every, kept, 1.0), (every, z, -1.0))
                self._serve(period, bucket[begins], routed[begins], u)
                lost_flows[offer] = add_handovers(problem, builder, period, bucket, config, routed, kept)
                self._capacity(load, bucket, config, routed, kept)
                self._packing(kept, y, (offer, int(used[offer])))
                lost_z[offer], lost_x[offer] = kept, routed
        return PeriodColumns(y, z, x, u, asked, flows, bucket, config, lost_z, lost_x, lost_flows)

    def _replica_bound(self) -> FloatArray:
        """Replicas that fit on all instances of the pool."""
        problem = self.problem
        upper = np.zeros(problem.num_configs)
        for config in range(problem.num_configs):
            inside = problem.pool_of_offer == problem.config_pool[config]
            upper[config] = (self.most[inside] * (problem.gpus[inside] // problem.config_gpus[config])).sum()
        return upper

    def _serve(self, period: int, bucket: Columns, x: Columns, u: Columns) -> None:
        asked = np.flatnonzero(self.problem.rate[period] > 0)
        place = np.searchsorted(asked, bucket)
        entries = [(place, x, 1.0), (np.arange(u.size), u, 1.0)]
        if self.relaxed == "demand":
            rate = self.problem.rate[period][asked]
            left = self._slacks(asked.size, 1.0, rate / rate.sum() * self.problem.share[period])
            entries.append((np.arange(asked.size), left, 1.0))
        self.builder.sparse_rows(np.ones(asked.size), 1.0, *entries)

    def _capacity(self, load: FloatArray, bucket: Columns, config: Columns, x: Columns, z: Columns) -> None:
        there = self.problem.availability[self.problem.config_pool]
        every = np.arange(self.problem.num_configs)
        self.builder.sparse_rows(
            np.full(every.size, -np.inf), 0.0, (config, x, load[bucket, config]), (every, z, -there)
        )
        small = np.flatnonzero(load[bucket, config] < SMALL_LOAD)
        if small.size:
            self.builder.rows(-np.inf, 0.0, (x[small][:, None], 1.0), (z[config[small]][:, None], -1.0))

    def _packing(self, z: Columns, y: Columns, lost: tuple[int, int] | None) -> tuple[tuple[int, int, int], ...]:
        """The rows made, as (row, pool, size).

        lost : the offer that has one instance less, and the column that says whether it is used at all.
        """
        problem = self.problem
        made = []
        for pool in range(len(problem.availability)):
            inside = np.flatnonzero(problem.pool_of_offer == pool)
            for size in problem.sizes(pool):
                larger = np.flatnonzero((problem.config_pool == pool) & (problem.config_gpus >= size))
                room = size * (problem.gpus[inside] // size)
                terms: list[Entries] = [
                    (np.zeros(larger.size), z[larger], problem.config_gpus[larger]),
                    (np.zeros(inside.size), y[inside], -room),
                ]
                if lost is not None and lost[0] in inside:
                    terms.append((0, lost[1], float(size * (problem.gpus[lost[0]] // size))))
                made.append((self.builder.num_rows, pool, int(size)))
                self.builder.sparse_rows([-np.inf], 0.0, *terms)
        return tuple(made)

    def _limits(
        self, period: int, y: Columns, z: Columns, bucket: Columns, config: Columns, x: Columns, u: Columns
    ) -> None:
        problem = self.problem
        if np.isfinite(problem.budget_usd_per_hour):
            self._limit("budget", y, problem.price, problem.budget_usd_per_hour)
        if np.isfinite(problem.max_watts):
            self._limit("watts", y, problem.watts, problem.max_watts)
        for mask, most in zip(problem.quota_offers, problem.quota_gpus, strict=True):
            self._limit("quota", y[mask], problem.gpus[mask].astype(np.float64), float(most))
        for model, least in enumerate(problem.min_replicas):
            if least:
                own = z[problem.config_model == model]
                self.builder.sparse_rows([float(least)], np.inf, (0, own, 1.0))
        if problem.max_spot_share < 1.0:
            on_spot = problem.spot[problem.config_pool[config]]
            # Stages that the same roles do are one limit.
            stages = list(STAGES.values()) if problem.config_role.any() else [STAGES["prefill"]]
            for model, roles in product(range(len(problem.model_names)), stages):
                own = on_spot & (problem.bucket_model[bucket] == model) & has_role(problem, roles)[config]
                rate = problem.rate[period]
                most = problem.max_spot_share * rate[problem.bucket_model == model].sum()
                if not own.any():
                    continue
                columns, value = x[own], rate[bucket[own]]
                if u.size:
                    # Of what is served: what is left out of the model counts for nobody.
                    asked = np.flatnonzero(rate > 0)
                    left = problem.bucket_model[asked] == model
                    columns = np.concatenate([columns, u[left]])
                    value = np.concatenate([value, problem.max_spot_share * rate[asked[left]]])
                self._limit("spot share", columns, value, float(most))

    def _limit(self, family: str, columns: Columns, value: FloatArray, most: float) -> None:
        """sum value x columns <= most, with a slack in units of the limit where this family is relaxed."""
        terms: list[Entries] = [(0, columns, value)]
        if self.relaxed == family:
            terms.append((0, self._slacks(1, np.inf, 1.0), -1.0))
        self.builder.sparse_rows([-np.inf], most, *terms)

    def _slacks(self, count: int, upper: float, cost: object) -> Columns:
        made = self.builder.variables((count,), upper=upper, cost=np.asarray(cost, dtype=np.float64))
        self.slack = np.concatenate([self.slack, made])
        return made

    def _changes(self, columns: list[PeriodColumns]) -> Columns:
        """One period only: with several, what is kept of the current fleet has no single answer."""
        problem = self.problem
        if problem.current is None:
            return np.zeros(0, dtype=np.int64)
        price = problem.change_cost * (self.relaxed is None)
        added, dropped = (
            self.builder.variables((problem.num_offers,), upper=MOST_INSTANCES, cost=price) for _ in range(2)
        )
        current = problem.current.astype(np.float64)
        terms = ((columns[0].y[:, None], 1.0), (added[:, None], -1.0), (dropped[:, None], 1.0))
        self.builder.rows(current, current, *terms)
        both = np.concatenate([added, dropped])
        if problem.max_changes is not None:
            self._limit("changes", both, np.ones(both.size), float(problem.max_changes))
        return both
