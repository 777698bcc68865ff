"""Tables of serving runs: what a row means, what is answered all the same, and hostile files."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.errors import DescriptionError
from planner.readers.csv_table import MAX_FINDINGS, read_csv_table
from planner.readers.serving_rows import ServingRows, read_serving_rows

ROW = {
    "model": "Qwen/Qwen3-32B",
    "system": "h100_sxm",
    "backend": "vllm",
    "isl": 1000,
    "osl": 200,
    "concurrency": 8,
    "tp": 2,
}


def write(folder: Path, *rows: dict[str, Any], name: str = "rows.csv") -> Path:
    """Rows as CSV; a column that a row lacks is empty."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    path = folder / name
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def read(folder: Path, *rows: dict[str, Any], **how: Any) -> ServingRows:
    return read_serving_rows(write(folder, *rows), **how)


def findings(folder: Path, *rows: dict[str, Any], **how: Any) -> list[str]:
    with pytest.raises(DescriptionError) as caught:
        read(folder, *rows, **how)
    return [f"{one.line}: {one.message}" for one in caught.value.findings]


def test_one_row_is_one_worker_and_one_plan(tmp_path: Path) -> None:
    made = read(tmp_path, ROW | {"tpot_ms": 12.5, "ttft_ms": ""})
    (worker,) = made.workers
    assert (worker.model.name, worker.device.name, worker.backend) == ("Qwen/Qwen3-32B", "h100_sxm", "vllm")
    assert (worker.tensor_parallel_size, worker.num_gpus, worker.kv_element_bytes) == (2, 2, 2.0)
    plans = made.plans
    assert (plans.concurrency[0], plans.input_tokens[0], plans.output_tokens[0]) == (8, 1000, 200)
    assert made.tpot_s[0] == pytest.approx(0.0125)
    assert np.isnan(made.ttft_s[0])
    assert made.notes == (("cache taken as 16 bit",),)


def test_equal_configurations_share_a_worker(tmp_path: Path) -> None:
    made = read(tmp_path, ROW, ROW | {"concurrency": 64}, ROW | {"tp": 4}, ROW)
    assert len(made.workers) == 2
    assert made.plans.worker.tolist() == [0, 0, 1, 0]


def test_names_are_read_whatever_their_case_and_spaces(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("﻿ Model ,SYSTEM,Backend,isl,osl,Concurrency\n qwen/qwen3-32b ,H100-SXM, VLLM , 10.0 ,2,3\n")
    assert read_serving_rows(path).workers[0].device.name == "h100_sxm"


@pytest.mark.parametrize(
    ("quant", "bits"),
    [
        *((name, 16) for name in ("float16", "bf16", "none", "")),
        *((name, 8) for name in ("fp8", "fp8_block", "fp8_static", "fp8_ootb", "int8_wo", "sq")),
        *((name, 4) for name in ("nvfp4", "int4_wo", "w4a16_mxfp4", "w4a8_mxfp4_mxfp8", "w4afp8")),
    ],
)
def test_quantisations_as_benchmark_logs_name_them(tmp_path: Path, quant: str, bits: int) -> None:
    made = read(tmp_path, ROW | {"gemm_quant": quant})
    weights = made.workers[0].model.weight_bytes
    least = 32.8e9 * bits / 8
    assert 0.99 * least < weights < 1.3 * least, "embeddings stay in 16 bits, and there are scales"


def test_precision_holds_where_no_column_says_more(tmp_path: Path) -> None:
    moe = ROW | {"model": "Qwen/Qwen3-30B-A3B", "tp": 1, "precision": "fp8"}
    both, one = read(tmp_path, moe, moe | {"moe_quant": "nvfp4"}).workers
    assert one.model.weight_bytes < 0.7 * both.model.weight_bytes


def test_cache_as_asked_or_by_habit(tmp_path: Path) -> None:
    made = read(tmp_path, ROW, ROW | {"kv_quant": "fp8"}, ROW | {"kv_quant": "bfloat16", "precision": "nvfp4"})
    assert [worker.kv_element_bytes for worker in made.workers] == [2.0, 1.0, 2.0]
    assert [len(notes) for notes in made.notes[:2]] == [1, 0], "a cache that is asked for is no assumption"


MOE = ROW | {"model": "Qwen/Qwen3-30B-A3B", "tp": 4}


@pytest.mark.parametrize(
    ("cells", "split", "noted"),
    [
        ({}, (4, 1), False),
        ({"moe_ep": 4}, (1, 4), False),
        ({"moe_tp": 1}, (1, 4), False),
        ({"moe_tp": 2, "moe_ep": 2}, (2, 2), False),
        # TP8/EP8 logged as 64: the expert parallelism holds, as far as it goes.
        ({"moe_tp": 4, "moe_ep": 4}, (1, 4), True),
        ({"moe_tp": 2, "moe_ep": 3}, (2, 2), True),
        ({"moe_tp": 3, "moe_ep": 6}, (2, 2), True),
        ({"moe_ep": 64}, (1, 4), True),
        ({"attention_dp": 2, "moe_ep": 8}, (1, 8), False),
        # 128 experts.
        ({"attention_dp": 64, "moe_ep": 256}, (2, 128), True),
    ],
)
def test_the_split_of_experts(tmp_path: Path, cells: dict[str, int], split: tuple[int, int], noted: bool) -> None:
    made = read(tmp_path, MOE | cells)
    worker = made.workers[0]
    assert (worker.moe_tensor_parallel_size, worker.expert_parallel_size) == split
    assert split[0] * split[1] == worker.stage_gpus
    assert any("experts taken as" in note for note in made.notes[0]) is noted


def test_a_dense_model_has_no_expert_split(tmp_path: Path) -> None:
    worker = read(tmp_path, ROW | {"moe_tp": 2, "moe_ep": 8}).workers[0]
    assert (worker.moe_tensor_parallel_size, worker.expert_parallel_size) == (1, 1)


def test_unequal_shares_are_noted_not_refused(tmp_path: Path) -> None:
    made = read(tmp_path, ROW | {"tp": 3})
    assert list(made.workers[0].problems()) == []
    assert any("does not divide the 64 attention heads" in note for note in made.notes[0])
    assert all("largest share" in note for note in made.notes[0][:2])


def test_wider_arithmetic_is_noted(tmp_path: Path) -> None:
    made = read(tmp_path, ROW | {"system": "a100_sxm", "precision": "fp8"})
    assert "a100_sxm has no fp8 units: fp8 weights are multiplied in bf16" in made.notes[0]


def test_all_problems_are_told_at_once_names_once_each(tmp_path: Path) -> None:
    bad = ROW | {"model": "no/such", "system": "h101", "backend": "tgi", "precision": "fp3", "tp": 0, "osl": "many"}
    told = findings(tmp_path, bad, ROW, bad | {"tp": 2}, ROW | {"pp": 65}, ROW | {"kv_quant": "int4", "isl": -1})
    text = "\n".join(told)
    for part in ("no/such", "h101", "'tgi'", "'fp3'", "tp is '0'", "osl is 'many'", "more than the 64 layers"):
        assert part in text
    for once in ("no/such", "h101", "'tgi'", "'fp3'"):
        assert text.count(once) == 1
    assert text.count("osl is 'many'") == 2, "each cell is told at its own line"
    assert {one.split(":")[0] for one in told} == {"2", "4", "5", "6"}
    assert "unknown kv_quant 'int4'" in text


@pytest.mark.parametrize(
    "cell", ["0", "-1", "1.5", "1e3", "nan", "inf", "", "9" * 400, "0x10", "٣", "1,5", str(1 << 25)]
)
def test_sizes_are_whole_numbers(tmp_path: Path, cell: str) -> None:
    (told,) = findings(tmp_path, ROW | {"isl": cell})
    assert told.startswith("2: isl is ")
    assert len(told) < 200


@pytest.mark.parametrize("cell", ["0", "-3", "nan", "inf", "fast", "1e400"])
def test_measurements_are_read_only_when_they_are_wanted(tmp_path: Path, cell: str) -> None:
    (told,) = findings(tmp_path, ROW | {"tpot_ms": cell})
    assert "tpot_ms is" in told
    assert np.isnan(read(tmp_path, ROW | {"tpot_ms": cell}, measured=False).tpot_s[0])


def test_a_prediction_beside_a_measurement_is_not_taken_for_one(tmp_path: Path) -> None:
    made = read(tmp_path, ROW | {"tpot_ms": 50, "measured_tpot_ms": 10})
    assert made.tpot_s[0] == pytest.approx(0.01)


def test_the_folder_comes_before_the_catalogue(tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    small = {"model_type": "llama", "hidden_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 8}
    small |= {"intermediate_size": 2048, "vocab_size": 1000, "num_key_value_heads": 8, "torch_dtype": "bfloat16"}
    (models / "Qwen--Qwen3-32B.json").write_text(json.dumps(small))
    (models / "my--own.json").write_text(json.dumps(small))
    made = read(tmp_path, ROW, ROW | {"model": "own"}, ROW | {"model": "Qwen/Qwen3-8B"}, models=models)
    assert [worker.model.num_hidden_layers for worker in made.workers] == [2, 2, 36]
    assert [worker.model.name for worker in made.workers[:2]] == ["Qwen/Qwen3-32B", "my/own"]
    (models / "my--own.json").write_text('{"model_type": "llama", "hidden_size": 0}')
    told = findings(tmp_path, ROW | {"model": "my/own"}, models=models)
    assert any("hidden_size" in one for one in told)


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "secret.json", "./secret.json", "..", "", "a\0b", "~/x", "x" * 100_000]
)
def test_names_are_no_paths(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret.json").write_text('{"model_type": "llama"}')
    models = tmp_path / "models"
    models.mkdir()
    monkeypatch.chdir(tmp_path)
    (told,) = findings(tmp_path, ROW | {"model": name}, models=models)
    assert "the catalogue has no model" in told
    assert len(told) < 400


def test_an_absolute_path_of_a_config_is_no_name(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text("{}")
    assert "the catalogue has no model" in findings(tmp_path, ROW | {"model": str(config)})[0]


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DescriptionError, match="not a folder"):
        read(tmp_path, ROW, models=tmp_path / "nothing")


HEADER = "model,system,backend,isl,osl,concurrency"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is empty"),
        ("\n\n , \n", "is empty"),
        (HEADER, "has no rows"),
        (f"{HEADER}\n\n,,,,,\n", "has no rows"),
        (
            "model;system;backend\na;b;c\n",
            "has no column model, system, backend, isl, osl, concurrency; fields are sep",
        ),
        ("model,system\na,b\n", "has no column backend, isl, osl, concurrency"),
        (f"{HEADER},isl,ISL\na,b,c,1,1,1,1,1\n", "has two columns 'isl'"),
        (f"{HEADER}\na,b,c,1,1,1,1\n", ":2: has 7 fields, but the header has 6"),
        (f'{HEADER}\n"a\nb",b,c,1,1,1\na\n', ":4: has 1 fields"),
        (f'{HEADER}\n"a,b,c,1,1,1\n', ":2: not valid CSV"),
        (f'{HEADER}\n"a"x,b,c,1,1,1\n', ":2: not valid CSV"),
        (f"{HEADER}\n{'x' * 1_000_000},b,c,1,1,1\n", ":2: not valid CSV: field larger"),
    ],
)
def test_files_that_are_no_tables(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DescriptionError) as caught:
        read_serving_rows(path)
    assert told in str(caught.value)
    assert len(str(caught.value)) < 2_000


@pytest.mark.parametrize("raw", [b"\xff\xfe\x00m", b"\x89PNG\r\n\x1a\n\x00\x00", b"PK\x03\x04\x14\x00\x00\x00\xf3"])
def test_binary_files(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(raw)
    with pytest.raises(DescriptionError):
        read_serving_rows(path)


def test_a_file_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planner.readers.csv_table.MAX_TABLE_BYTES", 50)
    with pytest.raises(DescriptionError, match="larger than 50 bytes"):
        read(tmp_path, ROW)


def test_a_missing_file() -> None:
    with pytest.raises(DescriptionError, match="cannot be read"):
        read_serving_rows("no such file.csv")


def test_a_thousand_problems_are_cut_short(tmp_path: Path) -> None:
    told = findings(tmp_path, *[ROW | {"isl": 0}] * 1_000)
    assert len(told) == MAX_FINDINGS + 1
    assert "and 900 more problems" in told[-1]


def test_columns_are_added_and_inputs_kept_as_they_are(tmp_path: Path) -> None:
    odd = {"note to self": '=1+1, "quoted"\nnext line', "": "unnamed", "TTFT_ms": "12", "source": "mine"}
    made = read(tmp_path, ROW | odd, ROW, measured=False)
    text = made.with_columns({"ttft_ms": ["1", "2"], "source": ["a", "b"]})
    header, first, second = csv.reader(io.StringIO(text))
    assert header == [*ROW, "note to self", "", "measured_ttft_ms", "input_source", "ttft_ms", "source"]
    assert first == [*map(str, ROW.values()), *odd.values(), "1", "a"]
    assert second[-6:] == ["", "", "", "", "2", "b"]


def test_a_name_that_is_taken_is_refused(tmp_path: Path) -> None:
    made = read(tmp_path, ROW | {"ttft_ms": 1, "measured_ttft_ms": 2})
    with pytest.raises(DescriptionError, match="would be written as measured_ttft_ms"):
        made.with_columns({"ttft_ms": ["1"]})


CELLS = st.text(st.characters(codec="utf-8"), max_size=12)


@settings(max_examples=60, deadline=None)
@given(
    header=st.lists(CELLS, min_size=1, max_size=5, unique_by=lambda name: name.strip().lower()),
    data=st.data(),
)
def test_any_table_survives_being_read_and_written(
    tmp_path_factory: pytest.TempPathFactory, header: list[str], data: st.DataObject
) -> None:
    width = len(header)
    rows = data.draw(st.lists(st.lists(CELLS, min_size=width, max_size=width), min_size=1, max_size=4))
    rows = [row for row in rows if any(cell.strip() for cell in row)]
    if not rows or not any(name.strip() for name in header) or header[0].startswith("﻿"):
        return
    path = tmp_path_factory.mktemp("any") / "table.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    table = read_csv_table(path, ())
    assert [list(row) for row in table.fields] == rows
    again = list(csv.reader(io.StringIO(table.with_columns({}, {}), newline="")))
    assert again == [header, *rows]


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_a_table_or_a_description_error(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "table.csv"
    path.write_bytes(raw)
    try:
        table = read_csv_table(path, ())
    except DescriptionError:
        return
    assert all(len(row) == len(table.header) for row in table.fields)
    assert len(table.lines) == len(table.fields) > 0


@settings(max_examples=60, deadline=None)
@given(cells=st.lists(st.one_of(CELLS, st.integers(-5, 5).map(str)), min_size=7, max_size=7), column=st.integers(0, 6))
def test_any_cell_is_read_or_told(tmp_path_factory: pytest.TempPathFactory, cells: list[str], column: int) -> None:
    row = {**ROW, list(ROW)[column]: cells[column]}
    path = write(tmp_path_factory.mktemp("any"), row)
    try:
        made = read_serving_rows(path)
    except DescriptionError:
        return
    assert len(made.plans) == len(made.notes) == 1
