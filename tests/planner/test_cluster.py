"""A cluster as a user describes it: defaults, own devices and links, and every problem told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from planner.cluster import Cluster
from planner.errors import DescriptionError
from planner.files import read_as

NDR = {"link": "ib_ndr"}


def cluster(*nodes: dict[str, Any], **rest: Any) -> Cluster:
    return Cluster.model_validate({"nodes": nodes, **rest})


def problems(tmp_path: Path, text: str) -> str:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    with pytest.raises(DescriptionError) as caught:
        read_as(path, Cluster)
    return str(caught.value)


def test_defaults_come_from_the_catalogue() -> None:
    (nodes,) = cluster({"device": "H100-SXM", "count": 4}, network=NDR).resolved()
    assert (nodes.device.name, nodes.count, nodes.gpus_per_node, nodes.domain_gpus) == ("h100_sxm", 4, 8, 8)
    assert nodes.scale_up_bandwidth_bytes_per_s == 450e9
    assert nodes.pcie_bandwidth_bytes_per_s == 64e9
    assert (nodes.rails, nodes.nic_bandwidth_bytes_per_s) == (8, 50e9)


@pytest.mark.parametrize(
    ("device", "gpus", "domain"),
    [("l40s", 8, 1), ("a40", 8, 2), ("h200_nvl", 4, 4), ("gb200", 72, 72), ("h100", 8, 8)],
)
def test_gpus_of_a_node_when_nobody_says(device: str, gpus: int, domain: int) -> None:
    (nodes,) = cluster({"device": device}).resolved()
    assert (nodes.gpus_per_node, nodes.domain_gpus) == (gpus, domain)


def test_half_a_server_is_a_smaller_domain() -> None:
    (nodes,) = cluster({"device": "h100", "count": 2, "gpus_per_node": 4}, network=NDR).resolved()
    assert nodes.domain_gpus == 4


def test_shapes_bring_devices_and_networks() -> None:
    """p5: 3200 Gbit/s over 8 GPUs. a3-mega: 1800 Gbit/s, of which 200 are the host's. A GB200 tray: 4 of 72 GPUs."""
    p5, a3, tray = cluster(
        {"shape": "p5.48xlarge", "count": 2},
        {"shape": "a3-megagpu-8g"},
        {"shape": "GB200-NVL72-tray", "count": 18},
        network=NDR,
    ).resolved()
    assert (p5.device.name, p5.num_gpus, p5.nic_bandwidth_bytes_per_s) == ("h100_sxm", 16, 50e9)
    assert a3.nic_bandwidth_bytes_per_s == pytest.approx(25e9)
    assert (tray.num_gpus, tray.gpus_per_node, tray.domain_gpus) == (72, 4, 72)


def test_a_link_sold_by_the_node_is_shared_by_its_nics() -> None:
    """EFA of a p4d: 400 Gbit/s for 8 GPUs over 4 NICs."""
    (nodes,) = cluster({"device": "a100", "count": 2, "rails": 4}, network={"link": "efa_p4d"}).resolved()
    assert nodes.nic_bandwidth_bytes_per_s == 12.5e9


def test_own_devices_and_links_come_before_the_catalogue() -> None:
    own = cluster(
        {"device": "h100_sxm", "count": 2, "scale_up_link": "fast", "node_link": "pcie6"},
        {"device": {"base": "l40s", "name": "inline", "power_w": "300W"}},
        network={"link": {"name": "slow", "bandwidth_bytes_per_s": "10Gbit/s", "latency_s": "20us"}},
        devices=[{"base": "h100_sxm", "usable_memory_bytes": "70GB"}],
        links=[{"name": "fast", "bandwidth_bytes_per_s": "900GB/s", "per": "gpu", "latency_s": "2us"}],
    )
    first, second = own.resolved()
    assert first.device.known_memory_bytes == 70e9
    assert first.device.fact("usable_memory_bytes").source == "user"
    assert (first.scale_up_bandwidth_bytes_per_s, first.scale_up_latency_s) == (900e9, 2e-6)
    assert first.pcie_bandwidth_bytes_per_s == 121e9
    assert (second.device.name, second.device.power_w, second.nic_bandwidth_bytes_per_s) == ("inline", 300, 1.25e9)
    assert own.num_gpus == 24


def test_notes_tell_what_is_assumed_and_what_is_doubtful() -> None:
    notes = "\n".join(
        cluster({"device": "h100", "count": 2, "nic_bandwidth_bytes_per_s": "400GB/s"}, network=NDR).notes()
    )
    assert "no latency is known of the NVLink4 of h100_sxm" in notes
    assert "NIC of the h100_sxm nodes: bandwidth of 400 GB/s" in notes
    assert "Gbit/s written as GB/s" in notes
    assert cluster({"device": "l40s"}).notes() == ()
    mistaken = {"name": "ib_ndr", "kind": "ib", "bandwidth_bytes_per_s": "400GB/s", "latency_s": "1us"}
    assert "ib_ndr: bandwidth" in "\n".join(cluster({"device": "l40s", "count": 2}, network={"link": mistaken}).notes())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("nodes: []", "nodes: is empty"),
        ("nodes: [{count: 2}]", "nodes.0.device: is required"),
        ("nodes: [{device: h10}]", "no device 'h10'; did you mean"),
        ("nodes: [{shape: p55}]", "no node 'p55'"),
        ("nodes: [{device: h100, count: 0}]", "nodes.0.count"),
        ("nodes: [{device: h100, count: 1000000}]\nnetwork: {link: ib_ndr}", "more than 1,000,000 GPUs"),
        ("nodes: [{device: h100, rails: 3}]", "8 GPUs cannot share 3 NICs"),
        ("nodes: [{device: h100, scale_up_domain_gpus: 3}]", "do not fit into each other"),
        ("nodes: [{device: l40s, scale_up_domain_gpus: 4}]", "nodes.0.scale_up_link: is required"),
        ("nodes: [{device: h100, scale_up_link: nvlonk4}]", "no link 'nvlonk4'; did you mean"),
        ("nodes: [{device: h100}]\nnetwork: {link: nvlink4}", "joins the GPUs of one domain"),
        (
            "nodes: [{device: h100}]\nnetwork: {link: ib_ndr, topology: leaf_spine}",
            "network.nodes_per_leaf: is required",
        ),
        ("nodes: [{device: h100}]\nnetwork: {link: ib_ndr, oversubscription: 2}", "is for leaf_spine, not flat"),
        ("nodes: [{device: h100}]\nnetwork: {link: ib_ndr, oversubscription: 0.5}", "greater than or equal to 1"),
        (
            "nodes: [{device: l40s, count: 2}]\nnetwork: {link: ib_ndr, topology: rail_only}",
            "one scale-up domain a node",
        ),
        (
            "nodes: [{device: h100}, {device: h100, rails: 4}]\nnetwork: {link: ib_ndr, topology: rail_only}",
            "equal GPUs and rails",
        ),
        (
            "nodes: [{device: {name: x, memory_bytes: 1GB}}]",
            "nodes.0.device.hbm_bandwidth_bytes_per_s: is required",
        ),
        ("nodes: [{device: tpu_v5e, gpus_per_node: 8, scale_up_domain_gpus: 4}]", "nodes.0.node_link: is required"),
        ("nodes: [{device: h100}]\ndevices: [{base: h100}, {base: h100}]", "'h100_sxm' is there twice"),
        ("nodes: [{device: h100, gpu_per_node: 8}]", "gpu_per_node: unknown key"),
    ],
)
def test_problems_are_told(tmp_path: Path, text: str, told: str) -> None:
    assert told in problems(tmp_path, text)


def test_all_problems_come_at_once_with_their_place(tmp_path: Path) -> None:
    told = problems(
        tmp_path, "nodes:\n  - {device: h10}\n  - {device: h100, scale_up_link: wire}\nnetwork: {link: string}\n"
    )
    assert [line.split(": ")[0].rpartition("/")[2] for line in told.splitlines()] == [
        "cluster.yaml:2:6",
        "cluster.yaml:3:20",
        "cluster.yaml:4:11",
    ]


def test_more_than_one_node_has_a_network_by_default() -> None:
    several = cluster({"device": "h100", "count": 2})
    link = several.network_link()
    assert link is not None
    assert link.name == "ib_ndr"
    assert any("no network is given" in note for note in several.notes())
    assert cluster({"device": "h100"}).network_link() is None
