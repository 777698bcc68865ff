"""Files of torch.save (zip format) -> plain values and arrays, without torch and without running a pickle.

`<root>/data.pkl` is a pickle of the value in which each tensor is a call of `torch._utils._rebuild_tensor_v2`
on a storage, and `<root>/data/<key>` holds the bytes of that storage. A pickle can name any function and call
it; here a handful of names lead to functions of our own and every other name is refused.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import pickletools
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, NoReturn

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided

from planner.errors import DescriptionError

MAX_FILE_BYTES = 4 * 2**30
#: The zip directory: about 150 bytes a tensor in the file, and several times that in memory.
MAX_DIRECTORY_BYTES = 16 * 2**20
MAX_PICKLE_BYTES = 64 * 2**20
#: Bounds time and memory: an instruction of one byte can make an object of a hundred.
MAX_OPCODES = 10_000_000
MAX_DIMENSIONS = 8

#: What plain values and tensors need, in any pickle protocol that torch.save offers.
# fmt: off
_OPCODES = frozenset((
    "PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2",
    "LONG1", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE", "EMPTY_LIST", "APPEND", "APPENDS",
    "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_DICT", "SETITEM", "SETITEMS", "BINGET",
    "LONG_BINGET", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BINPERSID",
))
# fmt: on
_BFLOAT16 = "bfloat16"
_STORAGES = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "BFloat16Storage": _BFLOAT16,
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}


@dataclass(frozen=True, slots=True)
class _StorageType:
    """What a storage class becomes. Not callable, so a pickle cannot make one of its own."""

    code: str


@dataclass(frozen=True, slots=True, eq=False)
class _Storage:
    """What a storage becomes: its elements, one-dimensional and in native byte order."""

    code: str
    elements: npt.NDArray[Any]


def read_torch_zip(path: Path) -> object:
    """Read a file of torch.save: dicts, lists, tuples, text and numbers; tensors become arrays.

    bfloat16 tensors become float32. Raises DescriptionError: unreadable, older than the zip format, damaged,
    beyond the bounds of this module, or in need of any class or function beyond those of plain tensors.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            _check_container(file, size, path)
            with zipfile.ZipFile(file) as archive:
                return _TorchFile(path, archive, size).value()
    except DescriptionError:
        raise
    except OSError as error:
        raise DescriptionError.single(path, f"cannot be read: {error.strerror or error}") from None
    except Exception as error:
        # A hostile archive or pickle makes zipfile and Unpickler raise almost anything, MemoryError included.
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DescriptionError.single(path, f"is not a readable torch.save file: {reason[:200]}") from None


def _check_container(file: BinaryIO, size: int, path: Path) -> None:
    """Refuse what is no zip archive, or has a directory too large to be read into memory."""
    if file.read(4) != b"PK\x03\x04":
        message = "is not in the zip format of torch.save: save it again with a current torch, or as JSON"
        raise DescriptionError.single(path, message)
    if size > MAX_FILE_BYTES:
        raise DescriptionError.single(path, f"is larger than {MAX_FILE_BYTES} bytes")
    # The last 22 bytes end the directory; before them may be a 64-bit locator (20) and 64-bit end (56 bytes).
    file.seek(max(0, size - 98))
    tail = file.read().rjust(98, b"\0")
    if tail[76:80] != b"PK\x05\x06":
        raise DescriptionError.single(path, "the zip archive is cut off or has bytes after its end")
    directory_bytes = struct.unpack_from("<L", tail, 76 + 12)[0]
    if tail[56:60] == b"PK\x06\x07":
        directory_bytes = struct.unpack_from("<Q", tail, 40)[0]
    if directory_bytes > min(size, MAX_DIRECTORY_BYTES):
        raise DescriptionError.single(path, f"declares a zip directory of {directory_bytes} bytes")
    file.seek(0)


class _TorchFile:
    """One open archive: finds, checks and reads its entries and builds the value."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, size: int) -> None:
        self._path = path
        self._archive = archive
        self._unread = size
        self._storages: dict[str, _Storage] = {}
        names = [name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(names) != 1:
            self.refuse("is a zip archive but not from torch.save: it needs exactly one <name>/data.pkl")
        self._root = names[0].removesuffix("/data.pkl")
        self._big_endian = self._is_big_endian()

    def refuse(self, message: str) -> NoReturn:
        raise DescriptionError.single(self._path, message)

    def value(self) -> object:
        pickled = self._read("data.pkl", MAX_PICKLE_BYTES)
        self._scan(pickled)
        return _Unpickler(pickled, self).load()

    def _is_big_endian(self) -> bool:
        if f"{self._root}/byteorder" not in self._archive.namelist():
            return False
        order = self._read("byteorder", 16)
        if order not in (b"little", b"big"):
            self.refuse(f"declares the byte order {order!r}")
        return order == b"big"

    def _read(self, name: str, max_bytes: int) -> bytes:
        """Bytes of one entry. Stored entries cannot grow, and all together are no larger than the file."""
        try:
            info = self._archive.getinfo(f"{self._root}/{name}")
        except KeyError:
            self.refuse(f"has no entry {name[:80]!r}, which its pickle needs")
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            self.refuse(f"entry {name!r} is compressed, which torch.save does not do")
        if info.file_size > max_bytes:
            self.refuse(f"entry {name!r} declares {info.file_size} bytes, more than {max_bytes}")
        self._unread -= info.file_size
        if self._unread < 0:
            self.refuse("its entries declare more bytes than the file has")
        return self._archive.read(info)

    def _scan(self, pickled: bytes) -> None:
        """Refuse, before loading, instructions and names beyond plain values and tensors, and floods."""
        for count, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
            if count >= MAX_OPCODES:
                self.refuse(f"its pickle has more than {MAX_OPCODES} instructions")
            if opcode.name not in _OPCODES:
                self.refuse(f"its pickle has the instruction {opcode.name}, which no plain tensor needs")
            if opcode.name == "GLOBAL":
                module, _, name = str(argument).partition(" ")
                self.find(module, name)
            if opcode.name == "LONG_BINPUT" and isinstance(argument, int) and argument > count:
                self.refuse(f"its pickle claims {argument} memo entries after {count} instructions")

    def find(self, module: str, name: str) -> Any:
        """Our stand-in for a name in the pickle."""
        if module == "torch" and name in _STORAGES:
            return _StorageType(_STORAGES[name])
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self.tensor
        if (module, name) == ("collections", "OrderedDict"):
            return _empty_dict
        return self.refuse(f"its pickle names {f'{module}.{name}'[:120]!r}, which no plain tensor needs")

    def storage(self, persistent_id: object) -> _Storage:
        """The storage of ("storage", type, key, device, number of elements), which must hold that many."""
        match persistent_id:
            case ("storage", _StorageType(code), str(key), _, int(numel)) if numel >= 0:
                pass
            case _:
                self.refuse("its pickle has a malformed storage")
        if key not in self._storages:
            data = self._read(f"data/{key}", MAX_FILE_BYTES)
            self._storages[key] = _Storage(code, self._elements(code, data))
        storage = self._storages[key]
        if storage.code != code:
            self.refuse(f"storage {key[:80]!r} is of two types, {storage.code} and {code}")
        if len(storage.elements) != numel:
            self.refuse(f"storage {key[:80]!r} declares {numel} elements, but has {len(storage.elements)}")
        return storage

    def _elements(self, code: str, data: bytes) -> npt.NDArray[Any]:
        order: Literal[">", "<"] = ">" if self._big_endian else "<"
        dtype = np.dtype("u2" if code == _BFLOAT16 else code).newbyteorder(order)
        elements = np.frombuffer(data, dtype).astype(dtype.newbyteorder("="), copy=False)
        # bfloat16 is the upper half of a float32.
        return (elements.astype(np.uint32) << 16).view(np.float32) if code == _BFLOAT16 else elements

    def tensor(self, storage: object, offset: object, size: object, stride: object, *_: object) -> npt.NDArray[Any]:
        """The view of a storage that a tensor is; it lies inside the storage and has no more elements."""
        if not isinstance(storage, _Storage) or type(offset) is not int or offset < 0:
            self.refuse("its pickle has a malformed tensor")
        shape, strides = self._lengths(size), self._lengths(stride)
        if len(shape) != len(strides) or len(shape) > MAX_DIMENSIONS:
            self.refuse("its pickle has a malformed tensor")
        numel, stored = math.prod(shape), len(storage.elements)
        last = offset + sum((length - 1) * step for length, step in zip(shape, strides, strict=True))
        if numel > stored or (numel and last >= stored):
            self.refuse(f"a tensor of shape {shape} does not fit into its storage of {stored} elements")
        itemsize = storage.elements.itemsize
        byte_strides = [step * itemsize for step in strides]
        return as_strided(storage.elements[offset:], shape, byte_strides, writeable=False)

    def _lengths(self, value: object) -> tuple[int, ...]:
        if not isinstance(value, tuple) or not all(type(item) is int and 0 <= item < 2**63 for item in value):
            self.refuse("its pickle has a malformed tensor")
        return value


def _empty_dict() -> dict[Any, Any]:
    """Stand-in for OrderedDict, which a pickle makes empty and then fills."""
    return {}


class _Unpickler(pickle.Unpickler):
    """An unpickler that knows the names of `_TorchFile.find` and nothing else."""

    def __init__(self, pickled: bytes, torch_file: _TorchFile) -> None:
        super().__init__(io.BytesIO(pickled))
        self._torch_file = torch_file

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        return self._torch_file.find(module_name, global_name)

    def persistent_load(self, pid: Any) -> Any:
        return self._torch_file.storage(pid)
