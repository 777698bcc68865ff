"""OR-Tools and PuLP in one process, and what a fresh import of the package leaves unloaded."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

BOTH_SOLVE = """
import sys
from formulations.backends.cpsat import solve_cpsat
from formulations.backends.pulp_milp import solve_pulp
from formulations.outcome import Budget, SolveOptions
from formulations.backends import load_ortools_first
load_ortools_first()
import pulp
problem = pulp.LpProblem("p", pulp.LpMinimize)
x = problem.add_variable("x", 2, 9, cat="Integer")
problem += x
assert solve_pulp(problem, Budget(5.0), SolveOptions())[0].objective == 2.0
from ortools.sat.python import cp_model
model = cp_model.CpModel()
y = model.new_int_var(2, 9, "y")
model.minimize(y)
assert solve_cpsat(model, Budget(5.0), SolveOptions())[0].objective == 2.0
"""


def _python(code: str, path: Path | None = None) -> None:
    paths = [str(path)] if path else []
    command = f"import sys; sys.path[:0] = {[*paths, str(ROOT)]!r}\n{code}"
    run = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr


def test_importing_the_package_loads_no_solver() -> None:
    _python(
        "import formulations.base, formulations.backends.cpsat, formulations.backends.mathopt\n"
        "import formulations.backends.pulp_milp\n"
        "heavy = {'ortools', 'pulp', 'pandas', 'scipy.optimize'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )


def test_ortools_then_pulp_both_solve() -> None:
    _python(BOTH_SOLVE)


def test_cbc_works_beside_a_highspy_that_cannot_be_loaded(tmp_path: Path) -> None:
    """PuLP imports highspy on its own import: by then OR-Tools must be in, and highspy fails."""
    package = tmp_path / "highspy"
    package.mkdir()
    (package / "__init__.py").write_text(
        "import sys\n"
        "sys.came_after_ortools = 'ortools.init.python.init' in sys.modules\n"
        "raise ImportError('undefined symbol')\n"
    )
    _python(BOTH_SOLVE + "assert sys.came_after_ortools\n", tmp_path)


def test_the_trap_is_named_when_it_has_sprung(tmp_path: Path) -> None:
    _python(
        "import formulations.backends as backends\n"
        "from planner.errors import SolverError\n"
        "sys.modules['ortools.init.python.init'] = None\n"
        "try:\n"
        "    backends.load_ortools_first()\n"
        "except SolverError as error:\n"
        "    assert 'highspy' in str(error)\n"
        "else:\n"
        "    raise AssertionError('no error')"
    )


def test_ortools_refuses_to_follow_highspy() -> None:
    """The trap itself, where highspy is installed."""
    if importlib.util.find_spec("highspy") is None:
        pytest.skip("highspy is not installed")
    _python(
        "import pulp\n"
        "from formulations.backends import load_ortools_first\n"
        "from planner.errors import SolverError\n"
        "try:\n"
        "    load_ortools_first()\n"
        "except SolverError:\n"
        "    pass\n"
        "else:\n"
        "    raise AssertionError('OR-Tools now loads behind highspy: the load order no longer matters')"
    )
