"""Whole nodes made better part by part: the nodes that lose most against the program's prices, and some others, get
new patterns by an integer program, again and again.

At the prices π of pods and μ of nodes with which the program of patterns ended, a node of kind k whose pattern runs
u_j pods of class j loses  c_k - μ_k - sum over j of π_j u_j >= 0. What all nodes of a choice lose is by how much it is
worse than the program. So nodes that lose nothing can stay, and the best choice is made of patterns that lose little:
those are sought at prices shaken a little, and patterns that lose more than the whole choice does are left out.
"""

from __future__ import annotations

import numpy as np

from formulations.outcome import Budget, SolveOptions
from formulations.pod_packing.columns import Program
from formulations.pod_packing.dive import Chosen
from formulations.pod_packing.master import solve_master
from formulations.pod_packing.shapes import counts
from planner.workload import FloatArray, IntArray

#: Nodes that one integer program settles anew, how many more after each that brought nothing, up to so many times.
LOOSE_NODES, WIDER, WIDEST = 40, 10, 8
#: Of these, the share that is taken for what it loses; the others at random.
LOSING_SHARE = 0.7
#: Before each: rounds of patterns at prices shaken by so much, in turn, and rounds for what is left.
SHAKEN_ROUNDS, SHAKES, RESIDUAL_ROUNDS = 16, (0.002, 0.02), 4
#: Seconds for one integer program.
MASTER_S = 4.0


class Rounding:
    """One search of whole nodes, beginning when the program of patterns has its final prices."""

    def __init__(
        self, program: Program, demand: IntArray, step: float, options: SolveOptions, rng: np.random.Generator
    ) -> None:
        """step : by how much a better choice is better at least."""
        self.program, self.demand, self.step, self.options, self.rng = program, demand, step, options, rng
        self.shapes, self.nodes = program.shapes, program.shapes.count
        self.kept, self.value = list(program.kept), program.value
        self.prices, self.kind_prices = program.prices.copy(), program.kind_prices.copy()
        self.attempts = 0

    def better(self, best: Chosen, idle: int, budget: Budget) -> Chosen | None:
        """Settle some nodes of a choice anew; None where that brings nothing. idle : attempts since it last did."""
        self._shake()
        fixed, loose = self._split(best, LOOSE_NODES + WIDER * (idle % WIDEST))
        program = self.program
        left = self._left(fixed)
        program.shrink(*left)
        program.improve(budget, RESIDUAL_ROUNDS, bounded=False)
        worth = self._value(best)
        placed = float(program.goal.weight @ (self.demand - left[1]))
        if program.value + self._cost(fixed) - placed > worth - 0.999 * self.step:
            return None
        columns = program.columns
        table = np.array(columns.count)
        bearable = max(self.step, worth - self.value)
        useful = self._loss(np.array(columns.kind), table) <= bearable
        limits = SolveOptions(
            time_limit_s=min(MASTER_S, max(0.1, budget.remaining_s)),
            seed=self.options.seed,
            work_limit=None if self.options.work_limit is None else int(self.options.work_limit),
        )
        found = solve_master(program, loose, useful, self.demand - left[1], budget, limits)
        return None if found is None else fixed + found

    def _value(self, chosen: Chosen) -> float:
        """What a choice counts in the program."""
        return self._cost(chosen) - float(self.program.goal.weight @ self.running(chosen))

    def _cost(self, chosen: Chosen) -> float:
        if not self.program.goal.costs:
            return 0.0
        return sum(times * float(self.shapes.cost[kind]) for kind, _, times in chosen)

    def running(self, chosen: Chosen) -> IntArray:
        """Pods of each class that run in a choice, [J']."""
        total = np.zeros_like(self.demand)
        for _, pattern, times in chosen:
            total += times * counts(self.shapes, pattern)
        return self.shapes.running(total, self.demand)

    def _loss(self, kinds: IntArray, table: IntArray) -> FloatArray:
        """What nodes of these kinds lose that run so many pods, [n] and [n, J'] -> [n]."""
        cost = self.shapes.cost if self.program.goal.costs else np.zeros(len(self.nodes))
        found: FloatArray = (cost - self.kind_prices)[kinds] - table @ self.prices
        return found

    def _split(self, chosen: Chosen, most: int) -> tuple[Chosen, Chosen]:
        """Patterns that stay, and those of some nodes that are free again."""
        table = np.array([counts(self.shapes, pattern) for _, pattern, _ in chosen], dtype=np.int64)
        table = table.reshape(len(chosen), self.demand.size)
        times = np.array([number for _, _, number in chosen], dtype=np.int64)
        kinds = np.array([kind for kind, _, _ in chosen], dtype=np.int64)
        # Pods that are there more often than they are wanted are put down to the nodes that lose most anyway.
        place = np.repeat(np.arange(times.size), times)
        place = place[np.argsort(self._loss(kinds, table)[place], kind="stable")]
        rows = table[place]
        before = np.cumsum(rows, axis=0) - rows
        loss = self._loss(kinds[place], np.clip(self.running(chosen) - before, 0, rows))
        lost = loss > 1e-6 * max(1.0, float(loss.max(initial=0.0)))
        chance = self.rng.random(place.size)
        losing = np.argsort(-np.where(lost, loss * chance, 0.0), kind="stable")
        losing = losing[lost[losing]][: int(LOSING_SHARE * most)]
        chance[losing] = -1.0
        free = np.bincount(place[np.argsort(chance, kind="stable")[:most]], minlength=times.size)
        loose = [(*chosen[q][:2], number) for q, number in enumerate(free.tolist()) if number]
        fixed = [(*chosen[q][:2], number) for q, number in enumerate((times - free).tolist()) if number]
        return fixed, loose

    def _left(self, fixed: Chosen) -> tuple[IntArray, IntArray, list[float]]:
        """Nodes, pods and sums of the tiers before that are left beside fixed patterns."""
        nodes, demand, kept = self.nodes.copy(), self.demand.copy(), list(self.kept)
        for kind, pattern, times in fixed:
            used = np.minimum(demand, counts(self.shapes, pattern) * times)
            demand -= used
            nodes[kind] -= times
            tiers = zip(self.program.goal.kept, kept, strict=True)
            kept = [least - float(weight @ used) for (weight, _), least in tiers]
        return nodes, demand, kept

    def _shake(self) -> None:
        """Patterns at prices near the best, cut to the pods there are: the integer program needs near misses too."""
        shake = SHAKES[self.attempts % len(SHAKES)]
        self.attempts += 1
        some = float(self.prices.mean())
        for _ in range(SHAKEN_ROUNDS):
            # Pods that cost nothing have to go somewhere too: they get a small price.
            shaken = self.prices * (1.0 + shake * self.rng.standard_normal(self.prices.size))
            shaken += shake * some * self.rng.random(self.prices.size)
            for kind, pattern in self.program.pricer.contents(np.maximum(shaken, 0.0), self.demand):
                self.program.add(kind, pattern)
