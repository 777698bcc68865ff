"""Solver backends: the only readers of solver statuses in the project.

- `cpsat.solve_cpsat`: OR-Tools CP-SAT, for integer models.
- `mathopt.solve_mathopt`: HiGHS and SCIP through OR-Tools MathOpt, for mixed-integer and linear models.
- `pulp_milp.solve_pulp`: CBC, for models written with PuLP.

Each returns a `result.SolverResult` and a function that reads values, or None where there is no solution.

The load order trap: `import pulp` loads highspy's library when highspy is installed, and OR-Tools 9.15 then
fails to load (undefined symbols: both bring a HiGHS). The other way round works: PuLP finds highspy unusable
and CBC still runs. So every backend calls `load_ortools_first()` before it imports anything, and the rest of
the project imports PuLP only after that. Nothing is imported before a solver is needed: OR-Tools and pandas
cost half a second at start-up.
"""

from __future__ import annotations

import importlib

from planner.errors import SolverError


def load_ortools_first() -> str:
    """Load OR-Tools' shared library and return its version; call it before `import pulp`.

    Raises SolverError when PuLP and highspy came first.
    """
    try:
        # The smallest module that links the library: a tenth of the time that cp_model and its pandas take.
        importlib.import_module("ortools.init.python.init")
    except ImportError as error:
        raise SolverError(
            "OR-Tools cannot be loaded. If highspy is installed and PuLP was imported first, import"
            f" formulations.backends before it or uninstall highspy. ({error})"
        ) from error
    return str(importlib.import_module("ortools").__version__)
