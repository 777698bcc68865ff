"""Headers of request traces: which column holds what, and how its times are written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from planner.errors import DescriptionError, Finding
from planner.readers.csv_table import MAX_FINDINGS, TRANSPOSED, Findings, quoted
from planner.workload import FloatArray

#: Most tokens of a request, input or output.
MAX_TOKENS = 1 << 24
#: A number this large is no time in seconds: 1e11 s is the year 5138, and 1e11 ms is 1973.
LEAST_MS = 1e11

_BARE = ("arrival", "arrival_time", "arrival_timestamp", "arrived_at", "timestamp", "time", "t")
#: Column names by what they hold, lower case, words joined by _; arrival also with _s or _ms.
ARRIVAL: Mapping[str, float | None] = {
    **dict.fromkeys(_BARE),
    **{f"{name}_s": 1.0 for name in _BARE},
    **{f"{name}_ms": 1e-3 for name in _BARE},
}
INPUT = (
    "input_tokens", "input_length", "input_len", "input", "isl", "prompt_tokens", "prompt_length", "prompt_len",
    "context_tokens", "contexttokens", "request_tokens", "num_prefill_tokens",
)  # fmt: skip
OUTPUT = (
    "output_tokens", "output_length", "output_len", "output", "osl", "completion_tokens", "generated_tokens",
    "generatedtokens", "response_tokens", "num_decode_tokens",
)  # fmt: skip
PREFIX = ("prefix_tokens", "ideal_prefix_hit_tokens", "cached_tokens")
TOTAL = ("total_tokens",)
#: What a table is called whose header has these columns, and the unit of its times where they are numbers.
FORMATS: Sequence[tuple[str, frozenset[str], float | None]] = (
    ("Azure LLM inference", frozenset({"timestamp", "contexttokens", "generatedtokens"}), None),
    ("BurstGPT", frozenset({"timestamp", "request_tokens", "response_tokens"}), 1.0),
    ("Mooncake", frozenset({"timestamp", "input_length", "output_length"}), 1e-3),
)

#: Day, time to the microsecond (Azure writes more digits), zone.
_DATE = re.compile(
    r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d(?:\.\d{1,6})?)(?:(?<=\.\d{6})\d{1,3})? ?(Z|UTC|([+-])(\d\d):?(\d\d))?"
)


@dataclass(frozen=True, slots=True)
class TraceColumns:
    """Where a table holds what, by index; unit : of times in seconds, None when the first one has to tell."""

    known: str
    names: tuple[str, ...]
    arrival: int
    tokens: tuple[int, int]
    prefix: int | None
    total: int | None
    unit: float | None


def trace_columns(path: str, header: Sequence[str], line: int) -> TraceColumns:
    """What the columns of a header hold; DescriptionError for what is missing or there twice."""
    names = tuple(re.sub(r"[\s\-]+", "_", name.strip().lower()) for name in header)
    findings = []

    def one(what: str, known: Iterable[str], required: bool = True) -> int:
        found = [index for index, name in enumerate(names) if name in known]
        if len(found) > 1:
            both = ", ".join(quoted(header[index]) for index in found)
            findings.append(f"has several columns for {what}: {both}; keep one")
        elif required and not found:
            hint = "; fields are separated by commas" if len(names) == 1 and set(names[0]) & set(";\t") else ""
            findings.append(f"has no column for {what} (such as {', '.join(list(known)[:5])}){hint}")
        return found[0] if found else -1

    arrival = one("the arrival", ARRIVAL)
    tokens = one("input tokens", INPUT), one("output tokens", OUTPUT)
    prefix, total = one("prefix tokens", PREFIX, False), one("total tokens", TOTAL, False)
    if findings:
        columns = {arrival, *tokens, prefix, total} - {-1}
        if columns == {0} and len(names) > 1:
            findings.append(TRANSPOSED)
        raise DescriptionError([Finding(path, told, line) for told in findings])
    known, unit = "plain table", ARRIVAL[names[arrival]]
    for name, needed, its_unit in FORMATS:
        if needed <= set(names):
            known, unit = name, its_unit
            break
    return TraceColumns(
        known, names, arrival, tokens, None if prefix < 0 else prefix, None if total < 0 else total, unit
    )


@dataclass(frozen=True, slots=True)
class ArrivalTimes:
    """How an arrival column is read. unit : of its numbers in seconds, None for dates; name : for messages."""

    name: str
    unit: float | None

    @classmethod
    def of(cls, columns: TraceColumns, first: str) -> ArrivalTimes:
        """A column whose name says no unit holds dates if its first cell is one, else seconds."""
        bare = ARRIVAL[columns.names[columns.arrival]] is None
        unit = 1.0 if columns.unit is None else columns.unit
        return cls(columns.names[columns.arrival], None if bare and _DATE.fullmatch(first.strip()) else unit)

    def seconds(self, lines: Sequence[int], texts: Sequence[str], told: Findings) -> FloatArray:
        """Times of some rows, [rows], NaN where a finding was told."""
        if self.unit is None:
            values = _dates(texts)
            for row in first_bad(np.isnan(values)):
                told.tell(
                    lines[row], f"{self.name} is {quoted(texts[row])}, not a date and time as 2024-05-10 00:00:00.5"
                )
            return values
        values = numbers_of(texts)
        most = np.inf if self.unit < 1 else LEAST_MS
        for row in first_bad(~((values >= 0) & (values < most))):
            hint = "not a time in seconds"
            if values[row] >= LEAST_MS:
                hint = "too large for seconds; if these are milliseconds, call the column timestamp_ms"
            told.tell(lines[row], f"{self.name} is {quoted(texts[row])}, {hint}")
            values[row] = np.nan
        return values * self.unit


def numbers_of(texts: Sequence[str]) -> FloatArray:
    """Numbers, NaN for what is none."""
    try:
        values = np.array(list(map(float, texts)))
    except ValueError:
        values = np.array([_float(text) for text in texts])
    values[~np.isfinite(values)] = np.nan
    return values


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return np.nan


def _dates(texts: Sequence[str]) -> FloatArray:
    """Seconds since 1970, NaN for what is no date. Zones are taken off; a time without one is UTC."""
    found = [_DATE.fullmatch(text.strip()) for text in texts]
    written = ["NaT" if match is None else f"{match[1]}T{match[2]}" for match in found]
    try:
        moments = np.array(written, "datetime64[us]")
    except ValueError:  # A 13th month, somewhere.
        moments = np.array([_moment(text) for text in written], "datetime64[us]")
    offsets = [0 if match is None or match[4] is None else _offset_s(*match.group(4, 5, 6)) for match in found]
    seconds = np.asarray(moments.astype(np.int64) / 1e6 - np.array(offsets), np.float64)
    seconds[np.isnat(moments)] = np.nan
    return seconds


def _moment(text: str) -> np.datetime64:
    try:
        return np.datetime64(text, "us")
    except ValueError:
        return np.datetime64("NaT", "us")


def _offset_s(sign: str, hours: str, minutes: str) -> int:
    return (-1 if sign == "-" else 1) * (3600 * int(hours) + 60 * int(minutes))


def first_bad(bad: npt.NDArray[np.bool_]) -> Iterable[int]:
    """The first rows that are bad, as many as are ever shown."""
    return (int(row) for row in np.flatnonzero(bad)[:MAX_FINDINGS])
