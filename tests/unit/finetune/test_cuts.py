"""Cut points are the ends of the blocks; features are spread over the model."""

from __future__ import annotations

import numpy as np

from onnxprune import io
from onnxprune.finetune.cuts import MAX_FEATURES, cut_points, features
from onnxprune.layers import find_layers
from tests.unit.finetune.networks import parse, residual_net


def test_ends_of_residual_blocks() -> None:
    model = residual_net()
    layers, _ = find_layers(model, min_size=1)
    # Not r1 and r2: the residual branch runs beside them. Not c1, t1: h1 comes before the next layer too.
    assert cut_points(model, layers) == ("h0", "h1", "f")


def test_masks_beside_the_cut_do_not_matter() -> None:
    text = """g (float[N, 8] x, float[N, 8] mask) => (float[N, 8] y) {
        m = Sub(one, mask) a = MatMul(x, w1) h = Add(a, m) b = MatMul(h, w2) k = Add(b, m)
        y = MatMul(k, w3) }"""
    weights = {f"w{i}": np.ones((8, 8), np.float32) for i in (1, 2, 3)}
    model = parse(text, weights | {"one": np.ones(1, np.float32)})
    layers, _ = find_layers(model, min_size=1)
    assert cut_points(model, layers) == ("h", "k")


def test_shapes_beside_the_cut_do_not_matter() -> None:
    text = """g (float[N, 8] x) => (float[N, 8] y) {
        a = MatMul(x, w1) s = Shape(a) h = Relu(a) b = MatMul(h, w2) r = Relu(b) c = Reshape(r, s)
        y = MatMul(c, w3) }"""
    model = parse(text, {f"w{i}": np.ones((8, 8), np.float32) for i in (1, 2, 3)})
    layers, _ = find_layers(model, min_size=1)
    assert cut_points(model, layers) == ("h", "c")


def test_constant_nodes_are_no_activations() -> None:
    values = ", ".join(map(str, range(1, 65)))
    text = f"""g (float[N, 8] x) => (float[N, 8] y) {{
        w1 = Constant<value = float[8, 8] {{{values}}}>() a = MatMul(x, w1) r = Relu(a)
        w2 = Constant<value = float[8, 8] {{{values}}}>() y = MatMul(r, w2) }}"""
    model = parse(text, {})
    layers, _ = find_layers(model, min_size=1)
    assert len(layers) == 2
    assert cut_points(model, layers) == ("r",)


def test_without_cuts_the_inputs_of_layers_are_features() -> None:
    text = """g (float[N, 4] x) => (float[N, 4] y) {
        a = MatMul(x, w1) p = Relu(a) q = Sigmoid(a) b = MatMul(p, w2) c = MatMul(q, w3) d = Relu(b)
        e = MatMul(d, w4) y = Add(c, e) }"""
    model = parse(text, {f"w{i}": np.ones((4, 4), np.float32) for i in (1, 2, 3, 4)})
    layers, _ = find_layers(model, min_size=1)
    assert len(cut_points(model, layers)) < 3
    assert set(features(model, layers)) == {"p", "q", "d"}


def test_features_of_a_deep_model_are_limited_and_spread(digits_transformer: object) -> None:
    count = 40
    body = " ".join(f"a{i} = MatMul(h{i}, w{i}) h{i + 1} = Relu(a{i})" for i in range(count))
    text = f"g (float[N, 4] h0) => (float[N, 4] y) {{ {body} y = MatMul(h{count}, w{count}) }}"
    model = parse(text, {f"w{i}": np.ones((4, 4), np.float32) for i in range(count + 1)})
    layers, _ = find_layers(model, min_size=1)
    found = features(model, layers)
    assert len(found) == MAX_FEATURES == len(set(found))
    positions = [int(name[1:]) for name in found]
    assert positions == sorted(positions)
    assert max(np.diff(positions)) <= 5
    layers, _ = find_layers(io.load(digits_transformer), min_size=1)  # type: ignore[arg-type]
    assert len(cut_points(io.load(digits_transformer), layers)) >= 4  # type: ignore[arg-type]
