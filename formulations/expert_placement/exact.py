"""What the exact methods share: parts that are solved apart, their starts and time, and an honest result.

Layers meet in chain communication and in max_moves only. Without both, each layer is a part of its own; the
parts' objectives and bounds add up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from formulations.expert_placement import local_method
from formulations.expert_placement.baseline import eplb
from formulations.expert_placement.bounds import lower_bound
from formulations.expert_placement.check import check, objective
from formulations.expert_placement.exact_structure import levels
from formulations.expert_placement.problem import ExpertPlacementProblem, refuse
from formulations.expert_placement.transport import transport_start
from formulations.expert_placement.workspace import Workspace, greedy_start
from formulations.outcome import TOLERANCE, Bound, Budget, PartBudget, SearchResult, SolveOptions, Status, Stop
from planner.experts_plan import ExpertPlacement
from planner.workload import FloatArray, IntArray

#: Largest model, in placement, product and crossing variables; larger ones build slowly and prove nothing.
MAX_VARIABLES = 60_000
#: Effort of the local search that every exact search starts from: proposals a layer, and its share of the time.
START_PROPOSALS, START_SHARE = 20_000, 0.2
#: Stops from the one that says most about the whole search to the one that says least.
_STOPS = (Stop.INTERRUPTED, Stop.TIME_LIMIT, Stop.WORK_LIMIT, Stop.GAP, Stop.HEURISTIC)


def last_stop(stops: set[Stop]) -> Stop:
    """Why a search of several programs ended; HEURISTIC when all of them ended by themselves."""
    return next((stop for stop in _STOPS if stop in stops), Stop.HEURISTIC)


@dataclass(frozen=True, slots=True, kw_only=True)
class PartAnswer:
    """What a solver says about one part; what is optimal is decided from the re-priced rows and the bound.

    rows : [layers, num_slots]; claimed : their worth in the model; of the status only INFEASIBLE counts.
    """

    status: Status
    stop: Stop
    rows: IntArray | None
    bound: float | None
    solver: str
    solver_version: str
    claimed: float | None = None
    build_s: float = 0.0


#: Solves one part; the last argument is a valid start [layers, num_slots], or None.
SolvePart = Callable[[ExpertPlacementProblem, SolveOptions, Budget, IntArray | None], PartAnswer]


def refuse_unsupported(problem: ExpertPlacementProblem, method: str, num_variables: int) -> None:
    """OptionError for fan-out, chains with replicas and models above MAX_VARIABLES."""
    refuse(problem.fanout_weight > 0, method, "cannot model fan-out, where a token's experts interact")
    replicated = problem.num_slots > problem.num_experts
    refuse(problem.chain_weight > 0 and replicated, method, "models a chain without replicas only")
    refuse(
        num_variables > MAX_VARIABLES,
        method,
        f"is for small instances: {num_variables} variables in one model, at most {MAX_VARIABLES}",
    )


def num_crossings(problem: ExpertPlacementProblem) -> int:
    """Crossing variables of the chain model: one for each transition and distance level."""
    if not problem.chain_weight or problem.communication is None:
        return 0
    return int((problem.transitions > 0).sum()) * len(levels(problem.communication.cost))


def replica_limit(problem: ExpertPlacementProblem) -> int:
    """Most replicas an expert can have: the others need a slot each."""
    return min(problem.max_replicas, problem.num_slots - problem.num_experts + 1)


def joint(problem: ExpertPlacementProblem) -> bool:
    """Whether the layers meet in one model."""
    return problem.chain_weight > 0 or (problem.current is not None and problem.max_moves is not None)


def parts(problem: ExpertPlacementProblem) -> list[ExpertPlacementProblem]:
    """The problem itself if its layers meet, else one problem for each layer."""
    if joint(problem):
        return [problem]
    return [
        replace(
            problem,
            load=problem.load[:, layer : layer + 1],
            layer_ids=problem.layer_ids[layer : layer + 1],
            current=None if problem.current is None else problem.current[layer : layer + 1],
            trace=None,
            communication=None,
            gpu_memory_bytes=None,
        )
        for layer in range(problem.num_layers)
    ]


def worth(problem: ExpertPlacementProblem, rows: IntArray) -> float:
    """The re-priced objective of valid rows [L, num_slots]; infinite for rows that break a rule."""
    plan = problem.placement(rows)
    return float("inf") if check(problem, plan) else objective(problem, plan).total


def starts(
    problem: ExpertPlacementProblem, options: SolveOptions, budget: Budget, hint: ExpertPlacement | None
) -> list[IntArray]:
    """Placements to start from, [L, num_slots] each, valid or not: hint, current one, plain rules, local search."""
    found = [] if hint is None else [hint.array]
    found += [] if problem.current is None else [problem.current]
    work = Workspace(problem=problem, options=options, budget=budget, move_price=problem.move_cost)
    found += [eplb(problem)[1], greedy_start(work)[0]]
    if problem.chain_weight and problem.communication is not None:
        load = np.tensordot(problem.weight, problem.load, axes=1)
        cost = problem.communication.cost
        found.append(transport_start(problem.transitions, cost, load, problem.num_slots, budget))
    brief = replace(options, work_limit=START_PROPOSALS, method=None, num_threads=1)
    local = local_method.search(problem, brief, PartBudget(budget, START_SHARE * budget.remaining_s), hint)
    return found if local.plan is None else [*found, local.plan.array]


def search_parts(
    problem: ExpertPlacementProblem,
    options: SolveOptions,
    budget: Budget,
    hint: ExpertPlacement | None,
    solve_part: SolvePart,
    units: float = 1.0,
) -> SearchResult[ExpertPlacement]:
    """Solve part by part within equal shares of the time that is left, each from the best start.

    A part without a better answer keeps its start. OPTIMAL when the re-priced objective meets the sum of the
    parts' bounds or the bound of the whole. units : the solvers' objective per unit of the problem's.
    """
    pieces = parts(problem)
    candidates = starts(problem, options, budget, hint)
    best: list[IntArray | None] = []
    value = np.full(len(pieces), np.inf)
    for index, piece in enumerate(pieces):
        choices = candidates if joint(problem) else [rows[index : index + 1] for rows in candidates]
        prices = [worth(piece, rows) for rows in choices]
        value[index] = min(prices)
        best.append(choices[int(np.argmin(prices))] if np.isfinite(value[index]) else None)
    bound = np.array([lower_bound(piece).value for piece in pieces])
    answers: list[PartAnswer] = []
    stops: set[Stop] = set()
    for index, piece in enumerate(pieces):
        near = TOLERANCE / 2 * max(1.0, value[index])
        if np.isfinite(value[index]) and value[index] - bound[index] <= near:
            continue
        if (stop := budget.stop()) is not None:
            stops.add(stop)
            break
        share_s = max(1e-3, budget.remaining_s / (len(pieces) - index))
        others = np.arange(len(pieces)) != index
        sums = float(value[others].sum()), float(bound[others].sum())
        share = PartBudget(budget, share_s, sums, units)
        answer = solve_part(piece, options, share, best[index])
        if answer.status is Status.INFEASIBLE and np.isfinite(value[index]):
            # The start is a checked plan, so the claim is wrong and nothing the solver says of this part counts.
            answer = replace(answer, status=Status.UNKNOWN, stop=Stop.TIME_LIMIT, bound=None)
        if answer.status is Status.INFEASIBLE:
            return _infeasible(problem, options, budget, solve_part, units, answer)
        answers.append(answer)
        stops.add(answer.stop)
        if answer.bound is not None:
            bound[index] = max(bound[index], answer.bound)
        fresh = np.inf if answer.rows is None else worth(piece, answer.rows)
        if fresh < value[index]:
            best[index], value[index] = answer.rows, fresh
    return _conclude(problem, best, value, bound, answers, stops)


def _conclude(
    problem: ExpertPlacementProblem,
    best: list[IntArray | None],
    value: FloatArray,
    bound: FloatArray,
    answers: list[PartAnswer],
    stops: set[Stop],
) -> SearchResult[ExpertPlacement]:
    total, proven = float(value.sum()), float(bound.sum())
    ours = lower_bound(problem)
    solver = answers[0].solver if answers else "warm start"
    known = Bound(value=proven, name=solver) if proven > ours.value * (1 + 1e-9) else ours
    rows = [row for row in best if row is not None]
    plan = local_method.finished_plan(problem, np.concatenate(rows)) if len(rows) == len(best) else None
    status = Status.FEASIBLE if plan is not None else Status.UNKNOWN
    if plan is not None and total - known.value <= TOLERANCE * max(1.0, total):
        status, stop = Status.OPTIMAL, Stop.PROOF
    else:
        stop = last_stop(stops)
    claims = [answer.claimed for answer in answers]
    # The claim is the model's own objective; a part that kept its start has none.
    claimed = sum(claim for claim in claims if claim is not None)
    complete = plan is not None and len(claims) == len(best) and None not in claims
    return SearchResult(
        status=status,
        stop=stop,
        plan=plan,
        solver=solver,
        solver_version=answers[0].solver_version if answers else "",
        claimed=claimed if complete else None,
        bound=known,
        build_s=sum(answer.build_s for answer in answers),
    )


def _infeasible(
    problem: ExpertPlacementProblem,
    options: SolveOptions,
    budget: Budget,
    solve_part: SolvePart,
    units: float,
    answer: PartAnswer,
) -> SearchResult[ExpertPlacement]:
    """Which requirements conflict, and the smallest change to each that helps alone, found without a load."""
    free = replace(problem, load=np.zeros_like(problem.load), communication=None, move_cost=0.0)

    def relaxed(changed: ExpertPlacementProblem) -> SearchResult[ExpertPlacement]:
        return search_parts(changed, options, budget, None, solve_part, units)

    needs: list[str] = []
    conflict: list[str] = []
    ways: list[str] = []
    if problem.max_moves is not None and problem.current is not None:
        needs.append(f"max_moves {problem.max_moves}")
        found = relaxed(replace(free, max_moves=None, move_cost=1.0))
        conflict += needs if found.plan is not None else []
        if found.status is Status.OPTIMAL and found.bound is not None:
            ways.append(f"max_moves: {round(found.bound.value)}")
    if problem.group_spread is not None:
        needs.append(f"group_spread {problem.group_spread}")
        for spread in range(problem.group_spread + 1, problem.num_nodes + 1):
            if relaxed(replace(free, group_spread=spread)).plan is not None:
                conflict.append(needs[-1])
                ways.append(f"group_spread: {spread}")
                break
    names = " and ".join(conflict or needs) or "distinct GPUs"
    return SearchResult(
        status=Status.INFEASIBLE,
        stop=Stop.PROOF,
        plan=None,
        solver=answer.solver,
        solver_version=answer.solver_version,
        reasons=(f"{names}: no placement on {problem.num_slots} slots meets every requirement",),
        relaxations=tuple(ways),
    )
