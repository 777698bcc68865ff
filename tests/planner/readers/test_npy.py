"""The .npy reader against numpy's own writer, and against headers that lie."""

from __future__ import annotations

import contextlib
import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from planner.errors import DescriptionError
from planner.readers.npy import read_npy

NUMBERS = st.one_of(
    hnp.integer_dtypes(endianness="?"),
    hnp.unsigned_integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?"),
)
ARRAYS = hnp.arrays(NUMBERS, hnp.array_shapes(min_dims=1, max_dims=4, max_side=5))
RELAXED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)


def with_header(path: Path, header: str, data: bytes = b"", version: bytes = b"\x01\x00") -> Path:
    text = header.encode() + b"\n"
    path.write_bytes(b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + data)
    return path


@RELAXED
@given(array=ARRAYS, fortran=st.booleans())
def test_reads_what_numpy_writes(tmp_path: Path, array: np.ndarray[Any, Any], fortran: bool) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.asfortranarray(array) if fortran else array)
    found = read_npy(path)
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype.newbyteorder("=")


@RELAXED
@given(data=st.data())
def test_damage_is_an_error_and_no_traceback(tmp_path: Path, data: st.DataObject) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.arange(12, dtype=np.int32).reshape(3, 4))
    raw = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "a.npy"
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    with contextlib.suppress(DescriptionError):
        assert read_npy(path).dtype.kind in "iuf"


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,)}", "more than"),
        (
            "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000,)}",
            "declares 8000000 bytes of data, but",
        ),
        ("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", "object"),
        ("{'descr': '<c16', 'fortran_order': False, 'shape': (1,)}", "complex128"),
        ("{'descr': '|b1', 'fortran_order': False, 'shape': (1,)}", "bool"),
        ("{'descr': '<U4', 'fortran_order': False, 'shape': (1,)}", "<U4"),
        ("{'descr': [('a', '<i4')], 'fortran_order': False, 'shape': (1,)}", "'a'"),
        ("{'descr': '<i4', 'fortran_order': False, 'shape': (-1, -2)}", "negative length"),
        ("{'descr': '<i4', 'fortran_order': False, 'shape': (0, 3)}", "empty"),
        ("{'descr': '<i4', 'fortran_order': False}", "not a readable .npy file"),
        ("__import__('os').system('true')", "not a readable .npy file"),
        ("(" * 500, "not a readable .npy file"),
    ],
)
def test_refuses_headers(tmp_path: Path, header: str, message: str) -> None:
    with pytest.raises(DescriptionError, match=message.replace("(", r"\(")):
        read_npy(with_header(tmp_path / "a.npy", header))


def test_refuses_bytes_after_the_data(tmp_path: Path) -> None:
    header = "{'descr': '<i4', 'fortran_order': False, 'shape': (1,)}"
    with pytest.raises(DescriptionError, match="declares 4 bytes of data, but the file holds 5"):
        read_npy(with_header(tmp_path / "a.npy", header, b"12345"))


def test_refuses_too_many_dimensions(tmp_path: Path) -> None:
    header = f"{{'descr': '<i4', 'fortran_order': False, 'shape': {(1,) * 80}}}"
    with pytest.raises(DescriptionError, match="cannot be read as an array"):
        read_npy(with_header(tmp_path / "a.npy", header, b"1234"))


def test_never_loads_a_pickle(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DescriptionError, match="object"):
        read_npy(tmp_path / "a.npy")


def test_bound_is_the_callers(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(100))
    with pytest.raises(DescriptionError, match="800 bytes, more than 799"):
        read_npy(tmp_path / "a.npy", max_bytes=799)


def test_other_versions_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(DescriptionError, match="version"):
        read_npy(with_header(tmp_path / "a.npy", "{}", version=b"\x03\x00"))
    with pytest.raises(DescriptionError, match="cannot be read"):
        read_npy(tmp_path / "absent.npy")
    (tmp_path / "empty.npy").touch()
    with pytest.raises(DescriptionError, match="not a readable"):
        read_npy(tmp_path / "empty.npy")
