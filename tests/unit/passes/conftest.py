"""Fixtures of the storage passes: pruned weights, and the graph that ONNX Runtime makes of a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune import runtime


@pytest.fixture(scope="session")
def pruned() -> Callable[..., Any]:
    """Return ``pruned(*shape, dtype=float32, seed=0)``: normal weights, 70 % of them zero."""

    def make(*shape: int, dtype: Any = np.float32, seed: int = 0) -> Any:
        rng = np.random.default_rng(seed)
        array = rng.standard_normal(shape)
        array[rng.random(shape) < 0.7] = 0
        return array.astype(dtype)

    return make


@pytest.fixture
def folded(tmp_path: Path) -> Callable[[onnx.ModelProto], onnx.GraphProto]:
    """Return ``folded(model)``: the graph that stock ONNX Runtime runs, all optimisations done."""

    def optimize(model: onnx.ModelProto) -> onnx.GraphProto:
        path = tmp_path / "optimized.onnx"
        runtime.session(model, threads=1, kernels=False, optimized_path=path)
        return onnx.load(path).graph

    return optimize


@pytest.fixture
def folded_ops(folded: Callable[..., onnx.GraphProto]) -> Callable[[onnx.ModelProto], Counter[str]]:
    """Return ``folded_ops(model)``: op types with their domain, and how often each is there."""
    return lambda model: Counter(f"{node.domain}.{node.op_type}" for node in folded(model).node)
