"""What solvers' C++ prints on its own never reaches the standard streams."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
C_STDOUT = pytest.mark.skipif(
    sys.platform != "darwin" and platform.libc_ver()[0] != "glibc", reason="C's stdout cannot be set here"
)

NOISE = """
import ctypes
from formulations.backends.silence import silent
c = ctypes.CDLL(None)
c.puts(b"before")
with silent("stdout"):
    with silent("stdout"):
        c.puts(b"inner")
    c.puts(b"outer")
    print("data", flush=True)
c.puts(b"after")
c.fflush(None)
"""

# HiGHS 1.12 prints its line while it solves this one.
PRINTS = """
import numpy as np
from formulations.backends.linear import LinearBuilder, solve_linear_mathopt
from formulations.outcome import Budget, SolveOptions
rng = np.random.default_rng(6)
builder = LinearBuilder()
y = builder.variables((8,), upper=50, cost=rng.uniform(0.5, 8, 8), integer=True)
x = builder.variables((40, 8))
load = rng.lognormal(0, 1.2, (40, 8)) * rng.uniform(0.5, 4, 8)
builder.rows(1, 1, (x, 1.0))
for k in range(8):
    builder.sparse_rows([-np.inf], 0, (0, x[:, k], load[:, k]), (0, y[k], -1.0))
result, _ = solve_linear_mathopt(builder.build(), Budget(20.0), SolveOptions(time_limit_s=20.0), solver="SOLVER")
print(result.status.value)
"""


def printed(code: str) -> tuple[list[str], str]:
    """Words on standard output, and standard error."""
    command = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"
    run = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, timeout=60, check=True)
    return run.stdout.split(), run.stderr


@C_STDOUT
def test_only_python_prints_inside() -> None:
    words, _ = printed(NOISE)
    assert sorted(words) == ["after", "before", "data"]


@C_STDOUT
@pytest.mark.parametrize("solver", ["highs", "scip"])
def test_solvers_leave_the_streams_alone(solver: str) -> None:
    assert printed(PRINTS.replace("SOLVER", solver)) == (["optimal"], "")
