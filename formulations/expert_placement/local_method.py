"""The `local-search` method: which search an instance needs, and what is proven of its result."""

from __future__ import annotations

import numpy as np

from formulations.expert_placement.bounds import load_bound, lower_bound, pairing_bound
from formulations.expert_placement.capped_moves import search_capped
from formulations.expert_placement.chain_search import search_chain
from formulations.expert_placement.check import objective
from formulations.expert_placement.local_search import separable, starts
from formulations.expert_placement.moves import align, ordered_moves, relabel
from formulations.expert_placement.problem import ExpertPlacementProblem
from formulations.expert_placement.workspace import Workspace
from formulations.outcome import TOLERANCE, Bound, Budget, SearchResult, SolveOptions, Status, Stop
from planner.cost.expert_parallel import gpu_load, hottest
from planner.errors import OptionError
from planner.experts_plan import ExpertPlacement
from planner.workload import IntArray

#: The pairing bound is an LP of this many variables at most (experts x possible replica counts).
MAX_PAIRING_VARIABLES = 20_000
#: It is worth its second a layer only where the plan stands this far above the simple bounds.
PAIRING_FROM_GAP = 5e-3


def search(
    problem: ExpertPlacementProblem, options: SolveOptions, budget: Budget, hint: ExpertPlacement | None
) -> SearchResult[ExpertPlacement]:
    """Search, align with the current placement, order the moves, bound. work_limit is proposals per layer."""
    if problem.split == "lp" and problem.communication is not None:
        raise OptionError("split lp and a communication model are not combined; leave one out")
    if options.work_limit is not None and options.work_limit < 1:
        raise OptionError("the work limit of local-search is a number of proposals per layer, at least 1")
    work = Workspace(problem=problem, options=options, budget=budget, move_price=problem.move_cost)
    rng = np.random.default_rng(options.seed)
    rows: IntArray | None
    stop: Stop | None
    if problem.max_moves is not None and problem.current is not None:
        rows, stop = search_capped(work, rng)
    else:
        best = starts(work, None if hint is None else hint.array, rng)
        if problem.chain_weight:
            candidates = [best.rows] + ([problem.current] if problem.current is not None else [])
            rows, stop = search_chain(work, candidates)
            if rows is best.rows and best.total is None:
                rows = None
        else:
            stop = separable(work, best)
            rows = None if best.total is None else best.rows
    ended = stop or (Stop.WORK_LIMIT if options.work_limit is not None else Stop.HEURISTIC)
    version = f"numpy {np.__version__}"
    if rows is None:
        return SearchResult(status=Status.UNKNOWN, stop=ended, plan=None, solver="local search", solver_version=version)
    plan = finished_plan(problem, rows)
    bound = _bound(problem, rows, budget)
    value = objective(problem, plan).total
    proven = value - bound.value <= TOLERANCE / 10 * max(1.0, value)
    return SearchResult(
        status=Status.OPTIMAL if proven else Status.FEASIBLE,
        stop=Stop.PROOF if proven else ended,
        plan=plan,
        solver="local search",
        solver_version=version,
        bound=bound,
    )


def finished_plan(problem: ExpertPlacementProblem, rows: IntArray) -> ExpertPlacement:
    """The plan of a placement: slots sorted, or aligned with the current placement and with its move list."""
    if problem.current is None:
        grid = rows.reshape(problem.num_layers, problem.num_gpus, -1)
        return problem.placement(np.sort(grid, axis=2).reshape(rows.shape))
    alike = bool((problem.speed == problem.speed[0]).all())
    if alike and problem.communication is None and problem.group_spread is None:
        rows = relabel(rows, problem.current, problem.num_experts, problem.num_gpus)
    aligned = align(rows, problem.current, problem.num_gpus)
    moves = ordered_moves(aligned, problem.current, problem.layer_ids, problem.num_gpus)
    return problem.placement(aligned).model_copy(update={"moves": moves})


def _bound(problem: ExpertPlacementProblem, rows: IntArray, budget: Budget) -> Bound:
    """The simple bounds, sharpened by the pairing LP where there are two slots a GPU and time is left."""
    equal = bool((problem.speed == problem.speed[0]).all())
    variables = problem.num_experts * (problem.num_slots - problem.num_experts + 1)
    if problem.slots_per_gpu != 2 or problem.split != "even" or not equal or variables > MAX_PAIRING_VARIABLES:
        return lower_bound(problem)
    load, _ = load_bound(problem)
    reached = hottest(gpu_load(problem.load, rows, problem.speed, problem.split), problem.speed)
    sharper = load.copy()
    for scenario, layer in np.argwhere(reached - load > PAIRING_FROM_GAP * reached):
        if budget.stop():
            break
        sharper[scenario, layer] = pairing_bound(
            problem.load[scenario, layer] / problem.speed[0],
            problem.num_slots,
            load[scenario, layer],
            reached[scenario, layer],
            budget,
        )
    return lower_bound(problem, sharper, "pairing")
