"""A request for a model written as text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from onnxprune.calibration.sources import Request


@pytest.fixture
def ask() -> Callable[..., Request]:
    """Return ``ask(inputs, body, weights, **recipe)``: a request for such a model.

    ``inputs`` and ``body`` are parser text; without a body the model computes nothing from its inputs.
    """
    import onnx.parser
    from onnx import numpy_helper

    from onnxprune.calibration.inputs import model_inputs
    from onnxprune.calibration.sources import Request
    from onnxprune.model import Model
    from onnxprune.recipe import Recipe

    def make(
        inputs: str, body: str | None = None, weights: Mapping[str, Any] | None = None, **recipe: Any
    ) -> Request:
        body = body or "y = Constant <value_ints = [1]> ()"
        proto = onnx.parser.parse_model(
            f'<ir_version: 8, opset_import: ["": 17]> g ({inputs}) => (y) {{ {body} }}'
        )
        proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in (weights or {}).items())
        model = Model(proto)
        return Request(model, model_inputs(model), Recipe(**recipe))

    return make
