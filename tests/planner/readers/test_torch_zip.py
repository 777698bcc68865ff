"""The torch.save reader: files of real torch, the value back from a written one, and hostile archives."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch_files import archive, pickled, save, tensor, text, unpack_real, whole

from planner.errors import DescriptionError
from planner.readers import torch_zip
from planner.readers.torch_zip import read_torch_zip

RELAXED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
ARRAYS = hnp.arrays(
    st.sampled_from(["<f8", "<f4", "<i8", "<i4"]),
    hnp.array_shapes(min_dims=0, max_dims=4, max_side=4, min_side=0),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.text(max_size=5), st.integers(), st.floats(allow_nan=False), ARRAYS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=3), inner, max_size=4)),
    max_leaves=8,
)


def refused(path: Path, content: bytes, message: str) -> None:
    path.write_bytes(content)
    with pytest.raises(DescriptionError, match=message):
        read_torch_zip(path)


def assert_same(found: object, expected: Any) -> None:
    if isinstance(expected, np.ndarray):
        assert isinstance(found, np.ndarray)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    elif isinstance(expected, dict):
        assert isinstance(found, dict)
        assert list(found) == list(expected)
        for key, item in expected.items():
            assert_same(found[key], item)
    elif isinstance(expected, list):
        assert isinstance(found, list)
        assert len(found) == len(expected)
        for left, right in zip(found, expected, strict=True):
            assert_same(left, right)
    else:
        assert found == expected


def test_reads_a_file_of_torch(tmp_path: Path) -> None:
    value = read_torch_zip(unpack_real("sglang_stat", tmp_path))
    counts = np.arange(24, dtype=np.int32).reshape(2, 3, 4)
    counts[:, 0] = 0
    expected = {"rank": 0, "logical_count": counts, "average_utilization_rate_over_window": None}
    assert_same(value, expected)


@RELAXED
@given(value=VALUES)
def test_round_trip(tmp_path: Path, value: Any) -> None:
    assert_same(read_torch_zip(save(tmp_path / "a.pt", value)), value)


@RELAXED
@given(data=st.data())
def test_damage_is_an_error_and_no_traceback(tmp_path: Path, data: st.DataObject) -> None:
    storages: dict[str, bytes] = {}
    value = {"logical_count": np.arange(6).reshape(2, 3), "rank": 1, "more": [1.5, "a", None]}
    content = bytearray(archive(pickled(value, storages), storages))
    start = content.index(b"\x80\x02")
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(start, start + 300))] = data.draw(st.integers(0, 255))
    path = tmp_path / "a.pt"
    path.write_bytes(content[: data.draw(st.integers(len(content) // 2, len(content)))])
    with contextlib.suppress(DescriptionError):
        read_torch_zip(path)


@RELAXED
@given(instructions=st.binary(max_size=60))
def test_any_pickle_is_harmless(tmp_path: Path, instructions: bytes) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(archive(instructions))
    with contextlib.suppress(DescriptionError):
        read_torch_zip(path)


def test_views_and_shared_storage(tmp_path: Path) -> None:
    data = np.arange(12, dtype=np.int32)
    rows = tensor("0", "IntStorage", 12, (2, 3), (6, 2), offset=1)
    turned = tensor("0", "IntStorage", 12, (4, 3), (1, 4))
    path = tmp_path / "a.pt"
    path.write_bytes(archive(b"](" + rows + turned + b"e", {"0": data.tobytes()}))
    found_rows, found_turned = read_torch_zip(path)  # type: ignore[misc]
    np.testing.assert_array_equal(found_rows, [[1, 3, 5], [7, 9, 11]])
    np.testing.assert_array_equal(found_turned, data.reshape(3, 4).T)


def test_bfloat16_and_byte_order(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(archive(tensor("0", "BFloat16Storage", 2, (2,), (1,)), {"0": b"\x80\x3f\x20\xc0"}))
    np.testing.assert_array_equal(read_torch_zip(path), np.array([1.0, -2.5], np.float32))
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", b"\x80\x02" + tensor("0", "ShortStorage", 1, (1,), (1,)) + b".")
        file.writestr("a/byteorder", b"big")
        file.writestr("a/data/0", b"\x01\x00")
    np.testing.assert_array_equal(read_torch_zip(path), [256])
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("a/byteorder", b"middle")
    with pytest.raises(DescriptionError, match="byte order"):
        read_torch_zip(path)


class Runs:
    """Unpickles by running a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
def test_a_pickle_runs_nothing(tmp_path: Path, protocol: int) -> None:
    instructions = pickle.dumps({"logical_count": Runs(f"touch {tmp_path}/ran")}, protocol=protocol)
    refused(tmp_path / "a.pt", archive(instructions[:-1]), r"instruction|names '(posix|nt)\.system'")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("instructions", "message"),
    [
        (b"cposix\nsystem\n(" + text("true") + b"tR", "names 'posix.system'"),
        (b"cbuiltins\neval\n", "names 'builtins.eval'"),
        (b"ctorch\n_utils._rebuild_tensor_v2\n", "names 'torch._utils"),
        (text("posix") + text("system") + b"\x93", "names 'posix.system'"),
        (b"(S'true'\niposix\nsystem\n", "instruction STRING"),
        (b"(iposix\nsystem\n", "instruction INST"),
        (b"ccollections\nOrderedDict\n)\x81", "instruction NEWOBJ"),
        (b"}}b", "instruction BUILD"),
        (b"\x82\x01", "instruction EXT1"),
        (b"L" + b"9" * 50 + b"L\n", "instruction LONG"),
        (b"Nr\xff\xff\xff\x7f", "memo entries"),
        (b"ccollections\nOrderedDict\n" + whole(3) + b"\x85R", "not a readable"),
        (b"ctorch\nIntStorage\n)R", "not a readable"),
        (text("storage") + b"Q", "malformed storage"),
        (b"(" * 20, "not a readable"),
        (tensor("../0", "IntStorage", 4, (4,), (1,)), "no entry"),
        (tensor("0", "IntStorage", 5, (4,), (1,)), "declares 5 elements, but has 4"),
        (tensor("0", "LongStorage", 4, (4,), (1,)), "declares 4 elements, but has 2"),
        (tensor("0", "IntStorage", 10**12, (10**12,), (1,)), "declares 1000000000000 elements"),
        (tensor("0", "IntStorage", 4, (10**12,), (0,)), "does not fit"),
        (tensor("0", "IntStorage", 4, (2, 2), (2, 2)), "does not fit"),
        (tensor("0", "IntStorage", 4, (2,), (1,), offset=3), "does not fit"),
        (tensor("0", "IntStorage", 4, (2,), (1,), offset=-1), "malformed tensor"),
        (tensor("0", "IntStorage", 4, (2,), (-1,), offset=2), "malformed tensor"),
        (tensor("0", "IntStorage", 4, (2, 2), (1,)), "malformed tensor"),
        (tensor("0", "IntStorage", 4, (1,) * 30, (1,) * 30), "malformed tensor"),
    ],
)
def test_refuses_instructions(tmp_path: Path, instructions: bytes, message: str) -> None:
    refused(tmp_path / "a.pt", archive(instructions, {"0": bytes(16)}), message)


def test_a_storage_has_one_type(tmp_path: Path) -> None:
    twice = b"](" + tensor("0", "IntStorage", 4, (4,), (1,)) + tensor("0", "FloatStorage", 4, (4,), (1,)) + b"e"
    refused(tmp_path / "a.pt", archive(twice, {"0": bytes(16)}), "of two types")


def test_refuses_compressed_entries(tmp_path: Path) -> None:
    bomb = archive(tensor("0", "ByteStorage", 2**26, (2**26,), (1,)), {"0": bytes(2**26)}, zipfile.ZIP_DEFLATED)
    assert len(bomb) < 2**17
    refused(tmp_path / "a.pt", bomb, "is compressed")


def test_refuses_entries_that_declare_more_than_the_file_has(tmp_path: Path) -> None:
    content = bytearray(archive(b"N"))
    entry = content.index(b"PK\x01\x02")
    content[entry + 20 : entry + 28] = struct.pack("<LL", 2**31, 2**31)
    refused(tmp_path / "a.pt", bytes(content), "declares 2147483648 bytes, more than")
    content[entry + 20 : entry + 28] = struct.pack("<LL", 2**20, 2**20)
    refused(tmp_path / "a.pt", bytes(content), "more bytes than the file has")


def test_refuses_overlapping_entries(tmp_path: Path) -> None:
    data = bytes(2**16)
    buffer = io.BytesIO()
    count = 40
    tensors = b"".join(tensor(str(i), "ByteStorage", len(data), (1,), (1,)) for i in range(count))
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a/data.pkl", b"\x80\x02](" + tensors + b"e.")
        file.writestr("a/data/0", data)
        first = file.getinfo("a/data/0")
        for index in range(1, count):
            alias = zipfile.ZipInfo(f"a/data/{index}")
            alias.header_offset, alias.CRC = first.header_offset, first.CRC
            alias.file_size = alias.compress_size = len(data)
            file.filelist.append(alias)
            file.NameToInfo[alias.filename] = alias
    refused(tmp_path / "a.pt", buffer.getvalue(), "overlap|more bytes than the file has|differ")


def test_refuses_a_flood_of_instructions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_zip, "MAX_OPCODES", 100)
    refused(tmp_path / "a.pt", archive(b"](" + b"N" * 200 + b"e"), "more than 100 instructions")


def test_refuses_a_huge_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = archive(b"N")
    end = content.index(b"PK\x05\x06")
    lying = content[: end + 12] + struct.pack("<L", 2**31) + content[end + 16 :]
    refused(tmp_path / "a.pt", lying, "zip directory of 2147483648 bytes")
    monkeypatch.setattr(torch_zip, "MAX_DIRECTORY_BYTES", 50)
    refused(tmp_path / "a.pt", content, "zip directory")


def test_refuses_what_is_no_torch_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.pt"
    refused(path, b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "save it again with a current torch")
    refused(path, b"", "save it again with a current torch")
    refused(path, archive(b"N")[:-30], "cut off")
    refused(path, archive(b"N") + b"more", "bytes after its end")
    buffer = io.BytesIO()
    np.savez(buffer, a=np.ones(3))
    refused(path, buffer.getvalue(), "not from torch.save")
    with pytest.raises(DescriptionError, match="cannot be read"):
        read_torch_zip(tmp_path / "absent.pt")
    monkeypatch.setattr(torch_zip, "MAX_FILE_BYTES", 10)
    refused(path, archive(b"N"), "larger than 10 bytes")
