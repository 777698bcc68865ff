"""From the deployment in force to the plan, in steps that leave no less served than before, if enough can be lent.

In a step, workers start whose devices are free; then workers stop that the plan does not have, as long as what runs
serves enough. Enough is the whole demand, or what the deployment in force serves of it where that is less. What serves
how much of a service's demand, in all sizes and roles, is a small linear program:

    max theta <= 1 :  sum of flows of each size = theta x rate in every stage,  sum_b flow / throughput <= workers

Where no worker can stop so, nodes are rented for the time of the change, and workers of the service that stands in the
way start there; where too few can be lent, the worker stops whose loss is smallest, and the step says what is served.
The walk is greedy: another order may do with fewer loans. Budget, power and quotas are not looked at on the way.
What ran on nodes that are gone serves nothing; it stops first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from formulations.backends.linear import LinearBuilder
from formulations.backends.relaxation import Relaxation, relax
from formulations.deployment.placing import Placed, workers_in
from formulations.deployment.problem import Named
from formulations.gpu_fleet.problem import FleetProblem
from formulations.gpu_fleet.stages import STAGES
from planner.deploy_plan import Change, DeployedNodes, DeployedPod, DeployedWorkers, Step

#: Seconds for one small linear program, and what rounding may take of a share.
SHARE_S, ROUNDING = 5.0, 1e-6


class Served:
    """Shares of the demand that sets of workers serve; each set is asked once."""

    def __init__(self, fleet: FleetProblem, kinds: Iterable[DeployedWorkers]) -> None:
        self.fleet = fleet
        self.kinds: dict[Named, DeployedWorkers] = {(one.service, one.worker): one for one in kinds}
        self.known: dict[tuple[str, frozenset[tuple[str, int]]], float] = {}
        self.services = [
            name for m, name in enumerate(fleet.model_names) if fleet.rate[0, fleet.bucket_model == m].any()
        ]

    def share(self, service: str, workers: Mapping[str, int]) -> float:
        """Of a service's demand, headroom included, by so many workers of each name."""
        key = service, frozenset((name, count) for name, count in workers.items() if count)
        if key not in self.known:
            self.known[key] = self._share(service, dict(key[1]))
        return self.known[key]

    def _share(self, service: str, workers: Mapping[str, int]) -> float:
        fleet = self.fleet
        need = fleet.needed(0)
        buckets = np.flatnonzero((fleet.bucket_model == fleet.model_names.index(service)) & (need > 0)).tolist()
        builder = LinearBuilder()
        theta = builder.variables((1,), upper=1.0, cost=-1.0)
        flows: dict[int, list[tuple[int, str]]] = {bucket: [] for bucket in buckets}
        for name, count in sorted(workers.items()):
            kind = self.kinds[service, name]
            rates = {(one.input_tokens, one.output_tokens): one.requests_per_s for one in kind.rates}
            columns, each = [], []
            for bucket in buckets:
                rate = rates.get((int(fleet.input_tokens[bucket]), int(fleet.output_tokens[bucket])), 0.0)
                if rate > 0:
                    (column,) = builder.variables((1,), upper=np.inf).tolist()
                    flows[bucket].append((column, kind.role))
                    columns.append(column)
                    each.append(1.0 / rate)
            if columns:
                builder.sparse_rows([-np.inf], float(count), (0, np.array(columns), np.array(each)))
        for bucket, made in flows.items():
            for roles in STAGES.values():
                does = np.array([column for column, role in made if role in roles], dtype=np.int64)
                builder.sparse_rows([0.0], 0.0, (0, does, 1.0), (0, theta, -need[bucket]))
        found = relax(builder.build(), SHARE_S)
        return min(1.0, -found.objective) if isinstance(found, Relaxation) else 0.0

    def worst(self, running: Iterable[Placed]) -> float:
        """Of the demand of the service that is served worst."""
        counts: dict[str, Counter[str]] = {service: Counter() for service in self.services}
        for one in running:
            if one.service in counts:
                counts[one.service][one.worker] += 1
        return min((self.share(service, workers) for service, workers in counts.items()), default=1.0)


@dataclass(slots=True)
class _State:
    """Workers that run, by name, and the devices that each node's workers hold."""

    running: dict[str, Placed] = field(default_factory=dict)
    held: dict[str, set[int]] = field(default_factory=dict)

    def start(self, one: Placed) -> None:
        self.running[one.name] = one
        for node, devices in one.places:
            self.held.setdefault(node, set()).update(devices)

    def stop(self, one: Placed) -> None:
        del self.running[one.name]
        for node, devices in one.places:
            self.held[node].difference_update(devices)

    def has_room(self, one: Placed) -> bool:
        return all(self.held.get(node, set()).isdisjoint(devices) for node, devices in one.places)


@dataclass(frozen=True, slots=True)
class Lender:
    """An offer of which more nodes may be rented, and the workers that one of them can host, by their GPUs."""

    offer: str
    more: float
    hosts: Mapping[Named, int]


class _Way:
    """The greedy walk from one set of workers to the other."""

    def __init__(self, served: Served, before: Sequence[Placed], after: Sequence[Placed], lenders: Sequence[Lender]):
        self.served, self.lenders = served, lenders
        self.more = {one.offer: one.more for one in lenders}
        self.state = _State()
        for one in before:
            self.state.start(one)
        old, new = ({one.name: one for one in side} for side in (before, after))
        self.kept = [name for name, one in new.items() if old.get(name) == one]
        self.starting = [one for name, one in new.items() if name not in self.kept]
        self.stopping = [one for name, one in old.items() if name not in self.kept]
        self.floor = {service: min(1.0, self._share(service)) for service in served.services}
        self.least = self.before = served.worst(self.state.running.values())
        self.steps: list[Step] = []
        self.lent: list[str] = []
        self.loans: list[Placed] = []
        self.borrowing: list[Placed] = []

    def _share(self, service: str, without: str | None = None) -> float:
        if service not in self.served.services:
            return 1.0
        return self.served.share(service, self._workers(service, without))

    def _workers(self, service: str, without: str | None = None) -> Counter[str]:
        """Workers of a service that run, but for one."""
        return Counter(
            one.worker for one in self.state.running.values() if one.service == service and one.name != without
        )

    def walk(self, added: Sequence[str], dropped: Sequence[str]) -> None:
        """All steps; nodes are added in the first and dropped in the last."""
        first = tuple(added)
        while self.starting or self.stopping or self.loans:
            started = self._start()
            stopped = self._stop()
            if not started and not stopped:
                started = self._lend()
                if not started:
                    stopped = [self._give_way()]
            self._note(first, started, stopped)
            first = ()
        if first or dropped or self.lent:
            end = Step(
                add_nodes=first,
                drop_nodes=(*dropped, *self.lent),
                served=self.served.worst(self.state.running.values()),
            )
            self.steps.append(end)

    def _note(self, added: tuple[str, ...], started: Sequence[Placed], stopped: Sequence[Placed]) -> None:
        share = self.served.worst(self.state.running.values())
        self.least = min(self.least, share)
        lent = [node for one in started for node, _ in one.places if node in self.lent]
        self.steps.append(
            Step(
                add_nodes=(*added, *dict.fromkeys(lent)),
                start=tuple(pod.pod for one in started for pod in one.pods()),
                stop=tuple(pod.pod for one in stopped for pod in one.pods()),
                served=share,
            )
        )

    def _start(self) -> list[Placed]:
        found = []
        for one in list(self.starting):
            if self.state.has_room(one):
                self.state.start(one)
                self.starting.remove(one)
                found.append(one)
        return found

    def _stop(self) -> list[Placed]:
        """All that may: loans when the plan runs without them, others as long as enough is served."""
        found = []
        # Those that others wait for first.
        waiting = {(node, d) for one in self.starting for node, devices in one.places for d in devices}
        order = sorted(
            self.stopping,
            key=lambda one: (not any((node, d) in waiting for node, devices in one.places for d in devices), one.name),
        )
        for one in order:
            if self._enough_without(one):
                self.state.stop(one)
                self.stopping.remove(one)
                found.append(one)
        if not self.starting and not self.stopping:
            for one in self.loans:
                self.state.stop(one)
                found.append(one)
            self.loans.clear()
        return found

    def _enough_without(self, one: Placed) -> bool:
        if one.service not in self.floor:
            return True
        return self._share(one.service, without=one.name) >= self.floor[one.service] - ROUNDING

    def _lend(self) -> list[Placed]:
        """Workers in place of one that stands in the way, on nodes rented for the time; none where too few are lent."""
        for blocker in self._blockers():
            made = self._in_place_of(blocker)
            for lender, one in made:
                self.more[lender.offer] -= 1
                self.lent += [node for node, _ in one.places]
                self.loans.append(one)
                self.borrowing.append(one)
                self.state.start(one)
            if made:
                return [one for _, one in made]
        return []

    def _in_place_of(self, blocker: Placed) -> list[tuple[Lender, Placed]]:
        """The fewest that one by one serve the most, until the worker is not needed."""
        service = blocker.service
        counts = self._workers(service, without=blocker.name)
        more = dict(self.more)
        made: list[tuple[Lender, Placed]] = []
        share = self.served.share(service, counts)
        while share < self.floor[service] - ROUNDING:
            ways = [
                (self.served.share(service, counts + Counter([worker])), lender, worker)
                for lender in self.lenders
                if more[lender.offer] >= 1
                for of, worker in lender.hosts
                if of == service and (of, worker) in self.served.kinds
            ]
            best, lender, worker = max(ways, key=lambda way: way[0], default=(share, None, ""))
            if lender is None or best <= share + ROUNDING:
                return []
            share = best
            counts[worker] += 1
            more[lender.offer] -= 1
            number = len(self.lent) + len(made) + 1
            devices = tuple(range(lender.hosts[service, worker]))
            places = ((f"{lender.offer}-lent-{number}", devices),)
            made.append((lender, Placed(f"{blocker.name}-lent-{number}", service, worker, places)))
        return made

    def _blockers(self) -> list[Placed]:
        """Workers to stop on devices that others wait for."""
        waiting = {(node, d) for one in self.starting for node, devices in one.places for d in devices}
        return [
            one for one in self.stopping if any((node, d) in waiting for node, devices in one.places for d in devices)
        ] or self.stopping

    def _give_way(self) -> Placed:
        """The worker whose stop costs least of what is served."""
        found = max(self._blockers(), key=lambda one: (self._share(one.service, without=one.name), one.name))
        self.state.stop(found)
        self.stopping.remove(found)
        return found


def change(
    fleet: FleetProblem,
    before: tuple[Sequence[DeployedNodes], Sequence[DeployedPod]],
    after: tuple[Sequence[DeployedNodes], Sequence[DeployedPod]],
    kinds: Iterable[DeployedWorkers],
    lenders: Sequence[Lender],
    there: Mapping[str, frozenset[int]],
) -> Change:
    """Steps from one set of nodes and pods to another.

    kinds : of all workers of both. there : devices by node that those in force may still have.
    """
    old, new = workers_in(before[1]), workers_in(after[1])
    gone = [one for one in old if not all(there.get(node, frozenset()).issuperset(d) for node, d in one.places)]
    way = _Way(Served(fleet, kinds), [one for one in old if one not in gone], new, lenders)
    rented = [[name for row in side[0] if row.offer is not None for name in row.names] for side in (before, after)]
    added = [name for name in rented[1] if name not in rented[0]]
    dropped = [name for name in rented[0] if name not in rented[1]]
    kept, started, stopping = len(way.kept), len(way.starting), [*gone, *way.stopping]
    if gone:
        way.steps.append(Step(stop=tuple(pod.pod for one in gone for pod in one.pods()), served=way.before))
    way.walk(added, dropped)
    return Change(
        kept=kept,
        started=started,
        stopped=len(stopping),
        steps=tuple(way.steps),
        lent_nodes=tuple(way.lent),
        served_before=way.before,
        served_least=way.least,
        pods=tuple(pod for one in (*stopping, *way.borrowing) for pod in one.pods()),
        lent=tuple(way.served.kinds[what] for what in dict.fromkeys((o.service, o.worker) for o in way.borrowing)),
    )
