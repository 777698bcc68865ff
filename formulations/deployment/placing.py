"""From counts to pods: which node each worker runs on, and which of its devices.

On the nodes of one offer, workers are placed largest first, each on the first node with room: exact, as their sizes
divide one another (`gpu_fleet.packing`), whatever is taken already. Workers in force stay where they are; where what is
new has no room beside them, the nodes with the least to keep are cleared one by one. In the end nothing is kept and
everything has room, so a place is found for every plan that is right.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from formulations.deployment.current import offer_of_node
from formulations.deployment.problem import DeployProblem
from planner.deploy_plan import DeployedNodes, DeployedPod, DeployPlan
from planner.fleet_plan import Period, Replicas

#: What a worker is to its pods: its service, its name, and its GPUs.
Key = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class Placed:
    """One worker: its name, and the devices that it has on each of its nodes."""

    name: str
    service: str
    worker: str
    places: tuple[tuple[str, tuple[int, ...]], ...]

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
        for part, (node, devices) in enumerate(self.places):
            yield DeployedPod(
                pod=self.name if parts == 1 else f"{self.name}-{part}",
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
    current = problem.current
    running = workers_in(current.pods) if current is not None else []
    home = {} if current is None else offer_of_node(problem.standing, current)
    by_offer: dict[str, list[Replicas]] = defaultdict(list)
    for row in period.replicas:
        by_offer[row.offer].append(row)
    counts: Counter[str] = Counter()
    for one in period.allocation:
        counts[one.offer] += one.count
    names = _Names(worker.name for worker in running)
    nodes, pods = [], []
    for index, offer in enumerate(problem.fleet.offer_names):
        if not counts[offer]:
            continue
        there = _Nodes(problem, index, counts[offer], current)
        mine = [one for one in running if all(home.get(node) == offer for node, _ in one.places)]
        placed = there.place(by_offer[offer], mine, names)
        pods += [pod for one in placed for pod in one.pods()]
        nodes.append(there.told({node for one in placed for node, _ in one.places}))
    return tuple(nodes), tuple(pods)


class _Names:
    """Names of new workers, by service and number, that no worker in force has."""

    def __init__(self, taken: Iterable[str]) -> None:
        self.taken = set(taken)
        self.next: Counter[str] = Counter()

    def new(self, service: str) -> str:
        base = re.sub(r"[^a-z0-9]+", "-", service.lower()).strip("-")[:40] or "service"
        while True:
            self.next[base] += 1
            name = f"{base}-{self.next[base]}"
            if name not in self.taken:
                self.taken.add(name)
                return name


class _Nodes:
    """The nodes of one offer that a plan may use, by name, with their free devices."""

    def __init__(self, problem: DeployProblem, index: int, count: int, current: DeployPlan | None) -> None:
        fleet = problem.fleet
        self.offer, self.count = fleet.offer_names[index], count
        self.gpus, self.price = int(fleet.gpus[index]), float(fleet.price[index])
        self.device = fleet.described_offers[index].device
        self.stands = index >= problem.num_rented
        if self.stands:
            kind = problem.standing[index - problem.num_rented]
            self.free = {node.name: node.devices for node in kind.nodes}
            return
        rented = [] if current is None else [row for row in current.nodes if row.offer == self.offer]
        known = [name for row in rented for name in row.names]
        numbers = (f"{self.offer}-{i}" for i in range(1, count + len(known) + 1))
        every = [*known, *(name for name in numbers if name not in known)]
        self.free = {name: tuple(range(self.gpus)) for name in every[: max(count, len(known))]}

    def place(self, wanted: Sequence[Replicas], running: Sequence[Placed], names: _Names) -> list[Placed]:
        """Every wanted worker, as many as possible of them where they run now."""
        left: Counter[Key] = Counter()
        for row in wanted:
            left[row.model, str(row.worker), row.gpus] += row.count
        stays = self._that_stay(running, left)
        while True:
            placed = self._filled(left, stays, names)
            if placed is not None:
                return placed
            if not stays:
                raise ValueError(f"workers have no room on {self.count} nodes of {self.offer}")
            worth: Counter[str] = Counter()
            for one in stays:
                for node, devices in one.places:
                    worth[node] += len(devices)
            poorest = min(worth, key=lambda node: (worth[node], node))
            stays = [one for one in stays if all(node != poorest for node, _ in one.places)]

    def _that_stay(self, running: Sequence[Placed], left: Counter[Key]) -> list[Placed]:
        """Workers in force that are still wanted, on the nodes with the most of them."""
        worth: Counter[str] = Counter()
        fits = [
            one
            for one in running
            if left[one.key] and all(set(devices) <= set(self.free.get(node, ())) for node, devices in one.places)
        ]
        for one in fits:
            for node, devices in one.places:
                worth[node] += len(devices)
        best = {node for node, _ in worth.most_common(self.count)}
        kept: Counter[Key] = Counter()
        found = []
        for one in sorted(fits, key=lambda one: (-min(worth[node] for node, _ in one.places), one.name)):
            if kept[one.key] < left[one.key] and all(node in best for node, _ in one.places):
                kept[one.key] += 1
                found.append(one)
        return found

    def _filled(self, wanted: Counter[Key], stays: Sequence[Placed], names: _Names) -> list[Placed] | None:
        """Those that stay, and the others in what is left of so many nodes; None where they have no room."""
        free = {name: list(devices) for name, devices in self.free.items()}
        for one in stays:
            for node, devices in one.places:
                free[node] = [d for d in free[node] if d not in devices]
        used = {node for one in stays for node, _ in one.places}
        # Nodes that are used already first, then those in force, then others.
        order = [*(name for name in free if name in used), *(name for name in free if name not in used)][: self.count]
        left = wanted - Counter(one.key for one in stays)
        made: list[tuple[Key, tuple[tuple[str, tuple[int, ...]], ...]]] = []
        for key in sorted(left, key=lambda key: (-key[2], key)):
            for _ in range(left[key]):
                spots = self._spots(key[2], order, free)
                if spots is None:
                    return None
                for node, devices in spots:
                    free[node] = [d for d in free[node] if d not in devices]
                made.append((key, spots))
        return [*stays, *(Placed(names.new(key[0]), key[0], key[1], spots) for key, spots in made)]

    def _spots(
        self, size: int, order: Sequence[str], free: dict[str, list[int]]
    ) -> tuple[tuple[str, tuple[int, ...]], ...] | None:
        """Devices of the first node with room; of a worker of several nodes, the first whole ones."""
        if size <= self.gpus:
            node = next((name for name in order if len(free[name]) >= size), None)
            return None if node is None else ((node, together(free[node], size)),)
        whole = [name for name in order if len(free[name]) == self.gpus][: size // self.gpus]
        return None if len(whole) * self.gpus < size else tuple((name, tuple(free[name])) for name in whole)

    def told(self, used: set[str]) -> DeployedNodes:
        """The nodes of the plan: those that host something, and of rented ones as many more as are paid for."""
        names = [name for name in self.free if name in used]
        names += [name for name in self.free if name not in used][: self.count - len(names)]
        return DeployedNodes(
            offer=None if self.stands else self.offer,
            node=self.offer if self.stands else None,
            count=self.count,
            device=self.device,
            gpus=self.gpus,
            usd_per_hour=self.price * self.count,
            names=tuple(names),
        )


def together(free: Sequence[int], size: int) -> tuple[int, ...]:
    """Devices for a worker: an aligned block of neighbours where there is one, else the first that are free."""
    there = set(free)
    for start in range(0, max(free) + 1, size):
        block = range(start, start + size)
        if there.issuperset(block):
            return tuple(block)
    return tuple(free[:size])
