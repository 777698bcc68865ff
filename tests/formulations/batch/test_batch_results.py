"""The file of results: torn, damaged, locked, full, of another batch."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from formulations.batch.results import Header, ResultsFile, read_rows
from formulations.batch.table import table_rows, write_table
from planner.errors import DescriptionError, OptionError

HEADER = Header(gpuplan_version="1", jobs_sha256="abc", num_jobs=3, shard=None, settings={"seed": 0})


def record(name: str, **changes: Any) -> dict[str, Any]:
    row = {
        "key": f"key {name}", "job": name, "instance": f"{name}.json", "values": {}, "end": "done", "errors": [],
        "document": None, "replanning": None, "files": {}, "seconds": 1.0,
    }  # fmt: skip
    return {**row, **changes}


def written(path: Path, *rows: dict[str, Any]) -> Path:
    with ResultsFile(str(path), HEADER, resume=False) as results:
        for row in rows:
            results.append(row)
    return path


def test_a_torn_last_line_is_cut_off_and_done_again(tmp_path: Path) -> None:
    path = written(tmp_path / "r.jsonl", record("a"), record("b"))
    whole = path.read_bytes()
    for torn in (1, 5, len(json.dumps(record("b"))) // 2):
        path.write_bytes(whole[:-torn])
        with ResultsFile(str(path), HEADER, resume=True) as results:
            assert set(results.finished) == {"key a"}
            results.append(record("b"))
        assert path.read_bytes() == whole


def test_damage_before_the_end_is_told_with_its_line(tmp_path: Path) -> None:
    path = written(tmp_path / "r.jsonl", record("a"), record("b"))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:30], lines[2], ""]))
    with pytest.raises(DescriptionError, match=r"r\.jsonl:2: is damaged"):
        ResultsFile(str(path), HEADER, resume=True)


@pytest.mark.parametrize("text", ["hello\n", '{"a": 1}\n', "[1]\n", "\n", json.dumps(record("a")) + "\n"])
def test_a_file_that_is_no_results_file_is_not_written_to(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(text)
    with pytest.raises(DescriptionError, match=r"r\.jsonl:1: is no results file"):
        ResultsFile(str(path), HEADER, resume=True)
    assert path.read_text() == text


def test_a_run_that_was_killed_before_its_first_line_can_be_resumed(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text('{"gpuplan_ba')
    with ResultsFile(str(path), HEADER, resume=True) as results:
        results.append(record("a"))
    assert [row.get("job") for row in read_rows(str(path))] == [None, "a"]


def test_an_existing_file_needs_resume(tmp_path: Path) -> None:
    path = written(tmp_path / "r.jsonl", record("a"))
    with pytest.raises(OptionError, match="exists: --resume"):
        ResultsFile(str(path), HEADER, resume=False)


def test_two_runs_on_one_file_are_refused(tmp_path: Path) -> None:
    with (
        ResultsFile(str(tmp_path / "r.jsonl"), HEADER, resume=False),
        pytest.raises(OptionError, match="held by another run"),
    ):
        ResultsFile(str(tmp_path / "r.jsonl"), HEADER, resume=True)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"gpuplan_version": "2"}, "it is of gpuplan 1, this is 2"),
        ({"jobs_sha256": "def", "num_jobs": 4}, r"another job list \(3 jobs, now 4\)"),
        ({"shard": "1/2"}, "of shard None, this is 1/2"),
        ({"settings": {"seed": 1}}, "with seed 0, now 1"),
    ],
)
def test_another_batch_is_refused_unless_changes_are_accepted(
    tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    path = written(tmp_path / "r.jsonl", record("a"))
    header = replace(HEADER, **change)
    with pytest.raises(OptionError, match=told):
        ResultsFile(str(path), header, resume=True)
    with ResultsFile(str(path), header, resume=True, accept_changes=True) as results:
        assert set(results.finished) == {"key a"}
    # The last header counts.
    ResultsFile(str(path), header, resume=True).close()


def test_a_finished_job_whose_files_changed_is_not_finished(tmp_path: Path) -> None:
    data = tmp_path / "loads.csv"
    data.write_text("1\n")
    path = tmp_path / "r.jsonl"
    digest = "4355a46b19d348dc2f57c046f8ef63d4538ebb936000f3c9ee954a27460dd865"  # sha256 of "1\n"
    written(path, record("a", files={str(data): digest}), record("b"))
    with ResultsFile(str(path), HEADER, resume=True) as results:
        assert results.has("key a")
        assert results.has("key b")
        data.write_text("2.0\n")
        assert not results.has("key a")
        data.unlink()
        assert not results.has("key a")


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "r.jsonl", record("a"))
    write = os.write

    def half(fd: int, data: bytes) -> int:
        if len(data) < 100:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data[: len(data) // 2])

    with ResultsFile(str(path), HEADER, resume=True) as results:
        before = path.read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr("formulations.batch.results.os.write", half)
            with pytest.raises(DescriptionError, match="No space left on device; what it holds is whole"):
                results.append(record("b"))
        assert path.read_bytes() == before
        results.append(record("b"))
    assert [row.get("job") for row in read_rows(str(path))] == [None, "a", "b"]


def test_a_device_without_room_is_told(tmp_path: Path) -> None:
    with pytest.raises(DescriptionError, match="No space left on device"):
        ResultsFile("/dev/full", HEADER, resume=False)


def test_table_takes_the_last_record_of_a_job_and_formulas_as_text(tmp_path: Path) -> None:
    path = written(
        tmp_path / "r.jsonl",
        record("=cmd()", end="died", errors=["+1"]),
        record("b", values={"headroom": 0.5, "models": [1]}),
        record("=cmd()", values={"headroom": 0.25}),
    )
    rows = list(table_rows([str(path)]))
    assert [(row["job"], row["end"], row["headroom"]) for row in rows] == [("b", "done", 0.5), ("=cmd()", "done", 0.25)]
    write_table(str(tmp_path / "t.csv"), rows)
    header, first, second = (tmp_path / "t.csv").read_text().splitlines()
    assert header.endswith(",error,headroom,models")
    assert first.endswith(",0.5,[1]")
    assert second.startswith("'=cmd(),")


def test_parquet_holds_the_same_rows(tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    path = written(tmp_path / "r.jsonl", record("a", values={"headroom": 0.5}), record("=b"))
    write_table(str(tmp_path / "t.parquet"), list(table_rows([str(path)])))
    found = duckdb.read_parquet(str(tmp_path / "t.parquet")).project("job, seconds, headroom").fetchall()
    assert found == [("a", 1.0, 0.5), ("=b", 1.0, None)]


def test_a_workbook_holds_the_same_rows_and_no_formula(tmp_path: Path) -> None:
    pytest.importorskip("xlsxwriter")
    openpyxl = pytest.importorskip("openpyxl")
    path = written(tmp_path / "r.jsonl", record("=cmd()", values={"headroom": 0.5}), record("b"))
    write_table(str(tmp_path / "t.xlsx"), list(table_rows([str(path)])))
    book = openpyxl.load_workbook(tmp_path / "t.xlsx")
    cells = list(book["Jobs"].values)
    book.close()
    assert cells[0][0] == "job"
    assert cells[0][-1] == "headroom"
    assert [(row[0], row[-1]) for row in cells[1:]] == [("=cmd()", 0.5), ("b", None)]
    assert book["Jobs"]["A2"].data_type == "s"


def test_a_table_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"a \.csv, \.parquet or \.xlsx file"):
        write_table(str(tmp_path / "t.xls"), [])
