from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxprune import runtime
from onnxprune.model import Model
from onnxprune.passes.fold_affine import fold_affine

RNG = np.random.default_rng(0)
noise = RNG.standard_normal
CONSTANTS: dict[str, Any] = {
    "w": noise((6, 4, 3, 3)), "b": noise(6), "v": noise((5, 6, 1, 1)),
    "k": noise((6, 1, 3, 3)), "s": np.array([1.5]), "t": np.array(-0.3), "tiny": np.array(1e-9),
    "cs": noise((1, 6, 1, 1)), "ct": noise((6, 1, 1)), "row": noise(9),
    "gamma": noise(6), "beta": noise(6), "mean": noise(6),
    "var": RNG.random(6) + 0.5, "zero": np.zeros((1, 6, 1, 1)), "deep": np.ones((1, 1, 1, 1, 1)),
}  # fmt: skip


def model(body: str, outputs: str = "float[N, M, H, W] y") -> Model:
    text = f'<ir_version: 8, opset_import: ["": 17]> g (float[N, 4, 9, 9] x) => ({outputs}) {{ {body} }}'
    proto = onnx.parser.parse_model(text)
    used = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(a.astype(np.float32), n) for n, a in CONSTANTS.items() if n in used
    )
    return Model(proto)


def outputs(net: Model) -> Any:
    x = np.random.default_rng(1).standard_normal((2, 4, 9, 9)).astype(np.float32)
    return runtime.session(net.proto, threads=1, optimize=False).run(None, {"x": x})


def ops(net: Model) -> list[str]:
    return [node.op_type for node in net.graph.node]


def check(net: Model, wanted: list[str]) -> Model:
    folded = net.copy()
    gone = fold_affine(folded)
    assert ops(folded) == wanted and gone == len(net.graph.node) - len(wanted)
    for a, b in zip(outputs(net), outputs(folded), strict=True):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(a).max()
    return folded


FOLDED = {
    "one number": ("c = Conv(x, w, b) y = Mul(s, c)", ["Conv"]),
    "divided": ("c = Conv(x, w) y = Div(c, s)", ["Conv"]),
    "channels": ("c = Conv(x, w, b) m = Mul(c, cs) y = Add(ct, m)", ["Conv"]),
    "no bias yet": ("c = Conv(x, w) m = Mul(c, cs) y = Sub(m, ct)", ["Conv"]),
    "shift first": ("c = Conv(x, w) m = Add(c, t) y = Mul(m, s)", ["Conv"]),
    "normalised": (
        "c = Conv(x, w, b) y = BatchNormalization <epsilon = 0.01> (c, gamma, beta, mean, var)",
        ["Conv"]),
    "many": (
        "c = Conv(x, w) m = Mul(c, s) n = Add(m, t) y = BatchNormalization(n, gamma, beta, mean, var)",
        ["Conv"]),
    "scaled to nothing": ("c = Conv(x, w, b) y = Mul(c, zero)", ["Conv"]),
    "then an activation": (
        "c = Conv(x, w) m = Mul(c, s) n = Add(m, t) y = HardSwish(n)",
        ["Conv", "HardSwish"]),
    "before, no padding": ("a = Relu(x) m = Mul(a, s) n = Add(m, t) y = Conv(n, w)", ["Relu", "Conv"]),
    "before, padded": ("a = Relu(x) m = Mul(a, s) n = Add(t, m) y = Conv <pads = [1, 1, 1, 1]> (n, w)",
                       ["Relu", "Add", "Conv"]),
    "scale before, padded": (
        "a = Relu(x) m = Mul(s, a) y = Conv <pads = [1, 0, 0, 0]> (m, w, b)",
        ["Relu", "Conv"]),
    "two in a row": ("c = Conv(x, w) m = Mul(c, s) n = Add(m, t) r = Relu(n) p = Mul(r, s) q = Add(p, t) "
                     "y = Conv(q, v)", ["Conv", "Relu", "Conv"]),
    "straight on": ("c = Conv(x, w) m = Mul(c, s) y = Conv(m, v)", ["Conv", "Conv"]),
    "groups": ("c = Conv(x, w) r = Relu(c) p = Mul(r, s) q = Add(p, t) y = Conv <group = 6> (q, k)",
               ["Conv", "Relu", "Conv"]),
}  # fmt: skip


@pytest.mark.parametrize(("body", "wanted"), FOLDED.values(), ids=FOLDED)
def test_folded(body: str, wanted: list[str]) -> None:
    folded = check(model(body), wanted)
    read = {name for node in folded.graph.node for name in node.input}
    assert {t.name for t in folded.graph.initializer} <= read  # nothing is left over
    onnx.checker.check_model(folded.proto)


KEPT = {
    "shift alone": ("c = Conv(x, w) y = Add(c, t)", ["Conv", "Add"]),
    "read twice": ("c = Conv(x, w) m = Mul(c, s) y = Add(c, m)", ["Conv", "Mul", "Add"]),
    "with itself": ("c = Conv(x, w) y = Mul(c, c)", ["Conv", "Mul"]),
    "another axis": ("c = Conv <pads = [1, 1, 1, 1]> (x, w) y = Mul(c, row)", ["Conv", "Mul"]),
    "another rank": ("c = Conv(x, w) y = Mul(c, deep)", ["Conv", "Mul"]),
    "the other way round": ("c = Conv(x, w) y = Div(s, c)", ["Conv", "Div"]),
    "division by zero": ("c = Conv(x, w) y = Div(c, zero)", ["Conv", "Div"]),
    "tied": ("c = Conv(x, w) m = Mul(c, s) d = Conv(x, w) y = Add(m, d)", ["Conv", "Mul", "Conv", "Add"]),
    "two readers before": ("a = Relu(x) m = Mul(a, s) c = Conv(m, w) d = ReduceMax(m) y = Add(c, d)",
                           ["Relu", "Mul", "Conv", "ReduceMax", "Add"]),
    "too large a shift": ("a = Relu(x) m = Mul(a, tiny) n = Add(m, s) y = Conv <pads = [1, 1, 1, 1]> (n, w)",
                          ["Relu", "Mul", "Add", "Conv"]),
}  # fmt: skip


@pytest.mark.parametrize(("body", "wanted"), KEPT.values(), ids=KEPT)
def test_kept(body: str, wanted: list[str]) -> None:
    net = model(body)
    before = net.proto.SerializeToString(deterministic=True)
    assert fold_affine(net) == 0 and ops(net) == wanted
    assert net.proto.SerializeToString(deterministic=True) == before


def test_values_that_are_outputs() -> None:
    net = model("c = Conv(x, w) m = Mul(c, s) y = Neg(m)", "float[N, M, H, W] y, float[N, M, H, W] c")
    assert fold_affine(net) == 0
    check(model("c = Conv(x, w) m = Mul(c, s) n = Neg(m)", "float[N, M, H, W] n, float[N, M, H, W] m"),
          ["Conv", "Neg"])  # fmt: skip


def test_names_and_zeros_stay() -> None:
    net = model("c = Conv(x, w, b) y = Mul(c, cs)")
    sparse = net.array("w") * (np.random.default_rng(2).random((6, 4, 3, 3)) < 0.3)
    net.set_array("w", sparse.astype(np.float32))
    folded = check(net, ["Conv"])
    assert {t.name for t in folded.graph.initializer} == {"w", "b"}
    assert np.array_equal(folded.array("w") == 0, net.array("w") == 0)


def test_constants_that_callers_may_replace() -> None:
    for name in ("w", "s"):
        net = model("c = Conv(x, w, b) y = Mul(c, s)")
        dims = list(net.index.tensors[name].dims)
        net.graph.input.append(onnx.helper.make_tensor_value_info(name, 1, dims))
        net.reindex()
        assert fold_affine(net) == 0


def test_training_mode_stays() -> None:
    net = model("c = Conv(x, w) y = BatchNormalization(c, gamma, beta, mean, var)")
    net.graph.node[1].attribute.append(onnx.helper.make_attribute("training_mode", 1))
    assert fold_affine(net) == 0
