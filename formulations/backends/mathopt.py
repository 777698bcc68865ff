"""HiGHS and SCIP through OR-Tools MathOpt.

What OR-Tools 9.15 does, and what follows from it here:

- HiGHS raises on MathOpt's `threads` and hides the reason (or-tools #4606): more than one thread is refused.
  SCIP takes any number. Both honour the seed, the node limit, the gaps and a hint, and repeat themselves
  under a node limit on one thread.
- HiGHS ignores the interrupter and callbacks, and the process aborts when a message callback raises. So on an
  interrupt its last saved solution and the last bound in its log are returned at once, and the search itself
  goes on unseen until its time limit.
- SCIP honours the interrupter, but prints two harmless lines about SCIPcatchEvent to stderr when it gets one.
- HiGHS prints a line to standard output past all its settings; commands silence it (`cli.command.keep_stdout`).
- HiGHS's presolve can lose the optimum and prove a worse one; the rule that does so is switched off (`highs`).
- HiGHS stops at a gap of 1e-4 unless 0 is asked, and both say "optimal" at any gap that was asked.
- Scale the objective: where differences that matter are 1e-6 or less, HiGHS stops early (and is reported as
  FEASIBLE with its bound), but SCIP claims a wrong optimum with a bound to match.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from formulations.backends import load_ortools_first
from formulations.backends.highs import highs_options, last_solution, read_log, save_solutions
from formulations.backends.result import SolverResult, conclude, finite, node_limit, not_started
from formulations.backends.worker import Seen, run_watched
from formulations.outcome import Budget, SolveOptions, Status, Stop
from planner.errors import OptionError, SolverError

if TYPE_CHECKING:
    from ortools.math_opt.python import mathopt

#: Reads the value of a variable.
FloatValues = Callable[[Any], float]

SOLVERS = ("highs", "scip")


def solve_mathopt(
    model: mathopt.Model,
    budget: Budget,
    options: SolveOptions,
    *,
    solver: str = "highs",
    sub_searches: bool = True,
    hint: Mapping[Any, float] | None = None,
) -> tuple[SolverResult, FloatValues | None]:
    """Solve a built model; `hint` maps variables to values, not necessarily all. The work limit is in nodes.

    sub_searches : whether HiGHS may search reduced copies of the model for solutions; small ones are faster without.

    Read integers with `result.as_integer`. Raises OptionError for an unknown solver, threads that it does not
    have and a work limit that is not whole; SolverError for an unbounded or invalid model and when the solver
    breaks down.
    """
    if solver not in SOLVERS:
        raise OptionError(f"there is no solver {solver!r} here; choose from {', '.join(SOLVERS)}")
    if solver == "highs" and options.num_threads > 1:
        raise OptionError(f"HiGHS runs on one thread here, got {options.num_threads}; choose scip or one thread")
    max_nodes = node_limit(options)
    version = f"ortools {load_ortools_first()}"
    if (unstarted := not_started(solver, version, budget)) is not None:
        return unstarted, None
    from ortools.math_opt.python import mathopt

    parameters = mathopt.SolveParameters(
        time_limit=timedelta(seconds=min(options.time_limit_s, budget.remaining_s)),
        node_limit=max_nodes,
        random_seed=options.seed,
        relative_gap_tolerance=options.relative_gap or 0.0,
        absolute_gap_tolerance=0.0,
    )
    hints = [] if hint is None else [mathopt.SolutionHint(variable_values=dict(hint))]
    model_parameters = mathopt.ModelSolveParameters(solution_hints=hints)
    if solver == "highs":
        parameters.highs = highs_options(sub_searches)
    run = _run_highs if solver == "highs" else _run_scip
    started_s = time.perf_counter()
    reading = run(model, parameters, model_parameters, options, budget)
    if reading is None:
        reading = _infeasible_or_unbounded(solver, model, budget, options)
    solve_s = time.perf_counter() - started_s
    status, stop, objective, bound, values = reading
    result = SolverResult(
        status=status,
        stop=stop,
        objective=objective,
        bound=bound,
        solver=solver,
        solver_version=version,
        solve_s=solve_s,
    )
    return result, None if values is None else values.__getitem__


_Reading = tuple[Status, Stop, float | None, float | None, Mapping[Any, float] | None]


def _run_scip(
    model: mathopt.Model, parameters: Any, model_parameters: Any, options: SolveOptions, budget: Budget
) -> _Reading | None:
    from ortools.math_opt.python import mathopt
    from ortools.util.python.solve_interrupter import SolveInterrupter

    parameters.threads = options.num_threads
    interrupter = SolveInterrupter()

    def work() -> mathopt.SolveResult:
        return _call(
            model,
            mathopt.SolverType.GSCIP,
            params=parameters,
            model_params=model_parameters,
            interrupter=interrupter,
        )

    return _read(run_watched(work, budget, Seen(), interrupter.interrupt), options, budget)


def _run_highs(
    model: mathopt.Model, parameters: Any, model_parameters: Any, options: SolveOptions, budget: Budget
) -> _Reading | None:
    from ortools.math_opt.python import mathopt

    seen = Seen()
    minimize = not model.objective.is_maximize
    # The search may outlive an interrupt, so it cleans up after itself.
    directory = TemporaryDirectory(prefix="gpuplan-highs-", ignore_cleanup_errors=True)
    solutions = Path(directory.name, "solutions")
    save_solutions(parameters.highs, solutions)

    def on_message(lines: Sequence[str]) -> None:
        read_log(lines, seen, minimize)

    def work() -> mathopt.SolveResult:
        with directory:
            return _call(
                model,
                mathopt.SolverType.HIGHS,
                params=parameters,
                model_params=model_parameters,
                msg_cb=on_message,
            )

    answer = run_watched(work, budget, seen, None)
    if answer is not None:
        return _read(answer, options, budget)
    variables = list(model.variables())
    saved = last_solution(solutions, len(variables))
    if saved is None:
        return Status.UNKNOWN, Stop.INTERRUPTED, None, seen.bound, None
    objective, values = saved
    return Status.FEASIBLE, Stop.INTERRUPTED, objective, seen.bound, dict(zip(variables, values, strict=True))


def _call(*arguments: Any, **keywords: Any) -> mathopt.SolveResult:
    from ortools.math_opt.python import mathopt

    try:
        return mathopt.solve(*arguments, **keywords)
    except (AttributeError, RuntimeError, ValueError, NotImplementedError) as error:
        # The AttributeError of or-tools #4606 has the solver's own words behind it.
        raise SolverError(f"MathOpt refuses the model: {error.__context__ or error}") from error


def _read(answer: mathopt.SolveResult, options: SolveOptions, budget: Budget) -> _Reading | None:
    """Reason and limit are two fields. None for a model that is infeasible or unbounded, whichever."""
    from ortools.math_opt.python import mathopt

    termination = answer.termination
    bound = finite(termination.objective_bounds.dual_bound)
    reason = mathopt.TerminationReason
    if termination.reason is reason.INFEASIBLE:
        return Status.INFEASIBLE, Stop.PROOF, None, None, None
    if termination.reason is reason.INFEASIBLE_OR_UNBOUNDED:
        return None
    if termination.reason is reason.NO_SOLUTION_FOUND:
        return Status.UNKNOWN, _limit(termination.limit, budget), None, bound, None
    if termination.reason not in (reason.OPTIMAL, reason.FEASIBLE):
        raise SolverError(f"the solver ended with {termination.reason.name.lower()}: {termination.detail}")
    objective = float(answer.objective_value())
    values: Mapping[Any, float] = answer.variable_values()
    if termination.reason is reason.OPTIMAL:
        status, stop = conclude(objective, bound, options.relative_gap)
        return status, stop, objective, bound, values
    return Status.FEASIBLE, _limit(termination.limit, budget), objective, bound, values


def _limit(limit: Any, budget: Budget) -> Stop:
    from ortools.math_opt.python import mathopt

    if budget.interrupted or limit is mathopt.Limit.INTERRUPTED:
        return Stop.INTERRUPTED
    return Stop.WORK_LIMIT if limit is mathopt.Limit.NODE else Stop.TIME_LIMIT


def _infeasible_or_unbounded(solver: str, model: mathopt.Model, budget: Budget, options: SolveOptions) -> _Reading:
    """Tell the two apart: without its objective, a model with a solution was unbounded."""
    from ortools.math_opt.python import mathopt

    copy = mathopt.Model.from_model_proto(model.export_model())
    copy.objective.clear()
    result, _ = solve_mathopt(copy, budget, options, solver=solver)
    if result.has_solution:
        raise SolverError("the model is unbounded")
    return result.status, result.stop, None, None, None
