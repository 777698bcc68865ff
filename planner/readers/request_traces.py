"""Request traces -> RequestTrace: CSV with a header, or Mooncake's JSONL. The header decides, never the file's name.

CSV: one column each for arrival, input and output tokens, by any of the names below, which cover Azure's LLM inference
traces (TIMESTAMP, ContextTokens, GeneratedTokens), BurstGPT (Timestamp, Request tokens, Response tokens, Total tokens)
and plain tables. Times are seconds, milliseconds where the name ends in _ms and in Mooncake's columns, or dates.
JSONL: objects with timestamp (ms), input_length, output_length and hash_ids (of 512-token blocks).

What is wrong is refused with its line: times that go back (columns mixed up, or not sorted), counts that are no whole
numbers, an input of 0 tokens, totals that are not the sum. A request with 0 output tokens failed: such rows are left
out and counted, up to half of the table.
"""

from __future__ import annotations

import csv
import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from planner.errors import DescriptionError, Finding
from planner.files import parse_json
from planner.readers.csv_table import MAX_FINDINGS, Findings, quoted
from planner.readers.trace_columns import MAX_TOKENS, ArrivalTimes, TraceColumns, first_bad, numbers_of, trace_columns
from planner.request_trace import RequestTrace
from planner.workload import FloatArray

#: Largest trace that is read; it is streamed. BurstGPT's files are up to 220 MB.
MAX_TRACE_BYTES = 256 * 2**20
#: Longest line: a Mooncake request of 2**20 tokens names 2,048 blocks.
MAX_LINE_BYTES = 2**20
#: Most requests of a trace.
MAX_REQUESTS = 20_000_000
#: Most different blocks that a trace names.
MAX_BLOCKS = 5_000_000
#: Tokens of one block of `hash_ids`. Source: Mooncake's trace README.
BLOCK_TOKENS = 512
#: Blank lines before the header.
MAX_BLANK_LINES = 1_000
#: Rows that are checked together.
CHUNK_ROWS = 65_536


def read_request_trace(path: str | Path) -> RequestTrace:
    """Read a trace ('-' is standard input), arrivals from 0.

    Raises DescriptionError: too large, not UTF-8, an unknown header, and every problem of the rows up to MAX_FINDINGS.
    """
    name = "<stdin>" if str(path) == "-" else str(path)
    with _opened(path) as file:
        lines = _lines(file, name)
        before: list[str] = []
        for line in islice(lines, MAX_BLANK_LINES):
            before.append(line)
            if line.strip():
                break
        else:
            raise DescriptionError.single(
                name, "is empty, or begins with very many blank lines" if before else "is empty"
            )
        rows = _Rows(Findings(name))
        whole = chain(before, lines)
        known = (_read_jsonl if line.lstrip().startswith("{") else _read_csv)(whole, rows)
    return rows.trace(f"{name} ({known})")


@contextmanager
def _opened(path: str | Path) -> Iterator[BinaryIO]:
    if str(path) == "-":
        yield sys.stdin.buffer
        return
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below, whatever the reader raises
    except (OSError, ValueError) as error:
        raise DescriptionError.single(path, f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    with file:
        yield file


def _lines(file: BinaryIO, name: str) -> Iterator[str]:
    """Lines as text, bounded in length and together."""
    total = number = 0
    while True:
        try:
            line = file.readline(MAX_LINE_BYTES + 1)
        except OSError as error:
            raise DescriptionError.single(name, f"cannot be read: {error.strerror or error}") from None
        if not line:
            return
        number += 1
        total += len(line)
        if len(line) > MAX_LINE_BYTES:
            raise DescriptionError.single(name, f"has a line of more than {MAX_LINE_BYTES} bytes", number)
        if total > MAX_TRACE_BYTES:
            told = f"is larger than {MAX_TRACE_BYTES} bytes; cut it into parts, each with the header"
            raise DescriptionError.single(name, told)
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise DescriptionError.single(name, "is not UTF-8 text", number) from None


@dataclass(slots=True)
class _Rows:
    """Checked columns as they grow."""

    findings: Findings
    arrival: array[float] = field(default_factory=lambda: array("d"))
    tokens: tuple[array[int], array[int]] = field(default_factory=lambda: (array("q"), array("q")))
    prefix: array[int] | None = None
    count: int = 0
    last: float = -np.inf

    def add(
        self,
        lines: Sequence[int],
        arrival: FloatArray,
        inputs: FloatArray,
        outputs: FloatArray,
        prefix: FloatArray | None = None,
    ) -> None:
        """Check and keep some rows; NaN stands for what was told already."""
        self.count += len(lines)
        if self.count > MAX_REQUESTS:
            raise DescriptionError.single(
                self.findings.path, f"has more than {MAX_REQUESTS} requests; cut it into parts", lines[-1]
            )
        before = np.concatenate(([self.last], arrival[:-1]))
        for row in first_bad(arrival < before):
            told = f"arrival goes back from {before[row]:.10g} to {arrival[row]:.10g} s: rows must be in the order of"
            self.findings.tell(lines[row], f"{told} arrival; or columns are mixed up")
        served = ~(outputs == 0)
        for row in first_bad(served & (inputs == 0)):
            self.findings.tell(lines[row], "has 0 input tokens and some output: columns are mixed up?")
        if prefix is not None:
            for row in first_bad(prefix > inputs):
                told = f"has a prefix of {prefix[row]:.0f} tokens in an input of {inputs[row]:.0f}"
                self.findings.tell(lines[row], told)
        if len(self.findings) >= MAX_FINDINGS:
            self.findings.refuse()
        if len(self.findings):
            return  # Nothing will be made of it; the rest is read for its own problems.
        self.last = float(arrival[-1])
        self.arrival.frombytes(arrival[served].tobytes())
        for kept, values in zip(self.tokens, (inputs, outputs), strict=True):
            kept.frombytes(values[served].astype(np.int64).tobytes())
        if prefix is not None:
            if self.prefix is None:
                self.prefix = array("q")
            self.prefix.frombytes(prefix[served].astype(np.int64).tobytes())

    def trace(self, source: str) -> RequestTrace:
        """The trace; DescriptionError for all that was found, and for one that has no rate."""
        self.findings.refuse()
        path, failed = self.findings.path, self.count - len(self.arrival)
        if not self.count:
            raise DescriptionError.single(path, "has no rows below its header")
        if 2 * failed > self.count:
            told = f"{failed} of {self.count} requests have 0 output tokens: columns are mixed up?"
            raise DescriptionError.single(path, told)
        arrival = np.frombuffer(self.arrival, np.float64)
        if arrival[-1] <= arrival[0]:
            raise DescriptionError.single(path, "all requests arrive at the same time: no rate can be told")
        return RequestTrace(
            arrival_s=arrival - arrival[0],
            input_tokens=np.frombuffer(self.tokens[0], np.int64),
            output_tokens=np.frombuffer(self.tokens[1], np.int64),
            prefix_tokens=None if self.prefix is None else np.frombuffer(self.prefix, np.int64),
            source=source,
            num_failed=failed,
        )


def _read_csv(lines: Iterator[str], rows: _Rows) -> str:
    findings = rows.findings
    reader = csv.reader(lines, strict=True)
    columns: TraceColumns | None = None
    numbers: list[int] = []
    fields: list[list[str]] = []
    times: ArrivalTimes | None = None

    def flush() -> None:
        if columns is not None and times is not None and fields:
            _add_table(columns, times, numbers, fields, rows)
            numbers.clear()
            fields.clear()

    try:
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            if columns is None:
                columns = trace_columns(findings.path, row, reader.line_num)
                continue
            if len(row) != len(columns.names):
                findings.tell(reader.line_num, f"has {len(row)} fields, but the header has {len(columns.names)}")
                if len(findings) >= MAX_FINDINGS:
                    findings.refuse()
                continue
            times = times or ArrivalTimes.of(columns, row[columns.arrival])
            numbers.append(reader.line_num)
            fields.append(row)
            if len(fields) >= CHUNK_ROWS:
                flush()
    except csv.Error as error:
        raise DescriptionError.single(findings.path, f"not valid CSV: {error}", reader.line_num) from None
    flush()
    return "" if columns is None else columns.known


def _add_table(
    columns: TraceColumns, times: ArrivalTimes, lines: Sequence[int], fields: Sequence[Sequence[str]], rows: _Rows
) -> None:
    cells = list(zip(*fields, strict=True))
    told = rows.findings

    def counts(index: int) -> FloatArray:
        values = numbers_of(cells[index])
        for row in first_bad(~((values >= 0) & (values <= MAX_TOKENS) & (values == np.floor(values)))):
            name, text = columns.names[index], quoted(cells[index][row])
            told.tell(lines[row], f"{name} is {text}, not a whole number from 0 to {MAX_TOKENS}")
            values[row] = np.nan
        return values

    arrival = times.seconds(lines, cells[columns.arrival], told)
    inputs, outputs = counts(columns.tokens[0]), counts(columns.tokens[1])
    prefix = None if columns.prefix is None else counts(columns.prefix)
    if columns.total is not None:
        total = counts(columns.total)
        for row in first_bad(np.abs(total - inputs - outputs) > 0):
            told.tell(
                lines[row],
                f"{columns.names[columns.total]} is {total[row]:.0f}, not the sum {inputs[row] + outputs[row]:.0f}",
            )
    rows.add(lines, arrival, inputs, outputs, prefix)


def _read_jsonl(lines: Iterator[str], rows: _Rows) -> str:
    seen: set[int] = set()
    blocks: bool | None = None
    numbered = ((number, text) for number, text in enumerate(lines, start=1) if text.strip())
    while chunk := list(islice(numbered, CHUNK_ROWS)):
        numbers: list[int] = []
        made: list[tuple[float, int, int, int]] = []
        for number, text in chunk:
            try:
                value = _request(rows.findings.path, text)
                ids = value.get("hash_ids")
                if blocks is None:
                    blocks = ids is not None
                made.append((*_sizes(rows.findings.path, value), _hits(rows.findings.path, ids, blocks, seen)))
                numbers.append(number)
            except DescriptionError as error:
                rows.findings.found.extend(replace(finding, line=number) for finding in error.findings)
                if len(rows.findings) >= MAX_FINDINGS:
                    rows.findings.refuse()
        if made:
            arrival, inputs, outputs, hits = np.array(made, np.float64).T.copy()
            rows.add(numbers, arrival * 1e-3, inputs, outputs, np.minimum(hits, inputs) if blocks else None)
    return "Mooncake JSONL"


def _request(path: str, text: str) -> dict[str, Any]:
    value = parse_json(text, path)
    if not isinstance(value, dict) or not {"timestamp", "input_length", "output_length"} <= value.keys():
        raise DescriptionError.single(path, "needs an object with timestamp, input_length and output_length")
    return value


def _sizes(path: str, value: Mapping[str, Any]) -> tuple[float, int, int]:
    findings = []
    time = value["timestamp"]
    if isinstance(time, bool) or not isinstance(time, int | float) or not 0 <= time < 1e18:
        findings.append(f"timestamp is {quoted(str(time))}, not a time in milliseconds")
    for name in ("input_length", "output_length"):
        if type(value[name]) is not int or not 0 <= value[name] <= MAX_TOKENS:
            findings.append(f"{name} is {quoted(str(value[name]))}, not a whole number from 0 to {MAX_TOKENS}")
    if findings:
        raise DescriptionError([Finding(path, told) for told in findings])
    return float(time), value["input_length"], value["output_length"]


def _hits(path: str, ids: object, expected: bool, seen: set[int]) -> int:
    """Tokens of leading blocks that came before, with a cache that forgets nothing; remembers all blocks."""
    if (ids is not None) != expected:
        raise DescriptionError.single(path, "hash_ids must be in all lines or in none")
    if ids is None:
        return 0
    if not isinstance(ids, list) or any(type(one) is not int for one in ids):
        raise DescriptionError.single(path, "hash_ids must be a list of whole numbers")
    known = next((index for index, one in enumerate(ids) if one not in seen), len(ids))
    seen.update(ids)
    if len(seen) > MAX_BLOCKS:
        raise DescriptionError.single(path, f"names more than {MAX_BLOCKS} different blocks; cut the trace into parts")
    return known * BLOCK_TOKENS
