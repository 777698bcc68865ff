"""Matrices of `nvidia-smi topo -m`, as machines print them, to clusters; and what is no matrix."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner import catalog
from planner.cluster import Cluster
from planner.errors import DescriptionError
from planner.readers.nvidia_topo import read_topo, topo_cluster

#: Two A100 pairs with bridges and one NIC each, as a terminal prints it: tabs, underlined header, legend.
PAIRS = """\t\x1b[4mGPU0\tGPU1\tGPU2\tGPU3\tNIC0\tNIC1\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m
GPU0\t X \tNV12\tSYS\tSYS\tPXB\tSYS\t0-31\t0\t\tN/A
GPU1\tNV12\t X \tSYS\tSYS\tPXB\tSYS\t0-31\t0\t\tN/A
GPU2\tSYS\tSYS\t X \tNV12\tSYS\tPXB\t32-63\t1\t\tN/A
GPU3\tSYS\tSYS\tNV12\t X \tSYS\tPXB\t32-63\t1\t\tN/A
NIC0\tPXB\tPXB\tSYS\tSYS\t X \tSYS
NIC1\tSYS\tSYS\tPXB\tPXB\tSYS\t X

Legend:

  X    = Self
  SYS  = Connection traversing PCIe as well as the SMP interconnect between NUMA nodes (e.g., QPI/UPI)
  NV#  = Connection traversing a bonded set of # NVLinks

NIC Legend:

  NIC0: mlx5_0
  NIC1: mlx5_1
"""


def matrix(rows: list[list[str]], gpus: int | None = None) -> str:
    names = [f"GPU{index}" for index in range(gpus or len(rows))]
    names += [f"mlx5_{index}" for index in range(len(rows) - len(names))]
    lines = ["\t" + "\t".join(names) + "\tCPU Affinity"]
    return "\n".join(lines + ["\t".join([name, *row, "0-15"]) for name, row in zip(names, rows, strict=True)])


def joined(size: int, word: str) -> list[list[str]]:
    return [["X" if a == b else word for b in range(size)] for a in range(size)]


def cluster(text: str, device: str, folder: Path, count: int = 2) -> tuple[Cluster, list[str]]:
    path = folder / "topo.txt"
    path.write_text(text)
    value, notes = topo_cluster(read_topo(path), catalog.device(device), count, str(path), None)
    return Cluster.model_validate(value), notes


def test_pairs_of_bridged_cards(tmp_path: Path) -> None:
    """12 links of 25 GB/s are all of an A100's: the catalogue's 300 GB/s; a NIC for two GPUs each."""
    found, notes = cluster(PAIRS, "a100_pcie", tmp_path)
    (nodes,) = found.resolved()
    assert (nodes.count, nodes.gpus_per_node, nodes.domain_gpus, nodes.rails) == (2, 4, 2, 2)
    assert nodes.scale_up_bandwidth_bytes_per_s == 300e9
    assert "4 GPUs of a node, in 2 groups of 2 that NVLink joins" in notes
    assert "NV12: all 12 NVLinks of a100_pcie" in notes


def test_nvswitch_shows_all_links_to_each(tmp_path: Path) -> None:
    found, notes = cluster(matrix(joined(8, "NV18")), "h100_sxm", tmp_path)
    (nodes,) = found.resolved()
    assert (nodes.domain_gpus, nodes.scale_up_bandwidth_bytes_per_s) == (8, 450e9)
    assert "NV18: all 18 NVLinks of h100_sxm" in notes


def test_links_of_their_own_are_added_up(tmp_path: Path) -> None:
    """Four A100 of 4 links to each of 3 others are 12; of 2 links to each they are 6, and 6 x 25 GB/s = 150 GB/s."""
    found, _ = cluster(matrix(joined(4, "NV4")), "a100_sxm", tmp_path)
    assert found.resolved()[0].scale_up_bandwidth_bytes_per_s == 300e9
    found, notes = cluster(matrix(joined(4, "NV2")), "a100_sxm", tmp_path)
    assert found.resolved()[0].scale_up_bandwidth_bytes_per_s == 150e9
    assert "NV2: 6 of the 12 NVLinks of a100_sxm are in use" in notes
    _, notes = cluster(matrix(joined(4, "NV18")), "a100_sxm", tmp_path)
    assert any("more than a100_sxm has" in note for note in notes)


def test_pcie_alone_and_far_nics(tmp_path: Path) -> None:
    rows = [["X", "PHB", "SYS"], ["PHB", "X", "SYS"], ["SYS", "SYS", "X"]]
    found, notes = cluster(matrix(rows, gpus=2), "l40s", tmp_path)
    (nodes,) = found.resolved()
    assert (nodes.domain_gpus, nodes.rails) == (1, 2)
    assert "2 GPUs of a node, joined by PCIe alone" in notes
    assert "0 of 1 NICs are near a GPU, which is no even share: one a GPU is taken" in notes


#: Half of a cube-mesh, as V100 machines have: NVLink joins each GPU to two of three.
CUBE = """\tGPU0\tGPU1\tGPU2\tGPU3\tCPU Affinity
GPU0\tX\tNV1\tNV2\tSYS\t0-19
GPU1\tNV1\tX\tSYS\tNV2\t0-19
GPU2\tNV2\tSYS\tX\tNV1\t0-19
GPU3\tSYS\tNV2\tNV1\tX\t0-19
"""


def test_what_a_cluster_cannot_say(tmp_path: Path) -> None:
    with pytest.raises(DescriptionError, match=r"joins GPU\d to some GPUs and not to others"):
        cluster(CUBE, "a100_sxm", tmp_path)
    rows = [["X", "NV4", "SYS"], ["NV4", "X", "SYS"], ["SYS", "SYS", "X"]]
    with pytest.raises(DescriptionError, match="groups of 2, 1 GPUs"):
        cluster(matrix(rows), "a100_sxm", tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no header with GPU0"),
        ("GPU0\t X \tNV4\n", "has no header with GPU0"),
        ("\tGPU0\tGPU0\n", "or one of them twice"),
        ("\tGPU0\tGPU1\nGPU0\tX\tNV4\n", "GPU1 has no line"),
        ("\tGPU0\tGPU1\nGPU0\tX\tNV4\nGPU1\tNV4\n", r":3: GPU1: has 1 links for 2 devices"),
        ("\tGPU0\tGPU1\nGPU0\tX\tNVX\nGPU1\tNV4\tX\n", r":2: GPU0: 'NVX' is no link"),
        ("\tGPU0\tGPU1\nGPU0\tX\tNV4\nGPU1\tNV2\tX\n", "GPU0 to GPU1 is NV4, and back it is NV2"),
        ("\tGPU0\tGPU1\nGPU0\tNV4\tNV4\nGPU1\tNV4\tX\n", "GPU0 to itself is NV4"),
        ("\tGPU0\tGPU1\nGPU0\tX\tNV4\nGPU0\tX\tNV4\nGPU1\tNV4\tX\n", "GPU0 has two lines"),
        ("\t" + "\t".join(f"GPU{index}" for index in range(200)), "names 200 devices"),
    ],
)
def test_bad_matrices(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "topo.txt"
    path.write_text(text)
    with pytest.raises(DescriptionError, match=message):
        read_topo(path)


@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet="GPU0123 \tXNVSYPI\n", max_size=200) | st.text(max_size=80))
def test_any_text_is_read_or_refused(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "any.txt"
    path.write_text(text, encoding="utf-8", errors="replace")
    try:
        topo = read_topo(path)
    except DescriptionError:
        return
    assert all((one, other) in topo.links for one in topo.gpus for other in topo.gpus)


@settings(max_examples=40, deadline=None)
@given(groups=st.integers(1, 4), size=st.sampled_from([1, 2, 4]), links=st.integers(1, 18))
def test_groups_are_found_whatever_their_number(
    groups: int, size: int, links: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    total = groups * size
    rows = [
        ["X" if a == b else f"NV{links}" if a // size == b // size else "SYS" for b in range(total)]
        for a in range(total)
    ]
    path = tmp_path_factory.getbasetemp() / "groups.txt"
    path.write_text(matrix(rows))
    value, _ = topo_cluster(read_topo(path), catalog.device("a100_sxm"), 1, "x", None)
    (nodes,) = Cluster.model_validate(value).resolved()
    assert (nodes.gpus_per_node, nodes.domain_gpus) == (total, size)
