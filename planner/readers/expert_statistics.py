"""Load statistics of TensorRT-LLM and vLLM -> ExpertLoad. SGLang's recordings are read by `expert_loads`.

TensorRT-LLM: a folder with meta_info.json (num_experts) and rank*.safetensors, keys "<iteration>_<layer>", int[E];
iterations and ranks are added up. Source: examples/ep_load_balancer (utils.py) of its repository. Layers are absolute;
those without a record stay rows of zeros, as for dense layers.

vLLM: JSON lines of record_type eplb_load_stats, version 1: expert_load [layers][slots] with its p2l_map. Source: the
tests of vLLM's pull request 41141, which is not merged: 0.33 writes no such file by itself. Other versions are refused.
Rows are MoE layers only; `first_layer` dense layers come before them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from planner.descriptions.experts import MAX_EXPERTS, MAX_LAYERS
from planner.errors import DescriptionError, Finding
from planner.files import parse_json, read_text
from planner.readers.expert_loads import MAX_CELLS
from planner.readers.safetensors import read_safetensors
from planner.workload import ExpertLoad, FloatArray

META = "meta_info.json"
MAX_META_BYTES = 2**20
MAX_RANKS, MAX_RECORDS, MAX_FINDINGS = 4096, 1_000_000, 20
_KEY = re.compile(r"(\d{1,9})_(\d{1,9})")


def read_trtllm_statistics(folder: Path, *, name: str) -> ExpertLoad:
    """Tokens of each expert, float64 [layers, experts]. Raises DescriptionError with all that is wrong."""
    meta = parse_json(read_text(folder / META, MAX_META_BYTES), str(folder / META))
    num_experts = meta.get("num_experts") if isinstance(meta, dict) else None
    if type(num_experts) is not int or not 1 <= num_experts <= MAX_EXPERTS:
        told = f"num_experts must be a whole number from 1 to {MAX_EXPERTS}, got {str(num_experts)[:40]!r}"
        raise DescriptionError.single(folder / META, told)
    # Files of raw token ids have names of the same kind.
    files = sorted(one for one in folder.glob("rank*.safetensors") if not one.stem.endswith("_raw"))
    if not 1 <= len(files) <= MAX_RANKS:
        raise DescriptionError.single(folder, f"has {len(files)} files rank*.safetensors, not 1 to {MAX_RANKS}")
    rows: dict[int, FloatArray] = {}
    findings: list[Finding] = []
    for file in files:
        for key, counts in read_safetensors(file).items():
            match = _KEY.fullmatch(key)
            if match is None or int(match[2]) >= MAX_LAYERS:
                findings.append(Finding(str(file), f"tensor {key[:40]!r} is not named <iteration>_<layer>"))
            elif counts.shape != (num_experts,):
                told = f"tensor {key} has shape {counts.shape}, but {META} says {num_experts} experts"
                findings.append(Finding(str(file), told))
            elif not (np.isfinite(counts) & (counts >= 0)).all():
                findings.append(Finding(str(file), f"tensor {key} has counts that are negative or not finite"))
            else:
                row = rows.setdefault(int(match[2]), np.zeros(num_experts))
                row += counts
            if len(findings) >= MAX_FINDINGS:
                raise DescriptionError(findings)
        if (max(rows, default=0) + 1) * num_experts > MAX_CELLS:
            raise DescriptionError.single(file, f"layer {max(rows)} of {num_experts} experts is beyond any real model")
    if findings:
        raise DescriptionError(findings)
    return _load(folder, rows, num_experts, name)


def read_vllm_statistics(path: str | Path, *, name: str, first_layer: int = 0) -> ExpertLoad:
    """Tokens of each expert, float64 [first_layer + layers, experts]. Raises DescriptionError with every bad line."""
    findings: list[Finding] = []
    total: FloatArray | None = None
    lines = [(n, line) for n, line in enumerate(read_text(path).splitlines(), start=1) if line.strip()]
    if len(lines) > MAX_RECORDS:
        raise DescriptionError.single(path, f"has {len(lines)} records, more than {MAX_RECORDS}")
    for number, line in lines:
        try:
            found = _record(line, str(path))
            if found is None:
                continue
            if total is not None and found.shape != total.shape:
                raise ValueError(f"has {found.shape[0]} layers x {found.shape[1]} experts, records before have others")
            total = found if total is None else total + found
        except (ValueError, DescriptionError) as error:
            told = error.findings[0].message if isinstance(error, DescriptionError) else str(error)
            findings.append(Finding(str(path), told, number))
            if len(findings) >= MAX_FINDINGS:
                break
    if findings:
        raise DescriptionError(findings)
    if total is None:
        raise DescriptionError.single(path, "holds no record of type eplb_load_stats")
    if len(total) + first_layer > MAX_LAYERS:
        raise DescriptionError.single(path, f"{len(total)} layers after {first_layer} are more than {MAX_LAYERS}")
    return _load(path, dict(enumerate(total, start=first_layer)), total.shape[1], name)


def _record(line: str, path: str) -> FloatArray | None:
    """Logical counts of a record, [layers, experts]; None for a record of another type."""
    value = parse_json(line, path)
    if not isinstance(value, dict) or "record_type" not in value:
        raise ValueError("is no record: needs record_type")
    if value["record_type"] != "eplb_load_stats":
        return None
    if value.get("version") != 1:
        raise ValueError(f"version {str(value.get('version'))[:20]} of eplb_load_stats is not known, 1 is")
    load, slots = _matrix(value, "expert_load"), _matrix(value, "p2l_map")
    if load.shape != slots.shape:
        raise ValueError(f"expert_load has shape {load.shape}, p2l_map {slots.shape}")
    if (slots != np.floor(slots)).any() or slots.max() >= MAX_EXPERTS:
        raise ValueError(f"p2l_map needs expert ids from 0 to {MAX_EXPERTS - 1}")
    num_experts = int(slots.max()) + 1
    if len(load) * num_experts > MAX_CELLS:
        raise ValueError(f"{len(load)} layers x {num_experts} experts is beyond any real model")
    logical = np.zeros((len(load), num_experts))
    for layer, (counts, experts) in enumerate(zip(load, slots.astype(np.int64), strict=True)):
        logical[layer] = np.bincount(experts, weights=counts, minlength=num_experts)
        absent = np.flatnonzero(np.bincount(experts, minlength=num_experts) == 0)
        if len(absent):
            raise ValueError(f"p2l_map: layer {layer} has no slot for expert {absent[0]}")
    return logical


def _matrix(value: dict[str, Any], key: str) -> FloatArray:
    """[layers][slots] of numbers that are not negative."""
    rows = value.get(key)
    if not isinstance(rows, list) or not rows or len(rows) > MAX_LAYERS:
        raise ValueError(f"{key} needs rows of numbers, one a layer")
    if not all(isinstance(row, list) and 0 < len(row) <= 4 * MAX_EXPERTS for row in rows):
        raise ValueError(f"{key} needs rows of numbers, one a layer")
    if len({len(row) for row in rows}) > 1:
        raise ValueError(f"{key} is ragged")
    if not all(type(item) in (int, float) and 0 <= item < 1e300 for row in rows for item in row):
        raise ValueError(f"{key} has an entry that is no number from 0")
    return np.array(rows, dtype=np.float64)


def _load(path: str | Path, rows: dict[int, FloatArray], num_experts: int, name: str) -> ExpertLoad:
    counts = np.zeros((max(rows, default=-1) + 1, num_experts))
    for layer, row in rows.items():
        counts[layer] = row
    if not counts.any():
        raise DescriptionError.single(path, "all counts are zero")
    return ExpertLoad(name=name, counts=counts, weight=1.0, source=str(path))
