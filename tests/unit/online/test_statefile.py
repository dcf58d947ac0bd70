from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxprune.calibration.stats import Moments
from onnxprune.errors import DataError, UsageError
from onnxprune.online import statefile

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(2, 30, 5)).astype(np.float32)


def moments() -> Moments:
    found = Moments.zeros(2, 5)
    found.add(ROWS, ROWS, [10, 20])
    return found


def test_moments_come_back_and_go_on() -> None:
    one = moments()
    two = statefile.take(statefile.put("a.", one), "a.", Moments.zeros(2, 5))
    assert (two.n, two.uncertainty()) == (one.n, one.uncertainty())
    for found in (one, two):
        found.add(ROWS[:, :7], ROWS[:, :7], [3, 4])
    np.testing.assert_array_equal(one.H, two.H)
    np.testing.assert_array_equal(one.sum_p, two.sum_p)
    assert one.uncertainty() == two.uncertainty()


def test_every_sum_of_the_dense_model_is_kept() -> None:
    state = statefile.put("", moments())
    assert {"n", "sum_p", "sum_d", "H", "spread.centre", "spread.total", "spread.squares"} <= set(state)


def test_sums_of_a_pruned_model_are_refused() -> None:
    found = moments()
    found.add_residual("w", ROWS, ROWS)
    with pytest.raises(ValueError, match="cannot be kept"):
        statefile.put("", found)


def test_counts() -> None:
    state = statefile.put("3.", np.arange(4))
    np.testing.assert_array_equal(statefile.take(state, "3.", np.zeros(4, dtype=np.int64)), np.arange(4))
    with pytest.raises(ValueError, match="shape"):
        statefile.take(state, "3.", np.zeros(5, dtype=np.int64))


def test_groups_by_number() -> None:
    state = {
        "w.10.a": np.array([1]),
        "w.2.a/b.c": np.array([2]),
        "w.2.t": np.array(["x"]),
        "other": np.array(0),
    }
    found = list(statefile.groups(state, "w."))
    assert [set(group) for group in found] == [{"a/b.c", "t"}, {"a"}]
    assert found[0]["t"].dtype == object


def test_file(tmp_path: Path) -> None:
    state = {
        "model": np.array("abc"),
        "in/put:0": RNG.normal(size=3),
        "text": statefile.plain(np.array(["é"], dtype=object)),
    }
    path = tmp_path / "s.npz"
    statefile.write(path, state)
    found = statefile.read(path)
    assert found.keys() == state.keys() and str(found["model"]) == "abc"
    for name, array in state.items():
        np.testing.assert_array_equal(found[name], array)
    with pytest.raises(UsageError, match="exists"):
        statefile.write(path, state)
    statefile.write(path, {}, force=True)
    assert statefile.read(path) == {}


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 broken", b"\x93NUMPY\x01\x00", b"text"])
def test_what_is_no_state(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s.npz").write_bytes(content)
    with pytest.raises(DataError, match="no state of a Pruner"):
        statefile.read(tmp_path / "s.npz")
    with pytest.raises(DataError, match="no state of a Pruner"):
        statefile.read(tmp_path / "missing.npz")
