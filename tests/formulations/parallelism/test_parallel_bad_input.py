"""What cannot be planned says why: models too large, limits below the floor, contradictions, impossible tables."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from parallel_cases import run
from pydantic import ValidationError

from formulations.parallelism.problem import ParallelProblem
from formulations.planning import load_problem
from planner import catalog
from planner.descriptions.parallel import ParallelInstance
from planner.errors import DescriptionError
from planner.readers.worker_table import read_workers

HEADER = "name,role,device,num_gpus,requests_per_s,ttft_s,tpot_s"
LLAMA = "meta-llama/Llama-3.1-70B-Instruct"


def read(model: str | None, device: str, nodes: int = 1, gpus: int = 8, **more: Any) -> ParallelProblem:
    cluster = {"nodes": [{"device": device, "count": nodes, "gpus_per_node": gpus}]}
    load = more.pop("workload", {"input_tokens": 1000, "output_tokens": 200})
    found: ParallelProblem = load_problem(
        ParallelInstance.model_validate({"name": "case", "model": model, "cluster": cluster, "workload": load} | more)
    )
    return found


class TestModelsThatFitNowhere:
    @pytest.mark.parametrize(
        ("model", "device", "gpus"),
        [("meta-llama/Llama-3.1-405B-Instruct", "a10g", 4), ("meta-llama/Llama-3.1-70B-Instruct", "t4", 4)],
    )
    def test_the_smallest_cluster_that_is_told_has_a_plan(self, model: str, device: str, gpus: int) -> None:
        """Whether or not pipelines longer than usual are needed; with a node less there is none."""
        outcome = run(read(model, device, gpus=gpus))
        assert outcome.status == "infeasible"
        (number,) = {int(found) for way in outcome.relaxations for found in re.findall(r"^(\d+) x", way)}
        assert number % gpus == 0
        assert run(read(model, device, nodes=number // gpus, gpus=gpus)).status == "optimal"
        assert run(read(model, device, nodes=number // gpus - 1, gpus=gpus)).status == "infeasible"

    def test_where_none_is_large_enough_that_is_told(self) -> None:
        """1,000 billion parameters on cards of 16 GB, alone in their nodes: 61 layers on 32 stages at most."""
        outcome = run(read("moonshotai/Kimi-K2-Instruct", "t4", gpus=1))
        assert outcome.status == "infeasible"
        assert any(way.startswith("no 256 x t4 hold it") for way in outcome.relaxations)


class TestLimitsBelowTheFloor:
    def test_time_per_token(self) -> None:
        """70.6 billion parameters less the embedding, 2 bytes each, over 8 GPUs of 4.8 TB/s: 3.6 ms."""
        outcome = run(read(LLAMA, "h200_sxm", slo={"tpot_s": 1e-3}))
        assert outcome.status == "infeasible"
        (told,) = (reason for reason in outcome.reasons if reason.startswith("the fastest"))
        assert "of it is dense matrix products" in told
        spec = catalog.model(LLAMA)
        least = spec.weight_bytes * spec.active_params_without_embedding / spec.total_params / (8 * 4.8e12)
        assert f"takes {1e3 * least:.3g}" in told

    def test_time_to_first_token(self) -> None:
        outcome = run(read(LLAMA, "h200_sxm", slo={"ttft_s": 1e-3}))
        (told,) = (reason for reason in outcome.reasons if reason.startswith("the fastest"))
        assert "of it is the prompt itself" in told

    def test_limits_that_can_be_kept_have_none(self) -> None:
        assert not any("the fastest" in one for one in read(LLAMA, "h200_sxm", slo={"ttft_s": 2.0}).dropped)


class TestUnknownDevices:
    def test_one_that_is_described_is_planned_and_flagged(self) -> None:
        own = {
            "name": "mychip", "memory_bytes": "96GiB", "hbm_bandwidth_bytes_per_s": "4TB/s",
            "flop_per_s": {"bf16": 8e14}, "scale_up_domain_gpus": 8, "scale_up_bandwidth_bytes_per_s": "400GB/s",
            "pcie_bandwidth_bytes_per_s": "64GB/s",
        }  # fmt: skip
        cluster = {"nodes": [{"device": "mychip", "gpus_per_node": 8}], "devices": [own]}
        problem = read("Qwen/Qwen3-8B", "mychip", cluster=cluster)
        assert "mychip was never measured: datasheet peaks with typical efficiencies" in problem.assumptions
        assert run(problem).status == "optimal"
        assert not any("never measured" in note for note in read("Qwen/Qwen3-8B", "h100_sxm").assumptions)

    def test_one_that_is_not_says_where_to_describe_it(self) -> None:
        with pytest.raises(ValidationError, match=r"has no device 'foo9000'.*devices"):
            read("Qwen/Qwen3-8B", "foo9000")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"max_workers": 0}, "greater than 0"),
        ({"workload": {"input_tokens": 1, "output_tokens": 1, "rate_per_s": 0}}, "greater than 0"),
        ({"objective": "gpus"}, "needs workload.rate_per_s"),
        ({"objective": "cost"}, "cost needs prices"),
        ({"candidates": "w.csv", "speculation": {}}, "is for predictions of the cost model"),
        ({"candidates": "w.csv", "calibration": "e.yaml"}, "is for predictions of the cost model"),
        ({"candidates": "w.csv", "expert_imbalance": 1.2}, "is for predictions of the cost model"),
        ({"expert_imbalance": 0.9}, "greater than or equal to 1"),
        ({"two_batch_overlap": True, "backend": "trtllm"}, "TensorRT-LLM has no such option"),
        ({"two_batch_overlap": True, "candidates": "w.csv"}, "is for predictions of the cost model"),
    ],
)
def test_nothing_to_spend_and_contradictions(said: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        read("Qwen/Qwen3-8B", "h100_sxm", **said)


class TestTables:
    def test_roles_that_are_ruled_out(self, tmp_path: Path) -> None:
        (tmp_path / "w.csv").write_text(f"{HEADER}\na,both,h100_sxm,1,1,1,0.02\n")
        outcome = run(read(None, "h100_sxm", candidates=str(tmp_path / "w.csv"), disaggregated="only"))
        assert outcome.status == "infeasible"
        assert outcome.reasons == ("all workers are mixed ones, which disaggregated: only rules out",)
        assert outcome.relaxations[0].startswith("let disaggregated be allow")

    def test_workers_that_serve_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "w.csv").write_text(f"{HEADER}\na,both,h100_sxm,1,0,1,0.02\n")
        outcome = run(read(None, "h100_sxm", candidates=str(tmp_path / "w.csv")))
        assert "1 of 1 workers serve 0 requests/s" in outcome.reasons

    def test_rates_beyond_what_a_batch_makes(self, tmp_path: Path) -> None:
        """8 sequences of 201 tokens at 20 ms: 2 requests/s. Ten percent above is measurement, more is not."""
        text = f"{HEADER},max_batch_size\nfine,decode,h100_sxm,1,2.1,,0.02,8\nfast,both,h100_sxm,1,2.5,1,0.02,8\n"
        (tmp_path / "w.csv").write_text(text)
        load = {"input_tokens": 1000, "output_tokens": 201}
        with pytest.raises(
            DescriptionError, match=r"'fast': 2\.5 requests/s are more than the 2 that 8 sequences"
        ) as told:
            read(None, "h100_sxm", candidates=str(tmp_path / "w.csv"), workload=load)
        assert "'fine'" not in str(told.value)

    def test_all_impossible_rows_at_once(self, tmp_path: Path) -> None:
        (tmp_path / "w.csv").write_text(
            f"{HEADER},tp,cp\n"
            "a,both,h100_sxm,8,1,1,0.02,4,\n"
            "b,both,h100_sxm,1,1,0,0.02,,\n"
            "c,decode,h100_sxm,1,1,0,0,,\n"
            "d,prefill,h100_sxm,8,1,1,0,4,2\n"
        )
        with pytest.raises(DescriptionError) as told:
            read_workers(tmp_path / "w.csv")
        for expected in (
            "w.csv:2: tp x pp x dp x cp is 4, but num_gpus is 8",
            "w.csv:3: ttft_s is 0, but a both worker takes some time",
            "w.csv:4: tpot_s is 0, but a decode worker takes some time",
        ):
            assert expected in str(told.value)
        assert "w.csv:5" not in str(told.value), "a prefill worker's tpot_s is not asked"
