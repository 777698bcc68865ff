"""Schedules of passes: rules by hand, every order of small pipelines, the scheduler's own times, and broken plans."""

from __future__ import annotations

import csv
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from formulations.outcome import Budget, SolveOptions, Status
from formulations.parallelism.training.schedule.anneal import anneal, annealed
from formulations.parallelism.training.schedule.baseline import breadth_first, joined, one_forward_one_backward
from formulations.parallelism.training.schedule.bound import period_bound_s
from formulations.parallelism.training.schedule.check import check
from formulations.parallelism.training.schedule.cpsat import choose, one_at_a_time
from formulations.parallelism.training.schedule.problem import (
    SchedulePlan,
    ScheduleProblem,
    idle_share,
    peak_bytes,
    span_s,
    timed,
)
from formulations.parallelism.training.schedule.zero_bubble import zero_bubble


def problem(
    devices: int, micro: int, passes: Any = (1.0, 1.0, 1.0), send: float = 0.0, room: float = 1e9, rounds: int = 1
) -> ScheduleProblem:
    """Equal chunks, dealt out in turn; a micro-batch keeps 2 bytes a chunk until B and 1 until W."""
    chunks = devices * rounds
    passes = np.array(passes, dtype=np.float64)
    return ScheduleProblem(
        device=np.arange(chunks) % devices,
        pass_s=passes if passes.ndim == 2 else np.repeat(passes[:, None], chunks, axis=1),
        send_s=np.full(chunks - 1, send),
        until_backward_bytes=np.full(chunks, 2.0),
        until_weight_bytes=np.full(chunks, 1.0),
        capacity_bytes=np.full(devices, room),
        micro_batches=micro,
    )


def test_1f1b_takes_as_long_as_its_formula() -> None:
    """Four devices, six micro-batches of 1 + 2 (B and W in one): (6 + 3) x 3 = 27; device i keeps 4 - i of 3 bytes."""
    asked = problem(4, 6, (1.0, 1.0, 1.0))
    order = one_forward_one_backward(asked)
    plan = joined(asked, order)
    assert span_s(asked, plan) == pytest.approx(27.0)
    assert idle_share(asked, plan) == pytest.approx(1 - 18 / 27)
    assert peak_bytes(asked, order).tolist() == [12.0, 9.0, 6.0, 3.0]
    assert check(asked, plan) == []


def test_interleaving_halves_the_bubble() -> None:
    """Two chunks of half the work: m x 3 + (p - 1) 3 / 2 = 24 + 4.5 for p = 4, m = 8."""
    asked = problem(4, 8, (0.5, 0.5, 0.5), rounds=2)
    plan = joined(asked, one_forward_one_backward(asked))
    assert span_s(asked, plan) == pytest.approx(28.5)
    assert check(asked, plan) == []
    with pytest.raises(ValueError, match="groups of 4"):
        one_forward_one_backward(problem(4, 6, rounds=2))


def test_breadth_first_keeps_everything() -> None:
    """Two devices of two chunks, three micro-batches: each keeps 2 x 3 x 3 bytes."""
    asked = problem(2, 3, (0.5, 0.5, 0.5), rounds=2)
    order = breadth_first(asked)
    assert peak_bytes(asked, order).tolist() == [18.0, 18.0]
    assert check(asked, joined(asked, order)) == []


def test_the_bound_by_hand() -> None:
    """Two devices, four micro-batches, all passes 1 s, room for two micro-batches of 2 + 1 bytes.

    Device 0: R = 4. First window: at most 2 F and a B, waits 4 - 3 = 1. Last: a = 1 leaves 4 bytes for e = 4, so it
    runs 1 + 1 + 3 = 5 >= 4 and need not wait. Work 12 + 1 = 13, and the zero-bubble rule reaches it.
    """
    asked = problem(2, 4, room=6.0)
    assert period_bound_s(asked) == pytest.approx(13.0)
    found = choose(asked)
    assert found.claimed == pytest.approx(13.0)
    assert found.status is Status.OPTIMAL


def words(micro: int) -> list[str]:
    """All orders of one device's passes in which B comes after F and W after B."""

    def grow(word: str, f: int, b: int, w: int) -> list[str]:
        if w == micro:
            return [word]
        found = grow(word + "f", f + 1, b, w) if f < micro else []
        found += grow(word + "b", f, b + 1, w) if b < f else []
        return found + (grow(word + "w", f, b, w + 1) if w < b else [])

    return grow("", 0, 0, 0)


def best_of_all(asked: ScheduleProblem) -> float:
    """Every combination of words that fits and does not wait for ever."""
    options = []
    for device in range(asked.num_devices):
        own = []
        for word in words(asked.micro_batches):
            seen = {"f": 0, "b": 0, "w": 0}
            tasks = []
            for letter in word:
                tasks.append(("fbw".index(letter), device, seen[letter]))
                seen[letter] += 1
            if peak_bytes(replace(asked), [tasks])[0] <= asked.capacity_bytes[device]:
                own.append(tasks)
        options.append(own)
    best = np.inf
    for order in product(*options):
        try:
            best = min(best, span_s(asked, timed(asked, order)))
        except ValueError:
            continue
    return best


@pytest.mark.parametrize("seed", range(4))
def test_no_order_is_better(seed: int) -> None:
    draw = np.random.default_rng(seed)
    asked = problem(2, 3, draw.integers(1, 6, (3, 2)), float(draw.integers(0, 2)), float(draw.integers(3, 8)))
    best_s = best_of_all(asked)
    found = choose(asked, SolveOptions(work_limit=0.5))
    assert found.plan is not None
    assert check(asked, found.plan) == []
    # Orders are timed with each device's end as early as possible; a later end of one device may serve another.
    assert found.claimed is not None
    assert found.claimed <= best_s * (1 + 1e-9)
    assert period_bound_s(asked) <= found.claimed * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_times_that_are_not_whole(seed: int) -> None:
    draw = np.random.default_rng(seed)
    asked = problem(2, 4, draw.uniform(0.1, 0.5, (3, 2)), 0.013, 6.5)
    found = choose(asked, SolveOptions(work_limit=0.2))
    assert found.plan is not None
    assert found.bound is not None
    assert check(asked, found.plan) == []
    assert found.bound.value <= span_s(asked, found.plan) * (1 + 1e-6)
    rule = zero_bubble(asked)
    assert rule is not None
    assert found.claimed is not None
    assert found.claimed <= span_s(asked, rule) * (1 + 1e-9)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
# The second device had room for forward passes that the first had not begun.
@example(281)
def test_rules_and_annealing_are_legal_and_above_the_bound(seed: int) -> None:
    draw = np.random.default_rng(seed)
    devices, micro = int(draw.integers(1, 5)), int(draw.integers(1, 8))
    asked = problem(
        devices, micro, draw.uniform(0.2, 2.0, (3, devices)), float(draw.uniform(0, 0.3)), float(draw.uniform(3, 20))
    )
    low = period_bound_s(asked)
    plans = [one_at_a_time(asked)]
    rule = zero_bubble(asked)
    if rule is not None:
        plans.append(rule)
        plans.append(annealed(asked, rule, 200, seed))
        assert span_s(asked, plans[-1]) <= span_s(asked, rule) * (1 + 1e-9)
    for plan in plans:
        assert check(asked, plan) == []
        assert low <= span_s(asked, plan) * (1 + 1e-9)


def test_the_compiled_annealing_is_its_python_form() -> None:
    asked = problem(2, 3, [[1.0, 2.0], [1.0, 1.5], [0.5, 0.7]], 0.1, 7.0)
    order = one_at_a_time(asked).order
    start = np.array([[kind * 2 + chunk for kind, chunk, _ in tasks] for tasks in order])
    given_ = (
        np.full(2, 9), asked.device, asked.pass_s, asked.send_s, asked.until_backward_bytes, asked.until_weight_bytes,
        asked.capacity_bytes, 3, 60, 0.05, 0.001, 5,
    )  # fmt: skip
    assert (anneal(start.copy(), *given_) == anneal.py_func(start.copy(), *given_)).all()


def test_the_greedy_gives_its_authors_times(shared_data: Path) -> None:
    """Times of the authors' scheduler on the paper's profiles; 1F1B as it was simulated beside them."""
    seen = 0
    with (shared_data / "training" / "zero_bubble_schedules.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["set"] != "paper" or int(row["p"]) * int(row["m"]) > 1024:
                continue
            devices = int(row["p"])
            asked = ScheduleProblem(
                device=np.arange(devices),
                pass_s=np.repeat([[float(row[name])] for name in ("t_f", "t_b", "t_w")], devices, axis=1),
                send_s=np.full(devices - 1, float(row["t_comm"])),
                until_backward_bytes=np.full(devices, -float(row["mem_b"])),
                until_weight_bytes=np.full(devices, -float(row["mem_w"])),
                capacity_bytes=np.full(devices, float(row["mem_limit_in_p_units"]) * devices * float(row["mem_f"])),
                micro_batches=int(row["m"]),
            )
            if row["schedule"] == "1f1b":
                # Simulated with first passes as early as possible, which begins the period up to two sends earlier.
                plan = joined(asked, one_forward_one_backward(asked))
                assert span_s(asked, plan) == pytest.approx(float(row["time"]), rel=1e-3)
            else:
                found = zero_bubble(asked)
                assert found is not None
                assert span_s(asked, found) == pytest.approx(float(row["time"]), rel=1e-9)
                if row["schedule"].startswith("ZB-1p"):
                    assert period_bound_s(asked) == pytest.approx(float(row["time"]), rel=1e-9)
            seen += 1
    assert seen > 10


def test_several_chunks_a_device_are_polished_too() -> None:
    asked = problem(2, 4, (0.5, 0.5, 0.5), rounds=2, room=15.0)
    found = choose(asked, SolveOptions(work_limit=0.3))
    assert found.plan is not None
    assert check(asked, found.plan) == []
    assert found.claimed is not None
    assert found.claimed <= span_s(asked, joined(asked, one_forward_one_backward(asked)))


def test_no_room_for_one_micro_batch_says_so() -> None:
    found = choose(problem(2, 4, room=2.0))
    assert found.status is Status.INFEASIBLE
    assert "device 0 keeps 3 bytes" in found.reasons[0]


def test_no_time_keeps_the_rule() -> None:
    asked = problem(4, 8, (1.8, 1.8, 0.9), 0.1, 15.0)
    found = choose(asked, budget=Budget(1e-9))
    rule = zero_bubble(asked)
    assert rule is not None
    assert found.claimed == pytest.approx(span_s(asked, rule))


def broken(name: str) -> tuple[ScheduleProblem, SchedulePlan]:
    asked = problem(2, 2, room=6.0, send=0.5)
    plan = joined(asked, one_forward_one_backward(asked))
    start = plan.start_s.copy()
    if name == "forward":
        start[0, 1, 0] = 0.0
    elif name == "turn":
        start[1, 1, 0] = start[0, 1, 0]
    elif name == "backward":
        start[1, 0, 0] = 0.0
    elif name == "weight":
        start[2, 0, 1] = 0.0
    elif name == "one_pass":
        start[2, 0, 0] = start[1, 0, 1]
    elif name == "memory":
        asked = replace(asked, capacity_bytes=np.array([5.0, 6.0]))
    elif name == "order":
        return asked, SchedulePlan(start, (plan.order[0][::-1], plan.order[1]))
    else:
        start = start[:, :, :1]
    return asked, SchedulePlan(start, plan.order)


@pytest.mark.parametrize("rule", ["forward", "turn", "backward", "weight", "one_pass", "memory", "order", "shape"])
def test_broken_plans_are_found(rule: str) -> None:
    assert rule in {violation.rule for violation in check(*broken(rule))}


def test_orders_that_wait_for_each_other_are_refused() -> None:
    asked = problem(2, 2)
    first, second = one_forward_one_backward(asked)
    with pytest.raises(ValueError, match="wait for one another"):
        timed(asked, (first[::-1], second))
    with pytest.raises(ValueError, match="leave out a pass"):
        timed(asked, (first[:-1], second))


def test_shapes_and_signs_are_checked() -> None:
    with pytest.raises(ValueError, match="send_s must be finite"):
        problem(2, 2, send=-1.0)
    with pytest.raises(ValueError, match="pass_s has shape"):
        problem(2, 2, np.ones((3, 5)))
    with pytest.raises(ValueError, match="a micro-batch"):
        problem(2, 0)
    with pytest.raises(ValueError, match="must hold a chunk"):
        replace(problem(2, 2), capacity_bytes=np.ones(3))
