"""Workers from the cost model: only legal splits, what they hold, and rates that are the cost model's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from parallel_cases import run
from pydantic import ValidationError

from formulations.parallelism.check import check
from formulations.parallelism.pricing import DECODE_UTILISATION
from formulations.parallelism.problem import ParallelProblem
from formulations.planning import load_problem
from planner import catalog
from planner.cost.serving.precision import kv_element_bytes
from planner.cost.serving.predict import ServingModel, ServingPlans
from planner.cost.serving.worker import ServingWorker
from planner.descriptions.parallel import ParallelInstance
from planner.errors import DescriptionError
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
        redundant_experts=one.redundant_experts,
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
            assert (attention.mlp.num_experts + one.redundant_experts) % ep == 0
            assert ep > 8 or one.redundant_experts == 0
            assert ep in (1, tp * ranks)


def test_memory_holds_the_batch_and_rates_are_the_cost_models(found: tuple[str, ParallelProblem]) -> None:
    name, problem = found
    for one in problem.workers[:: max(1, len(problem.workers) // 40)]:
        model, batch = compiled(one, name), float(one.max_batch_size or 0)
        if one.role == "prefill":
            assert one.tpot_s is None
            assert one.ttft_s is not None
            assert one.utilisation is not None
            together, step = float(batch / one.data_parallel_size), float(one.max_num_batched_tokens or 0)
            assert together == max(step // INPUT, 1)
            zero, number = np.zeros(1, dtype=np.intp), np.array([together])
            seconds = model.prefill_s(zero, np.array([float(INPUT)]), number, np.array([step]))
            highest = batch * one.pipeline_parallel_size / float(seconds[0])
            assert one.requests_per_s == pytest.approx(one.utilisation * highest)
            alone = model.first_token_parts(ServingPlans.of(0, one.data_parallel_size, INPUT, 1))["alone"]
            assert one.ttft_s > float(alone[0])
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
    assert slow.keys() == fast.keys(), "the cache takes as long behind every step and load"
    name = "prefill-h200_sxm-tp4-s4000-u90"
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
        one = next(one for one in read(cluster=cluster).workers if one.name == "prefill-h200_sxm-tp4-s4000-u90")
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


def prefill(problem: ParallelProblem) -> list[WorkerType]:
    return [one for one in problem.workers if one.role == "prefill"]


def test_less_load_is_a_shorter_queue() -> None:
    """M/D/1 with one prompt a step: S u / (2 (1 - u)) of waiting, 4.5 S at 0.9 and 0.5 S at 0.5."""
    found = {one.utilisation: one for one in prefill(read()) if one.name.startswith("prefill-h200_sxm-tp4-s4000-u")}
    busy, calm = found[0.9], found[0.5]
    service = 0.9 / busy.requests_per_s
    assert calm.requests_per_s == pytest.approx(5 / 9 * busy.requests_per_s)
    assert busy.ttft_s is not None
    assert calm.ttft_s is not None
    assert busy.ttft_s - calm.ttft_s == pytest.approx(4.0 * service)


def test_a_tight_first_token_is_met_by_idling() -> None:
    """Where no worker at 90 % keeps the limit, one with less to do does."""
    floor = min(one.ttft_s for one in prefill(read()) if one.ttft_s is not None and one.utilisation == 0.9)
    problem = read(slo={"ttft_s": 0.8 * floor}, disaggregated="only")
    outcome = run(problem)
    assert outcome.status == "optimal"
    assert outcome.plan is not None
    assert all(0.05 <= one.utilisation < 0.9 for one in outcome.plan.workers if one.utilisation is not None)


def test_short_prompts_share_steps() -> None:
    """Prompts of 200 tokens: the most requests a second need several in a step."""
    problem = read(MIXTURE, gpus=1, workload={"input_tokens": 200, "output_tokens": 100})
    best = max(prefill(problem), key=lambda one: one.requests_per_s)
    assert (best.max_batch_size or 0) > 8
    assert best.max_num_batched_tokens == 200 * (best.max_batch_size or 0)


class TestWideExperts:
    def test_ranks_over_nodes_with_redundant_experts(self) -> None:
        """128 experts on 144 ranks: 16 redundant ones make one each."""
        found = {(one.data_parallel_size, one.redundant_experts) for one in read(MIXTURE, nodes=20, gpus=8).workers}
        assert {(144, 16), (128, 0), (96, 64), (72, 16), (16, 16)} <= found
        assert (144, 0) not in found
        assert not any(ranks > 8 and more > 128 for ranks, more in found)

    def test_imbalance_slows_them(self) -> None:
        even, uneven = (
            {one.name: one.requests_per_s for one in read(MIXTURE, nodes=2, expert_imbalance=factor).workers}
            for factor in (1.0, 2.0)
        )
        redundant = [name for name in even.keys() & uneven.keys() if "-r16" in name]
        assert redundant
        assert all(even[name] > uneven[name] for name in redundant)


LONG: dict[str, Any] = {"workload": {"input_tokens": 131_072, "output_tokens": 100}}


class TestSharedPrompts:
    def test_only_prefill_workers_share_long_prompts(self) -> None:
        sharing = [one for one in read(nodes=2, **LONG).workers if one.context_parallel_size > 1]
        assert {one.role for one in sharing} == {"prefill"}
        assert all(one.num_gpus == one.tensor_parallel_size * one.context_parallel_size for one in sharing)
        assert not any(one.context_parallel_size > 1 for one in read(nodes=2).workers)

    def test_they_reach_first_tokens_that_no_other_reaches(self) -> None:
        def fastest(problem: ParallelProblem, sharing: bool) -> float:
            return min(
                one.ttft_s for one in prefill(problem) if one.ttft_s and (one.context_parallel_size > 1) == sharing
            )

        problem = read(nodes=4, **LONG)
        shared, alone = fastest(problem, True), fastest(problem, False)
        assert shared < 0.5 * alone
        outcome = run(read(nodes=4, slo={"ttft_s": 0.8 * alone}, **LONG))
        assert outcome.plan is not None
        assert any(one.context_parallel_size > 1 for one in outcome.plan.workers)

    def test_engines_that_cannot_share_have_none(self) -> None:
        assert not any(one.context_parallel_size > 1 for one in read(nodes=2, backend="trtllm", **LONG).workers)


class TestTwoBatchOverlap:
    def test_both_ways_are_there_between_nodes_alone(self) -> None:
        asked = {"backend": "sglang", "two_batch_overlap": True}
        found = {(one.num_gpus > 8, one.two_batch_overlap) for one in read(MIXTURE, nodes=2, gpus=8, **asked).workers}
        assert found == {(False, False), (True, False), (True, True)}
        assert not any(one.two_batch_overlap for one in read(MIXTURE, nodes=2, gpus=8).workers)

    def test_it_is_never_worse_to_have_the_choice(self) -> None:
        slo = {"tpot_s": 0.05}
        less, more = (run(read(MIXTURE, nodes=2, gpus=8, slo=slo, two_batch_overlap=one)) for one in (False, True))
        assert less.plan is not None
        assert more.plan is not None
        assert more.plan.requests_per_s >= less.plan.requests_per_s * (1 - 1e-9)

    def test_refused_where_there_is_nothing_to_overlap(self) -> None:
        with pytest.raises(DescriptionError, match=r"two_batch_overlap: .* has no experts"):
            read(LLAMA, two_batch_overlap=True)


class TestDrafts:
    V3 = "deepseek-ai/DeepSeek-V3"

    def test_workers_with_and_without_are_there(self) -> None:
        problem = read(self.V3, gpus=8, device="h200_sxm", backend="sglang", speculation={"draft_tokens": 1})
        roles = {(one.role, one.draft_tokens) for one in problem.workers}
        assert roles == {("both", 0), ("both", 1), ("decode", 0), ("decode", 1), ("prefill", 0)}
        assert any("a draft is right with a chance of 0.85" in note for note in problem.assumptions)
        plain, drafts = (
            min(one.tpot_s for one in problem.workers if one.tpot_s and one.draft_tokens == size) for size in (0, 1)
        )
        assert drafts < plain

    def test_drafts_that_are_never_right_are_never_chosen(self) -> None:
        never = {"draft_tokens": 2, "acceptance": 0.0}
        outcome = run(read(self.V3, gpus=8, device="h200_sxm", backend="sglang", speculation=never))
        assert outcome.plan is not None
        assert all(one.draft_tokens == 0 for one in outcome.plan.workers)

    @pytest.mark.parametrize(
        ("model", "asked", "expected"),
        [
            (LLAMA, {"draft_tokens": 1}, "has no MTP layer that could propose tokens"),
            ("deepseek-ai/DeepSeek-R1", {"draft_tokens": 1}, "no acceptance of the drafts"),
            (V3, {"draft_tokens": 9}, "less than or equal to 8"),
            (V3, {"acceptance": 1.5}, "less than or equal to 1"),
        ],
    )
    def test_impossible_ones_say_why(self, model: str, asked: dict[str, float], expected: str) -> None:
        with pytest.raises((DescriptionError, ValidationError), match=expected):
            read(model, speculation=asked)
