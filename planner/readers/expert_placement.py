"""Placements in force -> rows of logical experts per slot: plan documents and the maps of serving engines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from planner.descriptions.experts import MAX_EXPERTS, MAX_LAYERS, MAX_SLOTS
from planner.errors import DescriptionError
from planner.files import Loc, SourceText, read_source, validate
from planner.plan import ExpertsDocument
from planner.readers.npy import read_npy
from planner.workload import IntArray


@dataclass(frozen=True, slots=True, eq=False)
class PlacementMap:
    """physical_to_logical int64 [rows, num_slots], with `layer_ids` of the rows.

    Without layer_ids the rows are the MoE layers when they are as many as those asked for, or all decoder
    layers when they are as many as those; with `moe_rows` they are the MoE layers only. num_gpus is known of plan
    documents.
    """

    source: str
    physical_to_logical: IntArray
    layer_ids: tuple[int, ...] | None
    moe_rows: bool = False
    num_gpus: int | None = None

    def rows(self, layer_ids: tuple[int, ...], num_decoder_layers: int) -> IntArray:
        """The rows of these absolute layers; DescriptionError when one is missing."""
        have = self.layer_ids
        if have is None:
            count = len(self.physical_to_logical)
            all_layers = count == num_decoder_layers and not self.moe_rows
            if count != len(layer_ids) and not all_layers:
                message = f"has {count} rows for {len(layer_ids)} MoE layers of {num_decoder_layers} layers"
                raise DescriptionError.single(self.source, message)
            have = layer_ids if count == len(layer_ids) else tuple(range(count))
        index = {layer: row for row, layer in enumerate(have)}
        missing = [layer for layer in layer_ids if layer not in index]
        if missing:
            raise DescriptionError.single(self.source, f"has no row for layers {missing[:10]}")
        return self.physical_to_logical[[index[layer] for layer in layer_ids]]


def read_expert_placement(path: Path) -> PlacementMap:
    """Read a placement in force; raises DescriptionError when it is damaged or of none of these forms.

    gpuplan plan document; SGLang `physical_to_logical_map`; TensorRT-LLM `initial_global_assignments` (by
    absolute layer); vllm-ascend `layer_list` (MoE layers, devices in order); `.npy` integers [layers, slots].
    """
    if path.suffix.lower() == ".npy":
        return _from_npy(path)
    source = read_source(path)
    value = source.value
    if isinstance(value, dict) and "physical_to_logical_map" in value:
        rows = _rows(source, ("physical_to_logical_map",), value["physical_to_logical_map"])
        return PlacementMap(source.path, rows, None)
    if isinstance(value, dict) and "initial_global_assignments" in value:
        return _from_tensorrt_llm(source)
    if isinstance(value, dict) and "layer_list" in value:
        return _from_vllm_ascend(source)
    document = validate(source, ExpertsDocument)
    if document.plan is None:
        raise DescriptionError.single(source.path, f"holds no plan (status {document.outcome.status})")
    plan = document.plan
    return PlacementMap(source.path, plan.array, plan.layer_ids, num_gpus=plan.num_gpus)


def _from_npy(path: Path) -> PlacementMap:
    array = read_npy(path)
    if array.dtype.kind not in "iu" or array.ndim != 2:
        raise DescriptionError.single(path, f"needs integers [layers, slots], got {array.dtype} {array.shape}")
    if array.shape[0] > MAX_LAYERS or array.shape[1] > MAX_SLOTS:
        raise DescriptionError.single(path, f"shape {array.shape} is beyond any real model")
    if array.min() < 0 or array.max() >= MAX_EXPERTS:
        message = f"names experts {array.min()} to {array.max()}; ids are from 0 to {MAX_EXPERTS - 1}"
        raise DescriptionError.single(path, message)
    return PlacementMap(str(path), array.astype(np.int64), None)


def _from_tensorrt_llm(source: SourceText) -> PlacementMap:
    """`moe_load_balancer.yaml`: {layer: [expert of each slot]} by absolute layer, and num_slots."""
    key = "initial_global_assignments"
    assignments = source.value[key]
    if not isinstance(assignments, dict) or not assignments:
        raise _error(source, (key,), "needs one row of expert ids a layer")
    row_of: dict[int, Any] = {}
    for name, row in assignments.items():
        if not str(name).isdecimal() or not str(name).isascii() or len(str(name)) > 9:
            raise _error(source, (key, str(name)), "is not a layer number")
        if int(name) in row_of or int(name) >= MAX_LAYERS:
            raise _error(source, (key, str(name)), f"layers are given once and lie below {MAX_LAYERS}")
        row_of[int(name)] = row
    layer_ids = tuple(sorted(row_of))
    rows = _rows(source, (key,), [row_of[layer] for layer in layer_ids])
    num_slots = source.value.get("num_slots", rows.shape[1])
    if num_slots != rows.shape[1]:
        raise _error(source, ("num_slots",), f"is {str(num_slots)[:40]}, but the rows have {rows.shape[1]} slots")
    return PlacementMap(source.path, rows, layer_ids)


def _from_vllm_ascend(source: SourceText) -> PlacementMap:
    """Expert map JSON: layer_list[].device_list[].device_expert; layer_id counts the MoE layers from 0."""
    loc: Loc = ("layer_list",)
    layers = _ordered(source, loc, source.value["layer_list"], "layer_id")
    if source.value.get("moe_layer_count", len(layers)) != len(layers):
        raise _error(source, ("moe_layer_count",), f"layer_list has {len(layers)} layers")
    rows, shapes = [], set()
    for index, layer in enumerate(layers):
        devices = _ordered(source, loc, layer.get("device_list"), "device_id")
        if layer.get("device_count", len(devices)) != len(devices):
            raise _error(source, loc, f"layer_id {index}: device_list has {len(devices)} devices")
        slots = [experts for device in devices if isinstance(experts := device.get("device_expert"), list)]
        if len(slots) != len(devices):
            raise _error(source, loc, f"layer_id {index}: each device needs device_expert, a list of expert ids")
        shapes |= {(len(devices), len(experts)) for experts in slots}
        rows.append([expert for experts in slots for expert in experts])
    if len(shapes) > 1:
        raise _error(source, loc, "every device of every layer needs the same number of experts")
    return PlacementMap(source.path, _rows(source, loc, rows), None, moe_rows=True)


def _ordered(source: SourceText, loc: Loc, items: object, key: str) -> list[dict[str, Any]]:
    """Objects in the order of their number `key`, which has to run from 0 without gaps."""
    if not isinstance(items, list) or not items or not all(isinstance(item, dict) for item in items):
        raise _error(source, loc, "needs a list of objects")
    numbers = [item.get(key) for item in items]
    if not all(type(number) is int for number in numbers) or sorted(numbers) != list(range(len(items))):
        raise _error(source, loc, f"{key} needs to run from 0 to {len(items) - 1}, each once")
    return sorted(items, key=lambda item: int(item[key]))


def _rows(source: SourceText, loc: Loc, rows: object) -> IntArray:
    """Equal rows of expert ids as int64 [rows, slots]."""
    if (
        not isinstance(rows, list)
        or not rows
        or not all(isinstance(row, list) and row and len(row) == len(rows[0]) for row in rows)
    ):
        raise _error(source, loc, "needs rows of expert ids, all of the same length")
    if len(rows) > MAX_LAYERS or len(rows[0]) > MAX_SLOTS:
        raise _error(source, loc, f"{len(rows)} layers x {len(rows[0])} slots is beyond any real model")
    for row in rows:
        for expert in row:
            if type(expert) is not int or not 0 <= expert < MAX_EXPERTS:
                raise _error(source, loc, f"{str(expert)[:40]!r} is not an expert id (0 to {MAX_EXPERTS - 1})")
    return np.array(rows, dtype=np.int64)


def _error(source: SourceText, loc: Loc, message: str) -> DescriptionError:
    return DescriptionError([source.finding(loc, message)])
