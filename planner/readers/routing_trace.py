"""Recorded routing -> RoutingTrace: arrays of expert ids (.npy), or JSON of each token and layer (.jsonl)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from planner.descriptions.experts import MAX_EXPERTS, MAX_LAYERS
from planner.errors import DescriptionError, Finding
from planner.files import parse_json, read_text
from planner.readers.npy import read_npy
from planner.workload import IntArray, RoutingTrace

#: Most experts a token is routed to in one layer.
MAX_TOP_K = 1_024
#: Most tokens × layers × top-k of a JSONL trace, whose highest token number decides the size of the array.
MAX_JSONL_CELLS = 2**27
#: How many problems of a JSONL trace are listed before reading stops.
MAX_LISTED = 20
#: Cells that are checked for repeated experts at a time.
_CHUNK_CELLS = 2**22

Ids = npt.NDArray[np.int16] | npt.NDArray[np.int32]


def read_routing_trace(path: Path, documents: Path | None = None) -> RoutingTrace:
    """Read which experts each token was routed to, [tokens, layers, k] in the smallest of int16 and int32.

    `.npy` holds integers [tokens, layers, k], or [tokens, layers] for top-1. `.jsonl` holds lines of
    `{"layer", "token_idx", "experts"}`; the layers that occur become the rows, in rising order, and what is
    missing is -1. `documents` is `.npy`, integers [tokens].

    Raises DescriptionError: floats, another shape, ids below -1 or at MAX_EXPERTS and above, an expert twice
    among the k of a token and layer, no routed token at all, or a file that is damaged.
    """
    match path.suffix.lower():
        case ".npy":
            experts = _from_npy(path)
        case ".jsonl":
            experts = _from_jsonl(path)
        case suffix:
            raise DescriptionError.single(path, f"has the suffix {suffix!r}; routing traces are .npy or .jsonl")
    if experts.max() < 0:
        raise DescriptionError.single(path, "holds no routed token: every id is -1")
    _refuse_repeats(path, experts)
    of_token = None if documents is None else _read_documents(documents, len(experts))
    return RoutingTrace(experts=experts, documents=of_token, source=str(path))


def _from_npy(path: Path) -> Ids:
    array = _integers(path)
    if array.ndim == 2:
        array = array[:, :, np.newaxis]
    if array.ndim != 3 or array.shape[1] > MAX_LAYERS or array.shape[2] > MAX_TOP_K:
        raise DescriptionError.single(path, f"needs [tokens, layers, k] or [tokens, layers], got {array.shape}")
    lowest, highest = int(array.min()), int(array.max())
    if lowest < -1 or highest >= MAX_EXPERTS:
        message = f"ids run from {lowest} to {highest}; they need to be from -1 (missing) to {MAX_EXPERTS - 1}"
        raise DescriptionError.single(path, message)
    return _narrow(array, highest)


def _integers(path: Path) -> npt.NDArray[np.integer[Any]]:
    array = read_npy(path)
    if array.dtype.kind not in "iu":
        raise DescriptionError.single(path, f"needs integers, got {array.dtype}")
    return array


def _narrow(array: npt.NDArray[Any], highest: int) -> Ids:
    if highest <= np.iinfo(np.int16).max:
        return array.astype(np.int16, order="C")
    return array.astype(np.int32, order="C")


def _read_documents(path: Path, num_tokens: int) -> IntArray:
    array = _integers(path)
    if array.shape != (num_tokens,):
        raise DescriptionError.single(path, f"has shape {array.shape} for {num_tokens} tokens")
    if int(array.max()) > np.iinfo(np.int64).max:
        raise DescriptionError.single(path, "has a document id beyond 64 bits")
    return array.astype(np.int64)


def _refuse_repeats(path: Path, experts: Ids) -> None:
    _, layers, top_k = experts.shape
    step = max(1, _CHUNK_CELLS // (layers * top_k))
    for start in range(0, len(experts), step):
        ordered: npt.NDArray[Any] = np.sort(experts[start : start + step], axis=2)
        repeated = (ordered[:, :, 1:] == ordered[:, :, :-1]) & (ordered[:, :, 1:] >= 0)
        if repeated.any():
            token, layer, rank = (int(index) for index in np.argwhere(repeated)[0])
            message = f"token {start + token}, layer {layer}: expert {ordered[token, layer, rank]} is named twice"
            raise DescriptionError.single(path, message)


def _from_jsonl(path: Path) -> Ids:
    chosen: dict[tuple[int, int], list[int]] = {}
    line_of: dict[tuple[int, int], int] = {}
    findings: list[Finding] = []
    for number, text in enumerate(read_text(path).split("\n"), start=1):
        if not text.strip():
            continue
        try:
            token, layer, experts = _parse_line(path, text)
            if (token, layer) in chosen:
                message = f"token_idx {token} in layer {layer} was given on line {line_of[token, layer]} already"
                raise DescriptionError.single(path, message)
            chosen[token, layer], line_of[token, layer] = experts, number
        except DescriptionError as error:
            findings.extend(replace(finding, line=number) for finding in error.findings)
            if len(findings) >= MAX_LISTED:
                break
    if findings:
        raise DescriptionError(findings)
    if not chosen:
        raise DescriptionError.single(path, "is empty")

    num_tokens = max(token for token, _ in chosen) + 1
    row_of = {layer: row for row, layer in enumerate(sorted({layer for _, layer in chosen}))}
    top_k = max(1, *map(len, chosen.values()))
    if num_tokens * len(row_of) * top_k > MAX_JSONL_CELLS:
        message = f"{num_tokens} tokens x {len(row_of)} layers x {top_k} experts is too much for JSONL; use .npy"
        raise DescriptionError.single(path, message)
    highest = max(max(experts, default=-1) for experts in chosen.values())
    result = np.full((num_tokens, len(row_of), top_k), -1, np.int32)
    for (token, layer), experts in chosen.items():
        result[token, row_of[layer], : len(experts)] = experts
    return _narrow(result, highest)


def _parse_line(path: Path, text: str) -> tuple[int, int, list[int]]:
    value = parse_json(text, str(path))
    if not isinstance(value, dict) or not {"layer", "token_idx", "experts"} <= value.keys():
        raise DescriptionError.single(path, "needs an object with layer, token_idx and experts")
    token, layer, experts = value["token_idx"], value["layer"], value["experts"]
    if type(token) is not int or not 0 <= token < MAX_JSONL_CELLS:
        raise DescriptionError.single(path, f"token_idx {str(token)[:40]} is not from 0 to {MAX_JSONL_CELLS - 1}")
    if type(layer) is not int or not 0 <= layer < MAX_LAYERS:
        raise DescriptionError.single(path, f"layer {str(layer)[:40]} is not from 0 to {MAX_LAYERS - 1}")
    if not isinstance(experts, list) or len(experts) > MAX_TOP_K:
        raise DescriptionError.single(path, f"experts needs a list of at most {MAX_TOP_K} ids")
    for expert in experts:
        if type(expert) is not int or not -1 <= expert < MAX_EXPERTS:
            message = f"expert {str(expert)[:40]} is not from -1 (missing) to {MAX_EXPERTS - 1}"
            raise DescriptionError.single(path, message)
    present = [expert for expert in experts if expert >= 0]
    if len(set(present)) < len(present):
        raise DescriptionError.single(path, f"experts names one twice: {experts[:16]}")
    return token, layer, experts
