from __future__ import annotations

import dataclasses
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto

from onnxprune.errors import ModelError
from onnxprune.storage.bitmap import Bitmap
from onnxprune.storage.form import MAX_FOLDED_BYTES, Packed, onnx_type

FORM = Bitmap()
NAN = np.float32("nan")


def test_the_example_of_the_specification() -> None:
    array = np.array([[0, 1.5, 0, 0, -2], [0, 0, 0, 0, 3]], np.float32)
    packed = FORM.encode(array)
    mask, values = packed.tensors
    assert mask.tolist() == [0b01001000, 0b01000000]
    assert values.tolist() == [0, 1.5, -2, 3] and values.dtype == np.float32
    assert (packed.shape, packed.data_type) == ((2, 5), TensorProto.FLOAT)
    assert packed.nbytes == 2 + 16


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (7,), (8,), (9,), (5, 3), (2, 3, 4, 1)])
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_any_shape(shape: tuple[int, ...], density: float) -> None:
    rng = np.random.default_rng(0)
    array = np.where(rng.random(shape) < density, rng.standard_normal(shape), 0).astype(np.float32)
    found = FORM.decode(FORM.encode(array))
    assert found.shape == array.shape and found.dtype == array.dtype and found.tobytes() == array.tobytes()


def test_special_values_keep_their_bits_and_negative_zero_is_zero() -> None:
    payload = np.array([0x7FC00001, 0xFF800000, 0x00000001, 0x80000000], np.uint32).view(np.float32)
    packed = FORM.encode(payload)  # NaN with payload, -inf, the smallest denormal, -0.0
    assert packed.tensors[0].tolist() == [0b11100000]
    found = FORM.decode(packed).view(np.uint32)
    assert found.tolist() == [0x7FC00001, 0xFF800000, 1, 0]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_values_keep_the_type(dtype: Any) -> None:
    array = np.array([0, 0.1, -7, 0], dtype)
    packed = FORM.encode(array)
    assert packed.tensors[1].dtype == array.dtype and not packed.cast
    assert FORM.decode(packed).dtype == array.dtype


class TestFp16Values:
    def test_are_rounded_to_nearest(self) -> None:
        array = np.array([0, 1 / 3, -1000.1], np.float32)
        packed = FORM.encode(array, values="fp16")
        assert packed.tensors[1].dtype == np.float16 and packed.cast
        found = FORM.decode(packed)
        assert found.dtype == np.float32 and found.tolist() == array.astype(np.float16).tolist()

    def test_that_underflow_become_zeros(self) -> None:
        packed = FORM.encode(np.array([1e-9, 1], np.float32), values="fp16")
        assert packed.tensors[0].tolist() == [0b01000000] and packed.tensors[1].size == 2

    def test_are_not_used_where_one_would_overflow(self) -> None:
        packed = FORM.encode(np.array([0, 65520], np.float32), values="fp16")  # rounds to infinity
        assert packed.tensors[1].dtype == np.float32
        assert FORM.encode(np.array([0, 65519], np.float32), values="fp16").cast

    def test_may_be_nan_or_infinite_if_they_were(self) -> None:
        packed = FORM.encode(np.array([NAN, np.inf, 1], np.float32), values="fp16")
        assert packed.cast
        assert np.array_equal(FORM.decode(packed), np.array([NAN, np.inf, 1]), equal_nan=True)

    @pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
    def test_make_no_sense_for_16_bit_types(self, dtype: Any) -> None:
        assert not FORM.encode(np.array([0, 1], dtype), values="fp16").cast


class TestDecodeRefuses:
    def refuses(self, text: str, **changes: Any) -> None:
        good = FORM.encode(np.array([0, 1.5, 0, 0, -2, 0, 0, 0, 0, 3], np.float32))
        mask, values = changes.pop("mask", good.tensors[0]), changes.pop("values", good.tensors[1])
        broken = dataclasses.replace(good, tensors=(mask, values), **changes)
        with pytest.raises(ModelError, match=text) as caught:
            FORM.decode(broken, "weight 'w'")
        assert "weight 'w'" in str(caught.value)

    def test_wrong_mask_size(self) -> None:
        self.refuses(r"uint8\[3\], shape \[10\] needs uint8\[2\]", mask=np.zeros(3, np.uint8))

    def test_wrong_mask_type(self) -> None:
        self.refuses(r"int8\[2\]", mask=np.zeros(2, np.int8))

    def test_mask_of_two_axes(self) -> None:
        self.refuses(r"uint8\[1, 2\]", mask=np.zeros((1, 2), np.uint8))

    def test_padding_bits(self) -> None:
        self.refuses("behind its last element", mask=np.array([0b01001000, 0b01000001], np.uint8))

    def test_more_bits_than_values(self) -> None:
        self.refuses("3 values, its mask has 4", mask=np.array([0b01001001, 0b01000000], np.uint8))

    def test_fewer_bits_than_values(self) -> None:
        self.refuses("3 values, its mask has 2", mask=np.array([0b01001000, 0], np.uint8))

    def test_no_values_at_all(self) -> None:
        self.refuses("-1 values", values=np.zeros(0, np.float32))

    def test_slot_0_that_is_not_zero(self) -> None:
        self.refuses("begin with 1", values=np.array([1, 1.5, -2, 3], np.float32))
        self.refuses("begin with nan", values=np.array([NAN, 1.5, -2, 3], np.float32))

    @pytest.mark.parametrize("dtype", [np.float64, np.int32, ml_dtypes.bfloat16])
    def test_values_of_another_type(self, dtype: Any) -> None:
        self.refuses("wanted float32", values=np.array([0, 1.5, -2, 3], dtype))

    def test_fp16_values_of_a_bfloat16_weight(self) -> None:
        self.refuses("wanted bfloat16", values=np.zeros(4, np.float16), data_type=TensorProto.BFLOAT16)

    def test_values_of_two_axes(self) -> None:
        self.refuses("one axis", values=np.zeros((1, 4), np.float32))

    def test_negative_dimension(self) -> None:
        self.refuses("negative", shape=(-2, -5))

    def test_absurd_shape_without_allocating_it(self) -> None:
        self.refuses("needs uint8", shape=(2**40, 2**30))

    @pytest.mark.parametrize("data_type", [TensorProto.INT32, TensorProto.UNDEFINED, TensorProto.STRING, 99])
    def test_a_type_that_is_no_float(self, data_type: int) -> None:
        self.refuses("dtype", data_type=data_type)


class TestRefusal:
    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
    def test_floats_are_welcome(self, dtype: Any) -> None:
        assert FORM.refusal((3, 4), onnx_type(np.dtype(dtype))) == ""

    def test_integers_are_not(self) -> None:
        assert "INT8" in FORM.refusal((3, 4), TensorProto.INT8)

    def test_onnx_runtime_folds_up_to_1_gib(self) -> None:
        limit = MAX_FOLDED_BYTES // 4
        for kind in (TensorProto.FLOAT, TensorProto.FLOAT16):  # the count is int32 whatever the weight is
            assert FORM.refusal((limit,), kind) == ""
            assert "1 GiB" in FORM.refusal((limit + 1,), kind)
        assert "1 GiB" in FORM.refusal((limit // 2 + 1,), TensorProto.DOUBLE)


def test_only_whole_bytes_are_fused() -> None:
    assert FORM.fits_fused((3, 8)) and FORM.decode_op((3, 8)) == "Decode"
    assert not FORM.fits_fused((3, 7)) and FORM.decode_op((3, 7)) == "DecodeRagged"


def test_nbytes_counts_all_tensors() -> None:
    tensors = (np.zeros(3, np.uint8), np.zeros(5, np.float16))
    assert Packed(tensors, (24,), TensorProto.FLOAT).nbytes == 13
