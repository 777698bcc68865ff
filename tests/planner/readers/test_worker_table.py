"""Tables of workers: what is read, and every impossible row told at its line."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.errors import DescriptionError
from planner.readers.worker_table import read_workers

HEAD = "name,role,device,num_gpus,requests_per_s,ttft_s,tpot_s"


def table(folder: Path, *rows: str, head: str = HEAD) -> Path:
    path = folder / "workers.csv"
    path.write_text("\n".join((head, *rows)) + "\n", encoding="utf-8")
    return path


def told(path: Path) -> list[str]:
    with pytest.raises(DescriptionError) as caught:
        read_workers(path)
    return [str(finding) for finding in caught.value.findings]


def test_rows_become_workers(tmp_path: Path) -> None:
    rows = ("a,both,h100_sxm,4,2.5,1.0,0.02,4,8", "p,prefill,l40s,1,1,0.5,,,", "d,decode,h100,2,3,,0.03,,")
    one, two, three = read_workers(table(tmp_path, *rows, head=f"{HEAD},tp,max_batch_size"))
    assert (one.name, one.role, one.num_gpus, one.requests_per_s, one.ttft_s, one.tpot_s) == (
        "a", "both", 4, 2.5, 1.0, 0.02,
    )  # fmt: skip
    assert (one.tensor_parallel_size, one.max_batch_size, one.pipeline_parallel_size) == (4, 8, 1)
    assert (two.tpot_s, two.tensor_parallel_size, three.ttft_s) == (None, 1, None)


def test_other_columns_are_ignored_and_order_is_free(tmp_path: Path) -> None:
    head = "note,tpot_s,ttft_s,requests_per_s,num_gpus,device,role,name"
    (worker,) = read_workers(table(tmp_path, "x,0.02,1,2,4,h100_sxm,both,a", head=head))
    assert (worker.name, worker.requests_per_s, worker.num_gpus) == ("a", 2.0, 4)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (",both,h100_sxm,4,2,1,0.02", "name is empty"),
        ("a,mixed,h100_sxm,4,2,1,0.02", "role is 'mixed', not one of both, prefill, decode"),
        ("a,both,,4,2,1,0.02", "device is empty"),
        ("a,both,h100_sxm,0,2,1,0.02", "num_gpus is '0'"),
        ("a,both,h100_sxm,1.5,2,1,0.02", "num_gpus is '1.5', not a whole number"),
        ("a,both,h100_sxm,1e12,2,1,0.02", "num_gpus is '1e12', not a whole number up to 1000000"),
        ("a,both,h100_sxm,4,-2,1,0.02", "requests_per_s is '-2'"),
        ("a,both,h100_sxm,4,nan,1,0.02", "requests_per_s is 'nan'"),
        ("a,both,h100_sxm,4,fast,1,0.02", "requests_per_s is 'fast'"),
        ("a,both,h100_sxm,4,2,,0.02", "ttft_s is ''"),
        ("a,decode,h100_sxm,4,2,,", "tpot_s is ''"),
        ("a,prefill,h100_sxm,4,2,inf,", "ttft_s is 'inf'"),
    ],
)
def test_an_impossible_row_is_told_at_its_line(tmp_path: Path, row: str, expected: str) -> None:
    found = told(table(tmp_path, "good,both,h100_sxm,4,2,1,0.02", row))
    assert any(expected in one for one in found), found
    assert all("workers.csv:3" in one for one in found)


def test_all_rows_are_told_at_once(tmp_path: Path) -> None:
    found = told(table(tmp_path, "a,both,h100_sxm,0,2,1,0.02", "b,none,h100_sxm,1,2,1,0.02"))
    assert [one.split(":")[1] for one in found] == ["2", "3"]


def test_a_name_twice(tmp_path: Path) -> None:
    (found,) = told(table(tmp_path, "a,both,h100_sxm,1,2,1,0.02", "a,both,h100_sxm,2,2,1,0.02"))
    assert "'a' is the name of line 2 already" in found
    assert "workers.csv:3" in found


def test_missing_columns_and_empty_tables(tmp_path: Path) -> None:
    assert "tpot_s" in told(table(tmp_path, "a,both,h100_sxm,1,2,1", head=HEAD.removesuffix(",tpot_s")))[0]
    assert "has no rows below its header" in told(table(tmp_path))[0]
    (tmp_path / "workers.csv").write_text("")
    assert told(tmp_path / "workers.csv")


@given(st.text(max_size=80))
def test_any_text_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("any") / "workers.csv"
    path.write_text(f"{HEAD}\n{text}\n", encoding="utf-8", errors="replace")
    with suppress(DescriptionError):
        assert read_workers(path)
