"""Groups that span leaves or rails, by hand and by the topology's own closed forms.

Nodes of 8 GPUs; a GPU has 100 GB/s inside its node and 10 GB/s to others; leaves are oversubscribed 4 : 1.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from formulations.base import solve
from formulations.parallelism.training.search.formulation import TRAINING
from formulations.parallelism.training.search.pricing import price
from formulations.parallelism.training.search.space import space
from planner.cluster import Cluster
from planner.cost.training.communication import Links, TrainingNetwork, group
from planner.topology import group_links
from tests.formulations.parallelism.training.train_cases import problem

FLAT = TrainingNetwork(
    gpus_per_node=8, intra_node_bytes_per_s=100e9, inter_node_bytes_per_s=10e9, intra_node_latency_s=0.0,
    inter_node_latency_s=0.0,
)  # fmt: skip
LEAVES = replace(FLAT, gpus_per_leaf=16, oversubscription=4.0)
RAILS = replace(FLAT, gpus_per_rail=1)
GB = np.array([1e9])


def of(network: TrainingNetwork, size: int, stride: int) -> tuple[float, float]:
    """Seconds of a reduce-scatter and an all-to-all of 1 GB."""
    links, ranks = Links(network, 1.0), group(network, np.array([float(size)]), np.array([float(stride)]))
    return float(links.reduce_scatter_s(GB, ranks)[0]), float(links.all_to_all_s(GB, ranks)[0])


def sent(network: TrainingNetwork, stride: int, stages: int) -> float:
    return float(Links(network, 1.0).point_to_point_s(GB, np.array([float(stride)]), np.array([float(stages)]))[0])


def test_data_parallel_across_leaves_is_as_much_dearer_as_they_are_oversubscribed() -> None:
    """Four ranks, each below a leaf of its own: 3/4 GB at 2.5 GB/s instead of 10."""
    assert of(FLAT, 4, 16) == pytest.approx((0.075, 0.075))
    assert of(LEAVES, 4, 16) == pytest.approx((0.3, 0.3))


def test_ranks_below_one_leaf_share_what_goes_up() -> None:
    """Eight ranks a node apart, two below each leaf: 1/2 GB below, then 3/8 GB at 2.5 GB/s; all-to-all sends 6/8 up."""
    assert of(FLAT, 8, 8) == pytest.approx((0.0875, 0.0875))
    assert of(LEAVES, 8, 8) == pytest.approx((0.05 + 0.15, 0.3))


def test_a_group_below_one_leaf_does_not_feel_the_spine() -> None:
    """Sixteen neighbours: 7/8 GB inside the node, 1/16 GB between two nodes."""
    assert of(LEAVES, 16, 1) == of(FLAT, 16, 1) == pytest.approx((0.00875 + 0.00625, 7 / 16 / 100 + 8 / 16 / 10))


def test_stages_send_over_the_way_up_that_they_share() -> None:
    """A stage of a whole leaf: a quarter of each link. Of half a leaf, in a pipeline of more: half; within one: all."""
    assert sent(FLAT, 16, 4) == pytest.approx(0.1)
    assert sent(LEAVES, 16, 4) == pytest.approx(0.4)
    assert sent(LEAVES, 8, 4) == pytest.approx(0.2)
    assert sent(LEAVES, 8, 2) == pytest.approx(0.1)
    late = replace(LEAVES, spine_latency_s=1e-3)
    assert sent(late, 16, 4) - sent(LEAVES, 16, 4) == pytest.approx(1e-3)
    assert of(late, 8, 8)[0] - of(LEAVES, 8, 8)[0] == pytest.approx(2e-3)  # a tree over four leaves


def test_a_leaf_that_groups_do_not_divide_leaves_some_rank_alone() -> None:
    """Six ranks a node apart, leaves of two nodes, groups that begin at odd nodes: all of 5/6 GB goes up at worst."""
    assert of(replace(LEAVES, gpus_per_leaf=32), 6, 8)[0] == pytest.approx(5 / 6 / 2.5)


@given(
    size=st.sampled_from([2, 4, 8, 16]), stride=st.sampled_from([8, 16, 32]), leaf=st.sampled_from([2, 4]),
    oversubscription=st.sampled_from([1.0, 2.0, 4.0]),
)  # fmt: skip
def test_one_rank_a_node_is_priced_as_the_topology_says(
    size: int, stride: int, leaf: int, oversubscription: float
) -> None:
    """All-to-all of n ranks: n - 1 parts at the bandwidth of `group_links`; with one rank a leaf, a ring likewise."""
    cluster = Cluster.model_validate(
        {
            "nodes": [{"device": "h100_sxm", "count": 64}],
            "network": {
                "link": {"name": "net", "bandwidth_bytes_per_s": 10e9, "latency_s": 0.0, "source": "test",
                         "per": "port"},
                "topology": "leaf_spine", "nodes_per_leaf": leaf, "oversubscription": oversubscription,
            },
        }
    )  # fmt: skip
    network = replace(FLAT, gpus_per_leaf=8 * leaf, oversubscription=oversubscription)
    ring_s, all_s = of(network, size, stride)
    told = group_links(cluster, size, stride).bandwidth_bytes_per_s
    assert all_s == pytest.approx(float((size - 1) / size * 1e9 / told))
    if stride >= 8 * leaf:
        told = group_links(cluster, size, stride, "ring").bandwidth_bytes_per_s
        assert ring_s == pytest.approx(float((size - 1) / size * 1e9 / told))


def test_what_leaves_its_rail_is_forwarded_inside_the_node() -> None:
    """Sixteen neighbours on two nodes: of 8/16 GB for the other node seven eighths change places first."""
    ring_s, all_s = of(RAILS, 16, 1)
    assert ring_s == of(FLAT, 16, 1)[0]  # shards go to the same place of the other node
    assert all_s - of(FLAT, 16, 1)[1] == pytest.approx(0.5 * 7 / 8 / 100)
    shared = replace(RAILS, gpus_per_rail=2)
    assert of(shared, 16, 1)[1] - of(FLAT, 16, 1)[1] == pytest.approx(0.5 * 6 / 8 / 100)
    assert of(RAILS, 4, 8) == of(FLAT, 4, 8)  # one place of four nodes


def test_groups_and_stages_that_do_not_fill_nodes_leave_their_rail() -> None:
    """Twelve ranks on nodes of eight meet other places: all that is sent to other nodes goes over two GPUs."""
    assert of(RAILS, 12, 1)[0] - of(FLAT, 12, 1)[0] == pytest.approx((1 / 8 - 1 / 12) / 100)
    assert sent(RAILS, 12, 2) - sent(FLAT, 12, 2) == pytest.approx(0.01)
    assert sent(RAILS, 16, 2) == sent(FLAT, 16, 2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gpus_per_leaf": 12}, "whole nodes"),
        ({"gpus_per_rail": 9}, "gpus_per_rail"),
        ({"oversubscription": 0.5}, "oversubscription"),
        ({"spine_latency_s": -1.0}, "spine_latency_s"),
    ],
)
def test_wrong_tiers_are_refused(change: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(FLAT, **change)  # type: ignore[arg-type]


def _on(**network: object) -> dict[str, object]:
    nodes = [{"device": "a100_sxm", "count": 8, "gpus_per_node": 4}]
    return {"nodes": nodes, "network": {"link": "ib_hdr", **network}}


def test_a_search_prices_each_group_by_what_it_spans() -> None:
    """No plan is cheaper over leaves than over one switch, or dearer than with the spine's share for every group.

    Four stages of eight GPUs, two nodes to a leaf: each stage has a leaf, and its data-parallel ranks do not feel the
    spine; two stages of sixteen do.
    """
    flat = problem(cluster=_on())
    leaves = problem(cluster=_on(topology="leaf_spine", nodes_per_leaf=2, oversubscription=4.0))
    slow = replace(flat, network=replace(flat.network, inter_node_bytes_per_s=flat.network.inter_node_bytes_per_s / 4))
    plans = space(flat)
    assert plans is not None
    steps = [price(asked, plans).step_s for asked in (flat, leaves, slow)]
    assert (steps[0] <= steps[1] * (1 + 1e-12)).all()
    assert (steps[1] <= steps[2] * (1 + 1e-12)).all()
    same = (plans.pipeline_parallel_size == 1) & (plans.num_gpus <= 8)
    assert np.array_equal(steps[0][same], steps[1][same])
    assert (steps[1] > steps[0])[plans.num_gpus == 32].any()


def test_experts_over_nodes_of_rails_are_legal_and_pay_for_the_way() -> None:
    """Eight expert-parallel ranks on nodes of four: half of the tokens go to the other node, most over another rail."""
    asked = {"model": "mistralai/Mixtral-8x7B-v0.1", "fixed": {"expert_parallel_size": 8, "tensor_parallel_size": 1}}
    flat, rails = problem(cluster=_on(), **asked), problem(cluster=_on(topology="rail_only"), **asked)
    found = solve(TRAINING, rails)
    assert found.plan is not None
    assert not TRAINING.check(rails, found.plan)
    plans = space(flat)
    assert plans is not None
    steps, dearer = price(flat, plans).step_s, price(rails, plans).step_s
    assert (dearer >= steps * (1 - 1e-12)).all()
    assert (dearer > steps).all()  # every plan has its experts on two nodes


@pytest.mark.parametrize(
    ("nodes", "network", "tiers"),
    [
        ({"count": 8}, {}, (8, None, None)),
        ({"count": 8}, {"topology": "leaf_spine", "nodes_per_leaf": 8, "oversubscription": 2.0}, (8, None, None)),
        ({"count": 8}, {"topology": "leaf_spine", "nodes_per_leaf": 2, "oversubscription": 2.0}, (8, 16, None)),
        ({"count": 8}, {"topology": "rail_only"}, (8, None, 1)),
        ({"count": 8, "rails": 4}, {"topology": "rail_only"}, (8, None, 2)),
        # An NVLink domain of four trays: a leaf of two of them would cut it in half.
        (
            {"count": 16, "gpus_per_node": 4, "scale_up_domain_gpus": 16},
            {"topology": "leaf_spine", "nodes_per_leaf": 2},
            (16, 16, None),
        ),
    ],
)
def test_tiers_of_a_described_cluster(
    nodes: dict[str, object], network: dict[str, object], tiers: tuple[int, int | None, int | None]
) -> None:
    """(GPUs of fast links, below a leaf, on a rail); four NICs of eight GPUs give each half of one."""
    cluster = {"nodes": [{"device": "h100_sxm", **nodes}], "network": {"link": "ib_ndr", **network}}
    read = problem(cluster=cluster).network
    assert (read.gpus_per_node, read.gpus_per_leaf, read.gpus_per_rail) == tiers
    assert read.inter_node_bytes_per_s == pytest.approx(50e9 * (0.5 if "rails" in nodes else 1.0))
