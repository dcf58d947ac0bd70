from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest

from onnxprune.model import Model
from tests.unit.online.examples import TABLE, TEXT, noise


@pytest.fixture(scope="module")
def dense(build_model: Callable[..., onnx.ModelProto]) -> Model:
    return Model(build_model(TEXT, {"w1": noise(16, 24), "b1": noise(24), "w2": noise(24, 12)}))


@pytest.fixture(scope="module")
def table(build_model: Callable[..., onnx.ModelProto]) -> Model:
    return Model(build_model(TABLE, {"table": noise(30, 16), "w": noise(16, 20)}))
