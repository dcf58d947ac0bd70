from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from onnxprune.calibration.sources import Request, folder
from onnxprune.calibration.sources.folder import natural
from onnxprune.errors import DataError

Ask = Callable[..., Request]


def test_one_npz_per_sample_in_the_order_of_numbers(tmp_path: Path, ask: Ask) -> None:
    for i in range(12):
        np.savez(tmp_path / f"s{i}.npz", x=np.full(4, i, np.float32), extra=0)
    loaded = folder.load(str(tmp_path), ask("float[N, 4] x"))
    assert [int(s["x"][0, 0]) for s in loaded.samples] == list(range(12))
    assert loaded.total == 12 and loaded.notes == ("ignored extra",)


def test_files_may_hold_batches_of_different_size(tmp_path: Path, ask: Ask) -> None:
    for i, rows in enumerate((3, 1, 5)):
        np.savez(tmp_path / f"{i}.npz", x=np.full((rows, 4), i, np.float32))
    loaded = folder.load(str(tmp_path), ask("float[N, 4] x"))
    assert [int(s["x"][0, 0]) for s in loaded.samples] == [0] * 3 + [1] + [2] * 5
    some = folder.load(str(tmp_path), ask("float[N, 4] x", samples=3))
    assert len(some.samples) == 3 and some.total == 9


def test_npy_per_sample_for_one_input(tmp_path: Path, ask: Ask) -> None:
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", np.full(4, i, np.float32))
    loaded = folder.load(str(tmp_path), ask("float[N, 4] x"))
    assert len(loaded.samples) == 3 and loaded.notes == ()


def test_stacked_npy_per_input(tmp_path: Path, ask: Ask) -> None:
    np.save(tmp_path / "a.npy", np.arange(8).reshape(4, 2))
    np.save(tmp_path / "in_b.npy", np.zeros((4, 3), np.float32))
    np.save(tmp_path / "labels.npy", np.zeros(4))
    loaded = folder.load(str(tmp_path), ask('int64[N, 2] a, float[N, 3] "in/b"'))
    assert [s["a"].tolist() for s in loaded.samples] == [[[0, 1]], [[2, 3]], [[4, 5]], [[6, 7]]]
    assert loaded.notes == ("ignored labels",)


def test_stacked_npy_for_one_input_beside_labels(tmp_path: Path, ask: Ask) -> None:
    np.save(tmp_path / "x.npy", np.zeros((4, 2), np.float32))
    np.save(tmp_path / "y.npy", np.zeros(4))
    assert len(folder.load(str(tmp_path), ask("float[N, 2] x")).samples) == 4


def test_a_missing_input_among_stacked_ones(tmp_path: Path, ask: Ask) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4, 2), np.int64))
    with pytest.raises(DataError, match="no array for input b"):
        folder.load(str(tmp_path), ask("int64[N, 2] a, int64[N, 2] b"))


def test_of_many_files_only_the_chosen_are_opened(tmp_path: Path, ask: Ask) -> None:
    for i in range(20):
        (tmp_path / f"{i}.npz").write_bytes(b"broken")
    good = ask("float[N, 4] x", samples=4)
    for i in good.choose(20):
        np.savez(tmp_path / f"{i}.npz", x=np.full((2, 4), i, np.float32))
    loaded = folder.load(str(tmp_path), good)
    assert len(loaded.samples) == 4 and (loaded.total, loaded.unit) == (20, "files")


@pytest.mark.parametrize(("rows", "pieces"), [(1, [4, 4]), (4, [4, 4]), (8, [4, 4])])
def test_a_fixed_batch(tmp_path: Path, ask: Ask, rows: int, pieces: list[int]) -> None:
    for i in range(32 // rows):
        np.savez(tmp_path / f"{i}.npz", x=np.arange(i * rows, i * rows + rows, dtype=np.float32)[:, None])
    loaded = folder.load(str(tmp_path), ask("float[4, 1] x", samples=11))
    assert sum(len(s["x"]) for s in loaded.samples) == sum(pieces)
    if rows >= 4:  # whole batches stay whole
        assert all((s["x"][:, 0] == s["x"][0, 0] + np.arange(4)).all() for s in loaded.samples)


def test_mixed_kinds_are_ambiguous(tmp_path: Path, ask: Ask) -> None:
    np.save(tmp_path / "a.npy", np.zeros(3))
    np.savez(tmp_path / "b.npz", x=np.zeros(3))
    with pytest.raises(DataError, match=r"\.npy, \.npz files side by side"):
        folder.load(str(tmp_path), ask("float[N, 4] x"))


def test_the_message_names_the_file(tmp_path: Path, ask: Ask) -> None:
    np.savez(tmp_path / "good.npz", x=np.zeros(4, np.float32))
    np.savez(tmp_path / "poor.npz", x=np.zeros(5, np.float32))
    with pytest.raises(DataError, match=r"poor\.npz: input 'x' wants float32\[N,4\], found float32\[1,5\]"):
        folder.load(str(tmp_path), ask("float[N, 4] x"))


def test_natural_order() -> None:
    names = ["s10", "s2", "S1", "a", "2", "10", "x²", "s2b"]
    assert sorted(names, key=lambda n: natural(Path(n))) == ["2", "10", "a", "S1", "s2", "s2b", "s10", "x²"]
