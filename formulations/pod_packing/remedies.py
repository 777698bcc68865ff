"""What would place a pod without a place: moving other pods, or nodes to add. Found on top of a plan; nothing is done.

Groups: pods of one class, or of one gang. Moves are sought for one more pod of a class, for as many as a gang lacks;
nodes for all of the group, and for all groups together.

Moves     the exact model (`exact`) of what runs when the plan is carried out: the group placed, nobody evicted, fewest
          pods moved. Whole where that is small: then it is proven that the moves are the fewest, or that none help.
          Else every single move is tried, then the model over nodes that need fewest pods to leave, and nodes that can
          take these in. Such moves are the fewest where no node at all could do with fewer: for each amount, largest
          pods first; and two are where no single move does.
Nodes     `consolidate` (`cp_sat.auto`) over copies of every offer, what runs stays: cheapest where all offers have
          prices, else fewest. Nodes that are there take part where rules tie a group to other pods.

Pinned pods and those that rules tie to others do not move; disruption budgets are kept.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np

from formulations.outcome import Budget, PartBudget, SolveOptions, Status
from formulations.pod_packing.added import nodes_to_add
from formulations.pod_packing.exact import ExactModel
from formulations.pod_packing.explain import most_together, reason
from formulations.pod_packing.ordering import ordered
from formulations.pod_packing.packing import Packing, movable
from formulations.pod_packing.problem import Leave, PodsProblem
from formulations.pod_packing.realise import size_of
from formulations.pod_packing.state import State
from planner.kubernetes.snapshot import WHOLE_MILLI
from planner.pods_plan import GpuShare, Placement, PodMove, PodsPlan, Remedy
from planner.workload import IntArray

#: Groups for which remedies are sought, by priority and then by size.
MOST_GROUPS = 6
#: Counts of the whole model up to which it is asked; nodes of a part that pods leave, and that take in those of
#: each class.
SMALL, LEAVING, TAKING = 2000, 8, 3
#: Deterministic seconds of one model, and moves beyond which none are told.
WORK, MOST_MOVES = 0.5, 30
#: More pods than there are.
NEVER = np.iinfo(np.int32).max
#: Share of the time limit that is kept for remedies, at most so many seconds; below this limit none are sought.
SHARE, MOST_S, LEAST_LIMIT_S = 0.1, 4.0, 2.0
#: Moves named in words.
NAMED = 3


def kept_s(options: SolveOptions) -> float:
    """Seconds of the time limit that remedies may take."""
    return min(MOST_S, SHARE * options.time_limit_s) if options.time_limit_s >= LEAST_LIMIT_S else 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """pods : without a place, alike or of one gang. wanted : so many of them at least make sense together."""

    pods: tuple[int, ...]
    wanted: int
    gang: int


def remedies(problem: PodsProblem, plan: PodsPlan, options: SolveOptions, budget: Budget) -> tuple[Remedy, ...]:
    """For the most important groups, and all together; none where every pod has a place, or no time is left.

    None either where the problem does not say what could happen to running pods: it stands for no cluster then.
    """
    if problem.could_leave is None:
        return ()
    after = carried_out(problem, plan, problem.could_leave)
    groups = list(_groups(after))
    if not groups or budget.stop() is not None:
        return ()
    state = State(after)
    found: list[Remedy] = []
    hopeless: list[int] = []
    for index, group in enumerate(groups):
        j = int(after.pod_class[group.pods[0]])
        why = impossible(after, state, j)
        if why:
            hopeless += group.pods
        if index >= MOST_GROUPS or budget.stop() is not None:
            continue
        names = tuple(after.pod_names[pod] for pod in group.pods)
        if why:
            found.append(Remedy(pods=names, way="none", proven=True, text=why))
            continue
        limit = PartBudget(budget, budget.remaining_s / (min(len(groups), MOST_GROUPS) - index + 1))
        moves = None
        if _has_home(after, j):
            moves = _moves(after, group, options, PartBudget(limit, limit.remaining_s / 2))
        if moves is not None:
            found.append(moves)
        nodes = nodes_to_add(after, np.array(group.pods), options, limit)
        if nodes is not None:
            found.append(nodes)
    hopeful = np.array([pod for group in groups for pod in group.pods if pod not in set(hopeless)], dtype=np.int64)
    if len(groups) > 1 and hopeful.size and budget.stop() is None:
        nodes = nodes_to_add(after, hopeful, options, budget)
        if nodes is not None and not any(one.way == "nodes" and len(one.pods) == hopeful.size for one in found):
            found.append(nodes)
    return tuple(found)


def relaxations(problem: PodsProblem, options: SolveOptions, budget: Budget) -> tuple[str, ...]:
    """Nodes that would let every pending pod run, where the instance asks for that and it cannot be."""
    pods = np.flatnonzero(problem.pending)
    state = State(problem)
    hopeless = {int(j) for j in np.unique(problem.pod_class[pods]) if impossible(problem, state, int(j))}
    if hopeless or budget.stop() is not None:
        return ()
    found = nodes_to_add(problem, pods, options, budget, beside=True)
    return () if found is None else (found.text,)


def impossible(problem: PodsProblem, state: State, j: int) -> str:
    """Why neither moves nor any node on offer place a pod of class j; nothing where one might."""
    if problem.contradictions and problem.contradictions[j]:
        return f"nothing: {problem.contradictions[j]}"
    if any(
        _holds(problem, j, one.allowed[j], one.capacity, min(one.gpus, one.island) if problem.bound[j] else one.gpus)
        for one in problem.offers
    ):
        return ""
    if _has_home(problem, j):
        return ""
    return f"nothing that there is or that is offered: {reason(problem, state, j)}"


def _has_home(problem: PodsProblem, j: int) -> bool:
    """Whether some node that is there would hold a pod of class j if nothing ran on it."""
    gpus = most_together(problem, j).tolist()
    nodes = np.flatnonzero(problem.allowed[j]).tolist()
    return any(_holds(problem, j, True, problem.capacity[n], gpus[n]) for n in nodes)


def _holds(problem: PodsProblem, j: int, allowed: bool, capacity: IntArray, gpus: int) -> bool:
    return bool(allowed and (capacity >= problem.request[j]).all() and gpus >= problem.class_gpus[j])


def carried_out(problem: PodsProblem, plan: PodsPlan, could: Leave) -> PodsProblem:
    """The problem when the plan is carried out: what has a place runs there, all may be moved that could be."""
    pods = {name: index for index, name in enumerate(problem.pod_names)}
    nodes = {name: index for index, name in enumerate(problem.node_names)}
    node = np.full(len(pods), -1, dtype=np.int64)
    devices: list[tuple[int, ...]] = [()] * len(pods)
    for one in plan.placements:
        node[pods[one.pod]] = nodes[one.node]
        devices[pods[one.pod]] = tuple(share.index for share in one.gpus)
    return replace(
        problem,
        objective="priority",
        pod_node=node,
        pod_devices=tuple(devices),
        leave=Leave(
            most=len(pods),
            movable=(could.movable | (problem.pod_node < 0)) & (node >= 0),
            evictable=np.zeros(problem.num_classes, dtype=np.bool_),
            budgets=could.budgets,
        ),
    )


def _groups(problem: PodsProblem) -> list[Group]:
    """Pods without a place by gang and class, the most important and largest first."""
    members: dict[tuple[int, int], list[int]] = defaultdict(list)
    for pod in np.flatnonzero(problem.pending).tolist():
        j = int(problem.pod_class[pod])
        gang = int(problem.gang[j])
        members[gang, -1 if gang >= 0 else j].append(pod)
    found = []
    for (gang, _), pods in members.items():
        wanted = 1
        if gang >= 0:
            runs = int((problem.pod_node[problem.gang[problem.pod_class] == gang] >= 0).sum())
            wanted = min(len(pods), max(1, int(problem.gang_least[gang]) - runs))
        found.append(Group(tuple(pods), wanted, gang))
    found.sort(key=lambda one: (-int(problem.priority[problem.pod_class[one.pods[0]]]), -len(one.pods), one.pods))
    return found


def _moves(after: PodsProblem, group: Group, options: SolveOptions, budget: Budget) -> Remedy | None:
    """Fewest moves that place the group, or as few as are found; a remedy `none` where it is proven that none do."""
    chosen = group.pods[: group.wanted]
    waiting = tuple("" if pod in chosen or after.pod_node[pod] >= 0 else "aside" for pod in range(len(after.pod_names)))
    problem = replace(after, waiting=waiting)
    pods = np.flatnonzero(movable(problem))
    small = int(problem.allowed[np.unique(problem.pod_class[pods])].sum()) <= SMALL
    j = int(problem.pod_class[chosen[0]])
    alone = group.gang < 0 and not problem.crossing[j] and not problem.bound[j]
    least = _least(problem, j) if group.gang < 0 else np.where(problem.allowed[j], 0, NEVER)
    fewest = int(least.min())
    names = tuple(problem.pod_names[pod] for pod in chosen)
    nothing = Remedy(pods=names, way="none", proven=True, text=f"no moves place {_told(names)}")
    if fewest > MOST_MOVES:
        return nothing if fewest == NEVER else None
    if alone and fewest == 0:
        # There is room: no pod is in the way.
        return None
    if not small and alone and fewest == 1:
        packed = _one_move(problem, chosen[0], least)
        if packed is not None:
            return _told_moves(problem, packed, chosen, proven=True)
        fewest = 2
    nodes = np.arange(problem.num_nodes) if small else _part(problem, np.array(chosen), least)
    here = np.isin(problem.pod_node[pods], nodes) | (problem.pod_node[pods] < 0)
    exact = ExactModel(Packing(problem), nodes, pods[here])
    for i in range(len(exact.members)):
        exact.model.add(exact.on(i) >= exact.size(i))
    exact.hint()
    limits = SolveOptions(time_limit_s=max(1e-3, budget.remaining_s), seed=options.seed, work_limit=WORK)
    result, value = exact.solve(sum(exact.stay.values(), 0), budget, limits)
    if value is None:
        return nothing if small and result.status is Status.INFEASIBLE else None
    packed = exact.packed(value)
    moved = len(packed.moved)
    if not 0 < moved <= MOST_MOVES:
        return None
    proven = (small and result.status is Status.OPTIMAL) or moved == fewest
    return _told_moves(problem, packed, chosen, proven)


def _told_moves(problem: PodsProblem, packed: Packing, chosen: tuple[int, ...], proven: bool) -> Remedy:
    state = packed.state()
    order = ordered(problem, {pod: state.place_of[pod] for pod in sorted(state.gone)})
    names = tuple(problem.pod_names[pod] for pod in chosen)
    return Remedy(
        pods=names, way="moves", proven=proven, moves=order.moves,
        placements=tuple(_placement(problem, packed, pod) for pod in chosen),
        text=_moves_text(names, order.moves, len(state.gone), proven),
    )  # fmt: skip


def _one_move(problem: PodsProblem, wanted: int, least: IntArray) -> Packing | None:
    """The smallest single pod whose exit makes room, and that has room elsewhere; None where there is none."""
    state, j = State(problem), int(problem.pod_class[wanted])
    pods = np.flatnonzero(movable(problem) & (problem.pod_node >= 0))
    pods = pods[least[problem.pod_node[pods]] <= 1]
    assert problem.leave is not None
    for budget in problem.leave.budgets:
        pods = pods[~budget.pods[pods]] if budget.allowed < 1 else pods
    klass = problem.pod_class[pods]
    rooms = {int(i): np.flatnonzero(state.room(int(i))) for i in np.unique(klass)}
    pods = pods[[rooms[i].size > 0 for i in klass.tolist()]]
    size = size_of(problem)
    for pod in sorted(pods.tolist(), key=lambda p: float(size[problem.pod_class[p]])):
        i, node = int(problem.pod_class[pod]), int(problem.pod_node[pod])
        others = rooms[i][rooms[i] != node]
        if not others.size or (state.free[node] + problem.request[i] < problem.request[j]).any():
            continue
        state.take(pod)
        # The node with least left that is enough keeps large rooms whole.
        to = int(others[state.device[others].sum(axis=1).argmin()])
        if state.room(j, np.array([node])).all() and state.candidates(i)[to]:
            state.place(pod, to, state.devices(i, to))
            state.place(wanted, node, state.devices(j, node))
            return Packing(problem).adopt(state)
        state.untake(pod)
    return None


def _placement(problem: PodsProblem, packed: Packing, pod: int) -> Placement:
    milli = int(problem.class_milli[problem.pod_class[pod]])
    shares = tuple(GpuShare(index=d, gpu_milli=milli) for d in sorted(packed.devices[pod]))
    return Placement(pod=problem.pod_names[pod], node=problem.node_names[packed.node[pod]], gpus=shares)


def _moves_text(names: tuple[str, ...], moves: tuple[PodMove, ...], moved: int, proven: bool) -> str:
    listed = [f"{one.pod} from {one.from_node} to {one.to_node}" for one in moves[:NAMED]]
    if len(moves) > NAMED:
        listed.append(f"and {len(moves) - NAMED} more")
    kind = "no fewer do" if proven else "fewer may do"
    return f"moving {moved} pod{'s' if moved > 1 else ''} places {_told(names)} ({kind}): {', '.join(listed)}"


def _told(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _least(problem: PodsProblem, j: int, only: IntArray | None = None) -> IntArray:
    """Pods (of `only` some) that must leave each node at least so that one of class j fits, [N]; NEVER: none do.

    For each amount, and for devices, the largest movable pods first: no fewer of them free enough.
    """
    state = State(problem)
    found = np.where(problem.allowed[j], 0, NEVER).astype(np.int64)
    pods = np.flatnonzero(movable(problem) & (problem.pod_node >= 0)) if only is None else only
    node, klass = problem.pod_node[pods], problem.pod_class[pods]
    for r in np.flatnonzero(problem.request[j] > 0).tolist():
        need = problem.request[j, r] - state.free[:, r]
        found = np.maximum(found, _covers(need, node, problem.request[klass, r], problem.num_nodes))
    gpus, milli = int(problem.class_gpus[j]), int(problem.class_milli[j])
    if gpus:
        fitting = (state.device >= milli).sum(axis=1)
        # A pod frees as many devices as it uses, and one at least where it only shares it.
        freed = _covers(gpus - fitting, node, problem.class_gpus[klass], problem.num_nodes)
        found = np.maximum(found, freed)
        found = np.where(problem.gpus < gpus, NEVER, found)
    return found


def _covers(need: IntArray, node: IntArray, amount: IntArray, num: int) -> IntArray:
    """For each node the fewest amounts on it that add up to its need, [num]."""
    order = np.lexsort((-amount, node))
    node, amount = node[order], amount[order].astype(np.float64)
    total = np.concatenate([[0.0], np.cumsum(amount)])
    start = np.searchsorted(node, np.arange(num))
    before = total[:-1] - total[start][node]
    short = np.bincount(node[before < need[node]], minlength=num)
    all_of = np.bincount(node, weights=amount, minlength=num)
    found: IntArray = np.where(need <= 0, 0, np.where(all_of >= need, short, NEVER)).astype(np.int64)
    return found


def _part(problem: PodsProblem, chosen: IntArray, least: IntArray) -> IntArray:
    """Nodes that few pods with room elsewhere have to leave, of them those with most room already, and that room."""
    state = State(problem)
    allowed = np.asarray(problem.allowed[problem.pod_class[chosen]].any(axis=0), dtype=np.bool_)
    free, device = Packing(problem).left(np.zeros(0, dtype=np.int64))
    room = (free / np.maximum(1, problem.capacity)).min(axis=1)
    room = room + device.sum(axis=1) / np.maximum(1, WHOLE_MILLI * problem.gpus)
    pods = np.flatnonzero(movable(problem) & (problem.pod_node >= 0))
    rooms = {int(i): np.flatnonzero(state.room(int(i))) for i in np.unique(problem.pod_class[pods])}
    placeable = pods[[rooms[i].size > 1 for i in problem.pod_class[pods].tolist()]]
    likely = _least(problem, int(problem.pod_class[chosen[0]]), placeable)
    leaving = np.lexsort((-room, least, likely))[: LEAVING * chosen.size]
    leaving = leaving[allowed[leaving]]
    found = [leaving]
    for i in np.unique(problem.pod_class[pods[np.isin(problem.pod_node[pods], leaving)]]).tolist():
        others = rooms[i][~np.isin(rooms[i], leaving)]
        found.append(others[np.argsort(-room[others], kind="stable")[:TAKING]])
    return np.unique(np.concatenate(found))
