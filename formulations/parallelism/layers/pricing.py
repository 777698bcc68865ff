"""The pipelines worth having at given prices of devices and links: a covering problem for every rate level at once.

For each slot (rate level) and each path of sites, one dynamic program over the classes along the path finds the
cheapest devices that hold all layers within the slot: cost[marks, slot, stages, layers] is the least price of devices
that cover at least so many layers with so many stages. Marks say which special devices a site has: the first site the
one with the embedding, the last the one with the head, one between any device at all. A `Table` keeps the costs before
each class, to read columns back and to list all columns below a price.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from formulations.outcome import Budget
from formulations.parallelism.layers.problem import BOTH, EMBEDDING, HEAD, PLAIN, FloatArray, IntArray, LayersProblem


@dataclass(frozen=True, slots=True)
class Column:
    """One pipeline: devices of each class, its path of sites, and its slot."""

    counts: tuple[int, ...]
    path: tuple[int, ...]
    slot_s: float


@dataclass(frozen=True, slots=True)
class _Special:
    """Devices of one class that pay marks: which marks, how many devices, and what each holds beside layers."""

    marks: int
    ends: tuple[int, ...]


#: Special devices by a site's place: (first, last) on the path.
_SPECIALS = {
    (True, True): (
        _Special(1, (EMBEDDING,)),
        _Special(2, (HEAD,)),
        _Special(3, (EMBEDDING, HEAD)),
        _Special(3, (BOTH,)),
    ),
    (True, False): (_Special(1, (EMBEDDING,)),),
    (False, True): (_Special(1, (HEAD,)),),
    (False, False): (_Special(1, (PLAIN,)),),
}


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """A class's step of the program: costs before it [marks, slots, stages, layers]; its layers by ends, [4, slots]."""

    before: FloatArray
    layers: IntArray
    group: int
    specials: tuple[_Special, ...]
    price: float


#: Costs that one program keeps of each class, at most: 32 MB.
MOST_CELLS = 4_000_000


#: Slots of one program that counts stages: longer slots have fewer, so unlike ones are kept apart.
ALIKE = 16


def useful_slots(problem: LayersProblem) -> FloatArray:
    """The slots in which all devices together run all layers."""
    slots = problem.slots()
    return slots[problem.layers_within(slots, PLAIN) @ problem.count >= problem.num_layers]


def pricings(problem: LayersProblem, slots: FloatArray, limited: bool) -> tuple[Pricing, ...]:
    """The programs of these slots, longest first, in parts that memory holds.

    limited : stages are counted where latency or caches limit them; without, costs are at most the true ones.
    """
    limited &= problem.is_limited
    stages = min(int(problem.count.sum()), problem.num_layers) + 1 if limited else 1
    size = max(1, MOST_CELLS // (4 * stages * (problem.num_layers + 1)))
    size = min(size, ALIKE) if limited else size
    starts = range(0, slots.size, size)
    return tuple(Pricing(problem, slots[start : start + size], limited) for start in reversed(starts))


class Pricing:
    """The programs of some slots; prices change from call to call."""

    def __init__(self, problem: LayersProblem, slots: FloatArray, limited: bool) -> None:
        self.problem = problem
        self.slots = slots
        self.paths = list(problem.paths())
        self.layers = np.stack([problem.layers_within(self.slots, ends) for ends in range(4)])
        # First and last stage are one device only where it is the whole pipeline.
        self.layers[BOTH][self.layers[BOTH] < problem.num_layers] = 0
        self.most_stages = {path: problem.most_stages(self.slots, path) for path in self.paths}
        # Stages are counted only where something limits them below the devices that there are.
        devices = min(int(problem.count.sum()), problem.num_layers)
        limits = np.stack(list(self.most_stages.values()))
        self.counts_stages = limited and bool((limits < devices).any())
        self.num_stages = int(np.clip(limits.max(), 0, devices)) if self.counts_stages else 0

    def each_path(self, prices: FloatArray, visit: Visit, budget: Budget) -> None:
        """Call `visit` with every path, its tables, and the least cost of devices for each slot; OutOfTimeError."""
        size = self.slots.size
        start = np.full((1, size, self.num_stages + 1, self.problem.num_layers + 1), np.inf)
        start[0, :, 0, 0] = 0.0
        stack: list[tuple[tuple[int, ...], FloatArray, list[Table]]] = []
        for path in self.paths:
            while stack and stack[-1][0] != path[:-1]:
                stack.pop()
            before, tables = (start, []) if not stack else (stack[-1][1], stack[-1][2])
            first = len(path) == 1
            final, own = self._site(path[-1], first, True, before, prices, budget)
            cost = self._within(final, path)
            visit(self, path, [*tables, *own], cost)
            middle, own = self._site(path[-1], first, False, before, prices, budget)
            stack.append((path, middle, [*tables, *own]))

    def _within(self, final: FloatArray, path: tuple[int, ...]) -> FloatArray:
        """Least cost for all layers with at most the stages that the path allows."""
        cost: FloatArray = final[0, :, :, -1]
        if not self.counts_stages:
            return np.where(self.most_stages[path] >= 1, cost[:, 0], np.inf)
        allowed = np.arange(cost.shape[1])[None, :] <= self.most_stages[path][:, None]
        return np.asarray(np.where(allowed, cost, np.inf).min(axis=1))

    def _site(
        self, site: int, first: bool, last: bool, before: FloatArray, prices: FloatArray, budget: Budget
    ) -> tuple[FloatArray, list[Table]]:
        """Costs after a site whose marks are all paid, [1, ...], and the tables of its classes."""
        specials = _SPECIALS[first, last]
        marks = 4 if first and last else 2
        cost = np.full((marks, *before.shape[1:]), np.inf)
        cost[0] = before[0]
        tables = []
        for group in np.flatnonzero(self.problem.site == site).tolist():
            if budget.stop() is not None:
                raise OutOfTimeError
            table = Table(cost, self.layers[:, :, group], group, specials, float(prices[group]))
            tables.append(table)
            cost = self._class(table)
        return cost[-1:], tables

    def _class(self, table: Table) -> FloatArray:
        """Costs after a class: up to its count of devices, special ones among them."""
        count = int(self.problem.count[table.group])
        # Devices used so far in this class are special ones: none, one or two.
        used = [table.before.copy(), *(np.full_like(table.before, np.inf) for _ in range(2))]
        for special in table.specials:
            size = len(special.ends)
            if size > count:
                continue
            can = np.all([table.layers[end] > 0 for end in special.ends], axis=0)
            held = np.sum([table.layers[end] for end in special.ends], axis=0)
            for mark in range(table.before.shape[0]):
                if mark & special.marks:
                    continue
                moved = self._shift(table.before[mark], held, size)
                moved[~can] = np.inf
                target = used[size][mark | special.marks]
                np.minimum(target, moved + size * table.price, out=target)
        plain = table.layers[PLAIN]
        positive = plain[plain > 0]
        needed = -(-self.problem.num_layers // int(positive.min())) if positive.size else 0
        result: FloatArray = np.minimum.reduce(used)
        for spent, costs in enumerate(used):
            if not np.isfinite(costs).any():
                continue
            # Any number of plain devices up to `left`, by doubling: 1, 2, 4, ... of them or not.
            left, step = min(count - spent, needed), 1
            while left > 0:
                step = min(step, left)
                moved = self._shift(costs, step * plain, step)
                moved[..., plain == 0, :, :] = np.inf
                costs = np.minimum(costs, moved + step * table.price)
                left, step = left - step, 2 * step
            np.minimum(result, costs, out=result)
        return result

    def _shift(self, cost: FloatArray, held: IntArray, stages: int) -> FloatArray:
        """Costs [..., slots, stages, layers] after devices that hold so many layers [slots] in so many stages."""
        num_layers = self.problem.num_layers
        source = np.maximum(np.arange(num_layers + 1)[None, :] - held[:, None], 0)
        index = np.broadcast_to(source[:, None, :], cost.shape[-3:])
        moved = np.take_along_axis(cost, np.broadcast_to(index, cost.shape), axis=-1)
        if not self.counts_stages:
            return moved
        shifted = np.full_like(moved, np.inf)
        if stages <= self.num_stages:
            shifted[..., stages:, :] = moved[..., : moved.shape[-2] - stages, :]
        return shifted

    def columns(
        self, path: tuple[int, ...], tables: list[Table], slot: int, budget: float, most: int
    ) -> Iterator[Column]:
        """Pipelines of a slot on a path at a price of at most `budget`; TooManyColumnsError after `most` steps.

        Every set of devices that is worth it is among them, and maybe some larger ones.
        """
        problem = self.problem
        counts = np.zeros(problem.num_classes, dtype=np.int64)
        limit = int(min(self.most_stages[path][slot], self.num_stages)) if self.counts_stages else 0
        slot_s = float(self.slots[slot])
        steps = 0
        slack = 1e-9 * max(1.0, abs(budget))

        def walk(place: int, mark: int, stages: int, layers: int, left: float) -> Iterator[Column]:
            nonlocal steps
            steps += 1
            if steps > most:
                raise TooManyColumnsError
            if place < 0:
                yield Column(tuple(counts.tolist()), path, slot_s)
                return
            table = tables[place]
            # A site's marks are all paid when the one after it begins.
            starts = place == len(tables) - 1 or problem.site[tables[place + 1].group] != problem.site[table.group]
            owed = len(table.before) - 1 if starts else mark
            plain = int(table.layers[PLAIN, slot])
            for special in (None, *table.specials):
                paid, size, held = 0, 0, 0
                if special is not None:
                    paid, size = special.marks, len(special.ends)
                    each = [int(table.layers[end, slot]) for end in special.ends]
                    held = sum(each)
                    if paid & ~owed or min(each) <= 0:
                        continue
                room = int(problem.count[table.group]) - size
                for more in range(room + 1 if plain else min(room, 0) + 1):
                    used = size + more
                    rest = left - used * table.price
                    need = layers - held - more * plain
                    over = need + plain <= 0 and more > 0
                    if room < 0 or rest < -slack or over or (self.counts_stages and used > stages):
                        break
                    at = max(need, 0)
                    options = table.before[owed & ~paid, slot, :, at]
                    within = options[: stages - used + 1] if self.counts_stages else options
                    if within.min() <= rest + slack:
                        counts[table.group] = used
                        yield from walk(place - 1, owed & ~paid, stages - used, at, rest)
                        counts[table.group] = 0

        yield from walk(len(tables) - 1, 0, limit, problem.num_layers, budget)


#: What is done with a path: the program, the path, its tables, and the least cost of devices for each slot.
Visit = Callable[[Pricing, tuple[int, ...], list[Table], FloatArray], None]


class OutOfTimeError(Exception):
    """Time was up within a program."""


class TooManyColumnsError(Exception):
    """More pipelines are worth looking at than the search may list."""
