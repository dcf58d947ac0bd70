"""Weights that the graph turns before use are stored as they are used; nothing else changes."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import onnx
import pytest

from onnxprune import runtime
from onnxprune.layers import find_layers
from onnxprune.model import Model
from onnxprune.opening import folded
from onnxprune.passes.fold_moved import fold_moved, needs_fold_moved
from onnxprune.recipe import Recipe

Build = Callable[..., onnx.ModelProto]
X = np.random.default_rng(1).normal(size=(3, 6)).astype(np.float32)


def weight(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def outputs(model: Model) -> list[np.ndarray]:
    return runtime.session(model.proto, threads=1).run(None, {"x": X})  # type: ignore[no-any-return]


FORMS = {
    "turned": ("t = Transpose<perm = [1, 0]>(w) y = MatMul(x, t)", (8, 6)),
    "turned, constant node": ("c = Identity(w) t = Transpose(c) y = MatMul(x, t)", (8, 6)),
    "an axis less": ("s = Squeeze(w, zero) t = Transpose<perm = [1, 0]>(s) y = MatMul(x, t)", (1, 8, 6)),
    "reshaped": ("t = Reshape(w, shape) y = Gemm(x, t, b)", (2, 3, 8)),
    "flat": ("t = Flatten(w) y = Gemm<transB = 1>(x, t, b)", (8, 2, 3)),
    "a convolution": (
        "u = Unsqueeze(x, last) v = Unsqueeze(w, last) z = Conv(u, v) y = Squeeze(z, last)",
        (8, 6),
    ),
    "twice, in one form": (
        "t = Transpose(w) s = Transpose<perm = [1, 0]>(w) a = MatMul(x, t) c = MatMul(x, s) y = Sub(a, c)",
        (8, 6),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_stored_as_they_are_read(form: str, build_model: Build) -> None:
    text, shape = FORMS[form]
    constants = {"zero": np.array([0]), "last": np.array([2]), "shape": np.array([6, 8]), "b": weight(8)}
    used = {name: value for name, value in constants.items() if f"{name})" in text}
    dense = Model(
        build_model(f"g (float[N, 6] x) => (float[N, 8] y) {{ {text} }}", {"w": weight(*shape), **used})
    )
    model = dense.copy()
    assert needs_fold_moved(model) and not find_layers(model, min_size=1)[0]
    assert fold_moved(model) == 1 and not needs_fold_moved(model)
    onnx.checker.check_model(model.proto, full_check=True)
    (layer,), _ = find_layers(model, min_size=1)
    assert layer.name == "w"
    kept = {node.op_type for node in model.graph.node}
    assert not kept & {"Transpose", "Reshape", "Flatten", "Identity"}
    np.testing.assert_array_equal(outputs(dense)[0], outputs(model)[0])


def test_a_constant_node_stays_one(build_model: Build) -> None:
    model = Model(
        build_model(f"g (float[N, 6] x) => (float[N, 8] y) {{ {FORMS['turned'][0]} }}", {"w": weight(8, 6)})
    )
    tensor = model.graph.initializer.pop()
    model.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["w"], value=tensor))
    model.reindex()
    before = outputs(model)[0]
    assert fold_moved(model) == 1
    assert [node.op_type for node in model.graph.node] == [
        "Constant",
        "MatMul",
    ] and not model.graph.initializer
    assert find_layers(model, min_size=1)[0][0].view.stored == (6, 8)
    np.testing.assert_array_equal(outputs(model)[0], before)


LEFT = {
    "tied to a table": """h = Gather(w, i) t = Transpose(w) a = MatMul(x, t) s = ReduceSum<keepdims = 0>(h)
        y = Add(a, s)""",
    "two forms": "t = Transpose(w) a = MatMul(x, t) r = Reshape(w, shape) c = MatMul(x, r) y = Add(a, c)",
    "added to something": """t = Transpose(w) a = MatMul(x, t) m = ReduceMean<axes = [0], keepdims = 0>(t)
        y = Add(a, m)""",
    "read as it is": "t = Transpose(w) a = MatMul(x, t) c = Gemm<transB = 1>(x, w) y = Add(a, c)",
}


@pytest.mark.parametrize("form", LEFT)
def test_what_others_read_stays(form: str, build_model: Build) -> None:
    text = LEFT[form]
    constants = {"w": weight(8, 6), "shape": np.array([6, 8]), "i": np.array([1])}
    used = {name: value for name, value in constants.items() if name == "w" or f" {name})" in text}
    model = Model(build_model(f"g (float[N, 6] x) => (float[N, 8] y) {{ {text} }}", used))
    before = model.to_bytes()
    assert fold_moved(model) == 0
    assert model.to_bytes() == before


def test_graph_outputs_and_replaceable_weights_stay(build_model: Build) -> None:
    text = "g (float[N, 6] x) => (float[N, 8] y, float[6, 8] t) { t = Transpose(w) y = MatMul(x, t) }"
    assert not needs_fold_moved(Model(build_model(text, {"w": weight(8, 6)})))
    text = "g (float[N, 6] x, float[8, 6] w) => (float[N, 8] y) { t = Transpose(w) y = MatMul(x, t) }"
    model = Model(build_model(text, {"w": weight(8, 6)}))
    assert model.proto.ir_version >= 4 and not needs_fold_moved(model)


def test_globs(build_model: Build) -> None:
    text = f"g (float[N, 6] x) => (float[N, 8] y) {{ {FORMS['turned'][0]} }}"
    dense = Model(build_model(text, {"w": weight(8, 6)}))
    assert folded(dense, Recipe(exclude=("w",))) is dense
    assert folded(dense, Recipe(include=("other",))) is dense
    assert folded(dense, Recipe(include=("w",))).index.tensors["w"].dims == [6, 8]


def test_types_that_numpy_lacks_stay_as_they_are(build_model: Build) -> None:
    text = "g (bfloat16[N, 6] x) => (bfloat16[N, 8] y) { t = Transpose<perm = [1, 0]>(w) y = MatMul(x, t) }"
    model = Model(build_model(text, {"w": weight(8, 6).astype(ml_dtypes.bfloat16)}))
    before = model.to_bytes()
    assert fold_moved(model) == 0
    assert model.to_bytes() == before
