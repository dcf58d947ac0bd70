from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from onnxprune.calibration.checks import as_array, cast, castable, check_feed, check_values, split_feed
from onnxprune.calibration.inputs import Inputs, InputSpec
from onnxprune.errors import DataError

BF16 = np.dtype(ml_dtypes.bfloat16)


def spec(name: str, dtype: Any, *shape: int | str | None) -> InputSpec:
    return InputSpec(name, np.dtype(dtype), shape)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (np.array([1, 2], np.int32), np.int64),
        (np.array([1, 2], np.int64), np.int32),
        (np.array([1, 200], np.uint8), np.int64),
        (np.array([0, 255], np.int64), np.uint8),
        (np.array([1.5], np.float64), np.float32),
        (np.array([1.5], np.float32), np.float16),
        (np.array([1.5], np.float32), BF16),
        (np.array([1.5], np.float16), np.float32),
        (np.array([1.5], ">f4"), np.float32),
        (np.array([True, False]), np.float32),
        (np.array([True, False]), np.int64),
        (np.array([0, 1], np.int64), np.bool_),
        (np.array([], np.int64), np.uint8),
    ],
)
def test_casts_that_keep_the_meaning(values: np.ndarray, wanted: Any) -> None:
    result = cast(values, np.dtype(wanted), "x")
    assert result.dtype == np.dtype(wanted)
    np.testing.assert_array_equal(result.astype(np.float64), values.astype(np.float64))


def test_strings_become_objects() -> None:
    assert cast(np.array(["a", "b"]), np.dtype(object), "x").tolist() == ["a", "b"]


def test_bfloat16_as_numpy_saves_it() -> None:
    values = np.array([1.5, -2], BF16)
    np.testing.assert_array_equal(cast(values.view("V2"), BF16, "x"), values)


@pytest.mark.parametrize(
    ("values", "wanted", "says"),
    [
        (np.array([1], np.uint8), np.float32, "uint8, the model wants float32"),
        (np.array([1], np.int64), np.float32, "int64, the model wants float32"),
        (np.array([1.0], np.float32), np.int64, "float32, the model wants int64"),
        (np.array([300], np.int64), np.uint8, "300"),
        (np.array([-1], np.int64), np.uint8, "-1"),
        (np.array([2**40], np.int64), np.int32, "1099511627776"),
        (np.array([2], np.int64), np.bool_, "2"),
        (np.array([1e6], np.float32), np.float16, "1e\\+06, too large for float16"),
        (np.array([1e300], np.float64), np.float32, "too large for float32"),
        (np.array(["a"]), np.float32, "wants float32"),
        (np.array([1.0]), object, "wants string"),
    ],
)
def test_casts_that_do_not(values: np.ndarray, wanted: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        cast(values, np.dtype(wanted), "input 'x'")


def test_pixels_get_a_hint_about_normalisation() -> None:
    with pytest.raises(DataError) as caught:
        cast(np.zeros(1, np.uint8), np.dtype(np.float32), "input 'x'")
    assert "mean" in caught.value.hint and not castable(np.dtype(np.uint8), np.dtype(np.float32))


def test_the_message_names_input_expected_and_found() -> None:
    image = spec("image", np.float32, "N", 3, 32, 32)
    with pytest.raises(DataError) as caught:
        check_feed((5, 3, 30, 32), np.dtype(np.float64), image, True, "a.npz")
    assert str(caught.value) == (
        "a.npz: input 'image' wants float32[N,3,32,32], found float64[5,3,30,32] (axis 2 is 30, wanted 32)"
    )


def test_the_batch_axis_is_not_compared_but_others_are() -> None:
    check_feed((5, 4), np.dtype(np.float32), spec("x", np.float32, 1, 4), True, "a")
    with pytest.raises(DataError, match="axis 0 is 5"):
        check_feed((5, 4), np.dtype(np.float32), spec("x", np.float32, 1, 4), False, "a")
    with pytest.raises(DataError, match="wants float32"):
        check_feed((5,), np.dtype(np.float32), spec("x", np.float32, 1, 4), True, "a")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(bad: float) -> None:
    array = np.zeros((2, 3), np.float32)
    array[1, 2] = bad
    with pytest.raises(DataError, match=r"'x' holds .* at \[1, 2\]"):
        check_values(array, spec("x", np.float32, "N", 3), "a")


def test_minus_infinity_is_fine_in_an_additive_mask() -> None:
    check_values(np.full((1, 2), -np.inf, np.float32), spec("attn_mask", np.float32, "N", 2), "a")
    with pytest.raises(DataError):
        check_values(np.full((1, 2), np.inf, np.float32), spec("attn_mask", np.float32, "N", 2), "a")


FREE = Inputs((spec("x", np.float32, "N", 2), spec("s", np.float32, 3)), frozenset(["x"]), None)


def test_a_batch_is_cut_into_rows_and_shared_inputs_stay() -> None:
    pieces = split_feed({"x": np.eye(3, 2), "s": np.ones(3), "label": [1, 2, 3]}, FREE, "a")
    assert [p["x"].tolist() for p in pieces] == [[[1, 0]], [[0, 1]], [[0, 0]]]
    assert all(p["s"].shape == (3,) for p in pieces)
    assert set(pieces[0]) == {"x", "s"}


def test_a_single_sample_gets_its_batch_axis() -> None:
    (piece,) = split_feed({"x": [1.0, 2.0], "s": [1.0, 1, 1]}, FREE, "a")
    assert piece["x"].tolist() == [[1, 2]]


def test_an_empty_batch_is_no_sample() -> None:
    assert split_feed({"x": np.zeros((0, 2)), "s": np.ones(3)}, FREE, "a") == []


@pytest.mark.parametrize(
    ("feed", "says"),
    [
        ({"x": np.ones((1, 2))}, "no data for input s: float32"),
        ({"x": np.float32(1), "s": np.ones(3)}, "wants float32"),
        ({"x": [[1.0], [1.0, 2.0]], "s": np.ones(3)}, "cannot be turned into an array"),
        ({"x": np.array([[object(), 1]]), "s": np.ones(3)}, "Python objects"),
        ({"x": None, "s": np.ones(3)}, "Python objects"),
    ],
)
def test_feeds_that_do_not_fit(feed: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        split_feed(feed, FREE, "a")


def test_inputs_that_disagree_on_the_samples() -> None:
    inputs = Inputs((spec("a", np.int64, "n", 2), spec("b", np.int64, "n", 2)), frozenset(["a", "b"]), None)
    with pytest.raises(DataError, match="a has 2, b has 3"):
        split_feed({"a": np.ones((2, 2), int), "b": np.ones((3, 2), int)}, inputs, "f")


def test_lists_of_text_are_text() -> None:
    assert as_array(["a", "bc"], "x").dtype.kind == "U"
    assert as_array(np.array(["a", "bc"], object), "x").dtype.kind == "U"
