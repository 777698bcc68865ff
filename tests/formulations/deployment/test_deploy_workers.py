"""Workers from the serving search, and experts in their slots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deploy_cases import HEAD, offer, planned, problem, run

from formulations.deployment.experts import busiest, expert_problem, imbalance
from formulations.deployment.problem import DeployProblem
from formulations.deployment.reading import read_problem
from formulations.deployment.verdict import judge
from formulations.outcome import Status
from planner.descriptions.deploy import DeployInstance
from planner.descriptions.experts import LoadSource
from planner.errors import DescriptionError
from planner.files import SourceText

SMALL, MOE = "meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen3-30B-A3B"


def searched(folder: Path, model: str = SMALL, rate: float = 2.0, gpus: int = 2, **more: Any) -> DeployProblem:
    """One service of a model on nodes of H100."""
    service = {
        "name": "s", "model": model, "demand": [{"input_tokens": 500, "output_tokens": 100, "rate_per_s": rate}],
        **more.pop("service", {}),
    }  # fmt: skip
    offers = [{"name": "o", "device": "h100_sxm", "gpus": gpus, "price_usd_per_hour": 3.0 * gpus}]
    said = {"name": "case", "services": [service], "offers": offers, "slo": {"ttft_s": 2.0, "tpot_s": 0.05}}
    described = DeployInstance.model_validate(said | {"max_nodes_per_worker": 1} | more)
    return read_problem(described, SourceText("d.yaml", "", {}, folder))


def test_workers_keep_the_limits_by_the_cost_model(tmp_path: Path) -> None:
    instance = searched(tmp_path)
    cost, plan = planned(instance)
    assert cost == pytest.approx(6)
    verdict = judge(instance, plan)
    assert verdict.feasible
    tpot = [one.value for one in verdict.metrics if one.name.startswith("tpot_s[")]
    assert tpot
    assert max(tpot) <= 0.05
    (row,) = plan.workers
    assert row.type is not None
    assert row.type.tensor_parallel_size * row.type.data_parallel_size == row.num_gpus


def test_tighter_limits_need_no_less(tmp_path: Path) -> None:
    loose = planned(searched(tmp_path, rate=60))[0]
    tight = planned(searched(tmp_path, rate=60, slo={"ttft_s": 0.3, "tpot_s": 0.012}))[0]
    assert tight >= loose


def test_limits_that_nothing_keeps_are_told_with_the_service(tmp_path: Path) -> None:
    outcome = run(searched(tmp_path, service={"slo": {"ttft_s": 2.0, "tpot_s": 0.0001}}))
    assert outcome.status is Status.INFEASIBLE
    assert "s has no worker: on h100_sxm none keeps the limits together" in outcome.reasons[0]
    assert "limit 100 µs" in outcome.reasons[0]


def test_a_model_that_fits_on_no_node(tmp_path: Path) -> None:
    outcome = run(searched(tmp_path, "meta-llama/Llama-3.1-405B", gpus=1))
    assert outcome.status is Status.INFEASIBLE
    assert "s has no worker: h100_sxm: " in outcome.reasons[0]


def test_sizes_and_roles_are_those_asked_for(tmp_path: Path) -> None:
    instance = searched(tmp_path, service={"gpus_per_worker": [2], "disaggregated": "never"})
    assert {one.gpus for one in instance.workers.values()} == {2}
    assert {one.role for one in instance.workers.values()} == {"both"}


def test_a_smaller_gpu_of_ones_own(tmp_path: Path) -> None:
    """A quarter of an H100 in every respect: what one did, four do, or more."""
    quarter = {
        "name": "h100_quarter", "base": "h100_sxm", "memory_bytes": 20e9, "hbm_bandwidth_bytes_per_s": 0.84e12,
        "flop_per_s": {"bf16": 247e12, "fp8": 495e12},
    }  # fmt: skip
    lite = [{"name": "lite", "device": "h100_quarter", "gpus": 8, "price_usd_per_hour": 6.0}]
    whole = searched(tmp_path, rate=10)
    small = searched(tmp_path, rate=10, devices=[quarter], offers=lite)
    assert {one.device for one in small.workers.values()} == {"h100_quarter"}
    best = [max(max(one.rates.values()) / one.gpus for one in each.workers.values()) for each in (whole, small)]
    assert best[1] < best[0] / 2
    assert judge(small, planned(small)[1]).feasible


def skewed(layers: int, experts: int, seed: int) -> list[list[float]]:
    """Loads that fall off as 1 / rank, in an order of their own."""
    random = np.random.default_rng(seed)
    return [random.permutation(1.0 / np.arange(1, experts + 1)).tolist() for _ in range(layers)]


def test_second_copies_are_as_even_as_the_loads_let_them(tmp_path: Path) -> None:
    loads = {"s": [{"counts": skewed(48, 128, seed)} for seed in range(2)]}
    instance = searched(tmp_path, MOE, rate=30.0, loads=loads, redundant_experts=[0, 16])
    copies = {one.sizes.get("redundant_experts", 0) for one in instance.workers.values()}
    assert copies <= {0, 16}
    assert ("s", 2, 144) in instance.experts
    _, plan = planned(instance)
    assert judge(instance, plan).feasible
    for one in plan.experts:
        assert one.placement.num_slots in (128, 144)
        assert max(one.imbalance.values()) < 1.6


def test_maps_of_workers_from_a_table(tmp_path: Path) -> None:
    """Four experts on two GPUs, two slots each; the busy two lie apart."""
    row = "w,m,l4,A,2,100,100,5,2,4\n"
    instance = problem(tmp_path, {"m": 4}, [row], [offer("pair", 3, 2)], loads={"m": [{"counts": [[5, 5, 1, 1]]}]})
    _, plan = planned(instance)
    (found,) = plan.experts
    assert found.imbalance == {"load0": pytest.approx(1.0)} or list(found.imbalance.values()) == [pytest.approx(1.0)]
    first, second = (set(found.placement.physical_to_logical[0][i : i + 2]) for i in (0, 2))
    assert {0, 1} not in (first, second)
    assert HEAD.split(",")[0] == "worker"


def test_loads_that_do_not_fit_the_table_are_told(tmp_path: Path) -> None:
    row = "w,m,l4,A,2,100,100,5,2,2\n"
    with pytest.raises(DescriptionError, match="slots"):
        run(problem(tmp_path, {"m": 4}, [row], [offer("pair", 3, 2)], loads={"m": [{"counts": [[5, 5, 1, 1]]}]}))


def test_the_busiest_gpu_by_hand() -> None:
    """Two GPUs of two slots; expert 0 (load 6) twice, 1 and 2 (3 and 1) once: GPUs have 3 + 3 and 3 + 1; mean 5."""
    slots = np.array([[0, 1, 0, 2]])
    assert busiest(slots, np.array([[6.0, 3.0, 1.0]]), 2) == pytest.approx(6 / 5)


def test_imbalance_is_that_of_loads_the_map_has_not_seen() -> None:
    """Planned on one load and measured on its mirror image, the busy experts lie together."""
    loads = tuple(LoadSource(counts=(counts,)) for counts in ((8.0, 8.0, 1.0, 1.0), (8.0, 1.0, 8.0, 1.0)))
    both = expert_problem("s", loads, 2, 4, 8, None)
    alone = expert_problem("s", loads[:1], 2, 4, 8, None)
    assert imbalance(alone) == pytest.approx(1.0)
    assert imbalance(both) >= imbalance(alone)
