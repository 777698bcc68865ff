"""The cheapest fleet as a mixed-integer linear program.

Sets and data: see `problem`. L[d, c] is the load of a bucket on a configuration: (1 + headroom) rate / throughput, or
burst in place of 1 + headroom.

Variables, in each period t (left out below)
    y[k]     instances of an offer, integer; one for all periods where it is reserved
    z[c]     replicas of a configuration, integer
    x[d, c]  share of a bucket's requests on a configuration, continuous, only where throughput allows
    u[d]     share that stays unserved, continuous, only where the instance allows it (see `tiers`)

Objective
    minimise  sum_t share[t] sum_k price[k] y[k]  +  change cost x (instances added or dropped)
              + sum_c move cost[c] s[c]
              + sum_t share[t] sum_k start cost[k] s[k, t]

Constraints
    serve     sum_c x[d, c] + u[d] = 1                                             every bucket with a demand
              over the roles that begin a request, all where none is split; other stages follow by `handovers`
    capacity  sum_d L[d, c] x[d, c] <= availability[pool] z[c]                     every configuration
              with pool_slack: z[c] is the room of `pools`; its parts s, b[c, s] binary, sum_s b[c, s] <= 1:
              z[c] = sum_s n[c, s],  n[c, s] <= most b[c, s],  room[c] = sum_s slope[s] n[c, s] + start[s] b[c, s]
    running   x[d, c] <= z[c]    where L[d, c] is so small that a solver would take z = 0 for enough
    packing   sum_c slots[c, s] z[c] <= sum_k s floor(gpus[k] / s) y[k]            every pool and replica size s
              slots[c, s] = gpus[c] where gpus[c] >= s, else 0: exact without a variable for any node, because the
              sizes of a pool divide one another
    whole     sum_{c on whole instances of k} whole[c] z[c] <= y[k],  whole[c] = gpus[c] / gpus[k]   every offer
              For such c, slots[c, s] = whole[c] s floor(gpus[k] / s). Exact with packing: take the w[k] instances that
              are used whole; w <= y by these rows, and moved to the other side of each packing row they leave the
              row of the y - w instances, for the replicas that share instances.
    limits    least <= y <= most, quotas on GPUs, budget, watts, least replicas of a model,
              share of a model's served requests on spot instances, in every stage
    steps     s >= y[k, t + 1] - y[k, t], e the other way: instances started and stopped from one hour to the next,
              priced and limited in sum; then all hours are periods, in order
    changes   y[k] - current[k] = added - dropped, their sum limited and priced (one period)
    moves     s[c] >= z[c] - running[c], s >= 0: replicas started beside those in force, priced and limited in sum
    survival  (spare_instances = 1) for every offer k that is used (u[k] = 1, y[k] <= most u[k]): replicas z' <= z and
              shares x' that serve everything with one instance less of k; replicas may be packed anew
    zones     (spare_zones = 1) for every zone: shares x' that serve everything with the replicas z of the others
    Shares of a survival keep the limit on spot instances too.

Left out without loss: configurations that smaller replicas on the same GPUs replace (not with pool_slack or power).
Several models are taken apart by `service_plans`, with rows that whole replicas keep; many periods by `hours`, `day`
and `switching`.

Continuous shares make this small: counts are the only integers. Slicing the demand (Mélange) approximates them from
above; see `melange`. Ignored: start-up time of instances, requests that are not yet known, interference of sizes on one
replica beyond added loads.

Reference: Griffin et al., Mélange, arXiv 2404.14527, for buckets and loads.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import numpy.typing as npt

from formulations.backends.linear import IntArray as Columns
from formulations.backends.linear import LinearBuilder
from formulations.gpu_fleet.columns import Entries, FleetModel, PeriodColumns, Routing
from formulations.gpu_fleet.dominance import needless_configs
from formulations.gpu_fleet.handovers import add_handovers
from formulations.gpu_fleet.pools import replicas_for, tangents
from formulations.gpu_fleet.problem import BoolArray, FleetProblem, FloatArray
from formulations.gpu_fleet.stages import STAGES, has_role, network_need

#: Instances of one offer that no plan needs more of, where its own bound is not smaller.
MOST_INSTANCES = 1e6
#: Replicas of a load that is near to a solver's tolerance (1e-6).
SMALL_LOAD = 1e-3


class FleetBuilder:
    """Builds the rows of some periods.

    relaxed : a family whose limits get a priced slack (see `explain`); unserved : demand may be left out, unpriced.
    most : instances of each offer at most, where these periods are not all that count, [K]. tight : shares need a
    replica (`running`) wherever they take less than one, which makes the relaxation of few replicas much better.
    """

    def __init__(
        self,
        problem: FleetProblem,
        periods: tuple[int, ...],
        relaxed: str | None = None,
        unserved: bool = False,
        most: FloatArray | None = None,
        tight: bool = False,
    ) -> None:
        self.problem, self.periods, self.relaxed, self.unserved = problem, periods, relaxed, unserved
        self.builder = LinearBuilder()
        self.slack: Columns = np.zeros(0, dtype=np.int64)
        self.share = problem.share[list(periods)] / problem.share[list(periods)].sum()
        self.needless = needless_configs(problem)
        self.most = self._most_useful() if most is None else most
        #: By family (starts, stops) and step: the rows of each offer that is not reserved, and that of their limit.
        self.step_rows: dict[tuple[str, int], tuple[Columns, int | None]] = {}
        self.packing_rows: list[range] = []
        #: Columns of the room of pools, by configuration.
        self.room_columns: list[tuple[int, Columns]] = []
        self.tight = tight

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
        self._switching(columns)
        return FleetModel(self.builder.build(), self.periods, tuple(columns), tuple(self.packing_rows), changed)

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
        needed = needed / problem.availability[problem.config_pool]
        if problem.slack is not None:
            needed = np.array([replicas_for(*pair) for pair in zip(problem.slack, needed, strict=True)], dtype=float)
        for period in self.periods:
            carried = network_need(problem, period) / problem.availability[problem.config_pool]
            needed = np.maximum(needed, carried)
        replicas = np.maximum(np.ceil(needed - 1e-9), needed > 0)
        by_pool = np.bincount(
            problem.config_pool, weights=replicas * problem.config_gpus, minlength=len(problem.availability)
        )
        least_replicas = float((problem.min_replicas * max(8, problem.whole.max(initial=0))).sum())
        useful = by_pool[problem.pool_of_offer] + least_replicas + problem.spare_instances
        kept = 0 if problem.current is None else problem.current
        useful = np.maximum(np.minimum(useful, MOST_INSTANCES), np.maximum(problem.least, kept))
        return useful if self.relaxed == "max_count" else np.asarray(np.minimum(problem.most, useful))

    def _period(self, period: int, y: Columns) -> PeriodColumns:
        problem, builder = self.problem, self.builder
        z = builder.variables((problem.num_configs,), upper=self._replica_bound(), integer=True)
        asked = np.flatnonzero(problem.rate[period] > 0)
        u = builder.variables((asked.size * self.unserved,))
        room = self._room(z)
        every = np.ones(problem.num_configs, dtype=np.bool_)
        routing = self._route(period, z, room, u, every)
        self.packing_rows.append(self._packing(z, y, None))
        self._limits(period, y, z, routing)
        self._moves(z)
        lost: dict[int, tuple[Columns, Routing]] = {}
        if problem.spare_instances:
            used = builder.variables((problem.num_offers,), integer=True)
            # y <= most u: an offer that is used has an instance to lose.
            builder.rows(-np.inf, 0.0, (y[:, None], 1.0), (used[:, None], -self.most[:, None]))
            for offer in np.flatnonzero(self.most > 0).tolist():
                kept = builder.variables((problem.num_configs,), upper=self._replica_bound(), integer=True)
                builder.rows(-np.inf, 0.0, (kept[:, None], 1.0), (z[:, None], -1.0))
                lost[offer] = kept, self._route(period, kept, self._room(kept), u, every)
                self._packing(kept, y, (offer, int(used[offer])))
        lost_zone = {
            zone: self._route(period, z, room, u, problem.zone_of_config != zone)
            for zone in range(len(problem.zone_names))
        }
        return PeriodColumns(y, z, u, asked, routing, lost, lost_zone)

    def _route(self, period: int, z: Columns, room: list[Entries], u: Columns, there: BoolArray) -> Routing:
        """Everything, or all but u, is served by the replicas z of the configurations that are there, [C]."""
        problem = self.problem
        load = self.load(period)
        bucket, config = np.nonzero(np.isfinite(load) & there & (problem.rate[period] > 0)[:, None])
        x = self.builder.variables((bucket.size,))
        begins = has_role(problem, STAGES["prefill"])[config]
        self._serve(period, bucket[begins], x[begins], u)
        flows = add_handovers(problem, self.builder, period, bucket, config, x, z)
        self._capacity(load, bucket, config, x, z, room)
        self._spot(period, bucket, config, x, u)
        return Routing(x, bucket, config, flows)

    def _replica_bound(self) -> FloatArray:
        """Replicas that fit on all instances of the pool."""
        return self.problem.room(self.most)

    def _serve(self, period: int, bucket: Columns, x: Columns, u: Columns) -> None:
        asked = np.flatnonzero(self.problem.rate[period] > 0)
        place = np.searchsorted(asked, bucket)
        entries = [(place, x, 1.0), (np.arange(u.size), u, 1.0)]
        if self.relaxed == "demand":
            rate = self.problem.rate[period][asked]
            left = self._slacks(asked.size, 1.0, rate / rate.sum() * self.problem.share[period])
            entries.append((np.arange(asked.size), left, 1.0))
        self.builder.sparse_rows(np.ones(asked.size), 1.0, *entries)

    def _room(self, z: Columns) -> list[Entries]:
        """What replicas may carry: entries by configuration, negative."""
        problem, builder = self.problem, self.builder
        there = problem.availability[problem.config_pool]
        if problem.slack is None:
            return [(np.arange(z.size), z, -there)]
        entries: list[Entries] = []
        for config, (slack, most) in enumerate(zip(problem.slack, self._replica_bound(), strict=True)):
            slope, start = tangents(slack, most)
            within = builder.variables((slope.size,), upper=most)
            chosen = builder.variables((slope.size,), integer=True)
            self.room_columns += [(config, within), (config, chosen)]
            builder.sparse_rows([0.0], 0.0, (0, within, 1.0), (0, z[config], -1.0))
            builder.rows(-np.inf, 0.0, (within[:, None], 1.0), (chosen[:, None], -most))
            builder.sparse_rows([-np.inf], 1.0, (0, chosen, 1.0))
            entries += [(config, within, -there[config] * slope), (config, chosen, -there[config] * start)]
        return entries

    def _capacity(
        self, load: FloatArray, bucket: Columns, config: Columns, x: Columns, z: Columns, room: list[Entries]
    ) -> None:
        none = np.full(self.problem.num_configs, -np.inf)
        self.builder.sparse_rows(none, 0.0, (config, x, load[bucket, config]), *room)
        least = self.problem.availability[self.problem.config_pool[config]] if self.tight else SMALL_LOAD
        small = np.flatnonzero(load[bucket, config] < least)
        if small.size:
            self.builder.rows(-np.inf, 0.0, (x[small][:, None], 1.0), (z[config[small]][:, None], -1.0))

    def _packing(self, z: Columns, y: Columns, lost: tuple[int, int] | None) -> range:
        """The rows made, of both families.

        lost : the offer that has one instance less, and the column that says whether it is used at all.
        """
        problem, first = self.problem, self.builder.num_rows
        for pool in range(len(problem.availability)):
            inside = np.where(problem.pool_of_offer == pool, problem.gpus, 0)
            for size in problem.sizes(pool).tolist():
                self._fits(z, problem.slots(pool, size), y, size * (inside // size), lost)
        whole = problem.whole
        for offer in np.flatnonzero(whole.any(axis=0)).tolist():
            self._fits(z, whole[:, offer], y, np.eye(problem.num_offers)[offer], lost)
        return range(first, self.builder.num_rows)

    def _fits(
        self, z: Columns, taken: npt.ArrayLike, y: Columns, room: npt.ArrayLike, lost: tuple[int, int] | None
    ) -> None:
        """One row, taken @ z <= room @ y, less the room of a lost instance."""
        terms: list[Entries] = [(0, z, taken), (0, y, -np.asarray(room, dtype=np.float64))]
        if lost is not None:
            terms.append((0, lost[1], float(np.asarray(room)[lost[0]])))
        self.builder.sparse_rows([-np.inf], 0.0, *terms)

    def _limits(self, period: int, y: Columns, z: Columns, routing: Routing) -> None:
        problem = self.problem
        if np.isfinite(problem.budget_usd_per_hour):
            self._limit("budget", y, problem.price, problem.budget_usd_per_hour)
        if np.isfinite(problem.max_watts):
            self._watts(period, y, z, routing)
        for mask, most in zip(problem.quota_offers, problem.quota_gpus, strict=True):
            self._limit("quota", y[mask], problem.gpus[mask].astype(np.float64), float(most))
        for model, least in enumerate(problem.min_replicas):
            if least:
                own = z[problem.config_model == model]
                self.builder.sparse_rows([float(least)], np.inf, (0, own, 1.0))

    def _watts(self, period: int, y: Columns, z: Columns, routing: Routing) -> None:
        """What instances could draw, or what they are expected to, with its margin."""
        problem, draw = self.problem, self.problem.draw
        if draw is None:
            self._limit("watts", y, problem.watts, problem.max_watts)
            return
        joules = problem.needed(period)[routing.bucket] * draw.joules[routing.bucket, routing.config]
        each = np.concatenate([draw.idle, draw.running, joules]) / (1 - problem.watt_margin)
        self._limit("watts", np.concatenate([y, z, routing.x]), each, problem.max_watts)

    def _spot(self, period: int, bucket: Columns, config: Columns, x: Columns, u: Columns) -> None:
        """The share of each model's served requests on spot instances; the limit and its slack are shares of all."""
        problem, rate = self.problem, self.problem.rate[period]
        if problem.max_spot_share == 1.0:
            return
        on_spot = problem.spot[problem.config_pool[config]]
        # Stages that the same roles do are one limit.
        stages = list(STAGES.values()) if problem.config_role.any() else [STAGES["prefill"]]
        for model, roles in product(range(len(problem.model_names)), stages):
            own = on_spot & (problem.bucket_model[bucket] == model) & has_role(problem, roles)[config]
            if not own.any():
                continue
            total = rate[problem.bucket_model == model].sum()
            columns, share = x[own], rate[bucket[own]] / total
            if u.size:
                # Of what is served: what is left out of the model counts for nobody.
                asked = np.flatnonzero(rate > 0)
                left = problem.bucket_model[asked] == model
                columns = np.concatenate([columns, u[left]])
                share = np.concatenate([share, problem.max_spot_share * rate[asked[left]] / total])
            self._limit("spot share", columns, share, problem.max_spot_share)

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

    def _switching(self, columns: list[PeriodColumns]) -> None:
        """Instances that are started and stopped from one hour to the next: no more are bought than needed."""
        problem = self.problem
        moving = np.flatnonzero(~problem.reserved)
        place = {period: index for index, period in enumerate(self.periods)}
        price = np.zeros(problem.num_offers) if problem.start_cost is None else problem.start_cost
        price = price[moving] / problem.num_periods * (self.relaxed is None)
        for step, (before, after) in enumerate(problem.steps):
            if before not in place or after not in place:
                continue
            old, new = (columns[place[period]].y[moving] for period in (before, after))
            for most, family, left, right in (
                (problem.max_starts, "starts", old, new), (problem.max_stops, "stops", new, old)
            ):  # fmt: skip
                cost = price if family == "starts" else np.zeros(moving.size)
                if most is None and not cost.any():
                    continue
                moved = self.builder.variables((moving.size,), upper=self.most[moving], cost=cost)
                rows = np.arange(self.builder.num_rows, self.builder.num_rows + moving.size)
                self.builder.rows(0.0, np.inf, (moved[:, None], 1.0), (right[:, None], -1.0), (left[:, None], 1.0))
                limit = None
                if most is not None:
                    limit = self.builder.num_rows
                    self._limit(family, moved, np.ones(moved.size), float(most))
                self.step_rows[family, step] = rows, limit

    def _moves(self, z: Columns) -> None:
        """Replicas that are started beside those in force."""
        problem = self.problem
        if problem.running is None:
            return
        price = np.zeros(z.size) if problem.move_cost is None else problem.move_cost * (self.relaxed is None)
        started = self.builder.variables((z.size,), upper=self._replica_bound(), cost=price)
        self.builder.rows(-problem.running.astype(float), np.inf, (started[:, None], 1.0), (z[:, None], -1.0))
        if problem.max_moves is not None:
            self._limit("moves", started, np.ones(z.size), float(problem.max_moves))

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
