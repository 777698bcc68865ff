"""Writers of torch.save files, without torch: enough of the format to make sound and hostile ones."""

from __future__ import annotations

import base64
import io
import math
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

STORAGE_OF = {"<f8": "DoubleStorage", "<f4": "FloatStorage", "<i8": "LongStorage", "<i4": "IntStorage"}


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def whole(value: int) -> bytes:
    size = value.bit_length() // 8 + 1
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def tensor(
    key: str, storage: str, numel: int, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0
) -> bytes:
    """Pickle instructions of one tensor, as torch.save writes them."""
    persistent = b"(" + text("storage") + f"ctorch\n{storage}\n".encode() + text(key) + text("cpu") + whole(numel)
    sizes = b"(" + b"".join(map(whole, shape)) + b"t"
    steps = b"(" + b"".join(map(whole, strides)) + b"t"
    hooks = b"ccollections\nOrderedDict\n)R"
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n"
    return rebuild + b"(" + persistent + b"tQ" + whole(offset) + sizes + steps + b"\x89" + hooks + b"tR"


def pickled(value: Any, storages: dict[str, bytes]) -> bytes:
    """Pickle instructions of a value; the bytes of its arrays go into `storages`."""
    match value:
        case None:
            return b"N"
        case str():
            return text(value)
        case int():
            return whole(value)
        case float():
            return b"G" + struct.pack(">d", value)
        case dict():
            return b"}(" + b"".join(pickled(part, storages) for item in value.items() for part in item) + b"u"
        case list():
            return b"](" + b"".join(pickled(item, storages) for item in value) + b"e"
        case np.ndarray():
            key = str(len(storages))
            storages[key] = value.tobytes()
            strides = tuple(math.prod(value.shape[axis + 1 :]) for axis in range(value.ndim))
            return tensor(key, STORAGE_OF[value.dtype.str], value.size, value.shape, strides)
        case _:
            raise TypeError(value)


def archive(
    instructions: bytes, storages: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED
) -> bytes:
    """A torch.save archive around pickle instructions."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        file.writestr("dump/data.pkl", b"\x80\x02" + instructions + b".")
        file.writestr("dump/byteorder", b"little")
        for key, data in (storages or {}).items():
            file.writestr(f"dump/data/{key}", data)
    return buffer.getvalue()


def save(path: Path, value: Any) -> Path:
    """Write a value of dicts, lists, text, numbers and arrays the way torch.save does."""
    storages: dict[str, bytes] = {}
    path.write_bytes(archive(pickled(value, storages), storages))
    return path


def unpack_real(name: str, folder: Path) -> Path:
    """A file that torch 2.13 wrote, from tests/data."""
    path = folder / f"{name}.pt"
    path.write_bytes(base64.b64decode((Path(__file__).parents[2] / "data" / f"{name}.pt.b64").read_text()))
    return path
