"""Workers beyond one node's splits: prompts shared by ranks, redundant experts, drafts of several tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from planner.cost.collectives import InterNodeLink
from planner.cost.operators.moe import moe_rank_seconds
from planner.cost.serving.coefficients import DECODE_PARTS
from planner.cost.serving.curves import (
    CONTEXT_PARTS,
    NETWORK_BYTES_PER_S,
    NODES,
    PROMPT_PEAK_SHARE,
    TOKEN_PARTS,
    compile_curves,
)
from planner.cost.serving.memory import activation_bytes
from planner.cost.serving.overlap import hidden_s
from planner.cost.serving.predict import ServingModel, ServingPlans
from planner.cost.serving.sharding import cache_bytes, weight_bytes
from planner.cost.serving.step_times import step_times
from planner.cost.serving.worker import ServingWorker

Serve = Callable[..., ServingWorker]
V3, LLAMA = "deepseek-ai/DeepSeek-V3", "meta-llama/Llama-3.1-405B-Instruct"


def part(worker: ServingWorker, name: str) -> np.ndarray:
    curves = compile_curves(worker)
    return curves.tokens[TOKEN_PARTS.index(name)] if name in TOKEN_PARTS else curves.context[CONTEXT_PARTS.index(name)]


def at(tokens: float) -> int:
    return int(np.argmin(np.abs(NODES - tokens)))


class TestPromptsSharedByRanks:
    def test_each_rank_multiplies_its_part(self, serve: Serve) -> None:
        """4 ranks, 65,536 tokens: products and all-reduces of 16,384."""
        alone = serve(LLAMA, tp=8)
        four = replace(alone, context_parallel_size=4)
        assert (four.num_gpus, four.stage_gpus, four.token_ranks) == (32, 32, 4)
        for name in ("dense", "all_reduce"):
            assert part(four, name)[at(65536)] == pytest.approx(part(alone, name)[at(16384)], rel=1e-12)

    def test_attention_is_shared_until_the_ring_takes_longer(self, serve: Serve) -> None:
        """405B on TP8: a GPU keeps one KV head: 126 x 2 x 128 x 2 bytes a token, a 16th of them on a rank."""
        worker = replace(serve(LLAMA, tp=8), context_parallel_size=16)
        tokens = NODES[at(2**20)]
        peak = worker.device.peak_flop_per_s("bf16")
        flop = float(worker.model.prompt_attention_flops(tokens)) / 128
        assert part(worker, "prompt_attention")[at(tokens)] == pytest.approx(flop / (PROMPT_PEAK_SHARE * peak))
        network = InterNodeLink.rdma(NETWORK_BYTES_PER_S)
        few = NODES[at(4096)]
        sent = 15 / 16 * few * 126 * 2 * 128 * 2 / network.reached_bytes_per_s
        ring = sent + 15 * 126 * network.latency_s
        assert part(worker, "prompt_attention")[at(few)] == pytest.approx(ring)
        assert part(worker, "prompt_attention")[at(few)] > float(worker.model.prompt_attention_flops(few)) / 128 / peak

    def test_cache_and_activations_are_shared(self, serve: Serve) -> None:
        alone = serve(LLAMA, tp=8)
        four = replace(alone, context_parallel_size=4)
        assert cache_bytes(four, 1e6) == pytest.approx(cache_bytes(alone, 1e6) / 4)
        assert weight_bytes(four) == weight_bytes(alone)
        assert activation_bytes(four, 1, 2**20) == pytest.approx(activation_bytes(alone, 1, 2**18))

    def test_more_ranks_are_faster_and_at_most_in_proportion(self, serve: Serve) -> None:
        alone = serve(LLAMA, tp=8)
        sizes = (1, 2, 4, 8, 16)
        model = ServingModel([replace(alone, context_parallel_size=size) for size in sizes])
        index, one = np.arange(len(sizes)), np.ones(len(sizes))
        seconds = model.prefill_s(index, 131072.0 * one, one, 131072.0 * one)
        assert (np.diff(seconds) < 0).all()
        # Measured products are up to a percent more efficient at some sizes than at larger ones.
        assert (seconds * np.array(sizes) >= 0.98 * seconds[0]).all()

    def test_a_step_of_several_prompts_reads_the_weights_once(self, serve: Serve) -> None:
        model = ServingModel([serve("meta-llama/Llama-3.1-70B-Instruct", tp=8)])
        zero, one = np.zeros(1, dtype=np.intp), np.ones(1)
        single = model.prefill_s(zero, 64 * one, one, 8192 * one)
        eight = model.prefill_s(zero, 64 * one, 8 * one, 8192 * one)
        assert single < eight < 8 * single


class TestRedundantExperts:
    def test_the_busiest_rank_has_its_share_of_the_slots(self, serve: Serve) -> None:
        """256 + 32 experts on 144 ranks are 2 each; 128 tokens a rank x 8 experts x 1.2 = 1,228.8 rows."""
        worker = replace(serve(V3, dp=144, ep=144, moe_tp=1), redundant_experts=32, expert_imbalance=1.2)
        assert list(worker.problems()) == []
        tokens = 128.0 * 144
        layer = next(layer for layer, _ in worker.model.layer_groups() if layer.mlp.num_experts)
        expected = 58 * moe_rank_seconds(
            worker.device,
            "fp8_block",
            rows=1.2 * 128 * 8,
            touched=2 * (1 - (1 - 8 / 288) ** tokens),
            tokens=1.2 * tokens * (1 - (143 / 144) ** 8),
            hidden_size=7168,
            moe_intermediate_size=layer.mlp.moe_intermediate_size,
            launch=False,
        )
        assert part(worker, "moe")[at(128)] == pytest.approx(float(expected))

    def test_slots_are_counted_in_memory(self, serve: Serve) -> None:
        """At 72 ranks, 288 slots are 4 each; at 144, 2: half the experts."""
        small, large = (
            weight_bytes(replace(serve(V3, dp=size, ep=size, moe_tp=1), redundant_experts=32)) for size in (72, 144)
        )
        expert = 3 * 7168 * 2048 * 58
        assert small - large == pytest.approx(2 * expert, rel=0.01)

    def test_balance_never_hurts(self, serve: Serve) -> None:
        base = replace(serve(V3, dp=64, ep=64, moe_tp=1), redundant_experts=64)
        rising = [part(replace(base, expert_imbalance=factor), "moe") for factor in (1.0, 1.2, 2.0)]
        assert (rising[0] <= rising[1] + 1e-12).all()
        assert (rising[1] <= rising[2] + 1e-12).all()


class TestDrafts:
    def test_tokens_of_a_step(self, serve: Serve) -> None:
        """1 + 0.8 + 0.64."""
        assert replace(serve(V3, tp=8), draft_tokens=2, draft_acceptance=0.8).tokens_per_step == pytest.approx(2.44)
        assert serve(V3, tp=8).tokens_per_step == 1.0

    def test_a_step_verifies_two_tokens_and_drafts_one(self, serve: Serve) -> None:
        plain = serve(V3, "h200_sxm", "sglang", tp=8)
        drafting = replace(plain, draft_tokens=1, draft_acceptance=0.85)
        layer = replace(plain, model=replace(plain.model, layers=plain.model.mtp[:1], mtp=(), vision=()))
        own, mtp, both = compile_curves(plain), compile_curves(layer), compile_curves(drafting)
        assert both.step[:, at(32)] == pytest.approx(own.tokens[:, at(64)] + mtp.tokens[:, at(64)])
        assert both.tokens[:, at(32)] == pytest.approx(own.tokens[:, at(32)] + mtp.tokens[:, at(32)])
        cache, latent = CONTEXT_PARTS.index("cache"), CONTEXT_PARTS.index("latent")
        assert both.context[cache] == pytest.approx(own.context[cache] + mtp.context[cache])
        assert both.context[latent] == pytest.approx(2 * own.context[latent] + mtp.context[latent])
        assert both.num_moe_layers == own.num_moe_layers + 1

    def test_the_layer_and_its_cache_take_memory(self, serve: Serve) -> None:
        """One of 62 layers with a cache."""
        plain = serve(V3, "h200_sxm", "sglang", tp=8)
        drafting = replace(plain, draft_tokens=1, draft_acceptance=0.85)
        assert weight_bytes(drafting) > weight_bytes(plain)
        assert cache_bytes(drafting, 1000.0) == pytest.approx(cache_bytes(plain, 1000.0) * 62 / 61)

    def test_time_per_token(self, serve: Serve) -> None:
        """A sequence alone takes a step for its tokens; the parts add up; more acceptance is never slower."""
        plain = serve(V3, "h200_sxm", "sglang", tp=8)
        shares = (0.0, 0.5, 0.85, 1.0)
        model = ServingModel([plain, *(replace(plain, draft_tokens=1, draft_acceptance=share) for share in shares)])
        alone = model.predict(ServingPlans.of(range(5), 1, 4000, 1000))
        assert alone.tpot_s[1:] == pytest.approx(alone.step_s[1:] / (1 + np.array(shares)))
        many = ServingPlans.of(range(5), 64, 4000, 1000)
        found = model.predict(many)
        assert (np.diff(found.tpot_s[1:]) < 0).all()
        assert found.tpot_s[1] > found.tpot_s[0], "drafts that are never right only cost"
        assert found.tpot_s[4] < found.tpot_s[0]
        sums = sum(model.parts(many).values())
        assert sums / np.array([1, 1, 1.5, 1.85, 2]) == pytest.approx(found.tpot_s)


class TestTwoBatchOverlap:
    def workers(self, serve: Serve) -> tuple[ServingWorker, ServingWorker]:
        plain = replace(serve(V3, "h100_sxm", "sglang", dp=32, ep=32, moe_tp=1), redundant_experts=32)
        return plain, replace(plain, two_batch_overlap=True)

    def test_halves_take_turns(self, serve: Serve) -> None:
        """A step of 128 sequences is two of 64; of the exchange of both, computing beside it hides what it can.

        Experts are in 58 of 61 layers, so that 58 / 61 of the computing has an exchange beside it.
        """
        plain, overlapped = ServingModel([self.workers(serve)[0]]), ServingModel([self.workers(serve)[1]])
        c = plain.coefficients.of_parts(plain.workers[0])
        half = dict(zip(TOKEN_PARTS, plain.curves[0].tokens[:, at(64)], strict=True))
        launches = c["kernel_overhead"] * plain.curves[0].num_products + c["moe_overhead"] * 58
        context = float(plain.table("context", np.zeros(1, dtype=int), np.array([2050.0]))[0])
        computing = 2 * (launches + c["dense"] * (half["dense"] + half["head"]) + c["moe"] * half["moe"])
        computing += c["step_overhead"] + 128 * (context + float(plain.sequence_s[0]))
        exchange = 2 * c["dispatch"] * half["dispatch"]
        load = ServingPlans.of(0, 128 * 32, 2000, 100)
        expected = computing + exchange - min(58 / 61 * computing, exchange)
        assert overlapped.predict(load).step_s[0] == pytest.approx(expected)
        assert overlapped.predict(load).step_s[0] < plain.predict(load).step_s[0]

    def test_an_exchange_that_is_longer_hides_the_computing(self) -> None:
        """10 s of computing in 4 of 5 layers beside an exchange of 30 s: 8 s of it are hidden; of 6 s, all."""
        found = hidden_s(np.array([10.0, 10.0]), np.array([30.0, 6.0]), 0.8)
        assert found.tolist() == [8.0, 6.0]

    def test_a_prompts_exchange_takes_part_of_the_gpu(self, serve: Serve) -> None:
        """Both halves of 8,192 tokens compute longer than they exchange: what is left is the computing, and the 20 of
        132 SMs that the exchange takes meanwhile."""
        plain, overlapped = (ServingModel([worker]) for worker in self.workers(serve))
        c = plain.coefficients.of_parts(plain.workers[0])
        half = dict(zip(TOKEN_PARTS, plain.curves[0].tokens[:, at(4096)], strict=True))
        computing = 2 * (c["prefill_dense"] * half["dense"] + c["prefill_moe"] * half["moe"])
        exchange = 2 * c["prefill_communication"] * half["dispatch"]
        found = overlapped.table("prefill", np.zeros(1, dtype=int), np.array([8192.0]))[0]
        assert found == pytest.approx(computing + 20 / 132 * exchange)

    def test_one_sequence_has_nothing_to_take_turns_with(self, serve: Serve) -> None:
        plain, overlapped = (ServingModel([worker]) for worker in self.workers(serve))
        one = ServingPlans.of(0, 32, 2000, 100)
        assert overlapped.predict(one).step_s[0] >= plain.predict(one).step_s[0]

    def test_parts_add_up(self, serve: Serve) -> None:
        plain, overlapped = self.workers(serve)
        model = ServingModel([plain, overlapped])
        plans = ServingPlans.of([0, 1, 1, 1], [4096, 64, 4096, 16384], 2000, 100)
        parts = model.parts(plans)
        assert sum(parts.values()) == pytest.approx(model.predict(plans).tpot_s)
        # Other prompts may hide more of a step's exchange than they add to it.
        assert all((values >= 0).all() for name, values in parts.items() if name != "prefill_communication")
        alone = sum(parts[name] for name in DECODE_PARTS)
        assert alone == pytest.approx(model.predict(plans).step_s)

    def test_arrivals_see_the_same_step(self, serve: Serve) -> None:
        """The linear step model is exact at its batch, overlapped or not."""
        for worker in self.workers(serve):
            model = ServingModel([worker])
            plans = ServingPlans.of(0, 128 * 32, 2000, 100)
            times = step_times(model, plans)
            step = times.decode_base_s + 128 * (times.decode_per_sequence_s + 2050 * times.decode_per_kv_token_s)
            assert step == pytest.approx(model.predict(plans).step_s)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"two_batch_overlap": True}, "two_batch_overlap needs experts that several ranks share"),
        ({"draft_tokens": 1, "draft_acceptance": 0.8}, "has no MTP layer"),
        ({"draft_acceptance": 1.5}, "draft_acceptance is 1.5, but must be from 0 to 1"),
        ({"draft_tokens": -1}, "draft_tokens is -1, but must not be negative"),
        ({"redundant_experts": -1}, "redundant_experts is -1"),
        ({"expert_imbalance": 0.5}, "expert_imbalance is 0.5, but must be at least 1"),
        ({"context_parallel_size": 0}, "context_parallel_size is 0"),
    ],
)
def test_impossible_workers_say_why(serve: Serve, changes: dict[str, float], expected: str) -> None:
    assert any(expected in problem for problem in replace(serve(tp=8), **changes).problems())


def test_impossible_mixtures_say_why(serve: Serve) -> None:
    uneven = replace(serve(V3, dp=72, ep=72, moe_tp=1), redundant_experts=8)
    assert list(uneven.problems()) == [
        "expert_parallel_size 72 does not divide the 256 experts and 8 redundant ones of deepseek-ai/DeepSeek-V3"
    ]
    staged = replace(serve(V3, tp=8, pp=2), draft_tokens=1, draft_acceptance=0.8)
    assert any("pipeline stages do not go together" in problem for problem in staged.problems())
    overlapped = replace(serve(V3, tp=8, dp=2, pp=2), two_batch_overlap=True)
    assert any("two_batch_overlap and pipeline stages" in problem for problem in overlapped.problems())
    shared = replace(serve(V3, tp=8), context_parallel_size=2)
    assert any(
        "must be the 16 GPUs" in problem and "context_parallel_size 2" in problem for problem in shared.problems()
    )
