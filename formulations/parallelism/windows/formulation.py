"""Windows of layers over home devices: the formulation that `solve()` runs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from formulations.backends.linear import solve_linear_mathopt, solve_linear_pulp
from formulations.backends.result import as_integer
from formulations.outcome import Bound, Budget, Objective, SearchResult, SolveOptions
from formulations.parallelism.windows.baseline import halda
from formulations.parallelism.windows.check import check
from formulations.parallelism.windows.milp import build
from formulations.parallelism.windows.problem import WindowsProblem
from planner.cost.verdict import Violation
from planner.errors import OptionError
from planner.layers_plan import WindowsPlan


class LayerWindows:
    """Which window of layers each home device has; see `milp` for the mathematics."""

    name = "windows"
    summary = "which window of a model's layers each of a ring of home devices has, for the fastest token"
    objective_unit = "seconds a token"
    methods: Mapping[str, str] = {
        "highs": "one exact MILP over windows, GPU layers and overflow, HiGHS (default)",
        "scip": "the same model, SCIP",
        "cbc": "the same model, CBC",
    }
    one_thread: ClassVar[frozenset[str]] = frozenset({"highs"})

    def search(
        self, problem: WindowsProblem, options: SolveOptions, budget: Budget, hint: WindowsPlan | None
    ) -> SearchResult[WindowsPlan]:
        """Solve with the asked backend. There is always a plan: what memory does not hold is read from disk."""
        if hint is not None:
            raise OptionError("windows methods take no start plan")
        started_s = time.perf_counter()
        built = build(problem)
        build_s = time.perf_counter() - started_s
        method = options.method or next(iter(self.methods))
        if method == "cbc":
            result, values = solve_linear_pulp(built.model, budget, options)
        else:
            result, values = solve_linear_mathopt(built.model, budget, options, solver=method)
        plan = None
        if values is not None:
            layers, on_gpu = (
                np.array([as_integer(value, 1e-5) for value in values[columns]], dtype=np.int64)
                for columns in (built.w, built.g)
            )
            plan = problem.plan_of(layers, on_gpu)
        bound = None if result.bound is None or plan is None else min(result.bound / 1e3, plan.token_s)
        return SearchResult(
            status=result.status,
            stop=result.stop,
            plan=plan,
            solver=result.solver,
            solver_version=result.solver_version,
            claimed=None if result.objective is None else result.objective / 1e3,
            bound=None if bound is None else Bound(value=bound, name="branch and bound over windows and overflow"),
            build_s=build_s,
        )

    def check(self, problem: WindowsProblem, plan: WindowsPlan) -> list[Violation]:
        """Every broken rule."""
        return check(problem, plan)

    def objective(self, problem: WindowsProblem, plan: WindowsPlan) -> Objective:
        """Seconds a token, from the windows alone."""
        times = problem.times(*problem.arrays_of(plan))
        parts = {
            "compute_s": float(times.compute_s.sum()),
            "disk_s": float(times.disk_s.sum()),
            "hop_s": float(times.hop_s.sum()),
        }
        measures = {"tokens_per_s": 1.0 / times.token_s, "num_devices": float(len(plan.windows))}
        return Objective(total=times.token_s, parts=parts, measures=measures)

    def baseline(self, problem: WindowsProblem) -> tuple[str, WindowsPlan | None]:
        """prima.cpp's rule."""
        return "Halda's iteration", halda(problem)


WINDOWS = LayerWindows()
