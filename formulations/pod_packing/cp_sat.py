"""The methods `cp-sat` and `auto`: an exact model of the whole, then of parts, again and again; and after patterns.

`cp-sat` knows nothing of patterns: starts are where the pods are now and greedy rules; then annealing (`anneal`), where
pods without devices or rules may move; then part after part (`neighbours`), while something is left to gain; and the
whole model, tier after tier: before the parts where it is small, after them where it is not, and not at all where it is
large. Its bounds are CP-SAT's.
`auto` without leave to move runs `patterns` first, and on few nodes goes on from its plan against its bounds. With
leave it is `cp-sat` on few nodes, where parts repacked as a whole find what single moves do not, else `repair`.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import numpy as np

from formulations.backends import load_ortools_first
from formulations.outcome import Budget, PartBudget, SearchResult, SolveOptions, Status, Stop
from formulations.pod_packing.anneal import CYCLES, Annealing, usable
from formulations.pod_packing.exact import ExactModel, Order, Term
from formulations.pod_packing.explain import no_room_for_all, reasons
from formulations.pod_packing.neighbours import Neighbours, rank
from formulations.pod_packing.ordering import ordered
from formulations.pod_packing.packing import Packing, movable
from formulations.pod_packing.priority_matters import Published
from formulations.pod_packing.problem import GPU_MILLI, Aim, PodsProblem
from formulations.pod_packing.proof import concluded
from formulations.pod_packing.realise import fill
from formulations.pod_packing.state import State
from planner.kubernetes.snapshot import WHOLE_MILLI
from planner.pods_plan import PodsPlan

#: Counts of the whole model up to which it comes first, or after the parts if that many seconds are left; beyond, only
#: parts are searched.
SMALL, LARGEST, LEAST_S = 400, 4000, 2.0
#: Shares of the time for the whole model, and for all search: orders of moves and reasons come after it.
WHOLE_SHARE, SEARCH_SHARE = 0.4, 0.92
#: Share of the search for annealing, where it can be used; of a work limit, parts that count as much as one cycle.
ANNEAL_SHARE, ROUNDS_A_CYCLE = 0.5, 20
#: Deterministic seconds for each tier of the whole model, and parts searched, where nobody limits them.
WHOLE_WORK, ROUNDS = 1.0, 2000
#: Nodes up to which `auto` takes `cp-sat` where pods may move.
MOVES_NODES = 64
#: Nodes up to which `auto` goes on after patterns that are not proven, and its share of time for patterns then.
AUTO_NODES, PATTERNS_SHARE = 400, 0.4


@dataclass(slots=True)
class Exact:
    """One search; `best` and `bounds` (of each aim, in whole units) may be read at any time."""

    problem: PodsProblem
    budget: Budget
    options: SolveOptions
    order: Order = "placed first"
    best: Packing | None = None
    bounds: list[int] = field(default_factory=list)
    infeasible: bool = False
    greedy: bool = True
    stop: Stop | None = None

    def __post_init__(self) -> None:
        for start in self._starts() if self.greedy else ():
            self._offer(start)
        self.bounds = [self._trivial(aim) for aim in self.problem.aims]

    def adopt(self, plan: PodsPlan) -> None:
        """Go on from a plan without moves, against the bounds of its tiers."""
        pods = {name: index for index, name in enumerate(self.problem.pod_names)}
        nodes = {name: index for index, name in enumerate(self.problem.node_names)}
        packing = Packing(self.problem)
        for one in plan.placements:
            packing.node[pods[one.pod]] = nodes[one.node]
            packing.devices[pods[one.pod]] = tuple(share.index for share in one.gpus)
        self._offer(packing)
        for place, (aim, tier) in enumerate(zip(self.problem.aims, plan.tiers, strict=True)):
            if tier.bound is not None:
                self._hold(place, aim, round(tier.bound / aim.scale if aim.sense == "most" else 1e6 * tier.bound))

    def _hold(self, place: int, aim: Aim, bound: int) -> None:
        """Keep the stronger of two bounds."""
        self.bounds[place] = (min if aim.sense == "most" else max)(self.bounds[place], bound)

    def run(self, rounds: int = ROUNDS) -> None:
        """The whole model where it is small, then part after part."""
        if self.proven:
            return
        budget = PartBudget(self.budget, SEARCH_SHARE * self.budget.remaining_s)
        work = WHOLE_WORK if self.options.work_limit is None else min(WHOLE_WORK, self.options.work_limit)
        size, rounds = self._size(), rounds if self.options.work_limit is None else int(self.options.work_limit)
        self._anneal(PartBudget(budget, ANNEAL_SHARE * budget.remaining_s))
        if size <= SMALL:
            self._whole(PartBudget(budget, WHOLE_SHARE * budget.remaining_s), work)
        if self.best is not None and not self.proven:
            whole_later = SMALL < size <= LARGEST and WHOLE_SHARE * budget.remaining_s > LEAST_S
            share = 1.0 - WHOLE_SHARE if whole_later else 1.0
            search = Neighbours(self.best, self.order, self.options.seed)
            self.best = search.run(PartBudget(budget, share * budget.remaining_s), self.options, rounds, self._goal())
        if SMALL < size <= LARGEST and not self.proven and budget.remaining_s > LEAST_S:
            self._whole(budget, work)
        self.stop = budget.stop()

    def _anneal(self, budget: Budget) -> None:
        """From the best plan, where the annealing knows all that matters."""
        if self.best is None or self.order != "placed first" or not usable(self.problem, self.best.movable):
            return
        limit = self.options.work_limit
        cycles = CYCLES if limit is None else min(CYCLES, max(1, int(limit) // ROUNDS_A_CYCLE))
        found = Annealing(self.best, self.options.seed).run(budget, cycles)
        if found is not None:
            self._offer(found)

    @property
    def proven(self) -> bool:
        """Whether every aim has met its bound, and nothing was disturbed for it."""
        goal = self._goal()
        if self.best is None or goal is None:
            return False
        return all(have >= want for have, want in zip(rank(self.best, self.order), goal, strict=True))

    def _goal(self) -> list[int] | None:
        """The ranks at which nothing is left to gain; unknown where disruptions stand between tiers."""
        if self.order == "stability first" and self.problem.leave is not None:
            return None
        signs = [1 if aim.sense == "most" else -1 for aim in self.problem.aims]
        goal = [sign * bound for sign, bound in zip(signs, self.bounds, strict=True)]
        if self.order == "stability first" and self.problem.objective == "priority":
            return [rank for tier in goal for rank in (tier, 0, 0)]
        return [*goal, 0, 0]

    def _size(self) -> int:
        classes = np.unique(self.problem.pod_class[movable(self.problem)])
        return int(self.problem.allowed[classes].sum())

    def _starts(self) -> list[Packing]:
        found = [Packing(self.problem)]
        for aim in self.problem.aims:
            state = State(self.problem)
            weight = aim.weight if self.problem.objective == "allocation" else self.problem.priority
            fill(state, weight.astype(np.float64))
            found.append(Packing(self.problem).adopt(state))
        return found

    def _offer(self, packing: Packing) -> bool:
        everything = self.problem.objective == "consolidate"
        if everything and (packing.node[self.problem.pending] < 0).any():
            return False
        if self.best is not None and rank(packing, self.order) <= rank(self.best, self.order):
            return False
        self.best = packing
        return True

    def _trivial(self, aim: Aim) -> int:
        """What nobody can pass: all pods, all devices, or nodes where pods run that stay."""
        problem = self.problem
        if aim.sense == "least":
            stay = (problem.pod_node >= 0) & ~movable(problem)
            return round(1e6 * float(problem.node_cost[np.unique(problem.pod_node[stay])].sum()))
        offered = problem.offered(aim)
        return min(offered, int(problem.gpus.sum()) * WHOLE_MILLI) if aim.name == GPU_MILLI else offered

    def _whole(self, budget: Budget, work: float) -> None:
        """Tier after tier of the whole model; what is not proven in time leaves the later tiers to the parts."""
        problem = self.problem
        start = self.best or Packing(problem)
        exact = ExactModel(start, np.arange(problem.num_nodes), np.flatnonzero(start.movable), self.order)
        for place, term in enumerate(exact.terms):
            exact.packing = self.best or start
            if self.best is not None:
                exact.hint()
            limits = SolveOptions(time_limit_s=max(1e-3, budget.remaining_s), seed=self.options.seed, work_limit=work)
            result, value = exact.solve(term.expression, budget, limits)
            if result.status is Status.INFEASIBLE:
                self.infeasible = place == 0
                return
            if result.bound is not None:
                self._tighten(exact, term, math.floor(-result.bound + 1e-6))
            if value is None:
                return
            self._offer(exact.packed(value))
            if result.status is not Status.OPTIMAL:
                return
            exact.model.add(term.expression >= value(term.expression))

    def _tighten(self, exact: ExactModel, term: Term, most: int) -> None:
        for place, aim in enumerate(self.problem.aims):
            if term.name == aim.name:
                self._hold(place, aim, exact.in_aim(aim, term, most))


def search(problem: PodsProblem, options: SolveOptions, budget: Budget) -> SearchResult[PodsPlan]:
    """`cp-sat`; with a work limit: parts searched, and at most so many deterministic seconds a tier of the whole."""
    started = time.perf_counter()
    exact = Exact(problem, budget, options)
    build_s = time.perf_counter() - started
    exact.run()
    # Loading OR-Tools takes half a second: annealing comes before it.
    return _result(exact, f"ortools {load_ortools_first()}", build_s, "whole model (CP-SAT)", "cp-sat")


def published(problem: PodsProblem, options: SolveOptions, budget: Budget) -> SearchResult[PodsPlan]:
    """`priority-matters`; with a work limit: deterministic seconds of each step."""
    started = time.perf_counter()
    run = Published(problem, options, budget)
    build_s = time.perf_counter() - started
    run.run()
    version = f"ortools {load_ortools_first()}"
    if run.packing is None:
        stop = budget.stop() or Stop.TIME_LIMIT
        return SearchResult(
            status=Status.UNKNOWN, stop=stop, plan=None, solver="cp-sat", solver_version=version, build_s=build_s
        )
    exact = Exact(problem, budget, options, best=run.packing, greedy=False)
    return _result(exact, version, build_s, "every pod placed", "cp-sat")


def auto(problem: PodsProblem, options: SolveOptions, budget: Budget) -> SearchResult[PodsPlan]:
    """`patterns`, and from its plan on `cp-sat` where the cluster is small and something is left to gain."""
    from formulations.pod_packing.patterns import search as by_patterns
    from formulations.pod_packing.repair.search import search as by_repair

    if problem.bound.any():
        return search(problem, options, budget)
    if problem.leave is not None:
        return (by_repair if problem.num_nodes > MOVES_NODES else search)(problem, options, budget)
    if problem.num_nodes > AUTO_NODES:
        return by_patterns(problem, options, budget)
    first = by_patterns(problem, options, PartBudget(budget, PATTERNS_SHARE * budget.remaining_s))
    if first.status in (Status.OPTIMAL, Status.INFEASIBLE) or budget.stop() is not None:
        return first
    if first.plan is not None and _near_enough(first.plan, options):
        return first
    exact = Exact(problem, budget, options)
    if first.plan is not None:
        exact.adopt(first.plan)
    exact.run()
    name = "patterns of single nodes (Lagrange), and the whole model (CP-SAT)"
    return _result(exact, first.solver_version, first.build_s, name, "glop+highs+cp-sat")


def _near_enough(plan: PodsPlan, options: SolveOptions) -> bool:
    asked = options.relative_gap or 0.0
    return all(tier.gap is not None and tier.gap <= asked for tier in plan.tiers)


def _result(exact: Exact, version: str, build_s: float, argument: str, solver: str) -> SearchResult[PodsPlan]:
    problem, best = exact.problem, exact.best
    if best is None:
        found = no_room_for_all(problem, State(problem), None) if exact.infeasible else ()
        if exact.infeasible and not found:
            found = ("no plan runs all pending pods: the whole model has no solution",)
        return SearchResult(
            status=Status.INFEASIBLE if found else Status.UNKNOWN,
            stop=Stop.PROOF if found else exact.budget.stop() or Stop.HEURISTIC,
            plan=None, solver=solver, solver_version=version, build_s=build_s, reasons=found,
        )  # fmt: skip
    state = best.state()
    signs = [1 if aim.sense == "most" else -1 for aim in problem.aims]
    reached = [sign * value for sign, value in zip(signs, rank(best, exact.order), strict=False)]
    plan = state.plan(reasons(problem, state))
    if state.gone:
        order = ordered(problem, {pod: state.place_of.get(pod) for pod in sorted(state.gone)})
        plan = plan.model_copy(update={"moves": order.moves, "evictions": order.evictions})
    return concluded(
        problem, plan, reached, exact.bounds, exact.stop or exact.budget.stop(),
        argument=argument, solver=solver, version=version, build_s=build_s,
    )  # fmt: skip
