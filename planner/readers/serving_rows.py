"""Tables of serving runs (CSV, one configuration a row) -> workers and plans, with what was measured where given.

Columns that must be there: model, system, backend, isl, osl, concurrency. Optional: precision, gemm_quant, moe_quant,
kv_quant, tp, pp, attention_dp (1 where absent), moe_tp, moe_ep (the GPUs of a stage are split by expert as moe_ep says,
each expert over the rest), speculative (0 or 1), ttft_ms and tpot_ms or measured_ttft_ms and measured_tpot_ms.
Every other column is kept as it is.

A row is answered where it can be: a split that leaves GPUs with unequal shares is predicted by its largest share, one
that contradicts itself by the nearest that does not, and `notes` says so. Names are those of files in a folder or of
the catalogue, never paths.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from planner import catalog
from planner.catalog.models import entry
from planner.cost.serving.precision import WEIGHT_FORMATS, kv_element_bytes, served
from planner.cost.serving.predict import ServingPlans
from planner.cost.serving.worker import BACKENDS, Backend, ServingWorker
from planner.errors import DescriptionError, Finding, OptionError
from planner.files import read_text
from planner.hardware import DeviceKind
from planner.model.spec import ModelSpec
from planner.readers.hf_config import read_model

FloatArray = npt.NDArray[np.float64]
FoundT = TypeVar("FoundT")

REQUIRED = ("model", "system", "backend", "isl", "osl", "concurrency")
TOKENS = ("isl", "osl", "concurrency")
SIZES = ("tp", "pp", "attention_dp", "moe_tp", "moe_ep")
QUANTS = ("precision", "gemm_quant", "moe_quant")
#: What makes two rows the same worker.
WORKER_COLUMNS = ("model", "system", "backend", *QUANTS, "kv_quant", *SIZES, "speculative")
#: Names of quantisations in benchmark logs beyond those of WEIGHT_FORMATS, and what they are here. Source:
#: AIConfigurator's quantisation modes; "none" and empty leave the checkpoint's own.
SYNONYMS: Mapping[str, str] = {
    "": "",
    "none": "",
    "auto": "",
    "bfloat16": "bf16",
    "float16": "bf16",
    "fp8_ootb": "fp8",
    "fp8_static": "fp8",
    "w4afp8": "int4",
    "w4a8_mxfp4_mxfp8": "mxfp4",
    "w4a16_mxfp4": "mxfp4",
    "int4_wo": "int4",
    "int8_wo": "int8",
    "sq": "int8",
}
#: Cache formats; "" is the backend's habit.
KV_QUANTS: Mapping[str, str] = {
    **dict.fromkeys(("", "none", "auto"), ""),
    **dict.fromkeys(("bf16", "fp16", "bfloat16", "float16"), "bf16"),
    **dict.fromkeys(("fp8", "fp8_e4m3", "fp8_e5m2", "int8"), "fp8"),
}
FLAGS: Mapping[str, bool] = {"": False, "0": False, "1": True, "false": False, "true": True, "no": False, "yes": True}

#: Largest table that is read: about 400,000 rows.
MAX_TABLE_BYTES = 64 * 2**20
MAX_TOKENS, MAX_GPUS = 1 << 24, 1 << 16
#: Findings that one message shows; a table with the wrong columns has one in every row.
MAX_FINDINGS = 100
#: Characters of a cell that a message quotes.
QUOTED = 40


class RowWorker(ServingWorker):
    """A worker of a table, of which only what cannot be at all is a problem: the reader refuses it, and notes the rest."""

    def problems(self) -> Iterator[str]:
        """None: unequal shares are predicted by the largest."""
        return iter(())

    def uneven(self) -> Iterator[str]:
        """What an engine would refuse, in the words of ServingWorker.problems."""
        return super().problems()


@dataclass(frozen=True, slots=True, eq=False)
class ServingRows:
    """A table of runs.

    header, fields : the file as it is; lines : where each row begins, from 1.
    workers : the distinct workers; plans.worker tells which one a row uses. notes : what was assumed, by row.
    ttft_s, tpot_s : measured, NaN where the table has none.
    """

    path: str
    header: tuple[str, ...]
    fields: tuple[tuple[str, ...], ...]
    lines: tuple[int, ...]
    workers: tuple[ServingWorker, ...]
    plans: ServingPlans
    notes: tuple[tuple[str, ...], ...]
    ttft_s: FloatArray
    tpot_s: FloatArray

    def column(self, name: str) -> tuple[str, ...]:
        """One column as text; empty strings when the table has none of that name."""
        names = _names(self.header)
        if name not in names:
            return ("",) * len(self.fields)
        index = names.index(name)
        return tuple(row[index] for row in self.fields)

    def with_columns(self, columns: Mapping[str, Sequence[str]]) -> str:
        """The table as CSV text with more columns at its end, [rows] each.

        A column of the table that has one of the new names is renamed: ttft_ms and tpot_ms, which are measurements, to
        measured_ttft_ms and measured_tpot_ms, another one to input_<name>. DescriptionError when that name is taken.
        """
        taken = set(_names(self.header))
        header = []
        for text, name in zip(self.header, _names(self.header), strict=True):
            if name in columns:
                text = f"{'measured' if name in MEASURED else 'input'}_{name}"
                if text in taken:
                    raise DescriptionError.single(self.path, f"column {name} would be written as {text}, which is taken", 1)
            header.append(text)
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([*header, *columns])
        writer.writerows([*row, *added] for row, *added in zip(self.fields, *columns.values(), strict=True))
        return out.getvalue()


MEASURED = ("ttft_ms", "tpot_ms")


def read_serving_rows(path: str | Path, models: str | Path | None = None, *, measured: bool = True) -> ServingRows:
    """Read a table ('-' is standard input).

    models : a folder of `<org>--<name>.json` config files, asked before the catalogue.
    measured : read what was measured; without it those columns are not looked at, whatever they hold.

    Raises DescriptionError with all problems: missing columns, sizes that are no whole numbers, unknown models,
    devices, backends and quantisations, more pipeline stages than layers.
    """
    header, lines = _table(path)
    reader = _Reader(str(path), None if models is None else _folder(models))
    names = _names(header)
    rows = [reader.row(number, dict(zip(names, line, strict=True)), measured) for number, line in lines]
    if reader.findings:
        raise DescriptionError(shortened(reader.findings))
    made = [row for row in rows if row is not None]
    columns = np.array([[row.concurrency, row.isl, row.osl, row.ttft_s, row.tpot_s] for row in made], dtype=np.float64).T
    return ServingRows(
        path=str(path),
        header=header,
        fields=tuple(line for _, line in lines),
        lines=tuple(number for number, _ in lines),
        workers=tuple(reader.workers),
        plans=ServingPlans.of([row.worker for row in made], columns[0], columns[1], columns[2]),
        notes=tuple(row.notes for row in made),
        ttft_s=columns[3],
        tpot_s=columns[4],
    )


def shortened(findings: Sequence[Finding]) -> list[Finding]:
    """The first MAX_FINDINGS, and how many more there are."""
    if len(findings) <= MAX_FINDINGS:
        return list(findings)
    more = Finding(findings[0].path, f"and {len(findings) - MAX_FINDINGS} more problems")
    return [*findings[:MAX_FINDINGS], more]


def _names(header: Sequence[str]) -> tuple[str, ...]:
    return tuple(name.strip().lower() for name in header)


def _table(path: str | Path) -> tuple[tuple[str, ...], list[tuple[int, tuple[str, ...]]]]:
    """Header, and the rows that are not blank with the lines they begin at; all of one length."""
    reader = csv.reader(io.StringIO(read_text(path, MAX_TABLE_BYTES), newline=""), strict=True)
    header: tuple[str, ...] | None = None
    rows: list[tuple[int, tuple[str, ...]]] = []
    ragged: list[Finding] = []
    begins = 1
    try:
        for fields in reader:
            if any(field.strip() for field in fields):
                if header is None:
                    header = tuple(fields)
                    _check_header(path, header, begins)
                elif len(fields) == len(header):
                    rows.append((begins, tuple(fields)))
                elif len(ragged) < MAX_FINDINGS:
                    told = f"has {len(fields)} fields, but the header has {len(header)}"
                    ragged.append(Finding(str(path), told, begins))
            begins = reader.line_num + 1
    except csv.Error as error:
        raise DescriptionError.single(path, f"not valid CSV: {error}", begins) from None
    if ragged:
        raise DescriptionError(ragged)
    if header is None or not rows:
        raise DescriptionError.single(path, "is empty" if header is None else "has no rows below its header")
    return header, rows


def _check_header(path: str | Path, header: tuple[str, ...], line: int) -> None:
    names = _names(header)
    findings = []
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        hint = "; fields are separated by commas" if len(names) == 1 and set(names[0]) & set(";\t") else ""
        findings.append(f"has no column {', '.join(missing)}{hint}")
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        findings.append(f"has two columns {', '.join(map(_quoted, twice))}")
    if findings:
        raise DescriptionError([Finding(str(path), told, line) for told in findings])


def _folder(models: str | Path) -> dict[str, Path]:
    """Config files of a folder by lower-case model name, with and without its organisation."""
    folder = Path(models)
    if not folder.is_dir():
        raise DescriptionError.single(models, "is not a folder of config files")
    found = {}
    for path in sorted(folder.glob("*.json")):
        name = path.stem.replace("--", "/", 1).lower()
        found[name] = path
        found.setdefault(name.rpartition("/")[2], path)
    return found


def _quoted(text: str) -> str:
    return repr(text if len(text) <= QUOTED else f"{text[:QUOTED]}...")


@dataclass(frozen=True, slots=True)
class _Row:
    worker: int
    concurrency: int
    isl: int
    osl: int
    ttft_s: float
    tpot_s: float
    notes: tuple[str, ...]


class _Reader:
    """Rows to workers; equal configurations become one worker, and a bad name is told once."""

    def __init__(self, path: str, files: Mapping[str, Path] | None) -> None:
        self.path, self.files = path, files or {}
        self.findings: list[Finding] = []
        self.workers: list[RowWorker] = []
        self._by_cells: dict[tuple[str, ...], tuple[int, tuple[str, ...]] | None] = {}
        self._models: dict[str, ModelSpec | None] = {}
        self._devices: dict[str, DeviceKind | None] = {}
        self._served: dict[tuple[str, str, str], ModelSpec] = {}
        self._told: set[tuple[str, str]] = set()

    def row(self, line: int, cells: Mapping[str, str], measured: bool) -> _Row | None:
        before = len(self.findings)
        tokens = {name: self._whole(line, name, cells[name], MAX_TOKENS) for name in TOKENS}
        times = [self._time(line, name, cells) if measured else math.nan for name in MEASURED]
        key = tuple(cells.get(name, "").strip() for name in WORKER_COLUMNS)
        if key not in self._by_cells:
            self._by_cells[key] = self._worker(line, dict(zip(WORKER_COLUMNS, key, strict=True)))
        known = self._by_cells[key]
        if known is None or len(self.findings) > before:
            return None
        return _Row(known[0], tokens["concurrency"], tokens["isl"], tokens["osl"], *times, known[1])

    def _worker(self, line: int, cells: Mapping[str, str]) -> tuple[int, tuple[str, ...]] | None:
        before = len(self.findings)
        model = self._cached(self._models, line, "model", cells["model"], self._find_model)
        device = self._cached(self._devices, line, "system", cells["system"], catalog.device)
        backend = self._choice(line, "backend", cells, {name: name for name in BACKENDS})
        quants = {name: self._choice(line, name, cells, SYNONYMS, WEIGHT_FORMATS) for name in QUANTS}
        kv_quant = self._choice(line, "kv_quant", cells, KV_QUANTS)
        speculative = self._choice(line, "speculative", cells, FLAGS)
        sizes = {name: self._whole(line, name, cells[name] or "1", MAX_GPUS) for name in SIZES}
        if model is not None and sizes["pp"] > model.num_hidden_layers:
            self._tell(line, f"pp is {sizes['pp']}, more than the {model.num_hidden_layers} layers of {model.name}")
        if model is None or device is None or backend is None or len(self.findings) > before:
            return None
        dense = quants["gemm_quant"] or quants["precision"] or ""
        experts = quants["moe_quant"] or dense
        key = (cells["model"], dense, experts)
        made = self._served[key] = self._served.get(key) or served(model, dense, experts)
        moe_tp, moe_ep, notes = _expert_split(made, sizes, given=bool(cells["moe_tp"]))
        worker = RowWorker(
            model=made,
            device=device,
            backend=backend,
            tensor_parallel_size=sizes["tp"],
            pipeline_parallel_size=sizes["pp"],
            data_parallel_size=sizes["attention_dp"],
            moe_tensor_parallel_size=moe_tp,
            expert_parallel_size=moe_ep,
            kv_element_bytes=kv_element_bytes(made, backend, kv_quant or ""),
            speculative=bool(speculative),
        )
        notes += [f"{told}: predicted by the largest share" for told in worker.uneven()]
        if not kv_quant:
            notes.append(f"cache taken as {8 * worker.kv_element_bytes:g} bit")
        self.workers.append(worker)
        return len(self.workers) - 1, (*notes, *made.assumptions)

    def _find_model(self, name: str) -> ModelSpec:
        """By the folder's own listing, then the catalogue's: a name is never used as a path."""
        file = self.files.get(name.lower())
        return catalog.model(entry(name).id) if file is None else read_model(file)

    def _cached(
        self, known: dict[str, FoundT | None], line: int, column: str, name: str, find: Callable[[str], FoundT]
    ) -> FoundT | None:
        if name not in known:
            known[name] = None
            try:
                known[name] = find(name)
            except OptionError as error:
                self._tell(line, f"{column}: {error}")
            except DescriptionError as error:
                self.findings.extend(error.findings)
        return known[name]

    def _choice(
        self, line: int, column: str, cells: Mapping[str, str], known: Mapping[str, FoundT], also: Sequence[str] | Mapping[str, object] = ()
    ) -> FoundT | None:
        raise NotImplementedError
