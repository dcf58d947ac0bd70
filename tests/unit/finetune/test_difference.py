"""The written model against the one in torch: rounding passes, another model and NaN do not."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.errors import VerificationError
from onnxprune.finetune.difference import difference
from onnxprune.finetune.view import TorchView
from onnxprune.model import Model
from tests.unit.finetune.networks import parse

RNG = np.random.default_rng(0)
W = RNG.normal(size=(4, 4)).astype(np.float32)
FEEDS = {"x": RNG.normal(size=(50, 4)).astype(np.float32)}


def pair(outputs: str, nodes: str, change: float) -> tuple[Model, TorchView]:
    """A model, and the view of one whose weights are ``change`` away."""
    model = parse(f"g (float[N, 4] x) => ({outputs}) {{ a = MatMul(x, w) {nodes} }}", {"w": W})
    view = TorchView(model, trainable=())
    other = model.copy()
    other.set_array("w", W + np.float32(change))
    return other, view


def test_the_same_model_differs_by_rounding() -> None:
    model, view = pair("float[N, 4] y", "y = Tanh(a)", 0)
    assert difference(model, view, "", FEEDS) < 1e-6


def test_another_model_is_found_and_the_value_named() -> None:
    model, view = pair("float[N, 4] y", "y = Tanh(a)", 0.1)
    with pytest.raises(VerificationError, match=r"'y' differs by 0\.\d+, at most 0\.001"):
        difference(model, view, "", FEEDS)


def test_rounding_that_the_model_amplifies_is_none() -> None:
    """The difference of two products that are almost equal."""
    text = "g (float[N, 4] x) => (float[N, 4] y) { a = MatMul(x, v) b = MatMul(x, w) y = Sub(a, b) }"
    model = parse(text, {"w": W, "v": W * np.float32(1.001)})
    view, other = TorchView(model, trainable=()), model.copy()
    other.set_array("v", W * np.float32(1.001 * (1 + 2e-6)))
    assert difference(other, view, "", FEEDS) > 1e-3
    other.set_array("v", W * np.float32(1.001 * (1 + 1e-4)))
    with pytest.raises(VerificationError, match=r"'y' differs by 0\.\d+, at most 0\.00"):
        difference(other, view, "", FEEDS)


@pytest.mark.parametrize(
    ("outputs", "nodes"),
    [
        ("float[N, 4] y, int64[N, 1] c", "y = Identity(a) c = ArgMax<axis = 1>(a)"),
        ("float[N, 4] y, uint8[N, 4] c", "y = Identity(a) c = Cast<to = 2>(a)"),
        ("float[N, 4] y, int64[2, M] c", "y = Identity(a) b = Relu(a) c = NonZero(b)"),
        ("float[N, 4] y, float[4, M] c",
         "y = Identity(a) s = ReduceMax<axes = [1], keepdims = 0>(a) z = Constant<value_float = 0.0>() "
         "b = Greater(s, z) r = Compress<axis = 0>(a, b) c = Transpose(r)"),
    ],
)  # fmt: skip
def test_what_is_chosen_may_come_out_differently(outputs: str, nodes: str) -> None:
    model, view = pair(outputs, nodes, 2e-4)  # moves the choice of some rows, and values by less than 1e-3
    assert 1e-6 < difference(model, view, "", FEEDS) < 1e-3


def test_nan_on_both_sides_is_agreement_and_on_one_is_not() -> None:
    model, view = pair("float[N, 4] y", "y = Log(a)", 0)
    assert difference(model, view, "", FEEDS) < 1e-5
    model, view = pair("float[N, 4] y", "y = Log(a)", 5)
    with pytest.raises(VerificationError, match="'y' differs by inf"):
        difference(model, view, "", FEEDS)
