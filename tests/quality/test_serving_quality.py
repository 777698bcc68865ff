"""Exact plans on the peer's own predictions against the peer's rule; the gains are printed with `pytest -s`."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import serving
from formulations import SolveOptions
from formulations.base import solve
from formulations.parallelism.baseline import best_uniform
from formulations.parallelism.check import check
from formulations.parallelism.formulation import PARALLELISM

#: Tables of which uneven clusters are known to leave GPUs over under the peer's rule.
TABLES = (
    ("meta-llama/Meta-Llama-3.1-70B", "h100_sxm", "trtllm", "4000", "500"),
    ("Qwen/Qwen3-235B-A22B-FP8", "h200_sxm", "trtllm", "4000", "1000"),
)


@pytest.mark.slow
@pytest.mark.parametrize("table", TABLES, ids=lambda table: table[0].split("/")[-1])
def test_never_below_the_peers_rule_and_better_on_uneven_clusters(
    table: tuple[str, ...], shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUPLAN_SHARED_DATA", str(shared_data))
    workers = serving.tables()[table]
    gains = {}
    for gpus in serving.CLUSTERS:
        problem = serving.pool(workers, gpus, *serving.LIMITS[0])
        outcome, rule = solve(PARALLELISM, problem, SolveOptions(time_limit_s=30.0)), best_uniform(problem)
        assert outcome.status in ("optimal", "infeasible")
        if rule is None:
            continue
        assert outcome.plan is not None
        assert check(problem, rule) == []
        gains[gpus] = outcome.plan.requests_per_s / rule.requests_per_s - 1.0
    print(f"\n{table[0]}: " + ", ".join(f"{gpus} GPUs {gain:+.1%}" for gpus, gain in gains.items()))
    assert min(gains.values()) >= -1e-9
    assert max(gains.get(gpus, 0.0) for gpus in serving.UNEVEN) > 0.01
