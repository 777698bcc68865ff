"""Workers from the cost model: only legal splits, what they hold, and rates that are the cost model's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from parallel_cases import run

from formulations.parallelism.candidates import DECODE_UTILISATION, PREFILL_UTILISATION
from formulations.parallelism.check import check
from formulations.parallelism.problem import ParallelProblem
from formulations.planning import load_problem
from planner import catalog
from planner.cost.serving.precision import kv_element_bytes
from planner.cost.serving.predict import ServingModel, ServingPlans
from planner.cost.serving.worker import ServingWorker
from planner.descriptions.parallel import ParallelInstance
from planner.parallel_plan import WorkerType

LLAMA, MIXTURE = "meta-llama/Llama-3.1-70B-Instruct", "Qwen/Qwen3-30B-A3B"
INPUT, OUTPUT = 4000, 1000


def read(model: str = LLAMA, nodes: int = 1, gpus: int = 8, device: str = "h200_sxm", **more: Any) -> ParallelProblem:
    load = more.pop("workload", {"input_tokens": INPUT, "output_tokens": OUTPUT})
    cluster = {"nodes": [{"device": device, "count": nodes, "gpus_per_node": gpus}]}
    found: ParallelProblem = load_problem(
        ParallelInstance.model_validate({"name": "case", "model": model, "cluster": cluster, "workload": load, **more})
    )
    return found


def compiled(one: WorkerType, model: str) -> ServingModel:
    """The same worker, straight from the cost model."""
    spec = catalog.model(model)
    size = one.tensor_parallel_size * one.data_parallel_size
    worker = ServingWorker(
        model=spec,
        device=catalog.device(one.device),
        backend="vllm",
        tensor_parallel_size=one.tensor_parallel_size,
        pipeline_parallel_size=one.pipeline_parallel_size,
        data_parallel_size=one.data_parallel_size,
        moe_tensor_parallel_size=size // one.expert_parallel_size,
        expert_parallel_size=one.expert_parallel_size,
        kv_element_bytes=kv_element_bytes(spec, "vllm"),
    )
    assert list(worker.problems()) == []
    return ServingModel([worker])


@pytest.fixture(scope="module", params=[LLAMA, MIXTURE])
def found(request: pytest.FixtureRequest) -> tuple[str, ParallelProblem]:
    return request.param, read(request.param, nodes=2)


def test_only_legal_splits(found: tuple[str, ParallelProblem]) -> None:
    name, problem = found
    spec = catalog.model(name)
    (attention, _), *_ = spec.layer_groups()
    heads, kv_heads = attention.attention.num_attention_heads, attention.attention.num_key_value_heads
    assert len({one.name for one in problem.workers}) == len(problem.workers) > 0
    for one in problem.workers:
        tp, ranks, ep = one.tensor_parallel_size, one.data_parallel_size, one.expert_parallel_size
        assert one.num_gpus == tp * one.pipeline_parallel_size * ranks
        assert one.num_gpus <= 8 or one.num_gpus % 8 == 0
        assert tp <= 8
        assert heads % tp == 0
        assert kv_heads % tp == 0 or tp % kv_heads == 0
        if not spec.num_moe_layers:
            assert (ranks, ep) == (1, 1)
        else:
            assert attention.mlp.num_experts % ep == 0
            assert ep in (1, tp * ranks)


def test_memory_holds_the_batch_and_rates_are_the_cost_models(found: tuple[str, ParallelProblem]) -> None:
    name, problem = found
    for one in problem.workers[:: max(1, len(problem.workers) // 40)]:
        model, batch = compiled(one, name), float(one.max_batch_size or 0)
        if one.role == "prefill":
            plans = ServingPlans.of(0, one.data_parallel_size, INPUT, 1)
            alone = float(model.first_token_parts(plans)["alone"][0])
            at_once = one.data_parallel_size * one.pipeline_parallel_size
            assert one.requests_per_s == pytest.approx(PREFILL_UTILISATION * at_once / alone)
            assert one.tpot_s is None
            assert one.ttft_s is not None
            assert one.ttft_s > float(model.predict(plans).ttft_s[0])
            continue
        predicted = model.predict(ServingPlans.of(0, batch, INPUT, OUTPUT))
        assert predicted.admitted_sequences[0] >= batch
        assert predicted.memory_bytes[0] <= model.memory[0].usable_bytes
        if one.role == "both":
            assert one.requests_per_s == pytest.approx(predicted.output_tokens_per_s[0] / OUTPUT)
            assert (one.ttft_s, one.tpot_s) == pytest.approx((predicted.ttft_s[0], predicted.tpot_s[0]))
        else:
            step = float(predicted.step_s[0])
            assert one.requests_per_s == pytest.approx(DECODE_UTILISATION * batch / (step * OUTPUT))
            assert one.tpot_s == pytest.approx(step)
            assert one.ttft_s is None


def test_predictions_count_longer_by_the_margin() -> None:
    limit = 0.03
    for margin in (0.0, 0.2):
        problem = read(slo={"tpot_s": limit}, margin=margin)
        late = np.array([one.tpot_s is not None and one.tpot_s * (1 + margin) > limit for one in problem.workers])
        assert (problem.usable == ~late).all()
        assert late.any()
        assert not late.all()


@pytest.mark.parametrize(("how", "roles"), [("only", {1, 2}), ("never", {0}), ("allow", {0, 1, 2})])
def test_disaggregated_only_or_never(how: str, roles: set[int]) -> None:
    problem = read(gpus=4, disaggregated=how)
    assert set(problem.role.tolist()) == roles
    outcome = run(problem)
    assert outcome.status == "optimal"
    assert outcome.plan is not None
    assert check(problem, outcome.plan) == []


def test_a_slower_link_lengthens_the_first_token_by_the_caches_transfer() -> None:
    """80 layers x 2 x 8 heads x 128 x 2 bytes x 4000 tokens = 1.31 GB a prompt: a GPU of four sends 0.33 GB."""
    slow, fast = (
        {one.name: one for one in read(kv_bandwidth_bytes_per_s=rate).workers if one.role == "prefill"}
        for rate in (1e9, 1e12)
    )
    assert slow.keys() == fast.keys()
    name = "prefill-h200_sxm-tp4"
    sent = 80 * 2 * 8 * 128 * 2 * INPUT / 4
    late, early = slow[name].ttft_s, fast[name].ttft_s
    assert late is not None
    assert early is not None
    assert late - early == pytest.approx(sent / 1e9 - sent / 1e12, rel=0.02)
    assert slow[name].requests_per_s == fast[name].requests_per_s


def test_the_network_of_the_cluster_carries_the_cache() -> None:
    """Twice the network, half the transfer."""

    def first_token_s(nic: str) -> float:
        cluster = {"nodes": [{"device": "h200_sxm", "count": 2, "gpus_per_node": 8, "nic_bandwidth_bytes_per_s": nic}]}
        one = next(one for one in read(cluster=cluster).workers if one.name == "prefill-h200_sxm-tp8")
        assert one.ttft_s is not None
        return one.ttft_s

    quarter, half, whole = (first_token_s(rate) for rate in ("1GB/s", "2GB/s", "4GB/s"))
    assert quarter - half == pytest.approx(2 * (half - whole), rel=1e-6)
    assert half > whole


def test_more_nodes_and_looser_limits_are_never_worse() -> None:
    def most(**more: Any) -> float:
        outcome = run(read(MIXTURE, gpus=4, **more))
        assert outcome.status == "optimal", outcome.reasons
        assert outcome.objective is not None
        return -outcome.objective.total

    by_nodes = [most(nodes=count, slo={"ttft_s": 2.0, "tpot_s": 0.03}) for count in (1, 2, 3)]
    assert by_nodes == sorted(by_nodes)
    assert by_nodes[2] >= 3 * by_nodes[0] * (1 - 1e-6)
    by_limit = [most(slo={"ttft_s": 2.0, "tpot_s": limit}) for limit in (0.01, 0.02, 0.05)]
    assert by_limit == sorted(by_limit)


def test_a_model_that_is_too_large_names_its_smallest_footprint() -> None:
    """405B in 16 bits is 812 GB, over 8 GPUs 101 GB each: more than 80."""
    outcome = run(read("meta-llama/Llama-3.1-405B-Instruct", device="h100_sxm"))
    assert outcome.status == "infeasible"
    told = " ".join(outcome.reasons)
    assert "fits at no split" in told
    assert "8 x h100_sxm" in told
    assert outcome.relaxations


def test_an_slo_below_the_floor_is_told_with_the_fastest() -> None:
    problem = read(slo={"tpot_s": 1e-4})
    outcome = run(problem)
    assert outcome.status == "infeasible"
    fastest = min(one.tpot_s for one in problem.workers if one.tpot_s is not None)
    assert fastest > 1e-4
    assert any("tpot_s from 0.0001" in way for way in outcome.relaxations)
