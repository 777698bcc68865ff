"""How many more pods fit: by hand."""

from __future__ import annotations

import pytest

from formulations.outcome import SolveOptions
from formulations.pod_packing.headroom import Room, headroom
from formulations.pod_packing.problem import PodsProblem
from planner.errors import OptionError
from tests.formulations.pod_packing.pods_cases import problem

OPTIONS = SolveOptions(time_limit_s=60, work_limit=60)


def cluster(**more: object) -> PodsProblem:
    """Four nodes of 2 GPUs and 8 cores; three of them run one pod of 1 GPU and 1 core."""
    nodes = [{"name": name, "gpus": 2} for name in "abcd"]
    pods = [{"name": f"one-{name}", "gpus": 1, "node": name} for name in "abc"]
    pods += [{"name": "pair", "gpus": 2, "cpu": 2}, {"name": "share", "gpus": 1, "gpu_milli": 300}]
    return problem(nodes, [*pods, {"name": "bare", "cpu": 3}], moves={"allowed": True}, **more)


def test_pairs_now_and_after_moves() -> None:
    """Now one (node d). One move joins two single pods: two. Three pods on two nodes is the most they can be joined."""
    rooms = list(headroom(cluster(), "default/pair", [0, 1, 3], OPTIONS))
    assert [(room.least, room.most) for room in rooms] == [(1, 1), (2, 2), (2, 2)]
    assert rooms[0] == Room(0, 1, 1, 0)
    assert rooms[1].moved == 1


def test_shares_and_pods_without_gpus_are_counted_exactly() -> None:
    """Five free GPUs hold 3 shares of 300 each, cores allow it: a to c 7 each, d 6. Of 3 cores: 2 a node."""
    assert next(headroom(cluster(), "default/share", [0], OPTIONS)).least == 15
    assert next(headroom(cluster(), "default/bare", [0], OPTIONS)).least == 8


@pytest.mark.parametrize(
    ("pod", "message"), [("default/none", "no pod"), ("default/one-a", "runs already"), ("pair", "no pod")]
)
def test_pods_that_cannot_be_asked_for(pod: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        list(headroom(cluster(), pod, [0], OPTIONS))
