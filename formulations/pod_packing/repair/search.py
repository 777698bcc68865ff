"""Running clusters: which running pods to move or evict, so that more pending pods fit. The mathematics:

Sets: nodes s; classes j of pods that are alike; changes q of a node: (pods removed, pods added to its devices).
Data: d_j pending pods; movable pods p, k of them at most; disruption budgets b with allowed_b; tiers of the objective.
Variables, objective, rows and bound: `columns`. New changes: `pricing`. No change of any node is the status quo, which
is the start, so that no plan is worse than it.

Method: changes that remove nothing first, since a budget of moves from nothing stalls; then all changes, at smoothed
prices; then an integer program over the best of them. More than PART nodes: in random parts, each with its share of the
moves and of the pods that are left; the bound is of the whole, at the mean of the parts' prices. Then what is left
over wherever it still fits, and an order (`ordering`). With no move allowed it is `patterns`.

Left out: pods that affinity, spread or a gang ties to others do not move; which of them pending ones may join is kept
when they are placed, not in the bound, so that the gap may be larger than what is left. Amounts besides cores and
memory (pod slots, host ports) are kept by every change and not known to the bound.

Reference: Gilmore and Gomory 1961 (patterns); Wentges 1997 (smoothing); Narayanan et al., SOSP'21 (parts).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np

from formulations.outcome import Budget, PartBudget, SearchResult, SolveOptions
from formulations.pod_packing.baseline import greedy
from formulations.pod_packing.ordering import ordered
from formulations.pod_packing.patterns import PatternSearch
from formulations.pod_packing.patterns import search as stay_put
from formulations.pod_packing.problem import Aim, PodsProblem
from formulations.pod_packing.realise import size_of, tightest
from formulations.pod_packing.repair.columns import Program
from formulations.pod_packing.repair.lagrange import Cluster, Goal, Prices, Share, highest
from formulations.pod_packing.repair.master import pooled, solve_master
from formulations.pod_packing.repair.pricing import Change
from formulations.pod_packing.state import State
from planner.pods_plan import PodsPlan
from planner.workload import FloatArray, IntArray

#: Nodes of one part.
PART = 310
#: Rounds of changes that remove nothing, and of all changes, where nobody limits them.
STILL_ROUNDS, ROUNDS = 30, 60
#: Share of a tier's time for the parts.
IN_PARTS = 0.55
#: Share of the time for changes; the rest is for the integer program, but no more seconds than these: of the whole, of
#: a part.
SEEKING, MASTER_S, PART_S = 0.75, 8.0, 2.0


def search(problem: PodsProblem, options: SolveOptions, budget: Budget) -> SearchResult[PodsPlan]:
    """Tier after tier; with a work limit: rounds of new changes for a tier, and nodes of each integer program."""
    if problem.leave is None or not problem.leave.most:
        return stay_put(problem, options, budget)
    found = _Repair(problem, options, budget)
    return found.finished(found.run())


class _Repair(PatternSearch):
    """The tiers of `patterns`, with changes instead of patterns."""

    def __init__(self, problem: PodsProblem, options: SolveOptions, budget: Budget) -> None:
        super().__init__(problem, options, budget)
        assert problem.leave is not None
        self.leave = problem.leave
        self.cluster = Cluster(problem, problem.leave)
        nodes = self.rng.permutation(problem.num_nodes)
        self.parts = np.array_split(nodes, -(-nodes.size // PART))
        #: Changes of the best plan, by tier before which it was found.
        self.chosen: list[Change] = []

    def finished(self, result: SearchResult[PodsPlan]) -> SearchResult[PodsPlan]:
        """With moves in their order, and evictions."""
        if result.plan is None or self.best is None:
            return result
        state = self.best.state
        order = ordered(self.problem, {pod: state.place_of.get(pod) for pod in sorted(state.gone)})
        plan = result.plan.model_copy(update={"moves": order.moves, "evictions": order.evictions})
        return replace(result, plan=plan)

    def _offer(self, state: State) -> bool:
        """Of states that reach the same, the one of fewer moves."""
        if super()._offer(state):
            return True
        assert self.best is not None
        same = [self._value(state, aim) for aim in self.problem.aims] == self.best.values
        if same and len(state.gone) < len(self.best.state.gone):
            self.best.state = state
            return True
        return False

    def _tier(self, place: int, aim: Aim, budget: Budget) -> int:
        bound = self._trivial(aim)
        if self._met(place, aim, bound):
            return bound
        goal = self._changes_goal(place, aim)
        if len(self.parts) > 1:
            pool, prices = self._by_parts(goal, aim, PartBudget(budget, IN_PARTS * budget.remaining_s))
        else:
            pool, prices = [], []
        _, program = self._share(goal, aim, self.cluster.whole(), budget, pool, prices)
        return self._tightest(aim, bound, program.bound)

    def _changes_goal(self, place: int, aim: Aim) -> Goal:
        problem = self.problem
        assert self.best is not None
        kept = []
        for index, other in enumerate(problem.aims[:place]):
            least = self.best.values[index] - int(other.weight @ problem.running)
            kept.append((np.asarray(other.weight * other.scale, dtype=np.float64), least * other.scale))
        return Goal(np.asarray(aim.weight * aim.scale, dtype=np.float64), tuple(kept))

    def _by_parts(self, goal: Goal, aim: Aim, budget: Budget) -> tuple[list[Change], list[Prices]]:
        """The best changes of each part, and the parts' prices; their plans together are offered."""
        found: list[Change] = []
        pool: list[Change] = []
        prices: list[Prices] = []
        whole = self.cluster.whole()
        demand, moves, allowed = whole.demand.copy(), whole.moves, whole.allowed.copy()
        nodes_left = self.problem.num_nodes
        for index, nodes in enumerate(self.parts):
            part = nodes.size / nodes_left
            share = Share(
                nodes, np.ceil(demand * part).astype(np.int64), int(np.ceil(moves * part)),
                np.floor(allowed * part).astype(np.int64),
            )  # fmt: skip
            mine, program = self._share(
                self._kept_inside(goal, nodes),
                None,
                share,
                PartBudget(budget, budget.remaining_s / (len(self.parts) - index)),
                [],
                [],
            )
            found += mine
            best = pooled(program)
            pool += best
            prices += [] if program.best is None else [program.best]
            net = Counter[int]()
            for change in mine:
                moves -= len(change.removed)
                net.update(self.cluster.amounts(change))
                for p in change.removed:
                    allowed[self.cluster.budgets_of[p]] -= 1
            for j, n in net.items():
                demand[j] -= min(demand[j], max(0, n))
            nodes_left -= nodes.size
        self._try_changes(found, aim)
        return pool, prices

    def _kept_inside(self, goal: Goal, nodes: IntArray) -> Goal:
        """What the best plan reaches of the tiers before on these nodes."""
        inside = set(nodes.tolist())
        net = Counter[int]()
        for change in self.chosen:
            if change.node in inside:
                net.update(self.cluster.amounts(change))
        kept = tuple(
            (weight, min(least, float(sum(weight[j] * n for j, n in net.items())))) for weight, least in goal.kept
        )
        return replace(goal, kept=kept)

    def _share(
        self, goal: Goal, aim: Aim | None, share: Share, budget: Budget, pool: list[Change], first: list[Prices]
    ) -> tuple[list[Change], Program]:
        """Whole changes of a share of the cluster; with an aim they are offered. pool, first : what is known."""
        inside = set(share.nodes.tolist())
        start = [change for change in self.chosen if change.node in inside]
        program = Program(self.cluster, goal, share)
        self.solver_version = program.lp.version
        for change in [*start, *pool]:
            program.add(change)
        rounds = ROUNDS if self.options.work_limit is None else int(self.options.work_limit)
        seeking = PartBudget(budget, SEEKING * budget.remaining_s)
        if not pool:
            program.improve(seeking, min(rounds, STILL_ROUNDS), still=True)
        # A bound before anything that may run out of time.
        for prices in [highest(first), *first] if first else []:
            program.seek(prices)
        if program.improve(seeking, rounds) is None:
            return start, program
        limits = SolveOptions(
            time_limit_s=max(
                0.1, min(MASTER_S if share.nodes.size == self.problem.num_nodes else PART_S, budget.remaining_s)
            ),
            seed=self.options.seed,
            work_limit=None if self.options.work_limit is None else int(self.options.work_limit),
        )
        found = solve_master(program, start, budget, limits)
        if found is not None and aim is not None:
            self._try_changes(found, aim)
        return (start if found is None else found), program

    def _try_changes(self, changes: list[Change], aim: Aim) -> None:
        state = State(self.problem)
        apply(state, changes)
        order = self._order(aim)
        fill_all(state, order)
        if self._offer(state):
            self.chosen = changes


def apply(state: State, changes: list[Change]) -> None:
    """Make the changes: pods that leave take the places of their class, then pending pods do."""
    problem = state.problem
    slots: dict[int, list[tuple[int, tuple[int, ...]]]] = defaultdict(list)
    leaving: dict[int, list[int]] = defaultdict(list)
    for change in changes:
        for pod in change.removed:
            state.take(pod)
            leaving[int(problem.pod_class[pod])].append(pod)
        for j, devices in change.added:
            slots[j].append((change.node, devices))
    waiting: dict[int, list[int]] = defaultdict(list)
    for pod in np.flatnonzero(problem.pending)[::-1].tolist():
        waiting[int(problem.pod_class[pod])].append(pod)
    for j, places in slots.items():
        pods = leaving[j]
        for node, devices in places:
            # A pod that leaves and comes back to its own node would be moved for nothing, if another can come instead.
            pick = next((p for p in reversed(pods) if problem.pod_node[p] != node), pods[-1] if pods else None)
            if pick is not None:
                pods.remove(pick)
            elif waiting[j]:
                agreeable = state.agreeable(j) if problem.crossing[j] else None
                if agreeable is not None and not agreeable[node]:
                    continue
                pick = waiting[j].pop()
            if pick is not None:
                state.place(pick, node, devices)


def fill_all(state: State, weight: FloatArray) -> None:
    """Place what has no place and still fits: pods that were taken off their nodes, then pending ones."""
    problem = state.problem
    size = size_of(problem)
    pods = [p for p in [*state.gone, *np.flatnonzero(problem.pending).tolist()] if p not in state.place_of]
    pods.sort(key=lambda p: (-weight[problem.pod_class[p]], -size[problem.pod_class[p]], p not in state.gone, p))
    greedy(state, pods, tightest(problem), State.devices)
