"""Tables of serving runs (CSV, one configuration a row) -> workers and plans, with what was measured where given.

Columns that must be there: model, system, backend, isl, osl, concurrency. Optional: precision, gemm_quant, moe_quant,
kv_quant, tp, pp, attention_dp (1 where absent), moe_tp, moe_ep (by default no expert parallelism), speculative (0 or
1), and what was measured: ttft_ms and tpot_ms, or measured_ttft_ms and measured_tpot_ms. Others are kept as they are.

A row is answered where it can be: a split that leaves GPUs with unequal shares is predicted by its largest share, one
that contradicts itself by the nearest that does not, and `notes` says so. Names are those of files in a folder or of
the catalogue, never paths.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from planner import catalog
from planner.cost.serving.notes import widened
from planner.cost.serving.precision import WEIGHT_FORMATS, kv_element_bytes, served
from planner.cost.serving.predict import ServingPlans
from planner.cost.serving.worker import BACKENDS, Backend, ServingWorker, is_moe
from planner.hardware import DeviceKind
from planner.model.spec import ModelSpec
from planner.readers.csv_table import CsvTable, Findings, read_csv_table
from planner.readers.model_names import ModelNames

FloatArray = npt.NDArray[np.float64]

REQUIRED = ("model", "system", "backend", "isl", "osl", "concurrency")
TOKENS = ("isl", "osl", "concurrency")
SIZES = ("tp", "pp", "attention_dp", "moe_tp", "moe_ep")
QUANTS = ("precision", "gemm_quant", "moe_quant")
MEASURED = ("ttft_ms", "tpot_ms")
#: What makes two rows the same worker.
WORKER_COLUMNS = ("model", "system", "backend", *QUANTS, "kv_quant", *SIZES, "speculative")
#: Quantisations as rows name them, and what they are here; "" leaves the checkpoint's own. Source of the names beyond
#: WEIGHT_FORMATS: AIConfigurator's quantisation modes.
QUANT_NAMES: Mapping[str, str] = {
    **{name: name for name in WEIGHT_FORMATS},
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
BACKEND_NAMES: Mapping[str, Backend] = {name: name for name in BACKENDS}
FLAGS: Mapping[str, bool] = {"": False, "0": False, "1": True, "false": False, "true": True, "no": False, "yes": True}

MAX_TOKENS, MAX_GPUS, MAX_MS = 1 << 24, 1 << 16, 1e9


class RowWorker(ServingWorker):
    """A worker of a table: the reader refuses what cannot be at all, and notes what an engine would refuse."""

    def problems(self) -> Iterator[str]:
        """None: unequal shares are predicted by the largest."""
        return iter(())

    def uneven(self) -> Iterator[str]:
        """What an engine would refuse, in the words of ServingWorker.problems."""
        return super().problems()


@dataclass(frozen=True, slots=True, eq=False)
class ServingRows:
    """A table of runs.

    table : the file as it is. workers : the distinct workers; plans.worker tells which one a row uses.
    notes : what was assumed, by row. ttft_s, tpot_s : measured, [rows], NaN where the table has none.
    """

    table: CsvTable
    workers: tuple[ServingWorker, ...]
    plans: ServingPlans
    notes: tuple[tuple[str, ...], ...]
    ttft_s: FloatArray
    tpot_s: FloatArray

    def column(self, name: str) -> tuple[str, ...]:
        """One column as text; empty strings when the table has none of that name."""
        return self.table.column(name)

    def with_columns(self, columns: Mapping[str, Sequence[str]]) -> str:
        """The table as CSV text with more columns at its end, [rows] each.

        Columns of the table with the same names move out of the way: ttft_ms and tpot_ms, which are measurements, to
        measured_ttft_ms and measured_tpot_ms, others to input_<name>. DescriptionError when that name is taken.
        """
        return self.table.with_columns(columns, {name: f"measured_{name}" for name in MEASURED})


def read_serving_rows(path: str | Path, models: str | Path | None = None, *, measured: bool = True) -> ServingRows:
    """Read a table ('-' is standard input).

    models : a folder of `<org>--<name>.json` config files, asked before the catalogue.
    measured : read what was measured; without it those columns are not looked at, whatever they hold.

    Raises DescriptionError with all problems: missing columns, sizes that are no whole numbers, unknown models,
    devices, backends and quantisations, more pipeline stages than layers.
    """
    table = read_csv_table(path, REQUIRED)
    reader = _Reader(table.path, ModelNames(models))
    rows = [reader.row(line, cells, measured) for line, cells in table.rows()]
    reader.findings.refuse()
    made = [row for row in rows if row is not None]
    columns = np.array([[*row.tokens, *row.times_s] for row in made], dtype=np.float64).T
    isl, osl, concurrency, ttft, tpot = columns
    return ServingRows(
        table=table,
        workers=tuple(reader.workers),
        plans=ServingPlans.of([row.worker for row in made], concurrency, isl, osl),
        notes=tuple(row.notes for row in made),
        ttft_s=ttft,
        tpot_s=tpot,
    )


@dataclass(frozen=True, slots=True)
class _Row:
    """tokens : in the order of TOKENS; times_s : of MEASURED."""

    worker: int
    tokens: tuple[int, ...]
    times_s: tuple[float, ...]
    notes: tuple[str, ...]


class _Reader:
    """Rows to workers; equal configurations become one worker, and a bad name is told once."""

    def __init__(self, path: str, models: ModelNames) -> None:
        self.models = models
        self.findings = Findings(path)
        self.workers: list[RowWorker] = []
        self._by_cells: dict[tuple[str, ...], tuple[int, tuple[str, ...]] | None] = {}
        self._models: dict[str, ModelSpec | None] = {}
        self._devices: dict[str, DeviceKind | None] = {}
        self._served: dict[tuple[str, str, str], ModelSpec] = {}

    def row(self, line: int, cells: Mapping[str, str], measured: bool) -> _Row | None:
        before = len(self.findings)
        tokens = tuple(self.findings.whole(line, name, cells[name], MAX_TOKENS) for name in TOKENS)
        times_s = tuple(self._time(line, name, cells) if measured else math.nan for name in MEASURED)
        key = tuple(cells.get(name, "").strip() for name in WORKER_COLUMNS)
        if key not in self._by_cells:
            self._by_cells[key] = self._worker(line, dict(zip(WORKER_COLUMNS, key, strict=True)))
        known = self._by_cells[key]
        if known is None or len(self.findings) > before:
            return None
        return _Row(known[0], tokens, times_s, known[1])

    def _worker(self, line: int, cells: Mapping[str, str]) -> tuple[int, tuple[str, ...]] | None:
        """Index of the worker and its notes; None when something is wrong with it."""
        before = len(self.findings)
        model = self.findings.look_up(self._models, line, "model", cells["model"], self.models.find)
        device = self.findings.look_up(self._devices, line, "system", cells["system"], catalog.device)
        backend = self.findings.choice(line, "backend", cells["backend"], BACKEND_NAMES)
        quants = {name: self.findings.choice(line, name, cells[name], QUANT_NAMES) or "" for name in QUANTS}
        kv_quant = self.findings.choice(line, "kv_quant", cells["kv_quant"], KV_QUANTS)
        speculative = self.findings.choice(line, "speculative", cells["speculative"], FLAGS)
        sizes = {name: self.findings.whole(line, name, cells[name] or "1", MAX_GPUS) for name in SIZES}
        if model is not None and sizes["pp"] > model.num_hidden_layers:
            told = f"pp is {sizes['pp']}, more than the {model.num_hidden_layers} layers of {model.name}"
            self.findings.tell(line, told)
        if model is None or device is None or backend is None or len(self.findings) > before:
            return None
        made = self._in_formats(model, quants["gemm_quant"] or quants["precision"], quants["moe_quant"])
        given = (sizes[name] if cells[name] else None for name in ("moe_tp", "moe_ep"))
        moe_tp, moe_ep, notes = _expert_split(made, sizes["tp"] * sizes["attention_dp"], *given)
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
        notes += widened(worker)
        self.workers.append(worker)
        return len(self.workers) - 1, (*notes, *made.assumptions)

    def _in_formats(self, model: ModelSpec, dense: str, experts: str) -> ModelSpec:
        key = (model.name, dense, experts)
        if key not in self._served:
            self._served[key] = served(model, dense, experts)
        return self._served[key]

    def _time(self, line: int, column: str, cells: Mapping[str, str]) -> float:
        """Seconds from milliseconds; NaN for an empty cell."""
        named = f"measured_{column}" if f"measured_{column}" in cells else column
        return self.findings.positive(line, named, cells.get(named, ""), MAX_MS) / 1e3


def _expert_split(
    model: ModelSpec, stage_gpus: int, moe_tp: int | None, moe_ep: int | None
) -> tuple[int, int, list[str]]:
    """moe_tp and moe_ep whose product is the GPUs of a stage, as near to the given ones as can be, and what changed.

    Where they contradict each other moe_ep is kept if it divides the GPUs, else moe_tp if it does. A GPU has an expert.
    """
    if not model.num_moe_layers:
        return 1, 1, []
    by_tp = moe_ep is None or (stage_gpus % moe_ep != 0 and moe_tp is not None)
    if moe_tp is not None and by_tp and stage_gpus % moe_tp == 0:
        tp, ep = moe_tp, stage_gpus // moe_tp
    else:
        ep = math.gcd(moe_ep or 1, stage_gpus)
        tp = stage_gpus // ep
    most = min(layer.mlp.num_experts for layer, _ in model.layer_groups() if is_moe(layer))
    if ep > most:
        ep = next(size for size in range(most, 0, -1) if stage_gpus % size == 0)
        tp = stage_gpus // ep
    if tp == (moe_tp or tp) and ep == (moe_ep or ep):
        return tp, ep, []
    told = f"experts taken as moe_tp {tp} x moe_ep {ep}: their product is the {stage_gpus} GPUs of tp x attention_dp"
    return tp, ep, [told]
