"""The most valuable content of a node, for every kind of nodes at once: knapsacks in a row over devices and cores.

Data: a value v_j of one pod of each class; cores in C equal units, device parts in M.
    T[m, c]  most value on m parts of one device with c units of cores (sharing pods, any number of each)
    H[g, c]  on g devices for sharing pods:       H[g] = H[g-1] ⊕ T[M]
    W[g, c]  of pods that take whole devices, g of them
    Z[c]     of pods without devices
    P[g, c]  = max over g' of  W[g'] ⊕ H[g - g'] ⊕ Z    where (a ⊕ b)[c] = max over i of a[i] + b[c - i]
A kind with G free devices, partly used ones with m_1, m_2, ... parts left and c units of cores has the content worth
(P[G] ⊕ T[m_1] ⊕ T[m_2] ...)[c].

Cores that are not multiples of a unit are rounded: requests up where a content is wanted, so that it fits, and down
where a bound is, so that none is missed.
Amounts besides cores (memory, pod slots, ...) are priced: each kind has a price λ_r >= 0 for them, v_j - λ·request_j is
what the knapsack sees, and λ·free is added back: a bound for any λ. Prices rise where the best content needs too much.
One pod of a class on a node (anti-affinity to itself) is kept for pods that share no device; the rest is left to the
content's trimming, and makes the bound looser, never false.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from formulations.pod_packing.knapsack import filled, filled_cores, joined
from formulations.pod_packing.problem import BoolArray
from formulations.pod_packing.shapes import Entry, Pattern, Shapes, whole_devices
from planner.kubernetes.snapshot import CPU, WHOLE_MILLI
from planner.workload import FloatArray, IntArray

#: Units of cores of the largest node where requests have to be rounded to them; up to so many where they need not be.
CORE_UNITS, EVEN_UNITS = 256, 512
#: Where a price of an amount begins, as a share of what the node's content is worth; by what factor it moves, less
#: each time that it has gone too far, down to the last one.
FIRST_PRICE, FIRST_STEP, LAST_STEP = 0.02, 1.6, 1.05
#: Share of a content's value that may be lost to amounts that are short before these get a price.
BEARABLE = 0.01


class Pricer:
    """Contents and bounds for one set of shapes."""

    def __init__(self, shapes: Shapes) -> None:
        self.shapes = shapes
        problem = shapes.problem
        self.cpu = problem.resources.index(CPU) if CPU in problem.resources else -1
        request = problem.request[shapes.classes]
        cores = request[:, self.cpu] if self.cpu >= 0 else np.zeros(shapes.classes.size, dtype=np.int64)
        free = shapes.free[:, self.cpu] if self.cpu >= 0 else np.zeros(len(shapes.free), dtype=np.int64)
        # Requests that are multiples of a unit, as they often are, need no rounding.
        unit, even = max(1, -(-int(free.max(initial=1)) // CORE_UNITS)), math.gcd(*cores.tolist())
        if even and free.max(initial=0) <= EVEN_UNITS * even:
            unit = even
        self.units = free // unit
        self.gpus, self.milli = problem.class_gpus[shapes.classes], problem.class_milli[shapes.classes]
        self.share = problem.is_share[shapes.classes]
        part = math.gcd(WHOLE_MILLI, *self.milli[self.share].tolist(), *shapes.device[shapes.device > 0].tolist())
        self._cores = {"up": -(-cores // unit), "down": cores // unit}
        self._parts = self.milli // part
        self.part = part
        # Pods without devices that rounding down leaves no cores: as liquid, by the most value a core.
        bare = (self.gpus == 0) & (self._cores["down"] == 0)
        self._liquid, self._weightless = bare & (cores > 0), bare & (cores == 0)
        self._exact_cores, self._unit = np.maximum(cores, 1), unit
        self.others = [r for r in range(len(problem.resources)) if r != self.cpu]
        #: Only amounts that can run short on some kind ever get a price.
        self.price = np.zeros((len(shapes.free), len(self.others)))
        self._step = np.full_like(self.price, FIRST_STEP)
        self._was_short = np.zeros(self.price.shape, dtype=np.bool_)
        self.whole = np.array([whole_devices(row) for row in shapes.device], dtype=np.int64)
        self._masks = [row.tobytes() for row in shapes.allowed]
        self._request = request[:, self.others].astype(np.float64)
        self._free = shapes.free[:, self.others].astype(np.float64)

    def contents(self, values: FloatArray, left: IntArray, bearable: float = BEARABLE) -> Iterator[tuple[int, Pattern]]:
        """A good content for each kind, that fits; at most `left` [J'] pods of a class. Moves the prices of amounts.

        bearable : a content that loses no larger share of its value to amounts that are short needs no prices for them.
        """
        for kinds, _, tables in self._tables(values, "up"):
            known: dict[tuple[object, ...], list[Entry]] = {}
            for k in kinds:
                key = self.units[k], self.shapes.device[k].tobytes()
                if key not in known:
                    known[key] = tables.content(int(self.units[k]), int(self.whole[k]), self._partly(k))
                pattern = self.trimmed(k, known[key], values, left)
                wanted, got = (float(sum(values[j] for j, _ in entries)) for entries in (known[key], pattern))
                self._move_price(k, known[key], wanted, wanted - got > bearable * wanted)
                yield k, pattern

    def restart_prices(self) -> None:
        """Amounts cost nothing again, and their prices move in large steps at first."""
        self.price[:], self._step[:], self._was_short[:] = 0.0, FIRST_STEP, False

    def bounds(self, values: FloatArray, left: IntArray) -> FloatArray:
        """What no content of a node of each kind, at most `left` [J'] of a class, can be worth more than, [K]."""
        found = np.zeros(len(self.units))
        for kinds, seen, tables in self._tables(values, "down"):
            gain = np.maximum(seen, 0.0)
            weightless = float(gain[self._weightless] @ left[self._weightless])
            for k in kinds:
                worth = tables.worth(int(self.units[k]), int(self.whole[k]), self._partly(k))
                found[k] = worth + weightless + float(self.price[k] @ self._free[k])
        return found

    def trimmed(self, k: int, entries: list[Entry], values: FloatArray, left: IntArray) -> Pattern:
        """As much of a content as fits together with all amounts and rules, most valuable first, and filled up."""
        wanted = sorted(entries, key=lambda entry: -values[entry[0]])
        order = np.argsort(-values, kind="stable")
        return self.shapes.packed(k, wanted, left, order[values[order] > 0])

    def _partly(self, k: int) -> tuple[int, ...]:
        """Milli left on the devices in use, largest first."""
        row = self.shapes.device[k]
        return tuple(row[(row > 0) & (row < WHOLE_MILLI)].tolist())

    def _move_price(self, k: int, entries: list[Entry], worth: float, matters: bool) -> None:
        """Up where the best content needs more than there is, down elsewhere; in smaller steps after each turn."""
        used = self._request[[j for j, _ in entries]].sum(axis=0)
        short = (used > self._free[k]) & matters
        turned = short != self._was_short[k]
        self._step[k] = np.where(turned, np.maximum(LAST_STEP, np.sqrt(self._step[k])), self._step[k])
        self._was_short[k] = short
        first = FIRST_PRICE * worth / np.maximum(self._free[k], 1.0)
        raised = np.maximum(self.price[k] * self._step[k], first)
        self.price[k] = np.where(short, raised, self.price[k] / self._step[k])
        self.price[k][self.price[k] < 0.1 * first] = 0.0

    def _tables(self, values: FloatArray, rounding: str) -> Iterator[tuple[list[int], FloatArray, Tables]]:
        """Kinds that see the same classes at the same values, with their tables."""
        groups: dict[tuple[bytes, bytes], list[int]] = {}
        for k, mask in enumerate(self._masks):
            groups.setdefault((mask, self.price[k].tobytes()), []).append(k)
        for kinds in groups.values():
            seen = values - self._request @ self.price[kinds[0]]
            seen = np.where(self.shapes.allowed[kinds[0]], seen, 0.0)
            most = int(self.whole[kinds].max())
            partly = any(self._partly(k) for k in kinds)
            liquid = 0.0
            if rounding == "down" and self._liquid.any():
                liquid = max(0.0, float((seen[self._liquid] / self._exact_cores[self._liquid]).max())) * self._unit
            shares = self.share & (most > 0 or partly)
            yield (
                kinds,
                seen,
                Tables(
                    cores_max=int(self.units[kinds].max()),
                    gpus_max=most,
                    part=self.part,
                    values=seen,
                    cores=self._cores[rounding],
                    parts=self._parts,
                    gpus=self.gpus,
                    share=shares,
                    single=np.diag(self.shapes.alone),
                    liquid=liquid,
                ),
            )


class Tables:
    """The tables of one set of values; rows of cores are as long as the largest node needs."""

    def __init__(
        self,
        *,
        cores_max: int,
        gpus_max: int,
        part: int,
        values: FloatArray,
        cores: IntArray,
        parts: IntArray,
        gpus: IntArray,
        share: BoolArray,
        single: BoolArray,
        liquid: float,
    ) -> None:
        self.size, self.gpus_max, self.part = cores_max + 1, gpus_max, part
        self.parts_max = WHOLE_MILLI // part
        self.values, self.cores, self.parts, self.gpus, self.single = values, cores, parts, gpus, single
        fits = (values > 0) & (cores <= cores_max)
        self._shares = _undominated(np.flatnonzero(fits & share), values, cores, parts)
        wholes = np.flatnonzero(fits & ~share & (gpus > 0) & (gpus <= gpus_max))
        self._wholes = _undominated(wholes[~single[wholes]], values, cores, gpus)
        self._single_wholes = wholes[single[wholes]]
        # Pods without cores would be taken without end: they are counted apart, or filled in.
        bare = np.flatnonzero(fits & (gpus == 0) & (cores > 0))
        self._bare = _undominated(bare[~single[bare]], values, cores, gpus)
        self._single_bare = bare[single[bare]]
        shares = self._shares
        self.device: FloatArray = filled(values[shares], parts[shares], cores[shares], self.parts_max, self.size)
        self.shared: FloatArray = np.zeros((gpus_max + 1, self.size))
        for g in range(1, gpus_max + 1):
            self.shared[g] = joined(self.shared[g - 1], self.device[self.parts_max])
        self.steps = list(self._whole_steps())
        self.bare_steps = list(self._bare_steps())
        # What is left of cores after rounding down is less than a unit more.
        self.liquid = np.asarray(liquid * np.arange(1.0, self.size + 1), dtype=np.float64)
        self._joined: dict[int, FloatArray] = {}
        self._known: dict[tuple[int, tuple[int, ...]], list[FloatArray]] = {}

    def _whole_steps(self) -> Iterator[tuple[int, FloatArray]]:
        """(class, table after it) for classes of one pod a node; first (-1, the table of all others)."""
        wholes = self._wholes
        table = filled(self.values[wholes], self.gpus[wholes], self.cores[wholes], self.gpus_max, self.size)
        yield -1, table
        for j in self._single_wholes.tolist():
            c, g = int(self.cores[j]), int(self.gpus[j])
            after = table.copy()
            candidate = table[: self.gpus_max + 1 - g, : self.size - c] + self.values[j]
            np.maximum(after[g:, c:], candidate, out=after[g:, c:])
            table = after
            yield j, table

    def _bare_steps(self) -> Iterator[tuple[int, FloatArray]]:
        table = filled_cores(self.values[self._bare], self.cores[self._bare], self.size)
        yield -1, table
        for j in self._single_bare.tolist():
            c = int(self.cores[j])
            after = table.copy()
            np.maximum(after[c:], table[: self.size - c] + self.values[j], out=after[c:])
            table = after
            yield j, table

    def _whole_and_shared(self, g: int) -> FloatArray:
        """Most value on exactly g free devices, by cores, pods without devices aside."""
        if g not in self._joined:
            whole = self.steps[-1][1]
            rows = [joined(whole[used], self.shared[g - used]) for used in range(g + 1)]
            best: FloatArray = np.stack(rows).max(axis=0)
            self._joined[g] = best
        return self._joined[g]

    def _chain(self, gpus: int, partly: tuple[int, ...]) -> list[FloatArray]:
        """Tables to be joined: the free devices', each partly used device's, and the pods' without devices."""
        return [
            self._whole_and_shared(gpus),
            *(self.device[milli // self.part] for milli in partly),
            self.bare_steps[-1][1],
        ]

    def _totals(self, gpus: int, partly: tuple[int, ...]) -> list[FloatArray]:
        """Zero, and the first tables of the chain joined: one, two, ... of them."""
        if (gpus, partly) not in self._known:
            totals = [np.zeros(self.size)]
            for table in self._chain(gpus, partly):
                totals.append(joined(totals[-1], table))
            self._known[gpus, partly] = totals
        return self._known[gpus, partly]

    def worth(self, cores: int, gpus: int, partly: tuple[int, ...]) -> float:
        """The value of the best content."""
        return float(joined(self._totals(gpus, partly)[-1], self.liquid)[cores])

    def content(self, cores: int, gpus: int, partly: tuple[int, ...]) -> list[Entry]:
        """A best content: devices 0 .. gpus - 1 are free ones, the next ones partly used."""
        tables, totals = self._chain(gpus, partly), self._totals(gpus, partly)
        entries: list[Entry] = []
        for place in range(len(tables) - 1, 0, -1):
            used = self._split(totals[place], tables[place], cores)
            if place == len(tables) - 1:
                entries += [(j, ()) for j in self._bare_content(used)]
            else:
                milli = partly[place - 1]
                entries += [(j, (gpus + place - 1,)) for j in self._device_content(milli // self.part, used)]
            cores -= used
        return entries + self._free_content(gpus, cores)

    def _split(self, one: FloatArray, two: FloatArray, cores: int) -> int:
        """Cores for `two` in the best split between both."""
        return cores - int((one[: cores + 1] + two[cores::-1]).argmax())

    def _free_content(self, gpus: int, cores: int) -> list[Entry]:
        whole = self.steps[-1][1]
        splits = [
            ((whole[used, : cores + 1] + self.shared[gpus - used, cores::-1]).max(), -used) for used in range(gpus + 1)
        ]
        used = -max(splits)[1]
        mine = self._split(self.shared[gpus - used], whole[used], cores)
        entries: list[Entry] = []
        device = 0
        for j in self._whole_content(used, mine):
            entries.append((j, tuple(range(device, device + int(self.gpus[j])))))
            device += int(self.gpus[j])
        cores, device = cores - mine, used
        for g in range(gpus - used, 0, -1):
            mine = self._split(self.shared[g - 1], self.device[self.parts_max], cores)
            entries += [(j, (device,)) for j in self._device_content(self.parts_max, mine)]
            cores, device = cores - mine, device + 1
        return entries

    def _device_content(self, m: int, c: int) -> Iterator[int]:
        table, shares = self.device, self._shares
        while table[m, c] > 0:
            if m and table[m - 1, c] == table[m, c]:
                m -= 1
                continue
            fits = shares[(self.parts[shares] <= m) & (self.cores[shares] <= c)]
            after = table[m - self.parts[fits], c - self.cores[fits]] + self.values[fits]
            j = int(fits[after.argmax()])
            yield j
            m, c = m - int(self.parts[j]), c - int(self.cores[j])

    def _whole_content(self, g: int, c: int) -> Iterator[int]:
        for place in range(len(self.steps) - 1, 0, -1):
            j, table = self.steps[place]
            if table[g, c] > self.steps[place - 1][1][g, c]:
                yield j
                g, c = g - int(self.gpus[j]), c - int(self.cores[j])
        table, wholes = self.steps[0][1], self._wholes
        while g and table[g, c] > 0:
            if table[g - 1, c] == table[g, c]:
                g -= 1
                continue
            fits = wholes[(self.gpus[wholes] <= g) & (self.cores[wholes] <= c)]
            j = int(fits[(table[g - self.gpus[fits], c - self.cores[fits]] + self.values[fits]).argmax()])
            yield j
            g, c = g - int(self.gpus[j]), c - int(self.cores[j])

    def _bare_content(self, c: int) -> Iterator[int]:
        for place in range(len(self.bare_steps) - 1, 0, -1):
            j, table = self.bare_steps[place]
            if table[c] > self.bare_steps[place - 1][1][c]:
                yield j
                c -= int(self.cores[j])
        table = self.bare_steps[0][1]
        while c > 0 and table[c] > 0:
            if table[c - 1] == table[c]:
                c -= 1
                continue
            fits = self._bare[self.cores[self._bare] <= c]
            j = int(fits[(table[c - self.cores[fits]] + self.values[fits]).argmax()])
            yield j
            c -= int(self.cores[j])


def _undominated(classes: IntArray, values: FloatArray, cores: IntArray, parts: IntArray) -> IntArray:
    """Classes that no other one beats with as few cores and parts for as much value."""
    if classes.size < 2:
        return classes
    order = classes[np.lexsort((-values[classes], parts[classes], cores[classes]))]
    v, c, p = values[order], cores[order], parts[order]
    better = (c[:, None] <= c) & (p[:, None] <= p) & (v[:, None] >= v)
    earlier = np.arange(order.size)[:, None] < np.arange(order.size)
    found: IntArray = order[~(better & earlier).any(axis=0)]
    return found
