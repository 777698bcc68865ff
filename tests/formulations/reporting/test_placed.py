"""Plans drawn on clusters: every worker has its GPUs, and nothing else does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from formulations.outcome import SolveOptions
from formulations.planning import plan, problem_of
from formulations.reporting import placed as drawn
from formulations.reporting.placed import placed
from planner.cluster import Cluster, Network, NodeGroup
from planner.files import SourceText, read_source
from planner.plan import read_document
from planner.reporting.topology import Cell

INSTANCES = Path(__file__).resolve().parents[3] / "instances"


def nodes(count: int, size: int) -> list[Any]:
    return [drawn._Node(size) for _ in range(count)]


def part(size: int, name: str) -> tuple[int, Cell]:
    return size, Cell(name, "#fff", name)


def test_first_fit_fills_nodes_and_keeps_workers_whole() -> None:
    """Nodes of 8: 4+4, 2+2+2 and one left with two free; a worker of 12 takes two nodes and leaves 4 of the second."""
    there = nodes(4, 8)
    parts = [part(2, "c"), part(12, "d"), part(4, "a"), part(2, "c"), part(4, "b"), part(2, "c")]
    assert drawn._first_fit(there, parts)
    texts = ["".join(cell.text or "." for cell in node.cells) for node in there]
    assert sorted(texts) == sorted(["dddddddd", "dddd....", "aaaabbbb", "cccccc"])


def test_first_fit_says_when_it_finds_no_room() -> None:
    assert not drawn._first_fit(nodes(1, 4), [part(3, "a"), part(2, "b")])
    assert not drawn._first_fit(nodes(1, 4), [part(5, "a")])
    assert not drawn._first_fit([], [part(1, "a")])


def test_leaves_and_racks_are_areas() -> None:
    """96 nodes under leaves of 16; and 36 trays of 4 that two NVL72 racks join."""
    leafy = Cluster(
        nodes=(NodeGroup(device="h100_sxm", count=96),),
        network=Network(link="ib_ndr", topology="leaf_spine", nodes_per_leaf=16),
    )
    boxes = [drawn.Box(f"node {k}", ()) for k in range(96)]
    areas = drawn._areas(leafy, boxes)
    assert [(area.name, len(area.boxes)) for area in areas] == [(f"leaf {k}", 16) for k in range(6)]
    racks = Cluster(nodes=(NodeGroup(device="gb200", count=36, gpus_per_node=4, scale_up_domain_gpus=72),))
    areas = drawn._areas(racks, boxes[:36])
    assert [len(area.boxes) for area in areas] == [18, 18]
    assert "72 GPUs" in areas[0].name


@pytest.mark.parametrize(
    "name",
    [
        "parallel/given_table.yaml",
        "parallel/train_70b_rails.yaml",
        "parallel/train_8b_a100_h100.yaml",
        "fleet/split_roles.yaml",
        "parallel/layers_three_sites.yaml",
        "parallel/windows_home.yaml",
        "experts/four_experts.yaml",
        "deploy/half_used_cluster.yaml",
    ],
)
def test_every_kind_of_plan_is_drawn(name: str) -> None:
    source = read_source(str(INSTANCES / name))
    problem: Any = problem_of(source)
    document = plan(problem, options=SolveOptions(time_limit_s=3))
    (figure,) = placed(document, problem, cluster_of(source))
    assert figure.svg.count("<svg") >= 1
    assert figure.caption.endswith(".")


def cluster_of(source: SourceText) -> Cluster | None:
    given = source.value.get("cluster")
    return None if given is None else Cluster.model_validate(given)


def test_a_worker_has_as_many_devices_as_it_asks_for() -> None:
    """Devices drawn of each worker type = count x GPUs each, counted over folded boxes."""
    source = read_source(str(INSTANCES / "parallel/given_table.yaml"))
    problem: Any = problem_of(source)
    document: Any = plan(problem, options=SolveOptions(time_limit_s=3))
    cluster = cluster_of(source)
    assert cluster is not None
    (kind,) = cluster.resolved()
    there = nodes(kind.count, kind.gpus_per_node)
    assert drawn._first_fit(
        there, [one for k, each in enumerate(document.plan.workers) for one in drawn._parts(each, k)]
    )
    told = [cell.told for node in there for cell in node.cells]
    for one in document.plan.workers:
        assert told.count(one.name) == one.count * one.num_gpus


@pytest.mark.parametrize("name", ["train_8b_a100_h100", "train_8b_four_kinds", "train_70b_two_sites"])
def test_every_stage_over_unequal_nodes_has_its_own_devices(name: str) -> None:
    """Devices drawn of a stage = its GPUs, in the area of its kind; nodes of a kind are listed apart in the cluster."""
    source = read_source(str(INSTANCES / "parallel" / f"{name}.yaml"))
    problem: Any = problem_of(source)
    document: Any = read_document(str(INSTANCES / "parallel" / f"{name}.best.json"))
    stage_of = np.full(problem.num_gpus, -1)
    for place, stage in enumerate(document.plan.stages):
        stage_of[stage.first_gpu : stage.first_gpu + stage.num_gpus] = place
    cluster = cluster_of(source)
    assert cluster is not None
    areas = drawn._blocks(problem, cluster.resolved(), stage_of)
    for place, stage in enumerate(document.plan.stages):
        told = [
            area.name
            for area in areas
            for box in area.boxes
            for island in box.islands
            for cell in island
            if cell.told == f"stage {place}"
        ]
        assert len(told) == stage.num_gpus
        assert all(str(stage.device) in one and (stage.site or "") in one for one in told)
    (figure,) = placed(document, problem, cluster)
    assert f"on {document.plan.stages[0].num_gpus} {document.plan.stages[0].device}" in figure.svg


def test_equal_nodes_in_several_entries_are_drawn() -> None:
    source = read_source(str(INSTANCES / "parallel/train_70b_rails.yaml"))
    problem: Any = problem_of(source)
    document: Any = read_document(str(INSTANCES / "parallel/train_70b_rails.best.json"))
    cluster = cluster_of(source)
    assert cluster is not None
    (group,) = cluster.nodes
    halves = cluster.model_copy(update={"nodes": (group.model_copy(update={"count": group.count // 2}),) * 2})
    (figure,) = placed(document, problem, halves)
    assert "group 1" in figure.svg
