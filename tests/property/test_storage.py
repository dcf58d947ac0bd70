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
from onnxprune.storage.form import Packed

UINTS = {2: np.uint16, 4: np.uint32, 8: np.uint64}
DTYPES = [np.float16, np.float32, np.float64, ml_dtypes.bfloat16]


@st.composite
def weights(draw: st.DrawFn) -> Any:
    """Any shape, any density, any bit pattern: NaN with payload, infinities, denormals, -0.0."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = draw(st.lists(st.integers(0, 9), max_size=4))
    density = draw(st.sampled_from([0.0, 0.01, 0.3, 0.5, 0.99, 1.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    bits = rng.integers(0, 2 ** (8 * dtype.itemsize), shape, dtype=np.uint64).astype(UINTS[dtype.itemsize])
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0], dtype).view(bits.dtype)
    bits = np.where(rng.random(shape) < 0.2, rng.choice(special, shape), bits)
    return np.where(rng.random(shape) < density, bits, 0).astype(bits.dtype).view(dtype)


def bits_without_negative_zero(array: Any) -> bytes:
    """-0.0 is a zero like any other: it comes back as 0.0."""
    return np.where(array == 0, np.zeros((), array.dtype), array).astype(array.dtype).tobytes()


@pytest.mark.parametrize("name", FORMS)
@given(array=weights())
def test_every_form_returns_every_bit(name: str, array: Any) -> None:
    form = FORMS[name]
    found = form.decode(form.encode(array, values="same"), "w")
    assert (found.shape, found.dtype) == (array.shape, array.dtype)
    assert found.tobytes() == bits_without_negative_zero(array)


@pytest.mark.parametrize("name", FORMS)
@given(array=weights())
def test_fp16_values_round_once_or_not_at_all(name: str, array: Any) -> None:
    form = FORMS[name]
    packed = form.encode(array, values="fp16")
    found = form.decode(packed, "w")
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        wanted = array.astype(np.float16).astype(array.dtype) if packed.cast else array
    assert np.array_equal(found, wanted, equal_nan=True)
    finite = np.isfinite(array)
    assert np.isfinite(found[finite]).all()


@given(array=weights())
def test_sparse_tensors_return_every_bit(array: Any) -> None:
    if array.ndim:
        found = coo.decode(coo.encode(array, "w"), "w")
        assert (found.shape, found.dtype) == (array.shape, array.dtype)
        assert found.tobytes() == bits_without_negative_zero(array)


@pytest.mark.parametrize("name", FORMS)
@given(array=weights(), seed=st.integers(0, 2**32))
def test_any_change_of_the_mask_is_noticed_or_keeps_the_count(name: str, array: Any, seed: int) -> None:
    """One bit flipped changes the number of nonzeros, so it cannot pass."""
    form = FORMS[name]
    packed = form.encode(array, values="same")
    mask = packed.tensors[0].copy()
    if not mask.size:
        return
    rng = np.random.default_rng(seed)
    mask[rng.integers(mask.size)] ^= np.uint8(1 << rng.integers(8))
    with pytest.raises(ModelError):
        form.decode(Packed((mask, *packed.tensors[1:]), packed.shape, packed.data_type), "w")
