"""Weights that are off by a rounding error."""

from __future__ import annotations

import numpy as np

from onnxprune.rounding import matrices, relative, shaken
from tests.unit.structure.graphs import graph


def test_only_the_named_weights_move_by_little_and_zeros_stay() -> None:
    model, _ = graph(
        "(float[N, 6] x) => (float[N, C] y) { a = MatMul(x, w0) y = MatMul(a, w1) }",
        {"w0": (6, 8), "w1": (8, 4)},
    )
    weight = np.array(model.array("w0"), np.float32)
    weight[0] = 0
    model.set_array("w0", weight)
    found = shaken(model, ["w0"])
    moved = np.array(found.array("w0"), np.float32) - weight
    assert (moved[0] == 0).all() and (moved[1:] != 0).all()
    assert np.abs(moved[1:] / weight[1:]).max() < 2e-6
    assert np.array_equal(found.array("w1"), model.array("w1")) and np.array_equal(model.array("w0"), weight)


def test_matrices_are_all_float_weights_but_vectors() -> None:
    model, _ = graph(
        "(float[N, 6] x) => (float[N, C] y) { a = MatMul(x, w0) y = Add(a, b0) }",
        {"w0": (6, 8), "b0": (8,)},
    )
    assert matrices(model) == ["w0"]


def test_relative_difference() -> None:
    nan, inf = np.nan, np.inf
    a = np.array([1.0, nan, inf, -4.0])
    assert relative(a, a) == 0
    assert relative(np.array([1.0, 2.0]), np.array([1.5, 2.0])) == 0.25
    assert relative(a, np.array([1.0, 0.0, inf, -4.0])) == inf
    assert relative(a, np.array([1.0, nan, -inf, -4.0])) == inf
    assert relative(np.ones(2), np.ones(3)) == inf
    assert relative(np.zeros(0), np.zeros(0)) == 0
