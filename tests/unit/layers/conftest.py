"""Layers of small models, by name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxprune.layers import Layer, Skip, find_layers
from onnxprune.model import Model

Build = Callable[..., onnx.ModelProto]
Find = Callable[..., tuple[dict[str, Layer], dict[str, Skip]]]
RNG = np.random.default_rng(0)


def noise(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


@pytest.fixture
def find(build_model: Build) -> Callable[..., tuple[dict[str, Layer], dict[str, Skip]]]:
    def run(
        text: str, weights: dict[str, np.ndarray], *, min_size: int = 1, opset: int = 17, **globs: list[str]
    ) -> tuple[dict[str, Layer], dict[str, Skip]]:
        model = Model(build_model(text, weights, opset=opset))
        layers, skips = find_layers(model, min_size=min_size, **globs)
        return {layer.name: layer for layer in layers}, {skip.name: skip for skip in skips}

    return run
