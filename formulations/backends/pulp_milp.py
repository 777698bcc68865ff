"""CBC for models written with PuLP.

PuLP's own reading cannot be trusted, and its wait for CBC cannot be interrupted, so CBC is started here:

- PuLP's `status` is Optimal for an incumbent at a limit or within a gap; within a gap so is its `sol_status`.
- Infeasible and stopped models keep values that break rules; they are cleared here.
- The bound is only in CBC's log, rounded, and beside those of the sub-problems that its heuristics solve.
- By default CBC drops solutions that are better by less than 1e-5, and calls what is left optimal.
- CBC takes the interrupt signal only once branching is set up, so it is sent until CBC ends.
"""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from formulations.backends import load_ortools_first
from formulations.backends.result import SolverResult, conclude, node_limit, not_started
from formulations.backends.worker import POLL_S
from formulations.outcome import Budget, SolveOptions, Status, Stop
from planner.errors import SolverError

if TYPE_CHECKING:
    import pulp

#: Reads the value of a variable or of an affine expression.
FloatValues = Callable[[Any], float]

_NAME = "cbc"
#: Seconds that CBC gets to end by itself after a limit or an interrupt.
_GRACE_S = 5.0
#: Absolute and relative half-widths of what CBC prints: %.3f in its summary, %.8g in its messages.
_SUMMARY_ROUNDING = 5e-4
_MESSAGE_ROUNDING = 1e-7

_SUMMARY_BOUND = re.compile(r"^(?:Lower|Upper) bound:\s+(\S+)$", re.MULTILINE)
_MESSAGE_BOUND = re.compile(r"^Cbc0005I .*\(best possible ([^)]+)\)", re.MULTILINE)
#: In CBC's log when the clock ended the search.
_CUT_OFF = "Exiting on maximum time"
_VERSION = re.compile(r"^Version: (\S+)", re.MULTILINE)


def solve_pulp(
    problem: pulp.LpProblem, budget: Budget, options: SolveOptions, *, warm_start: bool = False
) -> tuple[SolverResult, FloatValues | None]:
    """Solve a built problem with CBC. The work limit is in nodes; the variables keep the solution, or None.

    warm_start : start from the variables' initial values (`variable.setInitialValue`).

    Raises OptionError for a work limit that is not whole; SolverError for an unbounded problem and when CBC
    breaks down.
    """
    max_nodes = node_limit(options)
    load_ortools_first()
    import pulp

    version = f"pulp {pulp.VERSION}"
    if (unstarted := not_started(_NAME, version, budget)) is not None:
        return unstarted, None
    # The class itself is deprecated, the solver that comes with it is not.
    command = pulp.COIN_CMD(path=pulp.PULP_CBC_CMD.pulp_cbc_path, msg=False)
    started_s = time.perf_counter()
    was_none, dummy = problem.fixObjective()
    try:
        with TemporaryDirectory(prefix="gpuplan-cbc-") as directory:
            log, first_line = _run(problem, command, Path(directory), budget, options, max_nodes, warm_start)
        objective = float(problem.objective.value() or 0.0)
        status, stop, bound = _read(problem, first_line, log, objective, budget, options)
    finally:
        problem.restoreObjective(was_none, dummy)
    solve_s = time.perf_counter() - started_s
    if match := _VERSION.search(log):
        version = f"{match[1]} ({version})"
    result = SolverResult(
        status=status,
        stop=stop,
        objective=objective if status in (Status.OPTIMAL, Status.FEASIBLE) else None,
        bound=bound,
        solver=_NAME,
        solver_version=version,
        solve_s=solve_s,
    )
    if not result.has_solution:
        for variable in problem.variables():
            variable.varValue = None
        return result, None
    return result, lambda expression: float(expression.value())


def _run(
    problem: pulp.LpProblem,
    command: Any,
    directory: Path,
    budget: Budget,
    options: SolveOptions,
    max_nodes: int | None,
    warm_start: bool,
) -> tuple[str, str]:
    """Run CBC and read its values into the problem; its log, and the first line of its answer or ""."""
    model, start, answer, log = (directory / name for name in ("model.mps", "start.mst", "answer", "log"))
    variables, variable_names, constraint_names, _ = problem.writeMPS(str(model), rename=1)
    arguments = [command.path, str(model)]
    if problem.sense == -1:
        arguments += ["-max"]
    if warm_start:
        command.writesol(str(start), problem, variables, variable_names, constraint_names)
        arguments += ["-mips", str(start)]
    # 0 asks CBC for the time of day.
    seed = str(options.seed % (2**31 - 1) + 1)
    arguments += ["-randomSeed", seed, "-randomCbcSeed", seed, "-threads", str(options.num_threads)]
    if options.relative_gap is not None:
        arguments += ["-ratio", repr(options.relative_gap)]
    if max_nodes is not None:
        arguments += ["-maxNodes", str(max_nodes)]
    seconds = max(0.001, min(options.time_limit_s, budget.remaining_s))
    arguments += ["-increment", "1e-12", "-timeMode", "elapsed", "-sec", f"{seconds:.3f}"]
    arguments += ["-solve", "-printingOptions", "all", "-solution", str(answer)]
    began_s = time.perf_counter()
    with (
        log.open("w") as sink,
        # In a session of its own CBC does not get the terminal's Ctrl-C, only ours.
        subprocess.Popen(
            arguments,
            stdout=sink,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=directory,
            start_new_session=True,
        ) as process,
    ):
        killed = _wait(process, budget, seconds)
    text = log.read_text(errors="replace")
    cut_off = time.perf_counter() - began_s >= seconds or _CUT_OFF in text
    # CBC sometimes ends by a signal of its own when the clock strikes; before that a crash is an error.
    crashed_late = process.returncode < 0 and cut_off
    if killed or crashed_late or (process.returncode == -signal.SIGINT and budget.interrupted):
        return text, ""
    if process.returncode != 0 or not answer.exists():
        raise SolverError(f"CBC ended with code {process.returncode}: {text[-500:]}")
    status, values, _, _, _, sol_status = command.readsol_MPS(
        str(answer), problem, variables, variable_names, constraint_names
    )
    problem.assignVarsVals(values)
    problem.assignStatus(status, sol_status)
    with answer.open() as lines:
        first_line = lines.readline().strip()
    # Cut off before it has a solution, CBC may call a feasible model infeasible.
    return text, "" if cut_off and _says_infeasible(first_line) else first_line


def _says_infeasible(first_line: str) -> bool:
    return first_line.startswith(("Infeasible", "Integer infeasible"))


def _wait(process: subprocess.Popen[bytes], budget: Budget, seconds: float) -> bool:
    """Wait for CBC and pass an interrupt on; whether it had to be killed."""
    deadline_s = time.perf_counter() + seconds + _GRACE_S
    try:
        while True:
            try:
                process.wait(POLL_S)
                return False
            except subprocess.TimeoutExpired:
                budget.report()
            if budget.interrupted:
                deadline_s = min(deadline_s, time.perf_counter() + _GRACE_S)
                process.send_signal(signal.SIGINT)
            if time.perf_counter() > deadline_s:
                process.kill()
                process.wait()
                return True
    except BaseException:
        process.kill()
        raise


def _read(
    problem: pulp.LpProblem,
    first_line: str,
    log: str,
    objective: float,
    budget: Budget,
    options: SolveOptions,
) -> tuple[Status, Stop, float | None]:
    """Status, stop and bound from the first line of CBC's answer, the one place where it tells them apart."""
    if _says_infeasible(first_line):
        return Status.INFEASIBLE, Stop.PROOF, None
    if first_line.startswith("Unbounded"):
        raise SolverError("the model is unbounded")
    if first_line.startswith("Optimal"):
        bound = _bound(problem, log) if "within gap" in first_line else objective
        return *conclude(objective, bound, options.relative_gap), bound
    if first_line and not first_line.startswith("Stopped"):
        raise SolverError(f"CBC says {first_line!r}, which is no known answer")
    if budget.interrupted:
        stop = Stop.INTERRUPTED
    elif not first_line or first_line.startswith("Stopped on time"):
        stop = Stop.TIME_LIMIT
    else:
        stop = Stop.WORK_LIMIT
    # A linear program that was cut off has values, but they need not meet its constraints.
    solved = bool(first_line) and "no integer solution" not in first_line and problem.isMIP()
    return Status.FEASIBLE if solved else Status.UNKNOWN, stop, _bound(problem, log)


def _bound(problem: pulp.LpProblem, log: str) -> float | None:
    """The final bound in CBC's log, loosened by what printing rounds away; None when there is none.

    CBC leaves out the objective's constant. Its last message about the bound is more precise than the
    summary, but may be about a sub-problem, so it counts only where the two agree.
    """
    summaries = _SUMMARY_BOUND.findall(log)
    if not summaries:
        return None
    maximize = problem.sense == -1
    # In its messages CBC always minimises.
    summary = float(summaries[-1]) * (-1 if maximize else 1)
    if abs(summary) >= 1e30:
        return None
    bound = summary - _SUMMARY_ROUNDING
    messages = _MESSAGE_BOUND.findall(log)
    if messages:
        message = float(messages[-1])
        if abs(message - summary) <= 2 * _SUMMARY_ROUNDING:
            bound = message - _MESSAGE_ROUNDING * abs(message)
    return (-bound if maximize else bound) + float(problem.objective.constant)
