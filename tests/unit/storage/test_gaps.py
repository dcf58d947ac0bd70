from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from onnxprune.errors import ModelError
from onnxprune.storage.form import MAX_FOLDED_BYTES
from onnxprune.storage.gaps import Gaps

FORM = Gaps(4)
WIDE = Gaps(8)
BOTH = pytest.mark.parametrize("form", [FORM, WIDE], ids=["gaps4", "gaps8"])


def entries(packed: Any) -> list[tuple[int, float]]:
    """Return (step, value) of every entry."""
    steps, values = packed.tensors
    steps = steps.reshape(-1) if steps.ndim == 3 else np.concatenate([steps >> 4, steps & 15])
    return list(zip(steps.tolist(), values.reshape(-1).tolist(), strict=True))


def weight(size: int, **values: float) -> Any:
    array = np.zeros(size, np.float32)
    for position, value in values.items():
        array[int(position[1:])] = value
    return array


def test_the_example_of_the_specification() -> None:
    array = np.array([[0, 1.5, 0, 0], [-2, 0, 0, 3], [0, 4, 0, 0]], np.float32)
    packed = FORM.encode(array)
    assert entries(packed) == [(1, 1.5), (3, -2), (3, 3), (2, 4)]
    assert packed.tensors[0].tolist() == [0x13, 0x32]
    assert packed.tensors[1].shape == (1, 1, 4)
    assert FORM.extra(packed) == {"span": [12 - 4 + 1]}


@pytest.mark.parametrize(
    ("array", "wanted"),
    [
        (weight(8, p0=1, p7=2), [(0, 1), (7, 2)]),
        (weight(8, p5=1), [(5, 1), (0, 1)]),  # an even number: the last is repeated
        (weight(8), [(0, 0), (0, 0)]),  # all zeros
        (weight(40, p15=1, p30=2), [(15, 1), (15, 2)]),  # exactly what one step can say
        (weight(40, p16=1), [(15, 0), (1, 1)]),  # one more
        (weight(40, p1=1, p39=2), [(1, 1), (15, 0), (15, 0), (8, 2)]),
        (weight(90, p1=1, p61=2), [(1, 1), (15, 0), (15, 0), (15, 0), (15, 2), (0, 2)]),
    ],
)
def test_entries(array: Any, wanted: list[tuple[int, float]]) -> None:
    packed = FORM.encode(array)
    assert entries(packed) == wanted
    assert np.array_equal(FORM.decode(packed), array)


@pytest.mark.parametrize(
    ("array", "wanted"),
    [
        (weight(8, p5=1), [(5, 1)]),
        (weight(8), [(0, 0)]),
        (weight(300, p255=1), [(255, 1)]),
        (weight(300, p0=1, p256=2), [(0, 1), (255, 0), (1, 2)]),
        (weight(900, p600=1), [(255, 0), (255, 0), (90, 1)]),
    ],
)
def test_entries_of_gaps8(array: Any, wanted: list[tuple[int, float]]) -> None:
    packed = WIDE.encode(array)
    assert entries(packed) == wanted
    assert packed.tensors[0].shape == packed.tensors[1].shape == (1, 1, len(wanted))
    assert WIDE.extra(packed) == {"span": [array.size - len(wanted) + 1]}
    assert np.array_equal(WIDE.decode(packed), array)


@BOTH
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (7,), (8,), (5, 3), (2, 3, 4, 1), (1000,)])
@pytest.mark.parametrize("density", [0.0, 0.02, 0.3, 1.0])
def test_any_shape(form: Gaps, shape: tuple[int, ...], density: float) -> None:
    rng = np.random.default_rng(0)
    array = np.where(rng.random(shape) < density, rng.standard_normal(shape), 0).astype(np.float32)
    found = form.decode(form.encode(array))
    assert found.shape == array.shape and found.dtype == array.dtype and found.tobytes() == array.tobytes()


@BOTH
def test_special_values_keep_their_bits_and_negative_zero_is_zero(form: Gaps) -> None:
    array = np.array([0x80000000, 0x7FC00001, 0xFF800000, 1], np.uint32).view(np.float32)
    assert form.decode(form.encode(array)).view(np.uint32).tolist() == [0, 0x7FC00001, 0xFF800000, 1]


def test_fp16_values() -> None:
    packed = FORM.encode(np.array([1e-9, 0, 1 / 3], np.float32), values="fp16")
    assert packed.cast and entries(packed)[0][0] == 2  # the one that underflows is a zero
    found = FORM.decode(packed)
    assert found.dtype == np.float32 and found.tolist() == [0, 0, np.float16(1 / 3)]
    assert not FORM.encode(np.array([7e4], np.float32), values="fp16").cast


class TestDecodeRefuses:
    def refuses(self, text: str, **changes: Any) -> None:
        good = FORM.encode(weight(12, p1=1.5, p4=-2, p7=3, p9=4))
        steps, values = changes.pop("steps", good.tensors[0]), changes.pop("values", good.tensors[1])
        broken = dataclasses.replace(good, tensors=(steps, values), **changes)
        with pytest.raises(ModelError, match=text) as caught:
            FORM.decode(broken, "weight 'w'")
        assert "weight 'w'" in str(caught.value)

    def test_positions_behind_the_end(self) -> None:
        self.refuses("end at 12, shape .* at 11", steps=np.array([0x13, 0x35], np.uint8))

    @pytest.mark.parametrize("steps", [[0x13, 0x02], [0x10, 0x32], [0x13, 0x30]])
    def test_two_entries_at_one_position(self, steps: list[int]) -> None:
        self.refuses("position of the one before", steps=np.array(steps, np.uint8))

    def test_wrong_type_of_steps(self) -> None:
        self.refuses(r"int8\[2\]", steps=np.array([0x13, 0x32], np.int8))

    def test_wrong_number_of_values(self) -> None:
        self.refuses(r"6 values of gaps4 need uint8\[3\]", values=np.ones((1, 1, 6), np.float32))
        self.refuses("5 values of gaps4", values=np.ones((1, 1, 5), np.float32))
        self.refuses(r"float32\[4\]", values=np.ones(4, np.float32))

    def test_absurd_shape_without_allocating_it(self) -> None:
        self.refuses("1 GiB", shape=(2**40, 2**30))

    def test_wrong_type_of_values(self) -> None:
        self.refuses("float64", values=np.ones((1, 1, 4), np.float64))

    def test_entries_for_an_empty_weight(self) -> None:
        self.refuses("entries for shape", shape=(0, 3))

    def test_no_entries(self) -> None:
        nothing = {"steps": np.zeros(0, np.uint8), "values": np.zeros((1, 1, 0), np.float32)}
        self.refuses("0 entries for shape", **nothing)

    def test_negative_dimension(self) -> None:
        self.refuses("negative", shape=(-3, -4))

    @pytest.mark.parametrize("data_type", [TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT32, 99])
    def test_other_types(self, data_type: int) -> None:
        self.refuses(f"dtype {data_type}", data_type=data_type)


def test_a_repeated_last_entry_must_be_the_same() -> None:
    packed = FORM.encode(weight(12, p1=1, p4=2, p7=3))
    values = packed.tensors[1].copy()
    values[0, 0, 3] = 9
    with pytest.raises(ModelError, match=r"entry 3 .* position of the one before"):
        FORM.decode(dataclasses.replace(packed, tensors=(packed.tensors[0], values)))


class TestRefusal:
    def test_only_float32(self) -> None:
        assert FORM.refusal((3, 4), TensorProto.FLOAT) == ""
        for other in (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE, TensorProto.INT8):
            assert "for FLOAT" in FORM.refusal((3, 4), other)

    def test_onnx_runtime_folds_up_to_1_gib(self) -> None:
        assert FORM.refusal((MAX_FOLDED_BYTES // 8,), TensorProto.FLOAT) == ""
        assert "1 GiB" in FORM.refusal((MAX_FOLDED_BYTES // 8 + 1,), TensorProto.FLOAT)


def test_every_shape_is_fused() -> None:
    assert FORM.fits_fused((3, 7)) and FORM.decode_op((3, 7)) == "Decode"


def test_gaps8_refuses_the_shape_of_gaps4() -> None:
    packed = FORM.encode(weight(12, p1=1.5, p4=-2))
    with pytest.raises(ModelError, match=r"2 values of gaps8 need uint8\[1, 1, 2\]"):
        WIDE.decode(packed, "w")
