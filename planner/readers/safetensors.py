"""safetensors files of plain numbers -> arrays by name. Every offset is checked against the file before it is used.

Eight bytes of little-endian length, that much JSON ({name: {dtype, shape, data_offsets}}), then the data.
Source: the format's own description (huggingface/safetensors).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from planner.errors import DescriptionError
from planner.files import parse_json

#: Largest header: the format's own limit; largest file that is read.
MAX_HEADER_BYTES, MAX_FILE_BYTES = 100 * 2**20, 2**31
MAX_TENSORS = 1_000_000
DTYPES: Mapping[str, str] = {"I64": "<i8", "I32": "<i4", "I16": "<i2", "U8": "u1", "F64": "<f8", "F32": "<f4"}


def read_safetensors(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Arrays by name. Raises DescriptionError: unreadable, damaged, too large, or of another dtype than DTYPES."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise DescriptionError.single(path, f"cannot be read: {error.strerror or error}") from None
    if len(data) > MAX_FILE_BYTES:
        raise DescriptionError.single(path, f"is larger than {MAX_FILE_BYTES} bytes")
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > min(MAX_HEADER_BYTES, len(data) - 8):
        raise DescriptionError.single(path, "is no safetensors file, or cut off")
    try:
        header = parse_json(data[8 : 8 + size].decode(), str(path))
    except UnicodeDecodeError:
        raise DescriptionError.single(path, "is no safetensors file: its header is not UTF-8") from None
    if not isinstance(header, dict) or len(header) > MAX_TENSORS:
        raise DescriptionError.single(path, "is no safetensors file: its header is no mapping of tensors")
    header.pop("__metadata__", None)
    body = memoryview(data)[8 + size :]
    return {str(name): _tensor(path, str(name), entry, body) for name, entry in header.items()}


def _tensor(path: Path, name: str, entry: Any, body: memoryview) -> npt.NDArray[Any]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise DescriptionError.single(path, f"tensor {name[:60]!r} needs dtype, shape and data_offsets")
    shape, offsets = entry["shape"], entry["data_offsets"]
    dtype = DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        told = f"has dtype {str(entry['dtype'])[:20]!r}; read are {', '.join(DTYPES)}"
        raise DescriptionError.single(path, f"tensor {name[:60]!r} {told}")
    if not (_whole(shape) and _whole(offsets) and len(offsets) == 2 and len(shape) <= 8):
        raise DescriptionError.single(path, f"tensor {name[:60]!r} has a shape or offsets that are no whole numbers")
    begin, end = offsets
    if not begin <= end <= len(body) or end - begin != math.prod(shape) * np.dtype(dtype).itemsize:
        raise DescriptionError.single(path, f"tensor {name[:60]!r} does not fit into the file")
    return np.frombuffer(body[begin:end], dtype=dtype).reshape(shape)


def _whole(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**48 for value in values)
