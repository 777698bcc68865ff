"""Running clusters: which running pods to move or evict, so that more pending pods fit. The mathematics:

Sets: nodes s; classes j of pods that are alike; kinds of classes that are exchangeable; changes q of a node: (pods
removed, pods added to its devices).
Data: d_j pending pods; movable pods p, k of them at most; disruption budgets b with allowed_b; tiers of the objective.
Variables, objective, rows and bound: `columns`. New changes: `pricing`. No change of any node is the status quo, which
is the start, so that no plan is worse than it.

Method: changes that remove nothing first, since a budget of moves from nothing stalls; then all changes, at steadied
prices; then an integer program over the best of them, and again over parts of the cluster drawn at random, each with
the pods, moves and budgets that the rest leaves it. What is left over goes wherever it still fits; then an order
(`ordering`). With no move allowed pods are added alone; where rules tie pending pods to others it is `patterns` then.

Left out: pods that affinity, spread or a gang ties to others do not move; which of them pending ones may join is kept
when they are placed, not in the bound, so that the gap may be larger than what is left. Amounts besides cores and
memory (pod slots, host ports) are kept by every change and not known to the bound.

Reference: Gilmore and Gomory 1961 (patterns); the others stand in `columns` and `kinds`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from formulations.outcome import Budget, PartBudget, SearchResult, SolveOptions
from formulations.pod_packing.ordering import ordered
from formulations.pod_packing.patterns import PatternSearch
from formulations.pod_packing.patterns import search as stay_put
from formulations.pod_packing.problem import Aim, Leave, PodsProblem
from formulations.pod_packing.repair.columns import Program
from formulations.pod_packing.repair.lagrange import Cluster, Goal, Share
from formulations.pod_packing.repair.master import pooled, solve_master
from formulations.pod_packing.repair.pricing import Change
from formulations.pod_packing.repair.realise import apply, changes_of, come_back, fill_all
from formulations.pod_packing.state import State
from planner.pods_plan import PodsPlan
from planner.workload import IntArray

#: Rounds of changes that remove nothing, and of all changes, where nobody limits them.
STILL_ROUNDS, ROUNDS = 40, 80
#: Share of a tier's time for changes, and of what is left then for the integer program over the whole.
SEEKING, MASTER = 0.6, 0.35
#: Nodes of a part, and rounds of new changes for it.
PART, PART_ROUNDS = 250, 6
#: Integer programs over parts, and how many in a row may bring nothing.
TRIES, PATIENCE = 40, 6
#: Most nodes of the search tree of an integer program over the whole, and over a part.
MOST_NODES, PART_NODES = 500, 200


def search(problem: PodsProblem, options: SolveOptions, budget: Budget) -> SearchResult[PodsPlan]:
    """Tier after tier; with a work limit: rounds of new changes for a tier, and nodes of each integer program."""
    still = problem.leave is None or not problem.leave.most
    if problem.objective == "consolidate" or (still and (problem.crossing & (problem.demand > 0)).any()):
        return stay_put(problem, options, budget)
    found = _Repair(problem, options, budget)
    return found.finished(found.run())


class _Repair(PatternSearch):
    """The tiers of `patterns`, with changes instead of patterns."""

    def __init__(self, problem: PodsProblem, options: SolveOptions, budget: Budget) -> None:
        super().__init__(problem, options, budget)
        nobody = np.zeros(problem.pod_node.size, dtype=np.bool_)
        leave = problem.leave or Leave(most=0, movable=nobody, evictable=np.zeros(problem.num_classes, dtype=np.bool_))
        self.still = leave.most == 0
        self.cluster = Cluster(problem, replace(leave, movable=nobody) if self.still else leave)

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
        assert self.best is not None
        # The tiers after this one share what is left, so that none is without any.
        after = len(self.problem.aims) - place - 1
        budget = PartBudget(budget, budget.remaining_s * 2.0 / (2.0 + after))
        goal = self._changes_goal(place, aim)
        program = Program(self.cluster, goal, self.cluster.whole())
        self.solver_version = program.lp.version
        for change in changes_of(self.cluster, self.best.state):
            program.add(change)
        seeking = PartBudget(budget, SEEKING * budget.remaining_s)
        rounds = ROUNDS if self.options.work_limit is None else int(self.options.work_limit)
        found = program.improve(seeking, min(rounds, STILL_ROUNDS), still=True)
        if not self.still:
            if found:
                # A good plan without moves is soon had, should time run out.
                self._whole(program, aim, seeking)
            found = program.improve(seeking, rounds)
        bound = self._tightest(aim, bound, program.bound)
        if found and not self._met(place, aim, bound):
            self._whole(program, aim, budget)
            self._by_parts(place, aim, goal, program, bound, budget)
        return bound

    def _whole(self, program: Program, aim: Aim, budget: Budget) -> None:
        """The integer program over the whole cluster."""
        assert self.best is not None
        start = changes_of(self.cluster, self.best.state)
        limits = self._limits(MASTER * budget.remaining_s, MOST_NODES)
        chosen = solve_master(program, start, [], budget, limits)
        if chosen is not None:
            self._try_changes(chosen, aim)

    def _limits(self, seconds: float, nodes: int) -> SolveOptions:
        work = nodes if self.options.work_limit is None else min(nodes, int(self.options.work_limit))
        return SolveOptions(time_limit_s=max(0.1, seconds), seed=self.options.seed, work_limit=work)

    def _changes_goal(self, place: int, aim: Aim) -> Goal:
        problem = self.problem
        assert self.best is not None
        kept = []
        for index, other in enumerate(problem.aims[:place]):
            least = self.best.values[index] - int(other.weight @ problem.running)
            kept.append((np.asarray(other.weight * other.scale, dtype=np.float64), least * other.scale))
        return Goal(np.asarray(aim.weight * aim.scale, dtype=np.float64), tuple(kept))

    def _by_parts(self, place: int, aim: Aim, goal: Goal, whole: Program, bound: int, budget: Budget) -> None:
        """Settle parts of the cluster anew, the rest as in the best plan."""
        pool: dict[int, list[Change]] = {}
        for change in pooled(whole):
            pool.setdefault(change.node, []).append(change)
        idle = 0
        for _ in range(TRIES):
            gap = self._gap(place, bound)
            if gap <= (self.options.relative_gap or 0.0) or budget.stop() is not None or idle > PATIENCE:
                return
            nodes = np.sort(self.rng.permutation(self.problem.num_nodes)[:PART])
            start, rest = self._parted(nodes)
            share, mine = self._beside(nodes, rest, goal)
            program = Program(self.cluster, mine, share, whole.best)
            for change in [*start, *(one for n in nodes.tolist() for one in pool.get(n, []))]:
                program.add(change)
            if not program.improve(budget, PART_ROUNDS, still=self.still):
                return
            chosen = solve_master(program, start, rest, budget, self._limits(budget.remaining_s, PART_NODES))
            better = chosen is not None and self._try_changes(chosen, aim)
            idle = 0 if better else idle + 1

    def _parted(self, nodes: IntArray) -> tuple[list[Change], list[Change]]:
        """What the best plan changes on these nodes, and elsewhere."""
        assert self.best is not None
        inside = set(nodes.tolist())
        changes = changes_of(self.cluster, self.best.state)
        return [one for one in changes if one.node in inside], [one for one in changes if one.node not in inside]

    def _beside(self, nodes: IntArray, rest: list[Change], goal: Goal) -> tuple[Share, Goal]:
        """What the rest of the plan leaves to these nodes."""
        assert self.best is not None
        problem, cluster, state = self.problem, self.cluster, self.best.state
        whole = cluster.whole()
        outside = np.ones(problem.num_nodes, dtype=np.bool_)
        outside[nodes] = False
        came = np.array([p for p, (n, _) in state.place_of.items() if outside[n]], dtype=np.int64)
        new = np.bincount(problem.pod_class[came[problem.pending[came]]], minlength=problem.num_classes)
        gone = np.array([p for one in rest for p in one.removed], dtype=np.int64)
        for_good = np.array([p for one in rest for p in one.evicted], dtype=np.int64)
        lost = np.bincount(problem.pod_class[for_good], minlength=problem.num_classes)
        left = np.bincount(problem.pod_class[gone], minlength=problem.num_classes) - lost
        back = np.bincount(problem.pod_class[came], minlength=problem.num_classes) - new
        used = [int(one.pods[gone].sum()) for one in cluster.leave.budgets]
        share = Share(
            nodes, whole.demand - new, whole.moves - gone.size, whole.allowed - np.array(used, dtype=np.int64),
            cluster.kinds.counts(left - back),
        )  # fmt: skip
        kept = tuple((weight, least - float(weight @ (new - lost))) for weight, least in goal.kept)
        return share, replace(goal, kept=kept)

    def _try_changes(self, changes: list[Change], aim: Aim) -> bool:
        state = State(self.problem)
        order = self._order(aim)
        apply(self.cluster, state, changes, order)
        fill_all(state, order)
        come_back(state)
        return self._offer(state)
