from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest

from onnxprune.calibration.store import ArrayStore
from onnxprune.errors import ResourceError


@pytest.fixture(autouse=True)
def own_temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def kilobytes(count: float, dtype: type = np.float32) -> np.ndarray:
    array: np.ndarray = np.random.default_rng(0).normal(size=int(count * 1024) // np.dtype(dtype).itemsize)
    return array.astype(dtype)


def test_in_memory_up_to_the_budget(own_temp: Path) -> None:
    with ArrayStore(2048) as store:
        a, b = kilobytes(1), kilobytes(1)
        store.put("a", a)
        store.put("b", b)
        assert store.get("a") is a and store.get("b") is b
        assert (store.held, store.spilled) == (2048, 0)
        assert not list(own_temp.iterdir())


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, np.bool_])
def test_beyond_the_budget_in_files(own_temp: Path, dtype: type) -> None:
    arrays = [kilobytes(1, dtype).reshape(2, -1) for _ in range(4)]
    with ArrayStore(2048) as store:
        for number, array in enumerate(arrays):
            store.put((0, number, "x"), array)
        assert (store.held, store.spilled) == (2048, 2048)
        assert len(list(own_temp.glob("onnxprune-*/*.npy"))) == 2
        for number, array in enumerate(arrays):
            found = store.get((0, number, "x"))
            assert found.dtype == array.dtype
            np.testing.assert_array_equal(found, array)
    assert not list(own_temp.iterdir())


def test_dropping_gives_memory_and_files_back(own_temp: Path) -> None:
    with ArrayStore(1024) as store:
        store.put("held", kilobytes(1))
        store.put("spilled", kilobytes(1))
        assert "held" in store and "spilled" in store
        store.drop("held")
        store.drop("spilled")
        store.drop("never there")
        assert "held" not in store and "spilled" not in store
        assert store.held == 0
        assert not list(own_temp.glob("onnxprune-*/*.npy"))
        with pytest.raises(KeyError):
            store.get("held")
        store.put("again", kilobytes(1))
        assert store.held == 1024


def test_replacing(own_temp: Path) -> None:
    with ArrayStore(1024) as store:
        store.put("a", kilobytes(1))
        store.put("a", kilobytes(0.5))
        assert store.held == 512
        store.put("a", kilobytes(2))
        assert store.held == 0
        store.put("a", kilobytes(3))
        assert len(list(own_temp.glob("onnxprune-*/*.npy"))) == 1
        assert store.get("a").nbytes == 3 * 1024


def test_shapes_without_elements() -> None:
    with ArrayStore(0) as store:
        for shape in ((), (0, 4), (1,)):
            store.put(shape, np.ones(shape, np.float32))
            assert store.get(shape).shape == shape


def test_strings_stay_in_memory() -> None:
    """They cannot go to a file without pickle, and are never large."""
    with ArrayStore(0) as store:
        words = np.array(["a", "b"], object)
        store.put("ids", words)
        np.testing.assert_array_equal(store.get("ids"), words)


def test_cleans_up_after_an_error(own_temp: Path) -> None:
    with pytest.raises(RuntimeError), ArrayStore(0) as store:
        store.put("a", kilobytes(1))
        raise RuntimeError
    assert not list(own_temp.iterdir())


def test_a_full_disk_is_a_resource_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with ArrayStore(0) as store, pytest.raises(ResourceError, match="No space left on device") as caught:
        store.put("a", kilobytes(1))
    assert "--max-memory" in caught.value.hint and "TMPDIR" in caught.value.hint
