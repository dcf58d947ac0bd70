from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from onnxprune.calibration.sources import Request, npz
from onnxprune.errors import DataError

Ask = Callable[..., Request]
X = np.arange(20 * 4, dtype=np.float32).reshape(20, 4)


def test_first_axis_is_the_samples(tmp_path: Path, ask: Ask) -> None:
    np.savez(tmp_path / "a.npz", x=X, ids=np.arange(20, dtype=np.int32), label=np.zeros(20))
    loaded = npz.load(str(tmp_path / "a.npz"), ask("float[N, 4] x, int64[N] ids"))
    assert loaded.total == 20 and loaded.notes == ("ignored label",)
    np.testing.assert_array_equal(np.concatenate([s["x"] for s in loaded.samples]), X)
    assert [s["ids"].tolist() for s in loaded.samples] == [[i] for i in range(20)]
    assert loaded.samples[0]["ids"].dtype == np.int64


def test_a_choice_keeps_inputs_together(tmp_path: Path, ask: Ask) -> None:
    np.savez(tmp_path / "a.npz", x=X, ids=np.arange(20))
    loaded = npz.load(str(tmp_path / "a.npz"), ask("float[N, 4] x, int64[N] ids", samples=5))
    ids = [int(s["ids"][0]) for s in loaded.samples]
    assert [i // 4 for i in ids] == [0, 1, 2, 3, 4]  # spread over the file
    np.testing.assert_array_equal(np.concatenate([s["x"] for s in loaded.samples]), X[ids])


def test_a_fixed_batch_is_cut_from_neighbours(tmp_path: Path, ask: Ask) -> None:
    np.savez(tmp_path / "a.npz", x=X)
    loaded = npz.load(str(tmp_path / "a.npz"), ask("float[3, 4] x"))
    assert [s["x"][:, 0].tolist() for s in loaded.samples][:2] == [[0, 4, 8], [12, 16, 20]]
    assert len(loaded.samples) == 6 and loaded.total == 20


def test_stacked_feeds(tmp_path: Path, ask: Ask) -> None:
    np.savez(tmp_path / "a.npz", x=X.reshape(10, 2, 4))
    free = npz.load(str(tmp_path / "a.npz"), ask("float[N, 4] x"))
    np.testing.assert_array_equal(np.concatenate([s["x"] for s in free.samples]), X)
    fixed = npz.load(str(tmp_path / "a.npz"), ask("float[2, 4] x"))
    assert [s["x"].shape for s in fixed.samples] == [(2, 4)] * 10
    with pytest.raises(DataError, match="axis 0 is 2, wanted 5"):  # else rows of two feeds would be mixed
        npz.load(str(tmp_path / "a.npz"), ask("float[5, 4] x"))


def test_shared_inputs(tmp_path: Path, ask: Ask) -> None:
    np.savez(tmp_path / "a.npz", x=X, scales=np.array([1.0, 2, 3]), sr=np.array(16000))
    loaded = npz.load(str(tmp_path / "a.npz"), ask("float[N, 4] x, float[3] scales, int64 sr"))
    assert loaded.samples[7]["scales"].tolist() == [1, 2, 3] and loaded.samples[7]["sr"].shape == ()
    assert isinstance(loaded.samples[7]["sr"], np.ndarray)  # ONNX Runtime takes no numpy scalars


def test_shared_inputs_may_differ_by_sample(tmp_path: Path, ask: Ask) -> None:
    np.savez(tmp_path / "a.npz", x=X, sr=np.arange(20))
    loaded = npz.load(str(tmp_path / "a.npz"), ask("float[N, 4] x, int64 sr"))
    assert [int(s["sr"]) for s in loaded.samples] == list(range(20))
    assert all(isinstance(s["sr"], np.ndarray) for s in loaded.samples)


def test_a_model_without_batch_axis_gets_whole_feeds(tmp_path: Path, ask: Ask) -> None:
    inputs = "float[seq, batch, 2] x, float[2, batch, 4] h"
    np.savez(tmp_path / "one.npz", x=np.zeros((7, 3, 2)), h=np.zeros((2, 3, 4)))
    (sample,) = npz.load(str(tmp_path / "one.npz"), ask(inputs)).samples
    assert sample["x"].shape == (7, 3, 2)
    np.savez(tmp_path / "many.npz", x=np.zeros((5, 7, 3, 2)), h=np.zeros((5, 2, 3, 4)))
    loaded = npz.load(str(tmp_path / "many.npz"), ask(inputs))
    assert [s["h"].shape for s in loaded.samples] == [(2, 3, 4)] * 5 and loaded.total == 5


@pytest.mark.parametrize(
    "arrays",
    [
        {"data": X},  # the only array
        {"data": X, "labels": np.arange(20)},  # labels have another rank
        {"data": X, "ids": np.zeros((20, 4), np.int64)},  # or type
        {"data": X, "wide": np.zeros((20, 5), np.float32)},  # or dimensions
    ],
)
def test_one_input_takes_the_one_array_that_fits(
    tmp_path: Path, ask: Ask, arrays: dict[str, np.ndarray]
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    loaded = npz.load(str(tmp_path / "a.npz"), ask("float[N, 4] x"))
    assert "array 'data' used for input 'x'" in loaded.notes
    np.testing.assert_array_equal(np.concatenate([s["x"] for s in loaded.samples]), X)


def test_with_two_that_fit_the_user_is_asked(tmp_path: Path, ask: Ask) -> None:
    np.savez(tmp_path / "a.npz", train=X, test=X)
    with pytest.raises(DataError) as caught:
        npz.load(str(tmp_path / "a.npz"), ask("float[N, 4] x"))
    assert str(caught.value) == (
        "a.npz: no array for input x: float32[N,4]; found train: float32[20,4], test: float32[20,4]"
    )
    assert "model's inputs: x" in caught.value.hint


def test_the_name_decides_before_the_shape(tmp_path: Path, ask: Ask) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((20, 5)), y=X)
    with pytest.raises(DataError, match="found float64"):
        npz.load(str(tmp_path / "a.npz"), ask("float[N, 4] x"))


def test_names_that_files_cannot_hold(tmp_path: Path, ask: Ask) -> None:
    np.savez(tmp_path / "a.npz", serving_x_0=X)
    assert npz.load(str(tmp_path / "a.npz"), ask('float[N, 4] "serving/x:0"')).total == 20


def test_one_npy_for_one_input(tmp_path: Path, ask: Ask) -> None:
    np.save(tmp_path / "anything.npy", X)
    loaded = npz.load(str(tmp_path / "anything.npy"), ask("float[N, 4] x"))
    assert loaded.total == 20 and loaded.notes == ()


def test_bad_values_in_chosen_rows_only(tmp_path: Path, ask: Ask) -> None:
    bad = X.copy()
    bad[3, 1] = np.nan
    np.savez(tmp_path / "a.npz", x=bad)
    with pytest.raises(DataError, match=r"input 'x' holds nan"):
        npz.load(str(tmp_path / "a.npz"), ask("float[N, 4] x"))


@pytest.mark.parametrize("name", ["a.npz", "A.NPZ", "a.npy"])
def test_matches_files_only(tmp_path: Path, name: str) -> None:
    assert not npz.matches(str(tmp_path / name))
    (tmp_path / name).touch()
    assert npz.matches(str(tmp_path / name))
