"""Reading and writing our own files: places of mistakes, hostile input, atomic writes."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner import files
from planner.descriptions.experts import ExpertsInstance
from planner.errors import DescriptionError
from planner.files import canonical_json, read_as, read_source, validate, write_atomically, write_text

VALID = {"problem": "experts", "name": "x", "num_gpus": 2, "num_slots": 4, "loads": [{"counts": [[1, 2, 3]]}]}


def write(folder: Path, text: str | bytes, name: str = "x.yaml") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def findings(path: Path | str, model: Any = ExpertsInstance) -> list[tuple[int | None, int | None, str]]:
    with pytest.raises(DescriptionError) as caught:
        read_as(path, model)
    return [(finding.line, finding.column, finding.message) for finding in caught.value.findings]


def refused(path: Path | str) -> str:
    with pytest.raises(DescriptionError) as caught:
        read_source(path)
    assert all(finding.path == str(path) for finding in caught.value.findings)
    return str(caught.value)


def test_json_and_yaml_of_one_instance_are_equal(tmp_path: Path) -> None:
    yaml = """
        problem: experts
        name: x
        num_gpus: 2
        num_slots: 4  # two each
        loads:
          - counts: [[1, 2, 3]]
        """
    one = read_as(write(tmp_path, textwrap.dedent(yaml)), ExpertsInstance)
    two = read_as(write(tmp_path, json.dumps(VALID), "x.json"), ExpertsInstance)
    assert one == two
    assert canonical_json(one.model_dump(mode="json")) == canonical_json(two.model_dump(mode="json"))


def test_all_problems_at_once_each_at_its_line_and_column(tmp_path: Path) -> None:
    text = textwrap.dedent("""\
        problem: experts
        name: x
        num_gpus: none
        num_slots: 4
        loads:
          - counts: [[1, -2]]
            wieght: 2
        expert_bytes: 3 parsecs
        """)
    found = findings(write(tmp_path, text))
    places = {(line, column) for line, column, _ in found}
    assert places == {(3, 1), (6, 18), (7, 5), (8, 1)}
    messages = "\n".join(message for _, _, message in found)
    assert "loads.0.wieght: unknown key" in messages
    assert "num_gpus" in messages
    assert "3 parsecs" in messages


def test_rules_between_fields_are_placed_too(tmp_path: Path) -> None:
    text = "name: x\nnum_gpus: 3\nnum_slots: 4\nloads: [{}]\nmax_moves: 3\n"
    found = findings(write(tmp_path, text))
    assert sorted((line, message.split(":")[0]) for line, _, message in found) == [
        (3, "num_slots"),
        (4, "loads.0"),
        (5, "max_moves"),
    ]


def test_a_missing_key_is_at_its_parent(tmp_path: Path) -> None:
    found = findings(write(tmp_path, "name: x\nnum_gpus: 2\nloads: [{counts: [[1]]}]\n"))
    assert found == [(1, 1, "num_slots: is required")]


def test_a_list_of_bad_entries_is_not_short_of_them_too(tmp_path: Path) -> None:
    found = findings(write(tmp_path, "name: x\nnum_gpus: 2\nnum_slots: 2\nloads: [{counts: [[-1]], weight: -2}]\n"))
    assert [message.split(":")[0] for _, _, message in found] == ["loads.0.counts.0.0", "loads.0.weight"]


@pytest.mark.parametrize("indent", [2, "\t", None])
def test_mistakes_in_json_have_a_place_however_it_is_indented(tmp_path: Path, indent: int | str | None) -> None:
    path = write(tmp_path, json.dumps({**VALID, "num_gpus": "two"}, indent=indent), "x.json")
    ((line, column, message),) = findings(path)
    assert message.startswith("num_gpus")
    assert line == (1 if indent is None else 4)
    assert column is not None


def test_many_problems_are_cut_short(tmp_path: Path) -> None:
    path = write(tmp_path, json.dumps({**VALID, "loads": [{"counts": [["x"] * 500]}]}), "x.json")
    found = findings(path)
    assert len(found) == files.MAX_FINDINGS + 1
    assert found[-1][2].startswith("and ")


@pytest.mark.parametrize(
    "text", ['{"a": 1, "b": 2, "a": 3}', '{"x": {"a": 1, "a": 1}}', "a: 1\nb: 2\na: 3\n", "x: {a: 1, a: 2}\n"]
)
def test_a_key_given_twice_is_refused(tmp_path: Path, text: str) -> None:
    assert "uplicate key" in refused(write(tmp_path, text))


@pytest.mark.parametrize(
    "text",
    [
        "{name: x, num_gpus: 2, num_slots: 4}",
        "{trace: 1}",
        "{false_start: 1}",
        "{n: 1}",
        "{problem: experts}",
        "{ name: x }",
        "{1: 2}",
        "{}",
        "[]",
    ],
)
def test_flow_style_yaml_is_yaml(tmp_path: Path, text: str) -> None:
    from ruamel.yaml import YAML

    assert read_source(write(tmp_path, text)).value == YAML(typ="safe", pure=True).load(text)


@pytest.mark.parametrize("text", ['{"a": 1}', " \n[1, 2]", '{"a": {"b": [null, true, 1.5, "x"]}}', "{ }", "[-1]"])
def test_json_is_json(tmp_path: Path, text: str) -> None:
    assert read_source(write(tmp_path, text)).value == json.loads(text)


def test_a_byte_order_mark_and_crlf_are_no_obstacle(tmp_path: Path) -> None:
    assert read_source(write(tmp_path, b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")).value == {"a": 1, "b": 2}
    assert read_source(write(tmp_path, b'\xef\xbb\xbf{"a": 1}')).value == {"a": 1}


def test_broken_syntax_has_a_place(tmp_path: Path) -> None:
    assert refused(write(tmp_path, '{"a": 1,\n "b" 2}')).split(": ")[0].endswith(":2:6")
    assert refused(write(tmp_path, "a: 1\nb: [1, 2\n")).split(": ")[0].endswith(":3:1")


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['echo hacked > /dev/null']",
        "a: !!python/name:os.system",
        "a: !!python/object/new:pathlib.Path [x]",
        "!thing {a: 1}",
        "a: 1\n---\nb: 2\n",
        "? [a, b]\n: 1\n",
        "a: &x [*x]\n",
        "&x {a: *x}",
        "&x a: 1\n<<: *x\n",
        "a: *missing",
        "a: '\x00'",
        "{" * 5000,
        "[" * 100_000,
        '{"a":' * 100_000,
        "- " * 3000 + "x",
        '{"a": NaN}',
        '{"a": -Infinity}',
        '{"a": ' + "9" * 5000 + "}",
        "a: " + "9" * 5000,
        '{"a": 1} trailing',
        "\ta: 1",
        "%YAML 9.9\n---\na: 1",
    ],
)
def test_hostile_text_is_refused(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(DescriptionError):
        read_as(path, ExpertsInstance)


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "null", "3", '"x"', "[1, 2]", "a: 2026-01-01", "a: !!binary aGk=", "a: !!set {b, c}"]
)
def test_other_values_are_no_instance(tmp_path: Path, text: str) -> None:
    with pytest.raises(DescriptionError):
        read_as(write(tmp_path, text), ExpertsInstance)


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "1e999", "9" * 400])
@pytest.mark.parametrize("key", ["move_cost", "expert_bytes", "num_gpus"])
def test_numbers_beyond_reason_are_findings_with_a_place(tmp_path: Path, key: str, value: str) -> None:
    known = {"name": "x", "num_gpus": "2", "num_slots": "4", "loads": "[{counts: [[1, 2]]}]", "current": "x.json"}
    text = "\n".join(f"{k}: {v}" for k, v in {**known, key: value}.items())
    found = findings(write(tmp_path, text))
    assert found
    assert all(line is not None for line, _, _ in found)
    assert any(message.startswith(key) for _, _, message in found)


def test_an_alias_bomb_is_refused_before_it_is_built(tmp_path: Path) -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    assert "aliases" in refused(write(tmp_path, "\n".join(lines)))


def test_a_bomb_of_one_long_text_is_refused_within_bounded_memory(tmp_path: Path) -> None:
    """300 kB that expand to 40,000 copies of 100 kB: 4 GB of JSON, under 1.5 GB of memory."""
    text = "a: &a " + "x" * 100_000 + "\nb: [" + ", ".join(["*a"] * 40_000) + "]\n"
    path = write(tmp_path, text)
    program = f"""
        import resource
        resource.setrlimit(resource.RLIMIT_AS, (1_500_000_000, 1_500_000_000))
        from planner.descriptions.experts import ExpertsInstance
        from planner.errors import DescriptionError
        from planner.files import read_as
        try:
            read_as({str(path)!r}, ExpertsInstance)
        except DescriptionError:
            print("refused")
        """
    root = Path(files.__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, cwd=root, check=False
    )
    assert done.stdout.strip() == "refused", done.stderr[-300:]


def test_honest_aliases_and_merges_work(tmp_path: Path) -> None:
    text = "base: &b {weight: 2, name: y}\nitem: {<<: *b, name: z}\nsame: *b\n"
    value = read_source(write(tmp_path, text)).value
    assert value["item"] == {"weight": 2, "name": "z"}
    assert value["same"] == {"weight": 2, "name": "y"}


@pytest.mark.parametrize("depth", [100, 300, *range(900, 1010, 10)])
def test_any_depth_is_a_finding_and_no_crash(tmp_path: Path, depth: int) -> None:
    for text in ("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth):
        with pytest.raises(DescriptionError):
            read_as(write(tmp_path, text), ExpertsInstance)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "missing.yaml")
    assert "cannot be read" in refused(tmp_path)
    assert "not UTF-8" in refused(write(tmp_path, b"a: \xff\xfe"))
    assert "cannot be read" in refused("nul\0inside.yaml")


def test_size_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "a: 123456789\n")
    monkeypatch.setattr(files, "MAX_YAML_BYTES", 5)
    assert "YAML above 5 bytes" in refused(path)
    with pytest.raises(DescriptionError, match="larger than 4 bytes"):
        files.read_text(path, 4)


def test_standard_input(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(json.dumps(VALID).encode())))
    monkeypatch.chdir(tmp_path)
    source = read_source("-")
    assert source.base_dir == tmp_path
    assert source.path == "<stdin>"
    assert validate(source, ExpertsInstance).name == "x"


def test_writing_is_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_text(path, "old")

    def fail(temporary: str) -> None:
        Path(temporary).write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(DescriptionError, match="No space left"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["plan.json"]

    def crash(temporary: str) -> None:
        Path(temporary).write_text("half")
        raise RuntimeError("bug")

    with pytest.raises(RuntimeError):
        write_atomically(path, crash)
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["plan.json"]
    write_text(path, "new")
    assert path.read_text() == "new"


def test_writing_where_nothing_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(DescriptionError, match="cannot be written"):
        write_text(tmp_path / "no" / "folder.json", "x")
    with pytest.raises(DescriptionError, match="cannot be written"):
        write_text(tmp_path, "x")


def test_writing_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    write_text("-", "text\n")
    assert capsys.readouterr().out == "text\n"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(value=JSON)
def test_canonical_json_is_one_text_for_one_value(value: Any) -> None:
    text = canonical_json(value)
    assert json.loads(text) == value
    assert canonical_json(json.loads(text)) == text


def test_canonical_json_sorts_and_refuses_nan() -> None:
    assert canonical_json({"b": 1, "a": [1, 2]}) == '{"a":[1,2],"b":1}'
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(float("nan"))


@given(value=st.dictionaries(st.text(min_size=1), JSON, min_size=1, max_size=4))
def test_any_json_document_is_read_as_it_is(value: dict[str, Any]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), json.dumps(value), "x.json")
        assert read_source(path).value == value


@given(text=st.text(max_size=200))
def test_any_text_is_a_value_or_a_description_error(text: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        try:
            read_as(path, ExpertsInstance)
        except DescriptionError as error:
            found = error.findings
        else:
            return
    assert found
