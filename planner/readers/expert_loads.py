"""Recorded expert loads -> ExpertLoad: SGLang dumps (.json, .pt), arrays (.npy) and tables (.csv)."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from planner.descriptions.experts import MAX_EXPERTS, MAX_LAYERS
from planner.errors import DescriptionError, Finding
from planner.files import SourceText, parse_json, read_text
from planner.readers.npy import read_npy
from planner.readers.torch_zip import read_torch_zip
from planner.workload import ExpertLoad, FloatArray

#: Most layers × experts, so that two lines of a table cannot ask for gigabytes.
MAX_CELLS = 2**24
#: Most numbers, and most rows of nested lists, over all steps or passes of a recording.
MAX_COUNTS, MAX_ROWS = 2**28, 2**22
#: How many problems of one file are listed before the rest is counted.
MAX_LISTED = 20
#: Text larger than this is not composed again to find the line of a problem; its key path is shown.
MAX_LOCATED_CHARS = 2 * 2**20

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_NOT_FINITE = re.compile(r"[+-]?(nan|inf(inity)?)", re.IGNORECASE)

Key = tuple[int | str, ...]
#: A Finding at a key path (JSON, .pt) or an index (.npy, .csv) of the file.
Locate = Callable[[Key, str], Finding]


def read_expert_load(path: Path, *, name: str, weight: float = 1.0) -> ExpertLoad:
    """Read tokens routed to each expert, float64 [layers, experts]; the steps of a recording are added up.

    By suffix: `.json` and `.pt` hold SGLang's `logical_count` or `records` of physical counts, or bare rows;
    `.npy` holds [layers, experts] or [steps, layers, experts]; `.csv` holds one layer a row, or the columns
    layer, expert and count, where an absent pair is 0. Dense layers stay as rows of zeros.

    Raises DescriptionError with up to MAX_LISTED problems: counts that are negative, not finite, ragged, all
    zero or beyond MAX_LAYERS × MAX_EXPERTS, or a file that is damaged or of no known form.
    """
    match path.suffix.lower():
        case ".npy":
            counts = _sum_steps(_Node(str(path), _plain_locator(path), (), read_npy(path)))
        case ".pt" | ".pth":
            counts = _from_recording(_Node(str(path), _plain_locator(path), (), read_torch_zip(path)))
        case ".csv":
            counts = _from_csv(path)
        case ".json":
            text = read_text(path)
            value = parse_json(text, str(path))
            counts = _from_recording(_Node(str(path), _json_locator(path, text, value), (), value))
        case suffix:
            message = f"has the suffix {suffix!r}; expert loads are .json, .pt, .npy or .csv"
            raise DescriptionError.single(path, message)
    layers, experts = counts.shape
    if layers > MAX_LAYERS or experts > MAX_EXPERTS or counts.size > MAX_CELLS:
        raise DescriptionError.single(path, f"{layers} layers x {experts} experts is beyond any real model")
    if not np.isfinite(counts).all():
        raise DescriptionError.single(path, "the counts add up to more than a float can hold")
    if not counts.any():
        raise DescriptionError.single(path, "all counts are zero")
    return ExpertLoad(name=name, counts=counts, weight=weight, source=str(path))


@dataclass(frozen=True, slots=True)
class _Node:
    """A value inside a file, with what it takes to say where it is."""

    path: str
    locate: Locate
    key: Key
    value: Any

    def child(self, step: int | str) -> _Node:
        return _Node(self.path, self.locate, (*self.key, step), self.value[step])

    def refuse(self, message: str) -> NoReturn:
        raise DescriptionError([self.locate(self.key, message)])

    def refuse_all(self, problems: Sequence[tuple[Key, str]], total: int) -> NoReturn:
        """Raise the first of `total` problems, each at a key below this value."""
        findings = [self.locate((*self.key, *key), message) for key, message in problems[:MAX_LISTED]]
        _raise_all(self.path, findings, total)


def _raise_all(path: str, findings: list[Finding], total: int) -> NoReturn:
    listed = findings[:MAX_LISTED]
    if total > len(listed):
        listed.append(Finding(path, f"and {total - len(listed)} more problems"))
    raise DescriptionError(listed)


def _plain_locator(path: Path) -> Locate:
    def locate(key: Key, message: str) -> Finding:
        place = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in key).lstrip(".")
        return Finding(str(path), f"{place}: {message}" if place else message)

    return locate


def _json_locator(path: Path, text: str, value: Any) -> Locate:
    if len(text) > MAX_LOCATED_CHARS:
        return _plain_locator(path)
    return SourceText(str(path), text, value, path.parent).finding


def _from_recording(node: _Node) -> FloatArray:
    """Counts of an SGLang dump, or of bare rows."""
    if not isinstance(node.value, dict):
        return _sum_steps(node)
    if "logical_count" in node.value:
        return _sum_steps(node.child("logical_count"))
    if "records" in node.value:
        records = node.child("records")
        if not isinstance(records.value, list) or not records.value:
            records.refuse("needs a list with at least one record")
        passes = [records.child(index) for index in range(len(records.value))]
        return _from_physical(node, passes)
    if "global_physical_count" in node.value:
        return _from_physical(node, [node])
    return node.refuse("needs logical_count, or records with last_physical_to_logical_map")


def _from_physical(node: _Node, passes: list[_Node]) -> FloatArray:
    """Logical counts of physical ones: the slots of an expert are added up, by the map that was in force."""
    key = "last_physical_to_logical_map"
    if key not in node.value:
        node.refuse(f"physical counts become logical ones only by {key}, which is missing")
    slots = _array(node.child(key))
    if slots.ndim != 2:
        node.child(key).refuse(f"needs [layers, slots], got shape {slots.shape}")
    if not (np.isfinite(slots) & (slots == np.floor(slots)) & (slots >= 0) & (slots < MAX_EXPERTS)).all():
        node.child(key).refuse(f"needs expert ids from 0 to {MAX_EXPERTS - 1}")
    physical_to_logical = slots.astype(np.int64)

    physical = np.zeros(physical_to_logical.shape)
    if len(passes) * physical.size > MAX_COUNTS:
        node.refuse(f"holds {len(passes)} passes, more than can be added up")
    for record in passes:
        if not isinstance(record.value, dict) or "global_physical_count" not in record.value:
            record.refuse("has no global_physical_count")
        counts = record.child("global_physical_count")
        added = _sum_steps(counts)
        if added.shape != physical.shape:
            counts.refuse(f"has shape {added.shape}, but {key} has {physical.shape}")
        physical += added

    num_experts = int(physical_to_logical.max()) + 1
    if len(physical) * num_experts > MAX_CELLS:
        node.child(key).refuse(f"names {num_experts} experts in each of {len(physical)} layers")
    logical = np.zeros((len(physical), num_experts))
    for layer, experts in enumerate(physical_to_logical):
        absent = np.flatnonzero(np.bincount(experts, minlength=num_experts) == 0)
        if len(absent):
            node.child(key).refuse(f"layer {layer} has no slot for expert {absent[0]}")
        logical[layer] = np.bincount(experts, weights=physical[layer], minlength=num_experts)
    return logical


def _sum_steps(node: _Node) -> FloatArray:
    """[layers, experts] of [layers, experts] or [steps, layers, experts]; every count is checked."""
    array = _array(node)
    if array.ndim not in (2, 3) or 0 in array.shape:
        node.refuse(f"needs [layers, experts] or [steps, layers, experts], got shape {array.shape}")
    if array.size > MAX_COUNTS:
        node.refuse(f"holds {array.size} counts, more than can be added up")
    _check_counts(node, array)
    with np.errstate(over="ignore"):
        counts = array.sum(axis=0, dtype=np.float64) if array.ndim == 3 else array.astype(np.float64)
    return np.asarray(counts, dtype=np.float64)


def _check_counts(node: _Node, array: npt.NDArray[Any]) -> None:
    bad = np.flatnonzero(~((array >= 0) & (array < np.inf)))
    problems: list[tuple[Key, str]] = []
    for position in bad[:MAX_LISTED]:
        index = np.unravel_index(position, array.shape)
        value = array[index]
        message = f"negative count {value}" if np.isfinite(value) else f"count is {value}, not finite"
        problems.append((tuple(int(step) for step in index), message))
    if problems:
        node.refuse_all(problems, len(bad))


def _array(node: _Node) -> npt.NDArray[Any]:
    """An array as it is, or nested lists of numbers as float64; lists must be rectangular."""
    if isinstance(node.value, np.ndarray):
        if node.value.dtype.kind not in "iuf":
            node.refuse(f"holds {node.value.dtype}, not integers or floats")
        return node.value
    rows = _rows(node)
    problems = [(row.key[len(node.key) :], message) for row in rows if (message := _row_problem(row.value))]
    if problems:
        node.refuse_all(problems, len(problems))
    widths = {len(row.value) for row in rows}
    steps = {len(step) for step in node.value} if len(rows[0].key) - len(node.key) == 2 else set()
    if len(widths) != 1 or len(steps) > 1:
        _refuse_ragged(node, rows, steps)
    if len(rows) * len(rows[0].value) > MAX_COUNTS:
        node.refuse(f"holds more than {MAX_COUNTS} counts")
    flat = np.array([row.value for row in rows], dtype=np.float64)
    return flat.reshape(len(node.value), *steps, *widths)


def _rows(node: _Node) -> list[_Node]:
    """The innermost rows of [rows][numbers] or [steps][rows][numbers]."""
    if not isinstance(node.value, list) or not node.value or not isinstance(node.value[0], list):
        node.refuse("needs rows of numbers")
    outer = [node.child(index) for index in range(len(node.value))]
    if not outer[0].value or not isinstance(outer[0].value[0], list):
        return outer
    empty = [step for step in outer if not isinstance(step.value, list) or not step.value]
    if empty:
        empty[0].refuse("needs rows of numbers, as the first step has")
    if sum(len(step.value) for step in outer) > MAX_ROWS:
        node.refuse(f"holds more than {MAX_ROWS} rows")
    return [step.child(index) for step in outer for index in range(len(step.value))]


def _row_problem(row: object) -> str | None:
    if not isinstance(row, list) or not row:
        return "needs a row of numbers"
    if not set(map(type, row)) <= {int, float}:
        index = next(index for index, item in enumerate(row) if type(item) not in (int, float))
        return f"entry {index} is {str(row[index])[:40]!r}, not a number"
    try:
        sum(map(float, row))
    except OverflowError:
        return "has a number beyond what a float can hold"
    return None


def _refuse_ragged(node: _Node, rows: list[_Node], steps: set[int]) -> NoReturn:
    if len(steps) > 1:
        node.refuse(f"is ragged: its steps have {sorted(steps)[:10]} layers")
    width = len(rows[0].value)
    problems = [
        (row.key[len(node.key) :], f"is ragged: {len(row.value)} entries, but the first row has {width}")
        for row in rows
        if len(row.value) != width
    ]
    node.refuse_all(problems, len(problems))


@dataclass(frozen=True, slots=True)
class _Line:
    """One record of a table; `number` counts lines from 1."""

    number: int
    text: str
    fields: list[str]

    def column(self, index: int) -> int | None:
        """Column (from 1) where a field begins; None when quotes make that unclear."""
        return None if '"' in self.text else 1 + sum(len(part) + 1 for part in self.text.split(",")[:index])


def _from_csv(path: Path) -> FloatArray:
    lines = _csv_lines(path)
    header = [field.strip().lower() for field in lines[0].fields]
    if {"layer", "expert", "count"} <= set(header):
        return _from_columns(path, header, lines[1:])
    if not any(_is_number(field) for field in lines[0].fields):
        lines = lines[1:]
    elif len(header) > 3 and header == [str(index) for index in range(len(header))]:
        message = "are these column numbers, or counts? Remove them, or put a header of words before them"
        raise DescriptionError.single(path, message, lines[0].number)
    return _from_matrix(path, lines)


def _csv_lines(path: Path) -> list[_Line]:
    texts = read_text(path).splitlines()
    reader = csv.reader(texts, strict=True, skipinitialspace=True)
    lines = []
    try:
        for fields in reader:
            if any(field.strip() for field in fields):
                lines.append(_Line(reader.line_num, texts[reader.line_num - 1], fields))
    except csv.Error as error:
        raise DescriptionError.single(path, f"not valid CSV: {error}", reader.line_num) from None
    if not lines:
        raise DescriptionError.single(path, "is empty")
    return lines


def _from_matrix(path: Path, lines: list[_Line]) -> FloatArray:
    if not lines:
        raise DescriptionError.single(path, "has a header and no rows")
    width = len(lines[0].fields)
    findings: list[Finding] = []
    for line in lines:
        if len(line.fields) != width:
            message = f"is ragged: {len(line.fields)} fields, but the first row has {width}"
            findings.append(Finding(str(path), message, line.number))
        findings.extend(
            Finding(str(path), problem, line.number, line.column(index))
            for index, field in enumerate(line.fields)
            if (problem := _count_problem(field))
        )
    if findings:
        _raise_all(str(path), findings, len(findings))
    return np.array([[float(field) for field in line.fields] for line in lines])


def _from_columns(path: Path, header: list[str], lines: list[_Line]) -> FloatArray:
    at = {key: header.index(key) for key in ("layer", "expert", "count")}
    limits = {"layer": MAX_LAYERS, "expert": MAX_EXPERTS}
    counts: dict[tuple[int, int], float] = {}
    first_line: dict[tuple[int, int], int] = {}
    findings: list[Finding] = []
    for line in lines:
        if len(line.fields) != len(header):
            message = f"has {len(line.fields)} fields, but the header has {len(header)}"
            findings.append(Finding(str(path), message, line.number))
            continue
        text = {key: line.fields[index].strip() for key, index in at.items()}
        problems = {key: _id_problem(text[key], key, limit) for key, limit in limits.items()}
        problems["count"] = _count_problem(text["count"])
        wrong = [
            Finding(str(path), problem, line.number, line.column(at[key]))
            for key, problem in problems.items()
            if problem is not None
        ]
        findings.extend(wrong)
        if wrong:
            continue
        pair = int(text["layer"]), int(text["expert"])
        if pair in counts:
            message = f"layer {pair[0]}, expert {pair[1]} was given on line {first_line[pair]} already"
            findings.append(Finding(str(path), message, line.number))
            continue
        counts[pair], first_line[pair] = float(text["count"]), line.number
    if findings:
        _raise_all(str(path), findings, len(findings))
    if not counts:
        raise DescriptionError.single(path, "has a header and no rows")
    index = np.array(list(counts))
    shape = index.max(axis=0) + 1
    if shape.prod() > MAX_CELLS:
        raise DescriptionError.single(path, f"{shape[0]} layers x {shape[1]} experts is beyond any real model")
    result = np.zeros(shape)
    result[index[:, 0], index[:, 1]] = list(counts.values())
    return result


def _is_number(field: str) -> bool:
    return _NUMBER.fullmatch(field.strip()) is not None or _NOT_FINITE.fullmatch(field.strip()) is not None


def _count_problem(field: str) -> str | None:
    text = field.strip()
    if not _is_number(field):
        return f"{text[:40]!r} is not a number"
    value = float(text)
    if not np.isfinite(value):
        return f"count is {text[:40]}, not finite"
    return f"negative count {text[:40]}" if value < 0 else None


def _id_problem(text: str, key: str, limit: int) -> str | None:
    if re.fullmatch(r"\d{1,9}", text, re.ASCII) is None or int(text) >= limit:
        return f"{key} {text[:40]!r} is not a whole number from 0 to {limit - 1}"
    return None
