"""Every rule of a fleet plan, from its decisions alone; numpy, no solver."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from formulations.gpu_fleet.check_flows import ROUNDING, broken, check_flows
from formulations.gpu_fleet.pools import capacity
from formulations.gpu_fleet.power import drawn
from formulations.gpu_fleet.problem import FleetProblem, FloatArray
from formulations.gpu_fleet.rows import Rows, in_order, instance_counts, on_spot, started_replicas
from formulations.gpu_fleet.stages import STAGES
from planner.cost.verdict import Violation
from planner.fleet_plan import Allocation, Assignment, FleetPlan, Period, Replicas

#: Offer and configuration of replicas.
Key = tuple[int, int]


def check(problem: FleetProblem, plan: FleetPlan) -> list[Violation]:
    """Broken rules of all periods; an empty list for a plan that keeps them all."""
    hours = [hour for period in plan.periods for hour in period.hours]
    asked = [hour for hours_of in problem.hours for hour in hours_of]
    if sorted(hours) != sorted(asked) or len(plan.periods) != problem.num_periods:
        return [broken("hours", "plan", "the periods of the plan are not the hours of the demand")]
    place = {hours_of: index for index, hours_of in enumerate(problem.hours)}
    found: list[Violation] = []
    for period in plan.periods:
        if period.hours not in place:
            return [broken("hours", "plan", f"hours {period.hours[:3]} ... are no period of the demand")]
        found += _PeriodCheck(problem, place[period.hours], period).violations()
    found += _across(problem, plan)
    return found


class _PeriodCheck:
    """The rules of one period."""

    def __init__(self, problem: FleetProblem, index: int, period: Period) -> None:
        self.problem, self.index, self.period = problem, index, period
        self.known = Rows(problem)
        self.offers, self.models = self.known.offers, self.known.models
        self.where = f"hours {period.hours[0]} ..." if len(period.hours) > 1 else f"hour {period.hours[0]}"

    def violations(self) -> list[Violation]:
        unknown = list(self._unknown())
        if unknown:
            return unknown
        counts = self._instances()
        found = [*self._packing(self.period.replicas, counts, ""), *self._limits(counts)]
        found += self._serving(self.period.assignment, self.period.replicas, "")
        found += check_flows(self.problem, self.index, self.period, self.where)
        found += self._survival(counts)
        return [*found, *self._left_out()]

    def _unknown(self) -> Iterator[Violation]:
        rows: list[Allocation | Replicas | Assignment] = [
            *self.period.allocation,
            *self.period.replicas,
            *self.period.assignment,
        ]
        for left in self.period.unserved:
            name = f"{left.model} {left.input_tokens}/{left.output_tokens}"
            if not self.known.has_bucket(left):
                yield broken("assignment", name, f"{name} is unknown")
        for survival in self.period.survival:
            rows += [*survival.replicas, *survival.assignment]
            if (survival.lost_offer is None) == (survival.lost_zone is None):
                yield broken("offer", "survival", "either the offer or the zone that is lost must be named")
            elif survival.lost_offer is not None and survival.lost_offer not in self.offers:
                yield broken("offer", survival.lost_offer, f"there is no offer {survival.lost_offer!r}")
            elif survival.lost_zone is not None and survival.lost_zone not in self.problem.zone_names:
                yield broken("offer", survival.lost_zone, f"there is no zone {survival.lost_zone!r}")
        for row in rows:
            if row.offer not in self.offers:
                yield broken("offer", row.offer, f"there is no offer {row.offer!r}")
            elif row.model is not None and row.model not in self.models:
                yield broken("model", row.model, f"there is no model {row.model!r}")
            elif isinstance(row, Assignment) and not self.known.has_bucket(row):
                yield broken("assignment", row.offer, f"{row.model} {row.input_tokens}/{row.output_tokens} is unknown")
            elif not isinstance(row, Allocation) and not self.known.has_config(row):
                role = "" if row.role == "both" else f" for {row.role}"
                message = f"{row.model} has no replica of {row.gpus} GPUs{role} on {row.offer}"
                yield broken("configuration", row.offer, message)

    def _instances(self) -> FloatArray:
        counts = np.zeros(self.problem.num_offers)
        for row in self.period.allocation:
            counts[self.offers[row.offer]] += row.count
        return counts

    def _packing(self, replicas: Sequence[Replicas], counts: FloatArray, when: str) -> Iterator[Violation]:
        """Replicas of every size fit: sizes divide one another, so counting from the largest down is exact."""
        hosted: dict[int, Counter[int]] = defaultdict(Counter)
        free = counts.copy()
        for row in replicas:
            offer = self.offers[row.offer]
            if row.gpus > self.problem.gpus[offer]:
                # It takes whole instances, which nothing shares.
                free[offer] -= row.count * (row.gpus // self.problem.gpus[offer])
            else:
                hosted[offer][row.gpus] += row.count
        for offer in np.flatnonzero(free < 0).tolist():
            name, there = self.problem.offer_names[offer], counts[offer]
            message = f"{self.where}{when}: replicas take {there - free[offer]:g} whole {name}, {there:g} are there"
            yield broken("packing", name, message, float(there - free[offer]), float(there))
        for offer, sizes in hosted.items():
            chain = sorted(sizes)
            if any(large % small for small, large in pairwise(chain)):
                yield broken("packing", self.problem.offer_names[offer], f"replicas of {chain} GPUs do not divide")
                continue
            for size in chain:
                need = sum(gpus * count for gpus, count in sizes.items() if gpus >= size)
                room = max(0.0, free[offer]) * size * (self.problem.gpus[offer] // size)
                if need > room:
                    message = (
                        f"{self.where}{when}: replicas of {size} and more GPUs take {need} GPUs of"
                        f" {self.problem.offer_names[offer]}, {room:g} are free"
                    )
                    yield broken("packing", self.problem.offer_names[offer], message, need, room)

    def _left(self) -> FloatArray:
        """Share of each bucket that the plan says is unserved, [D]."""
        left = np.zeros(len(self.problem.bucket_model))
        for row in self.period.unserved:
            left[self.known.bucket(row)] += row.fraction
        return left

    def _left_out(self) -> Iterator[Violation]:
        """Unserved demand is allowed, and told with its priority, its rate and a reason."""
        for row in self.period.unserved:
            bucket = self.known.bucket(row)
            name = self.problem.bucket_name(bucket)
            rate = float(self.problem.rate[self.index, bucket]) * row.fraction
            if not self.problem.leave_unserved:
                yield broken(
                    "unserved", name, f"{self.where}: {row.fraction:.4%} of {name} is unserved", row.fraction, 0
                )
            if row.priority != self.problem.priority[bucket]:
                message = f"{self.where}: {name} has priority {self.problem.priority[bucket]}, not {row.priority}"
                yield broken("unserved", name, message)
            if abs(row.rate_per_s - rate) > ROUNDING * max(1.0, rate):
                message = f"{self.where}: {row.rate_per_s:.9g} requests/s of {name} are told unserved, it is {rate:.9g}"
                yield broken("unserved", name, message, row.rate_per_s, rate)
            if not row.limits:
                yield broken("unserved", name, f"{self.where}: nothing is said of why {name} is unserved")

    def _serving(self, rows: Sequence[Assignment], replicas: Sequence[Replicas], when: str) -> Iterator[Violation]:
        problem = self.problem
        rate, needed = problem.rate[self.index], problem.needed(self.index)
        left = self._left()
        served = np.zeros((len(STAGES), len(rate)))
        load: dict[Key, float] = defaultdict(float)
        for row in rows:
            bucket, config = self.known.bucket(row), self.known.config(row)
            if problem.throughput[bucket, config] <= 0:
                message = f"{row.offer} cannot serve {problem.bucket_name(bucket)} within the SLO"
                yield broken("slo", row.offer, message)
                continue
            served[[row.role in roles for roles in STAGES.values()], bucket] += row.fraction
            load[self.offers[row.offer], config] += needed[bucket] * row.fraction / problem.throughput[bucket, config]
        for asked in np.flatnonzero(rate > 0).tolist():
            wrong = np.flatnonzero(np.abs(served[:, asked] + left[asked] - 1) > ROUNDING)
            if wrong.size:
                name = problem.bucket_name(asked)
                told = f", {left[asked]:.4%} is told unserved" if left[asked] else ""
                share = float(served[wrong[0], asked])
                stage = f" ({list(STAGES)[wrong[0]]})" if problem.config_role.any() else ""
                message = f"{self.where}{when}: {share:.4%} of {name} is served{stage}{told}"
                yield broken("demand", name, message, share, float(1.0 - left[asked]))
        have: Counter[Key] = Counter()
        for replica in replicas:
            have[self.offers[replica.offer], self.known.config(replica)] += replica.count
        if problem.slack is not None:
            yield from self._pools(load, have, when)
        for (offer, config), need in load.items():
            room = have[offer, config] * problem.availability[problem.pool_of_offer[offer]]
            if need > room * (1 + ROUNDING) + ROUNDING:
                name = problem.offer_names[offer]
                model = problem.model_names[problem.config_model[config]]
                message = f"{self.where}{when}: {model} needs {need:.4f} replicas on {name}, {room:g} run"
                yield broken("capacity", name, message, need, room)

    def _pools(self, load: dict[Key, float], have: Counter[Key], when: str) -> Iterator[Violation]:
        """Offers of one kind hold one pool of replicas; its room is less than their number."""
        problem = self.problem
        assert problem.slack is not None
        pool_load: Counter[int] = Counter()
        pool_have: Counter[int] = Counter()
        for offer, config in load | have:
            pool_load[config] += load.get((offer, config), 0.0)  # type: ignore[assignment]
            pool_have[config] += have[offer, config]
        for config, need in pool_load.items():
            pool = problem.config_pool[config]
            room = problem.availability[pool] * capacity(float(problem.slack[config]), pool_have[config])
            if need > room * (1 + ROUNDING) + ROUNDING:
                model = problem.model_names[problem.config_model[config]]
                name = problem.offer_names[int(np.flatnonzero(problem.pool_of_offer == pool)[0])]
                message = (
                    f"{self.where}{when}: {model} brings a load of {need:.4f} replicas to {name}, {pool_have[config]}"
                    f" may carry {room:.4f}"
                )
                yield broken("pool_slack", name, message, need, room)

    def _limits(self, counts: FloatArray) -> Iterator[Violation]:
        problem = self.problem
        for offer in np.flatnonzero((counts > problem.most) | (counts < problem.least)):
            name, count = problem.offer_names[offer], counts[offer]
            limit = problem.most[offer] if count > problem.most[offer] else problem.least[offer]
            yield broken("count", name, f"{self.where}: {count:g} of {name}, the limit is {limit:g}", count, limit)
        sums: list[tuple[str, str, float, float]] = [
            ("budget", "USD/hour", float(counts @ problem.price), problem.budget_usd_per_hour),
            ("watts", "W", self._watts(counts), problem.max_watts * (1 - problem.watt_margin)),
        ]
        quotas = zip(problem.quota_names, problem.quota_offers, problem.quota_gpus, strict=True)
        sums += [(f"quota {name}", "GPUs", counts[mask] @ problem.gpus[mask], limit) for name, mask, limit in quotas]
        for rule, unit, value, limit in sums:
            if value > limit * (1 + ROUNDING):
                message = f"{self.where}: {value:g} {unit}, the limit is {limit:g}"
                yield broken(rule, rule, message, float(value), float(limit))
        running: Counter[str] = Counter()
        for row in self.period.replicas:
            running[row.model] += row.count
        for name, least in zip(problem.model_names, problem.min_replicas, strict=True):
            if running[name] < least:
                yield broken(
                    "min_replicas", name, f"{running[name]} replicas of {name}, {least} are asked", running[name], least
                )
        yield from self._spot(self.period.assignment, "")

    def _watts(self, counts: FloatArray) -> float:
        """What the cap is filled by."""
        problem = self.problem
        return float(counts @ problem.watts) if problem.draw is None else drawn(problem, self.period).expected

    def _spot(self, rows: Sequence[Assignment], when: str) -> Iterator[Violation]:
        problem, rate = self.problem, self.problem.rate[self.index]
        served = rate * (1 - self._left())
        spot = on_spot(problem, self.index, rows)
        for model, name in enumerate(problem.model_names):
            total = served[problem.bucket_model == model].sum()
            if spot[model] > problem.max_spot_share * total * (1 + ROUNDING) + ROUNDING:
                share = spot[model] / total if total else 1.0
                limit = f"{problem.max_spot_share:.1%} is the limit"
                message = f"{self.where}{when}: {share:.1%} of {name} is on spot, {limit}"
                yield broken("max_spot_share", name, message, float(share), problem.max_spot_share)

    def _survival(self, counts: FloatArray) -> Iterator[Violation]:
        problem = self.problem
        told = {(one.lost_offer, one.lost_zone): one for one in self.period.survival}
        losses: list[tuple[str, str, str, FloatArray]] = []
        if problem.spare_instances:
            each = np.eye(problem.num_offers)
            losses += [
                ("spare_instances", problem.offer_names[offer], "one ", counts - each[offer])
                for offer in np.flatnonzero(counts)
            ]
        for zone, name in enumerate(problem.zone_names):
            left = np.where(problem.zone_of_offer == zone, 0.0, counts)
            if (left < counts).any():
                losses.append(("spare_zones", name, "zone ", left))
        for rule, name, what, left in losses:
            survival = told.get((name, None) if rule == "spare_instances" else (None, name))
            if survival is None:
                yield broken(rule, name, f"{self.where}: nothing is said of the loss of {what}{name}")
                continue
            when = f", {what}{name} lost"
            yield from self._packing(survival.replicas, left, when)
            yield from self._serving(survival.assignment, survival.replicas, when)
            yield from check_flows(problem, self.index, survival, self.where + when)
            yield from self._spot(survival.assignment, when)
            before, after = self._by_config(self.period.replicas), self._by_config(survival.replicas)
            for config in after - before:
                model, gpus = problem.model_names[problem.config_model[config]], problem.config_gpus[config]
                yield broken(rule, name, f"{self.where}{when}: {model} gains replicas of {gpus} GPUs")

    def _by_config(self, replicas: Sequence[Replicas]) -> Counter[int]:
        """Replicas by configuration: inside a pool one may stand in for another."""
        found: Counter[int] = Counter()
        for row in replicas:
            found[self.known.config(row)] += row.count
        return found


def _across(problem: FleetProblem, plan: FleetPlan) -> Iterator[Violation]:
    """Rules that tie the periods: reserved instances stay, changes are limited, cost is the mean."""
    counts = instance_counts(problem, plan)
    for offer in np.flatnonzero(problem.reserved & (counts.max(axis=0) != counts.min(axis=0))):
        name = problem.offer_names[offer]
        yield broken("reserved", name, f"{name} is reserved, but its count changes from hour to hour")
    order = in_order(problem, plan)
    for before, after in problem.steps:
        moved = counts[order[after]] - counts[order[before]]
        for rule, most, number in (
            ("max_starts", problem.max_starts, np.maximum(moved, 0).sum()),
            ("max_stops", problem.max_stops, np.maximum(-moved, 0).sum()),
        ):
            if most is not None and number > most:
                what = {"max_starts": "started", "max_stops": "stopped"}[rule]
                message = f"{number:g} instances are {what} before hour {after}, {most} are allowed"
                yield broken(rule, "fleet", message, float(number), float(most))
    if problem.current is not None and problem.max_changes is not None:
        changed = float(np.abs(counts[0] - problem.current).sum())
        if changed > problem.max_changes:
            message = f"{changed:g} instances are added or dropped, {problem.max_changes} are allowed"
            yield broken("max_changes", "fleet", message, changed, float(problem.max_changes))
    if problem.running is not None and problem.max_moves is not None:
        started = float(started_replicas(problem, plan).sum())
        if started > problem.max_moves:
            message = f"{started:g} replicas are started beside those in force, {problem.max_moves} are allowed"
            yield broken("max_moves", "fleet", message, started, float(problem.max_moves))
    yield from _told(problem, plan, counts)


def _told(problem: FleetProblem, plan: FleetPlan, counts: FloatArray) -> Iterator[Violation]:
    """What the plan says of itself follows from its counts: costs, changes, and the busiest period on top."""
    cost = counts @ problem.price
    share = dict(zip(problem.hours, problem.share.tolist(), strict=True))
    mean = sum(share[period.hours] * value for period, value in zip(plan.periods, cost.tolist(), strict=True))
    said = [(period.cost_usd_per_hour, value) for period, value in zip(plan.periods, cost.tolist(), strict=True)]
    for told, value in [*said, (plan.cost_usd_per_hour, mean)]:
        if abs(told - value) > ROUNDING * max(1.0, value):
            message = f"a cost of {told:.9g} USD/hour is told, it is {value:.9g}"
            yield broken("cost", "fleet", message, told, value)
    if all((plan.allocation, plan.assignment) != (one.allocation, one.assignment) for one in plan.periods):
        yield broken("summary", "fleet", "allocation and assignment of the plan are those of no period")
    added = counts[0] - (counts[0] if problem.current is None else problem.current)
    changes = {name: n for name, n in zip(problem.offer_names, added.tolist(), strict=True) if n}
    changed = float(np.abs(added).sum())
    order = in_order(problem, plan)
    goal = mean + problem.change_cost * changed + problem.start_usd_per_hour(counts[order])
    if problem.move_cost is not None:
        goal += float(problem.move_cost @ started_replicas(problem, plan))
    yield from _told_tiers(problem, plan, goal, changed)
    if changes != (plan.changes or {}):
        yield broken("changes", "fleet", f"changes {plan.changes} are told, which are not those of the counts")


def _told_tiers(problem: FleetProblem, plan: FleetPlan, cost: float, changed: float) -> Iterator[Violation]:
    """Goals have the values that follow from the plan, and no bound above them."""
    share = dict(zip(problem.hours, problem.share.tolist(), strict=True))
    values = dict.fromkeys((f"unserved, priority {priority}" for priority in problem.tiers()), 0.0)
    for period in plan.periods:
        for row in period.unserved:
            values[f"unserved, priority {row.priority}"] = (
                values.get(f"unserved, priority {row.priority}", 0.0) + share[period.hours] * row.rate_per_s
            )
    values |= {"cost": cost, "changes": changed}
    for tier in plan.tiers:
        value = values.get(tier.goal)
        if value is None:
            yield broken("tiers", tier.goal, f"there is no goal {tier.goal!r}")
        elif abs(tier.value - value) > ROUNDING * max(1.0, value):
            yield broken(
                "tiers", tier.goal, f"{tier.goal}: {tier.value:.9g} is told, it is {value:.9g}", tier.value, value
            )
        elif tier.bound is not None and tier.bound > value + ROUNDING * max(1.0, value):
            message = f"{tier.goal}: the bound {tier.bound:.9g} is above the value {value:.9g}"
            yield broken("tiers", tier.goal, message, tier.bound, value)
