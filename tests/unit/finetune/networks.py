"""Small networks and data for the tests of fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

from onnxprune.calibration.data import CalibrationData, from_iterable
from onnxprune.model import Model
from onnxprune.recipe import Recipe

RESIDUAL = """g (float[N, 3, 8, 8] x) => (float[N, 10] logits) {
    s = Conv<pads = [1, 1, 1, 1]>(x, ws, bs)   h0 = Relu(s)
    a1 = Conv<pads = [1, 1, 1, 1]>(h0, w1, b1) r1 = Relu(a1)
    c1 = Conv<pads = [1, 1, 1, 1]>(r1, w2, b2) t1 = Add(c1, h0) h1 = Relu(t1)
    a2 = Conv<pads = [1, 1, 1, 1]>(h1, w3, b3) r2 = Relu(a2)
    c2 = Conv<pads = [1, 1, 1, 1]>(r2, w4, b4) t2 = Add(c2, h1) h2 = Relu(t2)
    p = GlobalAveragePool(h2) f = Flatten(p)
    logits = Gemm<transB = 1>(f, wh, bh) }"""


def parse(text: str, weights: Mapping[str, np.ndarray], opset: int = 17) -> Model:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> {text}')
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in weights.items())
    onnx.checker.check_model(proto, full_check=True)
    return Model(proto)


def residual_net(seed: int = 0, channels: int = 12) -> Model:
    """A stem, two residual blocks and a head: 5 convolutions and a Gemm."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape).astype(np.float32)

    weights = {"ws": normal(channels, 3, 3, 3), "wh": 3 * normal(10, channels)}
    weights |= {f"w{i}": normal(channels, channels, 3, 3) for i in range(1, 5)}
    weights |= {f"b{i}": 0.1 * normal(channels) for i in ("s", 1, 2, 3, 4)}
    return parse(RESIDUAL, weights | {"bh": 0.1 * normal(10)})


def images(count: int, seed: int = 1) -> np.ndarray:
    """Smooth random images (count, 3, 8, 8)."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(count, 3, 4, 4)).repeat(2, 2).repeat(2, 3)
    return (coarse + 0.2 * rng.normal(size=(count, 3, 8, 8))).astype(np.float32)


def calibration(model: Model, count: int = 96, batch: int = 16) -> CalibrationData:
    x = images(count)
    feeds = [{"x": x[i : i + batch]} for i in range(0, count, batch)]
    return from_iterable(model, feeds, Recipe(batch_size=batch))


def magnitude_pruned(model: Model, names: tuple[str, ...], sparsity: float = 0.7) -> Model:
    """A copy with the smallest weights of each tensor set to zero."""
    pruned = model.copy()
    for name in names:
        array = np.array(pruned.array(name))
        array[np.abs(array) <= np.quantile(np.abs(array), sparsity)] = 0
        pruned.set_array(name, array)
    return pruned
