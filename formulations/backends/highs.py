"""What MathOpt does not pass on from HiGHS while it runs: its log, and the solutions it saves to a file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from formulations.backends.result import finite
from formulations.backends.worker import Seen

if TYPE_CHECKING:
    from ortools.math_opt.solvers import highs_pb2

# " L  6562  262  2832  32.96%   -36775.290657   -36626.4   0.41%  ...": explored share, bound, incumbent.
_LOG_LINE = re.compile(r"\d%\s+(\S+)\s+(\S+)\s+(?:\S+%|Large|inf|-)\s")
#: The log prints at least ten significant digits.
_PRINTED = 1e-9


#: Bit of HiGHS's `presolve_rule_off` for the rule that loses optima. Source: found by trying each; measured.
PRESOLVE_RULE_OFF = 1 << 12


#: Heuristics that solve a reduced copy of the model.
_SUB_SEARCHES = ("mip_heuristic_run_rins", "mip_heuristic_run_rens", "mip_heuristic_run_root_reduced_cost")


def highs_options(sub_searches: bool) -> highs_pb2.HighsOptionsProto:
    """One thread, a frequent log, and heuristics that search reduced copies of the model or not."""
    from ortools.math_opt.solvers import highs_pb2

    options = highs_pb2.HighsOptionsProto()
    options.int_options["threads"] = 1
    # With one presolve rule HiGHS (OR-Tools 9.15) loses the optimum of some models and proves a worse one; without it
    # none of 2,600 random fleets differed from SCIP (tests/formulations/gpu_fleet/test_fleet_brute_force.py).
    options.int_options["presolve_rule_off"] = PRESOLVE_RULE_OFF
    options.double_options["mip_min_logging_interval"] = 0.5
    if not sub_searches:
        options.bool_options.update(dict.fromkeys(_SUB_SEARCHES, False))
    return options


def save_solutions(options: highs_pb2.HighsOptionsProto, path: Path) -> None:
    """Have every better solution saved to a file."""
    options.bool_options["mip_improving_solution_save"] = True
    options.string_options["mip_improving_solution_file"] = str(path)


def read_log(lines: Sequence[str], seen: Seen, minimize: bool) -> None:
    """Note the incumbent, and the bound less what printing rounds away. Never raises: the caller is C++."""
    for line in lines:
        match = _LOG_LINE.search(line)
        if match is None:
            continue
        bound, incumbent = (_number(text) for text in match.groups())
        if bound is not None:
            seen.bound = bound + (-_PRINTED if minimize else _PRINTED) * abs(bound)
        if incumbent is not None:
            seen.incumbent = incumbent


def last_solution(path: Path, num_columns: int) -> tuple[float, list[float]] | None:
    """Objective and values, in the order of the columns, of the last solution that was saved whole."""
    try:
        # What follows the last newline may be half written.
        lines = path.read_text().split("\n")[:-1]
    except FileNotFoundError:
        return None
    starts = [index for index, line in enumerate(lines) if line == f"# Columns {num_columns}"]
    for start in reversed(starts):
        columns = lines[start + 1 : start + 1 + num_columns]
        if len(columns) == num_columns:
            # A column's name may hold blanks or be empty; its value is what follows the last one.
            values = [float(column.rpartition(" ")[2]) for column in columns]
            return float(lines[start - 1].removeprefix("Objective ")), values
    return None


def _number(text: str) -> float | None:
    try:
        return finite(float(text))
    except ValueError:
        return None
