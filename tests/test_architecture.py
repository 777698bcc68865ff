"""The arrows between the packages, walked in the source; and what an import costs."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import cli
import formulations
import planner

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("planner", "formulations", "cli")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
#: Names by which OR-Tools, PuLP and HiGHS tell how a solve ended.
STATUS_NAMES = {
    "LpStatus", "LpStatusOptimal", "sol_status", "TerminationReason", "termination", "status_name", "StatusName",
    "CpSolverStatus", "solution_status", "modelStatus", "getModelStatus",
}  # fmt: skip
MAX_LINES = 420


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(tree: ast.AST, *, typing_too: bool = False, top_only: bool = False) -> Iterator[tuple[str, int]]:
    """(module, line) of the imports of a tree; those under TYPE_CHECKING are left out unless asked for."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not typing_too:
            for part in node.orelse:
                yield from imports(part, typing_too=typing_too, top_only=top_only)
        elif not (top_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)):
            yield from imports(node, typing_too=typing_too, top_only=top_only)


def inside(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def offences(path: Path, forbidden: tuple[str, ...], **how: bool) -> list[str]:
    return [
        f"{name(path)}:{line} imports {module}"
        for module, line in imports(tree_of(path), **how)
        if inside(module, forbidden)
    ]


def test_there_is_something_to_walk() -> None:
    assert len(SOURCES) > 50


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_arrows(path: Path) -> None:
    package = name(path).split("/")[0]
    forbidden: dict[str, tuple[str, ...]] = {
        "planner": ("formulations", "cli", "ortools", "pulp", "highspy", "scipy.optimize", "numba"),
        "formulations": ("cli", "typer", "rich"),
        "cli": (),
    }
    assert offences(path, forbidden[package], typing_too=True) == []
    assert offences(path, ("tests", "benchmarks"), typing_too=True) == []


@pytest.mark.parametrize("path", sorted((ROOT / "formulations").rglob("*.py")), ids=name)
def test_problem_baseline_and_check_know_no_solver(path: Path) -> None:
    if path.name in ("problem.py", "baseline.py", "check.py"):
        solvers = ("ortools", "pulp", "highspy", "scipy", "numba", "formulations.backends")
        assert offences(path, solvers, typing_too=True) == []


@pytest.mark.parametrize("path", sorted((ROOT / "formulations").rglob("*.py")), ids=name)
def test_solver_statuses_are_read_in_the_backends_alone(path: Path) -> None:
    """A formulation may build a CP-SAT model, once it runs; PuLP and its load order stay in the backends."""
    if "backends" in path.parts:
        return
    assert offences(path, ("pulp", "highspy"), typing_too=True) == []
    assert offences(path, ("ortools",), top_only=True) == []
    used = {
        f"{name(path)}:{node.lineno} reads {word}"
        for node in ast.walk(tree_of(path))
        if (word := getattr(node, "attr", None) or getattr(node, "id", None)) in STATUS_NAMES
    }
    assert used == set()


@pytest.mark.parametrize("path", sorted((ROOT / "cli").rglob("*.py")), ids=name)
def test_the_command_line_starts_with_typer_alone(path: Path) -> None:
    allowed = {*sys.stdlib_module_names, "typer", "rich", "cli"}
    # Modules that commands import when they run may know more; the start is what `cli.app` reaches.
    reached, todo = set[str](), ["cli.app"]
    while todo:
        module = todo.pop()
        home = ROOT / (module.replace(".", "/") + ".py")
        if module in reached or not home.exists():
            continue
        reached.add(module)
        found = [found for found, _ in imports(tree_of(home), top_only=True)]
        todo += [target.rpartition(".")[0] for target in found if target.startswith("cli.")]
        if home == path:
            assert [target for target in found if target.split(".")[0] not in allowed] == []


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_imports_are_absolute_and_files_short(path: Path) -> None:
    list(imports(tree_of(path), typing_too=True))
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def test_our_packages_are_the_ones_imported() -> None:
    """Other distributions install packages of these names too."""
    for module in (planner, formulations, cli):
        assert module.__file__ is not None
        home = Path(module.__file__).resolve()
        assert home.parent.parent == ROOT or "site-packages" in home.parts
        assert (
            home.parent / {"planner": "units.py", "formulations": "base.py", "cli": "app.py"}[module.__name__]
        ).exists()


def loaded_by(statement: str) -> set[str]:
    program = f"import sys\n{statement}\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    return set(done.stdout.split())


HEAVY = {
    "ortools", "pulp", "numba", "scipy", "highspy", "pandas", "matplotlib", "xlsxwriter", "openpyxl", "formualizer",
}  # fmt: skip


@pytest.mark.parametrize(
    "statement",
    [
        "import planner",
        "import formulations",
        "import formulations.planning",
        "import formulations.expert_placement.formulation",
        "import formulations.backends",
        "from formulations import plan, solve, SolveOptions",
    ],
)
def test_an_import_loads_no_solver_and_no_compiler(statement: str) -> None:
    assert loaded_by(statement) & HEAVY == set()


def test_the_command_line_starts_light() -> None:
    assert loaded_by("import cli.app") & (HEAVY | {"numpy", "pydantic", "networkx", "ruamel"}) == set()


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        formulations.nothing  # noqa: B018
    assert all(hasattr(formulations, word) for word in formulations.__all__)
