"""Sequences and optional values through the view, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from onnxprune.finetune.ops import sequence
from onnxprune.finetune.view import TorchView
from onnxprune.model import Model
from tests.unit.finetune.ops.one_node import assert_same

Array: TypeAlias = NDArray[Any]
Build: TypeAlias = Callable[..., onnx.ModelProto]
Run: TypeAlias = Callable[..., list[Array]]


def draw(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


BODIES = {
    "construct": "s = SequenceConstruct(h, x, h)  y = ConcatFromSequence<axis = 1>(s)",
    "stack": "s = SequenceConstruct(x, h)  y = ConcatFromSequence<axis = -1, new_axis = 1>(s)",
    "at": "s = SequenceConstruct(x, h)  i = Constant<value_int = 1>()  y = SequenceAt(s, i)",
    "at_from_end": "s = SequenceConstruct(h, x)  i = Constant<value_int = -2>()  y = SequenceAt(s, i)",
    "insert": "e = SequenceEmpty()  s = SequenceInsert(e, x)  i = Constant<value_int = 0>()"
    "  t = SequenceInsert(s, h, i)  y = ConcatFromSequence<axis = 0>(t)",
    "insert_from_end": "s = SequenceConstruct(x, x)  i = Constant<value_int = -1>()"
    "  t = SequenceInsert(s, h, i)  y = ConcatFromSequence<axis = 0>(t)",
    "erase": "s = SequenceConstruct(x, x, h)  i = Constant<value_int = 1>()  t = SequenceErase(s, i)"
    "  y = ConcatFromSequence<axis = 0>(t)",
    "erase_last": "s = SequenceConstruct(x, h, x)  t = SequenceErase(s)  y = ConcatFromSequence<axis = 0>(t)",
    "length": "s = SequenceConstruct(x, h, x)  n = SequenceLength(s)  f = Cast<to = 1>(n)  y = Mul(f, h)",
    "split": "s = SplitToSequence<axis = 1>(h)  y = ConcatFromSequence<axis = 0>(s)",
    "split_unkept": "s = SplitToSequence<axis = 0, keepdims = 0>(h)  y = ConcatFromSequence<axis = 0>(s)",
    "split_size": "p = Constant<value_int = 2>()  s = SplitToSequence<axis = 1>(h, p)"
    "  i = Constant<value_int = 1>()  y = SequenceAt(s, i)",
    "split_sizes": "p = Constant<value_ints = [1, 2]>()  s = SplitToSequence<axis = -1>(h, p)"
    "  i = Constant<value_int = 1>()  y = SequenceAt(s, i)",
    "optional": "o = Optional(h)  k = OptionalHasElement(o)  f = Cast<to = 1>(k)  g = OptionalGetElement(o)"
    "  y = Mul(f, g)",
}


@pytest.mark.parametrize("name", BODIES)
def test_sequence(build_model: Build, run_model: Run, name: str) -> None:
    shape = {"stack": "A, B, C", "split_unkept": "A"}.get(name, "A, B")
    text = f"g (float[2, 3] x) => (float[{shape}] y) {{ h = Mul(x, w)  {BODIES[name]} }}"
    model = build_model(text, {"w": draw(3)}, 18)
    x = draw(2, 3, seed=1)
    view = TorchView(Model(model))
    y = view({"x": torch.from_numpy(x)})["y"]
    assert_same([y.detach().numpy()], run_model(model, {"x": x}))
    y.square().sum().backward()
    gradient = view.weights["w"].grad
    assert gradient is not None
    assert gradient.abs().sum() > 0


def test_sequence_carried_by_a_loop(build_model: Build, run_model: Run) -> None:
    """As torch.onnx writes a list that is appended to."""
    model = build_model(
        """g (float[2, 3] x) => (float[N, 3] y) {
            e = SequenceEmpty()
            n = Constant<value_int = 3>()
            s, last = Loop(n, , e, x) <body = one (int64 i, bool go, seq(float[2, 3]) t, float[2, 3] a)
                => (bool on, seq(float[2, 3]) u, float[2, 3] b) {
                on = Identity(go)
                b = Mul(a, w)
                u = SequenceInsert(t, b)
            }>
            y = ConcatFromSequence<axis = 0>(s)
        }""",
        {"w": draw(3)},
    )
    x = draw(2, 3, seed=1)
    view = TorchView(Model(model))
    y = view({"x": torch.from_numpy(x)})["y"]
    assert_same([y.detach().numpy()], run_model(model, {"x": x}))
    y.sum().backward()
    w = draw(3)
    expected = x.sum(0) * (1 + 2 * w + 3 * w**2)
    np.testing.assert_allclose(view.weights["w"].grad.numpy(), expected, rtol=1e-5)  # type: ignore[union-attr]


def test_sequences_are_not_changed() -> None:
    before = [torch.ones(1), torch.zeros(1)]
    sequence.SequenceInsert(before, torch.ones(1))
    sequence.SequenceErase(before)
    assert len(before) == 2


@pytest.mark.parametrize(
    ("call", "position"),
    [(sequence.SequenceAt, 2), (sequence.SequenceAt, -3), (sequence.SequenceErase, 2)],
)
def test_positions_out_of_range(call: Callable[..., Any], position: int) -> None:
    with pytest.raises(IndexError, match=f"position {position} in a sequence of 2"):
        call([torch.ones(1), torch.zeros(1)], torch.tensor(position))


def test_insert_out_of_range() -> None:
    with pytest.raises(IndexError, match="position 1 in a sequence of 0"):
        sequence.SequenceInsert([], torch.ones(1), torch.tensor(1))


def test_parts_that_do_not_add_up() -> None:
    with pytest.raises(ValueError, match=r"sizes \[1, 1\] of an axis of 3"):
        sequence.SplitToSequence(torch.ones(2, 3), torch.tensor([1, 1]), axis=1)


def test_empty_optional() -> None:
    assert not sequence.OptionalHasElement(sequence.Optional())
    with pytest.raises(ValueError, match="empty"):
        sequence.OptionalGetElement(None)
