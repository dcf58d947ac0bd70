"""Arrays come back as they were, or not at all; all of them together stay below the limit."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from onnxprune.files import arrays

FOUND = {"a/b.c": np.arange(5, dtype=np.uint8), "": np.float32([[np.nan, -0.0]])}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "onnxprune" / "arrays"


def test_round_trip(folder: Path) -> None:
    digest = arrays.save("one", FOUND)
    assert len(digest) == 64 and [path.name for path in folder.iterdir()] == ["one.npz"]
    for wanted in (None, digest):
        loaded = arrays.load("one", wanted)
        assert loaded is not None and list(loaded) == list(FOUND)
        for name, array in FOUND.items():
            assert loaded[name].dtype == array.dtype and loaded[name].tobytes() == array.tobytes()
    assert arrays.load("one", "0" * 64) is None and arrays.load("two") is None
    arrays.remove("one")
    arrays.remove("one")
    assert arrays.load("one", digest) is None


def test_nothing_to_keep() -> None:
    assert arrays.load("none", arrays.save("none", {})) == {}


def test_damaged_and_foreign_files(folder: Path) -> None:
    arrays.save("one", {"a": np.arange(1000)})
    whole = (folder / "one.npz").read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    for data in (b"", b"text", whole[:-30], whole[:middle], flipped):
        (folder / "one.npz").write_bytes(data)
        assert arrays.load("one") is None
    np.savez(folder / "one.npz", other=np.arange(3))
    assert arrays.load("one") is None


def test_the_longest_unused_go_first(folder: Path) -> None:
    array = {"a": np.zeros(1000, np.uint8)}
    for number, name in enumerate("abc"):
        arrays.save(name, array)
        os.utime(folder / f"{name}.npz", (number, number))
    size = (folder / "a.npz").stat().st_size
    assert arrays.load("a") is not None  # used now
    assert arrays.save("d", array, limit=3 * size)
    assert sorted(path.stem for path in folder.iterdir()) == ["a", "c", "d"]
    assert arrays.save("d", array, limit=3 * size)  # in its own place: nothing has to go
    assert sorted(path.stem for path in folder.iterdir()) == ["a", "c", "d"]


def test_what_is_too_large_is_not_kept(folder: Path) -> None:
    arrays.save("a", FOUND)
    assert arrays.save("b", {"a": np.zeros(1000)}, limit=7999) == ""
    assert [path.stem for path in folder.iterdir()] == ["a"]


def test_a_cache_that_cannot_be_written_is_no_error(folder: Path) -> None:
    folder.parent.mkdir()
    folder.write_text("a file where the folder should be")
    assert arrays.save("a", FOUND) == "" and arrays.load("a") is None
    arrays.remove("a")
