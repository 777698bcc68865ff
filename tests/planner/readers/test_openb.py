"""openb CSV."""

from __future__ import annotations

from pathlib import Path

import pytest

from planner.errors import DescriptionError
from planner.readers.openb import read_openb_nodes, read_openb_pods


def test_nodes_and_pods(tmp_path: Path) -> None:
    nodes, pods = tmp_path / "n.csv", tmp_path / "p.csv"
    nodes.write_text("sn,cpu_milli,memory_mib,gpu,model\nx,64000,1024,2,P100\n")
    pods.write_text(
        "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,qos\na,500,10,1,460,T4|P100,LS\nb,1,1,0,0,,BE\n"
    )
    (one,) = read_openb_nodes(nodes)
    assert (one.gpus, one.gpu_model, one.allocatable["memory"]) == (2, "P100", 2**30)
    first, second = read_openb_pods(pods)
    assert (first.gpus, first.gpu_milli, first.gpu_models, first.priority) == (1, 460, ("P100", "T4"), 3)
    assert (second.gpus, second.priority) == (0, 1)


def test_bad_rows_are_told_together(tmp_path: Path) -> None:
    pods = tmp_path / "p.csv"
    pods.write_text(
        "name,cpu_milli,memory_mib,num_gpu,gpu_milli,qos\na,-1,10,1,460,LS\nb,1,x,2,500,BE\nb,1,1,0,0,Gold\n"
    )
    with pytest.raises(DescriptionError) as raised:
        read_openb_pods(pods)
    for part in ("2: cpu_milli", "3: memory_mib", "500 thousandths", "Gold", "two rows"):
        assert part in str(raised.value)


def test_missing_columns_and_ragged_rows(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("sn,cpu_milli\n")
    with pytest.raises(DescriptionError, match="memory_mib, gpu, model"):
        read_openb_nodes(path)
    path.write_text("sn,cpu_milli,memory_mib,gpu,model\na,1\n")
    with pytest.raises(DescriptionError, match="2 fields"):
        read_openb_nodes(path)
