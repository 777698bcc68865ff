"""OR-Tools CP-SAT."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from formulations.backends import load_ortools_first
from formulations.backends.result import SolverResult, conclude, not_started
from formulations.backends.worker import Seen, run_watched
from formulations.outcome import Budget, SolveOptions, Status, Stop
from planner.errors import SolverError

if TYPE_CHECKING:
    from ortools.sat.python import cp_model

#: Reads the value of a variable, literal or linear expression.
IntegerValues = Callable[[Any], int]

_NAME = "cp-sat"


def solve_cpsat(
    model: cp_model.CpModel,
    budget: Budget,
    options: SolveOptions,
    *,
    scale: float = 1.0,
    exact: bool = True,
    unscale_bound: Callable[[float], float] | None = None,
    on_solution: Callable[[IntegerValues], None] | None = None,
    linearization_level: int | None = None,
) -> tuple[SolverResult, IntegerValues | None]:
    """Solve a built model; a start goes into it with `model.add_hint`. The work limit is in deterministic s.

    scale : real units per unit of the model's objective; positive.
    exact : whether the objective is the real one. If it was rounded, a proof for the model is none for the
        problem: "optimal" becomes FEASIBLE, stopped as HEURISTIC, and the bound is unknown without
        `unscale_bound`. Constraints may only be rounded to looser ones, or INFEASIBLE and the bound prove
        nothing.
    unscale_bound : turns a bound in the model's units into a real one that holds for the unrounded problem.
    on_solution : called from the solver's thread with each better solution.
    linearization_level : how much of the model goes into the LP (CP-SAT parameter); None leaves the default.

    More than one thread repeats itself only under a work limit, which then interleaves the workers. Without
    an objective a solution is FEASIBLE, stopped by PROOF. Raises SolverError for a model that CP-SAT finds
    invalid, and whatever `on_solution` raises.
    """
    version = load_ortools_first()
    if (unstarted := not_started(_NAME, version, budget)) is not None:
        return unstarted, None
    from ortools.sat.python import cp_model

    solver = cp_model.CpSolver()
    time_limit_s = min(options.time_limit_s, budget.remaining_s)
    _set_parameters(solver.parameters, options, time_limit_s)
    if linearization_level is not None:
        solver.parameters.linearization_level = linearization_level

    def real_bound(value: float) -> float | None:
        if unscale_bound is not None:
            return unscale_bound(value)
        return value * scale if exact else None

    seen = Seen()
    # CP-SAT says 0 where it knows no bound, so only a bound that it announced counts.
    announced: list[float] = []
    has_objective = model.has_objective()

    def on_bound(value: float) -> None:
        announced[:] = [value]
        seen.bound = real_bound(value)

    class OnSolution(cp_model.CpSolverSolutionCallback):  # type: ignore[misc]
        def on_solution_callback(self) -> None:
            if has_objective:
                seen.incumbent = self.objective_value * scale
            if on_solution is not None:
                on_solution(self.value)

    solver.best_bound_callback = on_bound
    callback = OnSolution()
    started_s = time.perf_counter()
    code = run_watched(lambda: solver.solve(model, callback), budget, seen, solver.stop_search)
    solve_s = time.perf_counter() - started_s
    if code == cp_model.MODEL_INVALID:
        raise SolverError(f"CP-SAT refuses the model: {model.validate() or solver.solution_info()}")

    objective: float | None = None
    bound: float | None = None
    if code in (cp_model.OPTIMAL, cp_model.FEASIBLE) and has_objective:
        objective = solver.objective_value * scale
        bound = real_bound(solver.best_objective_bound)
    elif code == cp_model.UNKNOWN and announced:
        bound = real_bound(announced[0])

    if code == cp_model.INFEASIBLE:
        status, stop = Status.INFEASIBLE, Stop.PROOF
    elif code == cp_model.OPTIMAL:
        status, stop = Status.FEASIBLE, Stop.PROOF
        if has_objective:
            status, stop = conclude(solver.objective_value, solver.best_objective_bound, options.relative_gap)
        if status is Status.OPTIMAL and not exact:
            status, stop = Status.FEASIBLE, Stop.HEURISTIC
    else:
        status = Status.FEASIBLE if code == cp_model.FEASIBLE else Status.UNKNOWN
        stop = _limit(solver, budget, options, time_limit_s)
    result = SolverResult(
        status=status,
        stop=stop,
        objective=objective,
        bound=bound,
        solver=_NAME,
        solver_version=version,
        solve_s=solve_s,
    )
    return result, solver.value if result.has_solution else None


def _set_parameters(parameters: Any, options: SolveOptions, time_limit_s: float) -> None:
    parameters.max_time_in_seconds = time_limit_s
    parameters.num_workers = options.num_threads
    parameters.random_seed = options.seed
    parameters.catch_sigint_signal = False
    if options.relative_gap is not None:
        parameters.relative_gap_limit = options.relative_gap
    if options.work_limit is not None:
        parameters.max_deterministic_time = options.work_limit
        parameters.interleave_search = options.num_threads > 1


def _limit(solver: cp_model.CpSolver, budget: Budget, options: SolveOptions, time_limit_s: float) -> Stop:
    """CP-SAT does not say which limit stopped it."""
    if budget.interrupted:
        return Stop.INTERRUPTED
    if options.work_limit is None:
        return Stop.TIME_LIMIT
    if options.num_threads == 1:
        worked = solver.deterministic_time >= options.work_limit
    else:
        # The workers' deterministic times are added up, so only the clock tells.
        worked = solver.wall_time < 0.95 * time_limit_s
    return Stop.WORK_LIMIT if worked else Stop.TIME_LIMIT
