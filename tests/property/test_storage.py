"""Packed forms return every bit of every array, and refuse what they did not write."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.errors import ModelError
from onnxprune.storage import FORMS, coo
from onnxprune.storage.form import Form, Packed, onnx_type

UINTS = {2: np.uint16, 4: np.uint32, 8: np.uint64}
DTYPES = [np.float16, np.float32, np.float64, ml_dtypes.bfloat16]


@st.composite
def weights(draw: st.DrawFn, dtypes: list[Any] = DTYPES) -> Any:
    """Any shape, any density, any bit pattern: NaN with payload, infinities, denormals, -0.0."""
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    shape = draw(st.lists(st.integers(0, 9), max_size=4) | st.tuples(st.integers(0, 400)))
    density = draw(st.sampled_from([0.0, 0.01, 0.05, 0.3, 0.5, 0.99, 1.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    bits = rng.integers(0, 2 ** (8 * dtype.itemsize), shape, dtype=np.uint64).astype(UINTS[dtype.itemsize])
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0], dtype).view(bits.dtype)
    bits = np.where(rng.random(shape) < 0.2, rng.choice(special, shape), bits)
    return np.where(rng.random(shape) < density, bits, 0).astype(bits.dtype).view(dtype)


def form_and_weight() -> st.SearchStrategy[tuple[Form, Any]]:
    """A form and a weight of a type that it takes."""
    pairs = [(form, weights(_types(form))) for form in FORMS.values()]
    return st.one_of(*(st.tuples(st.just(form), arrays) for form, arrays in pairs))


def _types(form: Form) -> list[Any]:
    return [dtype for dtype in DTYPES if not form.refusal((1,), onnx_type(np.dtype(dtype)))]


def bits_without_negative_zero(array: Any) -> bytes:
    """-0.0 is a zero like any other: it comes back as 0.0."""
    with np.errstate(invalid="ignore"):  # ml_dtypes raises the flag for NaN
        return np.where(array == 0, np.zeros((), array.dtype), array).astype(array.dtype).tobytes()


@given(case=form_and_weight())
def test_every_form_returns_every_bit(case: tuple[Form, Any]) -> None:
    form, array = case
    found = form.decode(form.encode(array, values="same"), "w")
    assert (found.shape, found.dtype) == (array.shape, array.dtype)
    assert found.tobytes() == bits_without_negative_zero(array)


@given(case=form_and_weight())
def test_fp16_values_round_once_or_not_at_all(case: tuple[Form, Any]) -> None:
    form, array = case
    packed = form.encode(array, values="fp16")
    found = form.decode(packed, "w")
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        wanted = array.astype(np.float16).astype(array.dtype) if packed.cast else array
        finite = np.isfinite(array)
        assert np.isfinite(found[finite]).all()
        assert np.array_equal(found, wanted, equal_nan=True)


@given(array=weights())
def test_sparse_tensors_return_every_bit(array: Any) -> None:
    if array.ndim:
        found = coo.decode(coo.encode(array, "w"), "w")
        assert (found.shape, found.dtype) == (array.shape, array.dtype)
        assert found.tobytes() == bits_without_negative_zero(array)


@given(array=weights(), seed=st.integers(0, 2**32))
def test_a_flipped_bit_of_the_mask_is_noticed(array: Any, seed: int) -> None:
    """It changes the number of nonzeros."""
    packed = FORMS["bitmap"].encode(array, values="same")
    mask = packed.tensors[0].copy()
    if not mask.size:
        return
    rng = np.random.default_rng(seed)
    mask[rng.integers(mask.size)] ^= np.uint8(1 << rng.integers(8))
    with pytest.raises(ModelError):
        FORMS["bitmap"].decode(Packed((mask, packed.tensors[1]), packed.shape, packed.data_type), "w")


@pytest.mark.parametrize("name", ["gaps4", "gaps8"])
@given(array=weights([np.float32]), seed=st.integers(0, 2**32))
def test_any_steps_are_refused_or_stay_within_the_shape(name: str, array: Any, seed: int) -> None:
    """Nothing that a file can hold writes outside of the weight."""
    form = FORMS[name]
    packed = form.encode(array, values="same")
    steps = packed.tensors[0].copy()
    if not steps.size:
        return
    rng = np.random.default_rng(seed)
    steps.reshape(-1)[rng.integers(steps.size)] = rng.integers(256)
    try:
        found = form.decode(Packed((steps, packed.tensors[1]), packed.shape, packed.data_type), "w")
    except ModelError:
        return
    assert found.shape == array.shape
