"""Samples of other sizes: each free size is doubled by itself, and what does not run is left out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from onnxprune.model import Model
from onnxprune.slim.varied import varied, varied_samples

Build = Callable[..., onnx.ModelProto]
FEEDS = {"x": np.ones((2, 3, 4), np.float32), "z": np.ones((2, 4), np.float32)}


@pytest.mark.parametrize(
    ("x", "z", "wanted"),
    [
        ("N, T, 4", "N, 4", [((4, 3, 4), (4, 4)), ((2, 6, 4), (2, 4))]),
        ("N, 3, 4", "M, 4", [((4, 3, 4), (2, 4)), ((2, 3, 4), (4, 4))]),
        ("2, 3, 4", "2, 4", []),
    ],
)
def test_each_free_size(
    build_model: Build, x: str, z: str, wanted: list[tuple[tuple[int, ...], ...]]
) -> None:
    text = (
        f"g (float[{x}] x, float[{z}] z) => (float[A, B, C] y, float[A, B] u) {{ y = Relu(x) u = Relu(z) }}"
    )
    model = Model(build_model(text))
    found = [(f["x"].shape, f["z"].shape) for f in varied(model, FEEDS)]
    assert found == wanted


def test_sizes_that_the_model_refuses_are_left_out(build_model: Build) -> None:
    text = "g (float[N, T, 4] x) => (float[N, T, 4] y) { y = Add(x, position) }"
    model = Model(build_model(text, {"position": np.ones((3, 4), np.float32)}))
    feeds, shapes = varied_samples(model, {"x": FEEDS["x"]})
    assert [f["x"].shape for f in feeds] == [(4, 3, 4)]
    assert [s["y"] for s in shapes] == [(4, 3, 4)]
