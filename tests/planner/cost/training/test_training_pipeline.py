"""Bubbles and micro-batches in flight against an event simulation, and against the zero-bubble scheduler's times."""

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.cost.training.pipeline import idle, in_flight
from planner.cost.training.plans import Schedule, TrainingPlans
from planner.cost.training.sizes import PlanSizes, plan_sizes


def sizes(stages: int, micro_batches: int, schedule: Schedule = Schedule.ONE_F_ONE_B, chunks: int = 1) -> PlanSizes:
    return plan_sizes(
        TrainingPlans.build(
            pipeline_parallel_size=stages,
            virtual_pipeline_size=chunks,
            micro_batch_size=1,
            global_batch_size=micro_batches,
            sequence_length=64,
            schedule=schedule,
        )
    )


def simulate_1f1b(forward: list[float], backward: list[float], micro_batches: int) -> tuple[float, list[int]]:
    """Times of a 1F1B schedule event by event, and the most micro-batches that each stage keeps."""
    stages = len(forward)
    orders = []
    for i in range(stages):
        warm = min(stages - i, micro_batches)
        order = [("F", k) for k in range(warm)]
        for k in range(micro_batches):
            order.append(("B", k))
            if k + warm < micro_batches:
                order.append(("F", k + warm))
        orders.append(order)
    done: dict[tuple[str, int, int], float] = {}
    clock, at = [0.0] * stages, [0] * stages
    while any(at[i] < len(orders[i]) for i in range(stages)):
        for i in range(stages):
            while at[i] < len(orders[i]):
                kind, k = orders[i][at[i]]
                if kind == "F":
                    needs = done.get(("F", i - 1, k)) if i else 0.0
                else:
                    needs = done.get(("B", i + 1, k)) if i < stages - 1 else done.get(("F", i, k))
                if needs is None:
                    break
                clock[i] = max(clock[i], needs) + (forward[i] if kind == "F" else backward[i])
                done[kind, i, k] = clock[i]
                at[i] += 1
    kept = []
    for order in orders:
        held = np.cumsum([1 if kind == "F" else -1 for kind, _ in order])
        kept.append(int(held.max()))
    return max(clock), kept


@given(stages=st.integers(1, 6), rounds=st.integers(1, 4))
def test_even_1f1b_is_exact(stages: int, rounds: int) -> None:
    micro_batches = stages * rounds
    time, kept = simulate_1f1b([1.0] * stages, [2.0] * stages, micro_batches)
    plan = sizes(stages, micro_batches)
    waits = idle(plan, np.array([3.0]), np.array([3.0 * stages]), np.array([1.0]), np.array([0.0]))
    assert micro_batches * 3.0 + waits.bubble_s[0] == pytest.approx(time)
    index = np.arange(stages, dtype=float)[:, None]
    assert in_flight(plan, index)[:, 0].tolist() == kept


@given(st.lists(st.floats(0.5, 2.0), min_size=2, max_size=6), st.integers(1, 4))
def test_uneven_1f1b_is_an_upper_bound(work: list[float], rounds: int) -> None:
    """Sum + (m - 1) max is never below the schedule, which a slow first stage can beat by the others' drain."""
    stages = len(work)
    micro_batches = stages * rounds
    time, _ = simulate_1f1b(work, [2 * w for w in work], micro_batches)
    slowest = 3.0 * max(work)
    plan = sizes(stages, micro_batches)
    waits = idle(plan, np.array([slowest]), np.array([3.0 * sum(work)]), np.array([1.0]), np.array([0.0]))
    predicted = micro_batches * slowest + waits.bubble_s[0]
    assert micro_batches * slowest * (1 - 1e-9) <= time <= predicted * (1 + 1e-9)


def test_a_slow_last_stage_reaches_the_bound() -> None:
    time, _ = simulate_1f1b([1.0, 1.0, 1.5], [2.0, 2.0, 3.0], 6)
    waits = idle(sizes(3, 6), np.array([4.5]), np.array([10.5]), np.array([1.0]), np.array([0.0]))
    assert 6 * 4.5 + waits.bubble_s[0] == pytest.approx(time)


@pytest.mark.parametrize(
    ("schedule", "bubble", "sends"),
    [
        (Schedule.GPIPE, 21.0, 16 * 0.1),
        (Schedule.ONE_F_ONE_B, 21.0, 16 * 0.1),
        # F + B + W = 3 with W = 1: (p - 1)(F + B - W) = 7, and four sends a stage.
        (Schedule.ZB_1P, 7.0, 28 * 0.1),
        # (p - 1)(F + B) + sends - m W = 14 + 2.8 - 8, of which the sends are 2.8.
        (Schedule.ZB_2P, 6.0, 28 * 0.1),
        (Schedule.ZB_V, 0.0, 28 * 0.1),
    ],
)
def test_bubbles_by_hand(schedule: Schedule, bubble: float, sends: float) -> None:
    plan = sizes(8, 8, schedule)
    waits = idle(plan, np.array([3.0]), np.array([24.0]), np.array([1.0]), np.array([0.1]))
    assert waits.bubble_s[0] == pytest.approx(bubble)
    assert waits.send_s[0] == pytest.approx(sends)


def test_interleaving_divides_the_bubble_and_multiplies_the_sends() -> None:
    waits = idle(sizes(8, 16, chunks=3), np.array([3.0]), np.array([24.0]), np.array([1.0]), np.array([0.1]))
    assert waits.bubble_s[0] == pytest.approx(7.0)
    assert waits.send_s[0] == pytest.approx(2 * 16 * 3 * 0.1)


@pytest.mark.parametrize(
    ("schedule", "chunks", "kept"),
    [
        (Schedule.GPIPE, 1, [64, 64, 64]),
        (Schedule.ONE_F_ONE_B, 1, [8, 7, 1]),
        # Stage 0: p (1 + (p - 1) / (p v)) = 8 + 7 / 3.
        (Schedule.ONE_F_ONE_B, 3, [8 + 7 / 3, 8 + 5 / 3, 8 - 7 / 3]),
        (Schedule.ZB_1P, 1, [8, 8, 8]),
        (Schedule.ZB_2P, 1, [15, 15, 15]),
        (Schedule.ZB_V, 2, [8, 8, 8]),
    ],
)
def test_in_flight_by_hand(schedule: Schedule, chunks: int, kept: list[float]) -> None:
    places = np.array([[0.0], [1.0], [7.0]])
    assert in_flight(sizes(8, 64, schedule, chunks), places)[:, 0] == pytest.approx(kept)
    assert in_flight(sizes(8, 8, schedule, chunks), places).max() <= 8


def test_times_of_the_zero_bubble_scheduler(shared_data: Path) -> None:
    """36 times of the paper's own scheduler on its published profiles."""
    errors: dict[str, list[float]] = {}
    with (shared_data / "training" / "zero_bubble_schedules.csv").open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            if row["set"] != "paper":
                continue
            name = row["schedule"].split()[0]
            p, m = int(row["p"]), int(row["m"])
            f, b, w, c = (float(row[key]) for key in ("t_f", "t_b", "t_w", "t_comm"))
            schedule = {"1f1b": Schedule.ONE_F_ONE_B, "ZB-1p": Schedule.ZB_1P, "ZB-2p": Schedule.ZB_2P}[name]
            one, send = np.array([f + b + w]), np.array([c])
            waits = idle(sizes(p, m, schedule), one, one * p, np.array([w]), send)
            predicted = m * one[0] + waits.bubble_s[0] + waits.send_s[0]
            errors.setdefault(name, []).append(predicted / float(row["time"]) - 1.0)
    assert {name: len(values) for name, values in errors.items()} == {"1f1b": 12, "ZB-1p": 12, "ZB-2p": 12}
    assert np.abs(errors["ZB-1p"]).max() < 0.001
    assert np.abs(errors["1f1b"]).max() < 0.01
    assert np.abs(errors["ZB-2p"]).max() < 0.01
