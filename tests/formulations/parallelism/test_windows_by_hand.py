"""Rings whose fastest windows can be found with pencil and paper. A layer takes 1 byte, disks read 1 byte/s."""

from __future__ import annotations

import pytest
from layer_cases import answer_ring, home, ring

from planner.layers_plan import WindowsPlan

METHODS = ("highs", "scip", "cbc")


def windows(plan: WindowsPlan | None) -> dict[str, tuple[int, int]]:
    """Layers and GPU layers by device."""
    assert plan is not None
    return {one.device: (one.num_layers, one.gpu_layers) for one in plan.windows}


@pytest.mark.parametrize("method", METHODS)
def test_the_gpu_first_then_the_ram_of_the_faster(method: str) -> None:
    """10 layers: 3 on the GPU at 0.1 s, 4 in RAM at 0.2 s, 3 on the slow device at 0.5 s: 0.3 + 0.8 + 1.5 = 2.6 s."""
    devices = [home("fast", 4, 0.2, gpu=(3, 0.1)), home("slow", 9, 0.5)]
    found = answer_ring(ring(devices, 10), method)
    assert found.status == "optimal"
    assert found.objective is not None
    assert found.objective.total == pytest.approx(2.6)
    assert windows(found.plan) == {"fast": (7, 3), "slow": (3, 0)}


@pytest.mark.parametrize("method", METHODS)
def test_disk_only_where_it_is_cheaper(method: str) -> None:
    """6 layers, RAM for 2 and 3: the sixth is read from disk: 0.2 + 1/4 s on the fast disk, or 0.1 + 1 s on the other.

    3 x 0.1 + 3 x 0.2 + 0.25 = 1.15 s.
    """
    devices = [home("a", 3, 0.1), home("b", 2, 0.2, disk=4.0)]
    found = answer_ring(ring(devices, 6), method)
    assert found.objective is not None
    assert found.objective.parts["disk_s"] == pytest.approx(0.25)
    assert found.objective.total == pytest.approx(1.15)


@pytest.mark.parametrize("method", METHODS)
def test_all_is_read_anew_once_memory_is_short(method: str) -> None:
    """4 layers, RAM for 3 on a device that reads all anew: 4 x 0.1 + 4 = 4.4 s; with one on the slow one 0.3 + 0.9."""
    devices = [home("mac", 3, 0.1, reload="all"), home("slow", 9, 0.9)]
    found = answer_ring(ring(devices, 4), method)
    assert windows(found.plan) == {"mac": (3, 0), "slow": (1, 0)}
    alone = answer_ring(ring(devices[:1], 4), method)
    assert alone.objective is not None
    assert alone.objective.total == pytest.approx(4.4)
    assert alone.objective.parts["disk_s"] == pytest.approx(4.0)


def test_a_device_that_slows_the_token_is_left_out() -> None:
    """2 layers: 0.2 s on the fast one alone; a hop each way and a slow layer are 0.1 + 0.9 + 0.2 s."""
    devices = [home("fast", 9, 0.1, hop_s=0.1), home("slow", 9, 0.9, hop_s=0.1)]
    found = answer_ring(ring(devices, 2))
    assert windows(found.plan) == {"fast": (2, 0)}
    assert found.objective is not None
    assert found.objective.total == pytest.approx(0.2)
    everyone = answer_ring(ring(devices, 2, every_device=True))
    assert everyone.objective is not None
    assert everyone.objective.total == pytest.approx(1.2)


def test_rounds_pay_their_hops_and_are_never_faster() -> None:
    """4 layers in 2 rounds on two devices: 2 x 0.1 + 2 x 0.1 s and 2 x 2 hops of 0.05 s = 0.6 s; in one round 0.5 s."""
    devices = [home("a", 2, 0.1, hop_s=0.05), home("b", 2, 0.1, hop_s=0.05)]
    one, two = (answer_ring(ring(devices, 4, rounds=rounds)) for rounds in (1, 2))
    assert one.objective is not None
    assert two.objective is not None
    assert (one.objective.total, two.objective.total) == (pytest.approx(0.5), pytest.approx(0.6))
    assert windows(two.plan) == {"a": (1, 0), "b": (1, 0)}


def test_no_time_is_no_plan() -> None:
    """A limit that is over before the solver starts says unknown, not infeasible."""
    found = answer_ring(ring([home("a", 2, 0.1), home("b", 2, 0.1)], 4), time_limit_s=1e-9)
    assert (found.status, found.stop, found.plan) == ("unknown", "time_limit", None)
