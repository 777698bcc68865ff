"""Node patterns: which pods go together on a node, and on how many nodes, by column generation. The mathematics:

Sets: kinds k of nodes that are alike, n_k of them (`shapes`); classes j of pods that are alike, d_j pending ones;
patterns q: what one node of a kind can hold, down to its devices.
Variables: y_q whole nodes that get pattern q; x_j pods of class j that run.
Objective: tiers, one after the other, each kept for the next ones. `priority`: most pods of each priority, from the
highest. `allocation`: most GPU. `consolidate`: least cost of nodes in use, all pods running.
Constraints: `columns`, with the bound that holds for every plan; new patterns come from knapsacks (`pricing`); whole
nodes come from diving (`dive`) and from integer programs over the patterns known (`master`), each for the nodes that
lose most and some others (`rounding`).
Then pods are put into patterns, and what is left wherever it still fits (`realise`).

Rules between pods: anti-affinity within a node is part of a pattern, and of the bound for pods that share no device.
Spread of a class over up to 8 zones is part of the program; how many pods go to each zone is settled before whole nodes
are sought. Gangs, all of their least number or none, are part of the integer programs alone. Affinity, other spread and
anti-affinity across nodes are left out and kept when pods are put onto nodes: plans keep them, and bounds, which know
less of them, may be out of reach. The gap says by how much at most.
Running pods stay where they are. Weight among pods of one tier, preferences and evictions are not part of it.

Reference: Gilmore and Gomory 1961 (patterns); Wentges 1997 (smoothing); `exchanges`; data: Weng et al., ATC'23 (openb).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np

from formulations.outcome import Budget, PartBudget, SearchResult, SolveOptions, Status, Stop
from formulations.pod_packing.columns import Columns, Goal, Program
from formulations.pod_packing.dive import Chosen, dive
from formulations.pod_packing.explain import no_room_for_all, reasons
from formulations.pod_packing.objective import total
from formulations.pod_packing.problem import GPU_MILLI, Aim, PodsProblem
from formulations.pod_packing.proof import concluded, in_units
from formulations.pod_packing.realise import contents, fill, realise
from formulations.pod_packing.rounding import LOOSE_NODES, Rounding
from formulations.pod_packing.shapes import shapes_of
from formulations.pod_packing.state import State
from planner.kubernetes.snapshot import WHOLE_MILLI
from planner.pods_plan import PodsPlan
from planner.version import gpuplan_version
from planner.workload import FloatArray, IntArray

#: Rounds of new patterns for one tier, where nobody limits them.
ROUNDS = 600
#: Integer programs for one tier, and how many in a row may bring nothing: on few nodes each one settles all of them.
TRIES, PATIENCE, PATIENCE_FEW = 400, 40, 8
#: Rounds of patterns after the numbers of spread classes in their zones are settled.
SETTLED_ROUNDS = 8


@dataclass(slots=True)
class _Reached:
    """The best plan so far, and what it reaches of each tier."""

    state: State
    values: list[int]


def search(problem: PodsProblem, options: SolveOptions, budget: Budget) -> SearchResult[PodsPlan]:
    """Tier after tier; with a work limit: rounds of new patterns for a tier, and nodes of each integer program."""
    return PatternSearch(problem, options, budget).run()


class PatternSearch:
    """The search of `patterns`, tier after tier."""

    def __init__(self, problem: PodsProblem, options: SolveOptions, budget: Budget) -> None:
        self.problem, self.options, self.budget = problem, options, budget
        self.rng = np.random.default_rng(options.seed)
        started = time.perf_counter()
        self.empty = State(problem)
        self.shapes = shapes_of(self.empty)
        self.demand = problem.demand[self.shapes.classes]
        self.kind_of = {node: k for k, nodes in enumerate(self.shapes.nodes) for node in nodes.tolist()}
        self.columns = Columns()
        self.solver_version = gpuplan_version()
        self.must = problem.objective == "consolidate"
        self.best: _Reached | None = None
        self.build_s = time.perf_counter() - started

    def run(self) -> SearchResult[PodsPlan]:
        problem = self.problem
        for state in (State(problem), *(self._greedy(aim) for aim in problem.aims)):
            self._offer(state)
        bounds: list[int] = []
        for place, aim in enumerate(problem.aims):
            slice_s = self.budget.remaining_s if problem.time_slice_s is None else problem.time_slice_s
            bounds.append(self._tier(place, aim, PartBudget(self.budget, slice_s)))
        return self._result(bounds)

    def _greedy(self, aim: Aim) -> State:
        state = State(self.problem)
        fill(state, self._order(aim))
        return state

    def _order(self, aim: Aim) -> FloatArray:
        """What is placed first where patterns leave room, [J]: by tier, for GPUs the largest."""
        if self.problem.objective == "priority":
            return self.problem.priority.astype(np.float64)
        return aim.weight.astype(np.float64) if aim.sense == "most" else np.zeros(self.problem.num_classes)

    def _value(self, state: State, aim: Aim) -> int:
        """In whole units of the aim's weight; costs in millionths, so that they are whole too."""
        if aim.sense == "most":
            return int(aim.weight @ state.placed)
        return round(1e6 * float(self.problem.node_cost[state.pods_on > 0].sum()))

    def _offer(self, state: State) -> bool:
        """Keep a state that is better than the best; one that leaves pods out is none where all must run."""
        if self.must and len(state.place_of) < int(self.problem.demand.sum()):
            return False
        values = [self._value(state, aim) for aim in self.problem.aims]
        ranks = [value if aim.sense == "most" else -value for value, aim in zip(values, self.problem.aims, strict=True)]
        if self.best is not None:
            pairs = zip(self.best.values, self.problem.aims, strict=True)
            old = [value if aim.sense == "most" else -value for value, aim in pairs]
            if ranks <= old:
                return False
        self.best = _Reached(state, values)
        self.budget.report(incumbent=total(self.problem, self._floats(values)))
        return True

    def _floats(self, values: list[int]) -> list[float]:
        return [in_units(aim, value) for aim, value in zip(self.problem.aims, values, strict=True)]

    def _trivial(self, aim: Aim) -> int:
        """What nobody can pass: all pods, all devices; for costs, nodes that run pods already."""
        if aim.sense == "least":
            return self._value(self.empty, aim)
        offered = self.problem.offered(aim)
        return min(offered, int(self.problem.gpus.sum()) * WHOLE_MILLI) if aim.name == GPU_MILLI else offered

    def _met(self, place: int, aim: Aim, bound: int) -> bool:
        if self.best is None:
            return False
        reached = self.best.values[place]
        return reached >= bound if aim.sense == "most" else reached <= bound

    def _gap(self, place: int, bound: int) -> float:
        """Between the best plan and the bound of a tier, relative to the larger."""
        if self.best is None:
            return math.inf
        reached = self.best.values[place]
        return abs(bound - reached) / max(1, abs(bound), abs(reached))

    def _tier(self, place: int, aim: Aim, budget: Budget) -> int:
        """Improve the best plan in one tier; the bound of it, given what the tiers before have reached."""
        bound = self._trivial(aim)
        if self._met(place, aim, bound) or not self.shapes.classes.size:
            return bound
        program = Program(self.shapes, self._goal(place, aim), self.demand, self.columns)
        self.solver_version = program.lp.version
        if self.best is not None:
            for node, pattern in contents(self.best.state, self.shapes).items():
                program.add(self.kind_of[node], pattern)
        rounds = ROUNDS if self.options.work_limit is None else int(self.options.work_limit)
        amounts = program.improve(budget, rounds)
        bound = self._tightest(aim, bound, program.bound)
        if amounts is None or self._met(place, aim, bound):
            return bound
        self._integer(place, aim, program, amounts, bound, budget)
        return bound

    def _goal(self, place: int, aim: Aim) -> Goal:
        """The program's goal: the aim's weight and the tiers before, without what runs already."""
        problem, classes = self.problem, self.shapes.classes
        kept = []
        for index, other in enumerate(problem.aims[:place]):
            assert self.best is not None
            least = self.best.values[index] - int(other.weight @ problem.running)
            kept.append((_floats(other.weight[classes], other.scale), least * other.scale))
        weight = _floats(aim.weight[classes], aim.scale)
        return Goal(weight=weight, costs=aim.sense == "least", must=self.must, kept=tuple(kept))

    def _step(self, aim: Aim) -> float:
        """All that an aim can be worth are multiples of this, in its unit."""
        if aim.sense == "least":
            costs = np.round(1e6 * np.unique(self.problem.node_cost)).astype(np.int64)
            return max(1, math.gcd(*costs.tolist())) / 1e6
        return max(1, math.gcd(*aim.weight.tolist())) * aim.scale

    def _tightest(self, aim: Aim, trivial: int, lagrange: float) -> int:
        """The better of two bounds, in whole units: sums of the weights are multiples of their greatest divisor."""
        if not math.isfinite(lagrange):
            return trivial
        if aim.sense == "least":
            found = self._value(self.empty, aim) + math.ceil(1e6 * lagrange - 1.0)
            step = round(1e6 * self._step(aim))
            return max(trivial, -(-(found - 1) // step) * step)
        running = int(aim.weight @ self.problem.running)
        step = round(self._step(aim) / aim.scale)
        found = math.floor((-lagrange / aim.scale + 1e-4) / step + 1e-9) * step
        return min(trivial, running + found)

    def _integer(self, place: int, aim: Aim, program: Program, amounts: FloatArray, bound: int, budget: Budget) -> None:
        """Whole nodes: dive, then integer programs over some nodes each (`rounding`)."""
        order, demand = self._order(aim), self.demand
        if self.shapes.zoned:
            demand = program.settle()
            again = program.improve(budget, SETTLED_ROUNDS, bounded=False)
            amounts = amounts if again is None else again
        rounding = Rounding(program, demand, self._step(aim), self.options, self.rng)
        best = dive(program, amounts, budget)
        self._try(best, rounding.running(best), order)
        idle, patience = 0, PATIENCE if self.problem.num_nodes > LOOSE_NODES else PATIENCE_FEW
        for _ in range(TRIES):
            met = self._gap(place, bound) <= (self.options.relative_gap or 0.0)
            if met or budget.stop() is not None or idle > patience:
                return
            found = rounding.better(best, idle, budget)
            idle += 1
            if found is not None:
                best = found
                idle = 0 if self._try(best, rounding.running(best), order) else idle

    def _try(self, chosen: Chosen, running: IntArray, order: FloatArray) -> bool:
        state = State(self.problem)
        realise(state, self.shapes, chosen, running)
        state.drop_broken()
        fill(state, order)
        return self._offer(state)

    def _result(self, bounds: list[int]) -> SearchResult[PodsPlan]:
        problem = self.problem
        if self.best is None:
            return self._no_plan()
        state = self.best.state
        return concluded(
            problem, state.plan(reasons(problem, state)), self.best.values, bounds, self.budget.stop(),
            argument="patterns of single nodes (Lagrange)", solver="glop+highs", version=self.solver_version,
            build_s=self.build_s,
        )  # fmt: skip

    def _no_plan(self) -> SearchResult[PodsPlan]:
        """All pods must run, and no plan was found in which they do: proven impossible, or not."""
        goal = Goal(weight=np.ones(self.shapes.classes.size), costs=False, must=False)
        program = Program(self.shapes, goal, self.demand)
        program.improve(self.budget, ROUNDS)
        most = math.floor(-program.bound + 1e-4) if math.isfinite(program.bound) else None
        found = no_room_for_all(self.problem, self.empty, most)
        status = Status.INFEASIBLE if found else Status.UNKNOWN
        return SearchResult(
            status=status, stop=Stop.PROOF if found else self.budget.stop() or Stop.HEURISTIC, plan=None,
            solver="glop+highs", solver_version=program.lp.version, build_s=self.build_s, reasons=found,
        )  # fmt: skip


def _floats(weight: IntArray, scale: float) -> FloatArray:
    return np.asarray(weight * scale, dtype=np.float64)
