"""From counts to pods: which node each worker runs on, and which of its devices.

On the nodes of one offer, workers are placed largest first, each on the first node with room: exact, as their sizes
divide one another (`gpu_fleet.packing`), whatever is taken already. Workers in force stay where they are; where what is
new has no room beside them, the nodes with the least to keep are cleared one by one. In the end nothing is kept and
everything has room, so a place is found for every plan that is right.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from formulations.deployment.problem import DeployProblem
from formulations.gpu_fleet.packing import Placer, place
from formulations.gpu_fleet.problem import FleetProblem, IntArray
from planner.deploy_plan import DeployedNodes, DeployedPod
from planner.fleet_plan import Period

#: What a worker is to its pods: its service, its name, and its GPUs.
Key = tuple[str, str, int]
#: Workers that are wanted: what they are, and the offer whose whole nodes they take, -1 for a part of any node.
Wanted = tuple[Key, int]
#: A worker's nodes, and its devices on each.
Places = tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True)
class Placed:
    """One worker: its name, and the devices that it has on each of its nodes."""

    name: str
    service: str
    worker: str
    places: Places

    @property
    def num_gpus(self) -> int:
        """Devices on all nodes."""
        return sum(len(devices) for _, devices in self.places)

    @property
    def key(self) -> Key:
        """What it is, wherever it runs."""
        return self.service, self.worker, self.num_gpus

    def pods(self) -> Iterator[DeployedPod]:
        """One pod on each node."""
        parts = len(self.places)
        names = pod_names(self.name, parts)
        for part, (name, (node, devices)) in enumerate(zip(names, self.places, strict=True)):
            yield DeployedPod(
                pod=name,
                service=self.service,
                worker=self.worker,
                node=node,
                gpus=devices,
                part=part,
                parts=parts,
            )


def workers_in(pods: Iterable[DeployedPod]) -> list[Placed]:
    """Workers of a plan's pods; those of several nodes put together again."""
    found: list[Placed] = []
    open_parts: dict[str, list[DeployedPod]] = defaultdict(list)
    for pod in pods:
        name = pod.pod if pod.parts == 1 else pod.pod.removesuffix(f"-{pod.part}")
        open_parts[name].append(pod)
        if len(open_parts[name]) == pod.parts:
            places = tuple((one.node, one.gpus) for one in open_parts.pop(name))
            found.append(Placed(name, pod.service, pod.worker, places))
    return found


def place_pods(problem: DeployProblem, period: Period) -> tuple[tuple[DeployedNodes, ...], tuple[DeployedPod, ...]]:
    """Nodes and pods of one period. Raises ValueError where workers have no room, which a right plan never makes."""
    running = [] if problem.current is None else workers_in(problem.current.pods)
    offers = problem.fleet.offer_names
    by_offer: dict[str, Counter[Wanted]] = defaultdict(Counter)
    for row in period.replicas:
        index = offers.index(row.offer)
        bound = index if row.gpus > problem.fleet.gpus[index] else -1
        by_offer[row.offer][(row.model, str(row.worker), row.gpus), bound] += row.count
    counts: Counter[str] = Counter()
    for one in period.allocation:
        counts[one.offer] += one.count
    names = _Names(name for one in running for name in (one.name, *(pod.pod for pod in one.pods())))
    nodes, pods = [], []
    for index, offer in enumerate(offers):
        if not counts[offer]:
            continue
        there = _Nodes(problem, {index: counts[offer]})
        placed = there.place(by_offer[offer], running, names)
        pods += [pod for one in placed for pod in one.pods()]
        nodes.append(there.told(index, {node for one in placed for node, _ in one.places}))
    return tuple(nodes), tuple(pods)


def near_running(problem: DeployProblem) -> Placer:
    """Puts replicas onto the offers whose nodes run them now, as far as all have room."""
    if problem.current is None:
        return place
    running = workers_in(problem.current.pods)

    def placer(
        fleet: FleetProblem, instances: IntArray, replicas: IntArray
    ) -> tuple[IntArray, list[tuple[int, frozenset[int]]]]:
        where = np.zeros((fleet.num_configs, fleet.num_offers), dtype=np.int64)
        hosts: list[tuple[int, frozenset[int]]] = []
        names = fleet.model_names
        bound = np.full(fleet.num_configs, -1) if fleet.config_offer is None else fleet.config_offer
        for pool in range(len(fleet.availability)):
            counts = {k: int(instances[k]) for k in np.flatnonzero(fleet.pool_of_offer == pool).tolist()}
            there = _Nodes(problem, counts)
            configs = {
                ((names[fleet.config_model[c]], str(fleet.worker(c)), int(fleet.config_gpus[c])), int(bound[c])): c
                for c in np.flatnonzero((fleet.config_pool == pool) & (replicas > 0)).tolist()
            }
            wanted = Counter({key: int(replicas[c]) for key, c in configs.items()})
            hosted: dict[str, set[int]] = defaultdict(set)
            for one in there.place(wanted, running, _Names(())):
                config = configs[there.wanted(one)]
                where[config, there.offer[one.places[0][0]]] += 1
                for node, _ in one.places:
                    hosted[node].add(config)
            hosts += [(k, frozenset(hosted[name])) for k in counts for name in there.chosen(k, set(hosted))]
        return where, hosts

    return placer


class _Names:
    """Names of new workers, by service and number, of which no worker and no pod in force or new has one."""

    def __init__(self, taken: Iterable[str]) -> None:
        self.taken = set(taken)
        self.next: Counter[str] = Counter()

    def new(self, service: str, parts: int) -> str:
        base = re.sub(r"[^a-z0-9]+", "-", service.lower()).strip("-")[:40] or "service"
        while True:
            self.next[base] += 1
            name = f"{base}-{self.next[base]}"
            mine = {name, *pod_names(name, parts)}
            if not mine & self.taken:
                self.taken |= mine
                return name


def pod_names(worker: str, parts: int) -> tuple[str, ...]:
    """Of a worker of so many nodes."""
    return (worker,) if parts == 1 else tuple(f"{worker}-{part}" for part in range(parts))


class _Nodes:
    """Nodes of some offers of one pool, by name, with their free devices; counts : how many of each offer may be used.

    offer : of each node.
    """

    def __init__(self, problem: DeployProblem, counts: Mapping[int, int]) -> None:
        self.problem, self.counts = problem, counts
        self.offer: dict[str, int] = {}
        self.free: dict[str, tuple[int, ...]] = {}
        for index, count in counts.items():
            for name, devices in self._of(index, count):
                self.offer[name], self.free[name] = index, devices

    def _of(self, index: int, count: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Standing nodes, those that are rented now, and new ones."""
        if index >= self.problem.num_rented:
            yield from (
                (node.name, node.devices) for node in self.problem.standing[index - self.problem.num_rented].nodes
            )
            return
        fleet, current = self.problem.fleet, self.problem.current
        offer = fleet.offer_names[index]
        rented = [] if current is None else [row for row in current.nodes if row.offer == offer]
        known = [name for row in rented for name in row.names]
        taken = {*known, *(node.name for kind in self.problem.standing for node in kind.nodes)}
        new = (name for i in itertools.count(1) if (name := f"{offer}-{i}") not in taken)
        every = [*known, *itertools.islice(new, max(0, count - len(known)))]
        yield from ((name, tuple(range(int(fleet.gpus[index])))) for name in every)

    def chosen(self, index: int, used: set[str]) -> list[str]:
        """As many nodes of an offer as may be used: those that are first."""
        mine = [name for name, offer in self.offer.items() if offer == index]
        first = [name for name in mine if name in used]
        return [*first, *(name for name in mine if name not in used)][: self.counts[index]]

    def wanted(self, one: Placed) -> Wanted:
        """What a worker is, as it is wanted."""
        return one.key, self.offer[one.places[0][0]] if len(one.places) > 1 else -1

    def place(self, wanted: Counter[Wanted], running: Sequence[Placed], names: _Names) -> list[Placed]:
        """Every wanted worker, as many as possible of them where they run now."""
        stays = self._that_stay(running, wanted)
        while True:
            placed = self._filled(wanted, stays, names)
            if placed is not None:
                return placed
            if not stays:
                told = ", ".join(f"{n} nodes of {self.problem.fleet.offer_names[k]}" for k, n in self.counts.items())
                raise ValueError(f"workers have no room on {told}")
            worth = _gpus_kept(stays)
            poorest = min(worth, key=lambda node: (worth[node], node))
            stays = [one for one in stays if all(node != poorest for node, _ in one.places)]

    def _that_stay(self, running: Sequence[Placed], wanted: Counter[Wanted]) -> list[Placed]:
        """Workers in force that are still wanted, on the nodes with the most of them."""
        fits = [
            one
            for one in running
            if all(set(devices) <= set(self.free.get(node, ())) for node, devices in one.places)
            and wanted[self.wanted(one)]
        ]
        worth = _gpus_kept(fits)
        best: set[str] = set()
        for index, count in self.counts.items():
            mine = sorted((name for name in worth if self.offer[name] == index), key=lambda name: (-worth[name], name))
            best |= set(mine[:count])
        kept: Counter[Wanted] = Counter()
        found = []
        for one in sorted(fits, key=lambda one: (-min(worth[node] for node, _ in one.places), one.name)):
            what = self.wanted(one)
            if kept[what] < wanted[what] and all(node in best for node, _ in one.places):
                kept[what] += 1
                found.append(one)
        return found

    def _filled(self, wanted: Counter[Wanted], stays: Sequence[Placed], names: _Names) -> list[Placed] | None:
        """Those that stay, and the others in what is left; None where they have no room."""
        free = {name: list(devices) for name, devices in self.free.items()}
        for one in stays:
            for node, devices in one.places:
                free[node] = [d for d in free[node] if d not in devices]
        used = {node for one in stays for node, _ in one.places}
        order = [name for index in self.counts for name in self.chosen(index, used)]
        left = wanted - Counter(self.wanted(one) for one in stays)
        made: list[tuple[Key, Places]] = []
        # Those of whole nodes first, then the largest.
        for key, bound in sorted(left, key=lambda what: (what[1] < 0, -what[0][2], what)):
            for _ in range(left[key, bound]):
                spots = self._spots(key[2], bound, order, free)
                if spots is None:
                    return None
                for node, devices in spots:
                    free[node] = [d for d in free[node] if d not in devices]
                made.append((key, spots))
        return [*stays, *(Placed(names.new(key[0], len(spots)), key[0], key[1], spots) for key, spots in made)]

    def _spots(self, size: int, bound: int, order: Sequence[str], free: Mapping[str, list[int]]) -> Places | None:
        """Devices of the first node with room; of a worker bound to whole nodes of an offer, the first of these."""
        if bound < 0:
            node = next((name for name in order if len(free[name]) >= size), None)
            return None if node is None else ((node, together(free[node], size)),)
        gpus = int(self.problem.fleet.gpus[bound])
        whole = [name for name in order if self.offer[name] == bound and len(free[name]) == gpus][: size // gpus]
        return None if len(whole) * gpus < size else tuple((name, tuple(free[name])) for name in whole)

    def told(self, index: int, used: set[str]) -> DeployedNodes:
        """The nodes of one offer in the plan: those that host something, and as many more as are paid for."""
        fleet = self.problem.fleet
        name, stands = fleet.offer_names[index], index >= self.problem.num_rented
        return DeployedNodes(
            offer=None if stands else name,
            node=name if stands else None,
            count=self.counts[index],
            device=fleet.described_offers[index].device,
            gpus=int(fleet.gpus[index]),
            usd_per_hour=float(fleet.price[index]) * self.counts[index],
            names=tuple(self.chosen(index, used)),
        )


def _gpus_kept(workers: Iterable[Placed]) -> Counter[str]:
    """GPUs on each node that these workers have."""
    found: Counter[str] = Counter()
    for one in workers:
        for node, devices in one.places:
            found[node] += len(devices)
    return found


def together(free: Sequence[int], size: int) -> tuple[int, ...]:
    """Devices for a worker: an aligned block of neighbours where there is one, else the first that are free."""
    there = set(free)
    for start in range(0, max(free) + 1, size):
        block = range(start, start + size)
        if there.issuperset(block):
            return tuple(block)
    return tuple(free[:size])
