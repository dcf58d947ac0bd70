from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from onnxprune.calibration import batching
from onnxprune.calibration.npy import open_npy, open_npz
from onnxprune.errors import DataError, ResourceError

DATA = np.arange(60, dtype=np.float32).reshape(10, 3, 2)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("array", [DATA, np.asfortranarray(DATA), DATA[:, 0, 0], DATA.astype(">f8")])
def test_rows_of_npz_members(tmp_path: Path, array: np.ndarray, save: object) -> None:
    save(tmp_path / "a.npz", x=array, other=np.arange(3))  # type: ignore[operator]
    stored = open_npz(tmp_path / "a.npz")
    assert set(stored) == {"x", "other"} and stored["x"].shape == array.shape
    for index in ([0, 3, 9], [5], [], list(range(10))):
        np.testing.assert_array_equal(stored["x"].rows(np.array(index, np.int64)), array[index])
    np.testing.assert_array_equal(stored["x"].read(), array)


@pytest.mark.parametrize("array", [DATA, np.asfortranarray(DATA)])
def test_another_view_of_the_same_items(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", array)
    stored = open_npy(tmp_path / "a.npy").reshaped(30, 2).reshaped(5, 12)
    np.testing.assert_array_equal(stored.rows(np.array([1, 4])), DATA.reshape(5, 12)[[1, 4]])


@pytest.mark.parametrize("array", [np.float32(3), np.array(["ab", "c"]), np.zeros((4, 0)), np.zeros((0, 4))])
def test_unusual_shapes_and_types(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", array)
    np.testing.assert_array_equal(open_npy(tmp_path / "a.npy").read(), array)


def test_only_the_chosen_rows_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros((1000, 1000), np.uint8))
    monkeypatch.setattr(batching, "MAX_DATA_BYTES", 5000)
    stored = open_npz(tmp_path / "a.npz")["x"]
    assert stored.rows(np.arange(5)).shape == (5, 1000)
    with pytest.raises(ResourceError, match="samples"):
        stored.rows(np.arange(6))


def header(text: str) -> bytes:
    body = text.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(body)) + body


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "cannot be read"),
        (b"hello", "cannot be read"),
        (
            header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 3), }"),
            "bytes follow its header",
        ),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 3), }") + b"1234", "bytes follow"),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }") + b"1234", "bytes follow"),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }") + b"12345", "bytes follow"),
        (header("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }") + b"12345678", "Python objects"),
        (header("{'descr': 'nonsense', 'fortran_order': False, 'shape': (1,), }"), "cannot be read"),
        (header("__import__('os').abort()"), "cannot be read"),
        (header("{'descr': '<f4', 'fortran_order': False}"), "cannot be read"),
        (b"\x93NUMPY\x09\x00" + b"\0" * 100, "cannot be read"),
    ],
)
def test_damaged_files(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    with pytest.raises(DataError, match=says):
        open_npy(path)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", content)
    with pytest.raises(DataError, match=says):
        open_npz(tmp_path / "a.npz")


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=DATA)
    whole = buffer.getvalue()
    for length in range(0, len(whole), 7):
        (tmp_path / "a.npz").write_bytes(whole[:length])
        with pytest.raises(DataError):
            open_npz(tmp_path / "a.npz")["x"].read()


def test_a_flipped_bit_in_a_member_is_noticed(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros(1000, np.float32))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[2000] ^= 1
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        open_npz(tmp_path / "a.npz")["x"].rows(np.array([0]))


def test_arrays_of_objects_are_left_out_beside_others(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=DATA, names=np.array([{}, None], object))
    assert set(open_npz(tmp_path / "a.npz")) == {"x"}
    np.savez(tmp_path / "b.npz", names=np.array([{}, None], object))
    with pytest.raises(DataError, match="pickle"):
        open_npz(tmp_path / "b.npz")


def test_no_zip_and_empty_zip(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"not an \.npz file"):
        open_npz(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "b.npz", "w"):
        pass
    with pytest.raises(DataError, match="no arrays"):
        open_npz(tmp_path / "b.npz")


def test_a_zip_bomb_is_not_inflated_into_memory(tmp_path: Path) -> None:
    # A small file that says and holds 128 MB of zeros; reading a few rows must not allocate them.
    rows, width = 128, 2**18
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {width}), }}"
    with (
        zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.npy", "w", force_zip64=True) as member,
    ):
        member.write(header(text))
        for _ in range(rows):
            member.write(bytes(4 * width))
    tracemalloc.start()
    result = open_npz(tmp_path / "a.npz")["x"].rows(np.array([0, 100]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result.shape == (2, width) and peak < 16 * 2**20
