"""Tables of training runs (CSV, one configuration a row) -> measured step times by GPU and framework.

Columns that must be there: gpu, gbs, seq, and what was measured: step_s, or metric and value as published tables have
them (iter_time in s, tokens_per_gpu_s, samples_per_gpu_s; rows with another metric are left out). The model is named by
`model`, or described by layers, hidden, heads, ffn and vocab (with kv_heads; gated_mlp and tied as 0 or 1). Optional:
tp, pp, vpp, cp, ep (1 where absent), dp (what is left of n_gpus), mbs (1), zero (1; fsdp is 3), sp (1, or 0),
recompute, schedule, precision, framework, gpus_per_node, inter_node_bandwidth such as 400Gbit/s (of one GPU).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from planner import catalog
from planner.cost.training.calibration import MeasuredSteps
from planner.cost.training.communication import TrainingNetwork
from planner.cost.training.model import TrainingModel
from planner.cost.training.plans import Recompute, Schedule, TrainingPlans, problems
from planner.errors import DescriptionError
from planner.hardware import DeviceKind
from planner.model.spec import ModelSpec
from planner.readers.csv_table import CsvTable, Findings, read_csv_table
from planner.readers.model_names import ModelNames
from planner.units import BANDWIDTH_UNITS, parse_quantity

REQUIRED = ("gpu", "gbs", "seq")
DIMENSIONS = ("layers", "hidden", "heads", "ffn", "vocab")
SIZES = ("tp", "pp", "vpp", "cp", "ep", "mbs")
FRAMEWORK = "mine"
FLAGS: Mapping[str, bool] = {"0": False, "1": True, "false": False, "true": True}
ZERO: Mapping[str, int] = {"": 1, "0": 0, "1": 1, "2": 2, "3": 3, "fsdp": 3}
RECOMPUTE: Mapping[str, Recompute] = {"": Recompute.NONE, **{mode.name.lower(): mode for mode in Recompute}}
SCHEDULES: Mapping[str, Schedule] = {
    **dict.fromkeys(("", "none", "1f1b", "interleaved", "interleaved-1f1b"), Schedule.ONE_F_ONE_B),
    "gpipe": Schedule.GPIPE,
    "zb-1p": Schedule.ZB_1P,
    "zb-2p": Schedule.ZB_2P,
    "zb-v": Schedule.ZB_V,
}
DTYPES: Mapping[str, str] = {"": "bf16", "bf16": "bf16", "fp16": "fp16", "fp8": "fp8"}
MAX_SIZE, MAX_VALUE = 1 << 24, 1e12


@dataclass(frozen=True, slots=True)
class TrainingRuns:
    """Step times of one device and framework: a batch for each run with the line it is in, in the table's order."""

    device: str
    framework: str
    batches: tuple[MeasuredSteps, ...]
    lines: tuple[int, ...]


def read_training_rows(path: str | Path, models: str | Path | None = None) -> tuple[TrainingRuns, ...]:
    """Read a table ('-' is standard input), one TrainingRuns for each device and framework.

    models : a folder of `<org>--<name>.json` config files, asked before the catalogue.
    Raises DescriptionError with all problems: names, sizes, plans that are illegal, and a table without a step time.
    """
    table = read_csv_table(path, REQUIRED)
    reader = _Reader(table, ModelNames(models))
    found: dict[tuple[str, str], list[tuple[MeasuredSteps, int]]] = {}
    for line, cells in table.rows():
        made = reader.row(line, cells)
        if made is not None:
            key = made.device.name, cells.get("framework", "").strip() or FRAMEWORK
            found.setdefault(key, []).append((made, line))
    reader.findings.refuse()
    if not found:
        raise DescriptionError.single(table.path, "has no measured step_s in any row")
    return tuple(TrainingRuns(*key, *zip(*runs, strict=True)) for key, runs in found.items())


class _Reader:
    def __init__(self, table: CsvTable, models: ModelNames) -> None:
        self.findings = Findings(table.path)
        self.models = models
        self._specs: dict[str, ModelSpec | None] = {}
        self._devices: dict[str, DeviceKind | None] = {}

    def row(self, line: int, cells: Mapping[str, str]) -> MeasuredSteps | None:
        """None for a row without a step time, and for a wrong one, which is told."""
        before = len(self.findings)
        sizes = {name: self._size(line, name, cells) for name in (*SIZES, "gbs", "seq")}
        rest = sizes["tp"] * sizes["pp"] * sizes["cp"]
        gpus = (
            rest * self._size(line, "dp", cells)
            if cells.get("dp", "").strip()
            else self._size(line, "n_gpus", cells, rest)
        )
        step_s = self._step_s(line, cells, gpus, sizes["gbs"], sizes["seq"])
        if math.isnan(step_s) and len(self.findings) == before:
            return None
        model = self._model(line, cells)
        device = self.findings.look_up(self._devices, line, "gpu", cells["gpu"].strip(), catalog.device)
        choices: dict[str, Any] = {
            name: self.findings.choice(line, name, cells.get(name, ""), known)
            for name, known in (
                ("zero", ZERO),
                ("recompute", RECOMPUTE),
                ("schedule", SCHEDULES),
                ("precision", DTYPES),
            )
        }
        parallel = self.findings.choice(line, "sp", cells.get("sp", "").strip() or "1", FLAGS)
        if gpus % rest:
            self.findings.tell(line, f"n_gpus {gpus} is not a multiple of tp x pp x cp, {rest}")
        if model is None or device is None or len(self.findings) > before:
            return None
        plan = TrainingPlans.build(
            tensor_parallel_size=sizes["tp"],
            pipeline_parallel_size=sizes["pp"],
            virtual_pipeline_size=sizes["vpp"],
            context_parallel_size=sizes["cp"],
            expert_parallel_size=sizes["ep"],
            data_parallel_size=gpus // rest,
            micro_batch_size=sizes["mbs"],
            global_batch_size=sizes["gbs"],
            sequence_length=sizes["seq"],
            zero_stage=choices["zero"],
            recompute=choices["recompute"],
            schedule=choices["schedule"],
            sequence_parallel=bool(parallel),
        )
        for problem in problems(plan, model):
            self.findings.tell(line, problem.reason)
        network = self._network(line, cells, device, gpus)
        if network is None or len(self.findings) > before:
            return None
        return MeasuredSteps(model, device, network, plan, np.array([step_s]), choices["precision"])

    def _size(self, line: int, name: str, cells: Mapping[str, str], default: int = 1) -> int:
        return self.findings.whole(line, name, cells.get(name, "").strip() or str(default), MAX_SIZE)

    def _step_s(self, line: int, cells: Mapping[str, str], gpus: int, sequences: int, length: int) -> float:
        """Seconds of a step from whatever the row has; NaN when it has none."""
        if cells.get("step_s", "").strip():
            return self.findings.positive(line, "step_s", cells["step_s"], MAX_VALUE)
        metric = cells.get("metric", "").strip().lower()
        amounts = {
            "iter_time": 1.0,
            "iter_time_derived": 1.0,
            "tokens_per_gpu_s": sequences * length / gpus,
            "samples_per_gpu_s": sequences / gpus,
        }
        if metric not in amounts:
            return math.nan
        value = self.findings.positive(line, "value", cells.get("value", ""), MAX_VALUE)
        return value if metric.startswith("iter_time") else amounts[metric] / value

    def _model(self, line: int, cells: Mapping[str, str]) -> TrainingModel | None:
        given = {name: cells.get(name, "").strip() for name in DIMENSIONS}
        name = cells.get("model", "").strip()
        if not all(given.values()):
            spec = self.findings.look_up(self._specs, line, "model", name, self.models.find)
            return None if spec is None else TrainingModel.from_spec(spec)
        before = len(self.findings)
        sizes = {name: self.findings.whole(line, name, text, MAX_SIZE) for name, text in given.items()}
        kv_heads = self._size(line, "kv_heads", cells, sizes["heads"])
        gated, tied = (
            self.findings.choice(line, name, cells.get(name, "").strip() or "0", FLAGS)
            for name in ("gated_mlp", "tied")
        )
        if len(self.findings) > before:
            return None
        try:
            return TrainingModel.dense(
                name=name or "dense",
                layers=sizes["layers"],
                hidden=sizes["hidden"],
                heads=sizes["heads"],
                ffn=sizes["ffn"],
                vocab=sizes["vocab"],
                kv_heads=kv_heads,
                gated=bool(gated),
                tied=bool(tied),
            )
        except ValueError as error:
            self.findings.tell(line, str(error))
            return None

    def _network(self, line: int, cells: Mapping[str, str], device: DeviceKind, gpus: int) -> TrainingNetwork | None:
        per_node = self._size(line, "gpus_per_node", cells, device.scale_up_domain_gpus)
        text = cells.get("inter_node_bandwidth", "").strip()
        try:
            outside = parse_quantity(text, BANDWIDTH_UNITS, "a bandwidth") if text else None
            if outside is None and gpus > per_node:
                self.findings.tell(line, f"inter_node_bandwidth must be given: {gpus} GPUs in nodes of {per_node}")
                return None
            return TrainingNetwork.of(
                device, inter_node_bytes_per_s=1.0 if outside is None else outside, gpus_per_node=per_node
            )
        except ValueError as error:
            self.findings.tell(line, f"inter_node_bandwidth: {error}")
            return None
