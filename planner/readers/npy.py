"""NumPy `.npy` files -> arrays of plain numbers. A header is believed when the file's size bears it out."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from planner.errors import DescriptionError

#: Largest array that is read.
MAX_ARRAY_BYTES = 4 * 2**30
_HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_npy(path: Path, max_bytes: int = MAX_ARRAY_BYTES) -> npt.NDArray[Any]:
    """Read one array of integers or floats, of any shape that is not empty, in native byte order.

    Pickles are never loaded. Raises DescriptionError: unreadable, damaged, larger than `max_bytes`, another
    size than the header declares, or a dtype that is no plain number (object, structured, complex, bool).
    """
    try:
        with open(path, "rb") as file:
            shape, fortran_order, dtype = _read_header(file, path)
            declared = math.prod(shape) * dtype.itemsize
            present = os.fstat(file.fileno()).st_size - file.tell()
            if declared == 0:
                raise DescriptionError.single(path, f"the array is empty (shape {shape})")
            if declared > max_bytes:
                raise DescriptionError.single(path, f"the array has {declared} bytes, more than {max_bytes}")
            if declared != present:
                raise DescriptionError.single(
                    path, f"the header declares {declared} bytes of data, but the file holds {present}"
                )
            data = file.read(declared)
    except OSError as error:
        raise DescriptionError.single(path, f"cannot be read: {error.strerror or error}") from None
    try:
        array = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran_order else "C")
    except ValueError as error:
        raise DescriptionError.single(path, f"cannot be read as an array: {error}") from None
    return array.astype(dtype.newbyteorder("="), copy=False)


def _read_header(file: BinaryIO, path: Path) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        version = np.lib.format.read_magic(file)
        if version not in _HEADER_READERS:
            raise DescriptionError.single(path, f".npy version {version} is not for plain numbers")
        shape, fortran_order, dtype = _HEADER_READERS[version](file)
    except (DescriptionError, OSError):
        raise
    except Exception as error:
        # The header is a Python literal that names a dtype: a hostile one can raise almost anything.
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DescriptionError.single(path, f"is not a readable .npy file: {reason[:200]}") from None
    if dtype.kind not in "iuf":
        raise DescriptionError.single(path, f"holds {str(dtype)[:80]}, not integers or floats")
    if any(length < 0 for length in shape):
        raise DescriptionError.single(path, f"declares a negative length (shape {str(shape)[:80]})")
    return shape, fortran_order, dtype
