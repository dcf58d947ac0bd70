"""Groups of nodes that the view runs as one: the same values, and nothing that is asked for disappears."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper, parser

from onnxprune.finetune.ops.activation import gelu
from onnxprune.finetune.view import TorchView
from onnxprune.model import Model
from onnxprune.runtime import session

X = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
GELU = {
    "torch": "d = Div(x, root) e = Erf(d) a = Add(e, one) m = Mul(x, a) y = Mul(m, half)",
    "half first": "h = Mul(x, half) d = Div(x, root) e = Erf(d) a = Add(one, e) y = Mul(h, a)",
    "half in the middle": "d = Mul(inverse, x) e = Erf(d) a = Add(e, one) m = Mul(a, half) y = Mul(m, x)",
}
SWISH = {
    "paddle": "a = Add(x, other) c = Clip(a, zero, six) m = Mul(x, c) y = Div(m, six)",
    "torch": "a = Add(other, x) c = Clip(a, zero, six) d = Div(c, six) y = Mul(x, d)",
    "factor": "a = Add(x, other) c = Clip(a, zero, six) m = Mul(c, x) y = Mul(sixth, m)",
}
NORM = {
    "torch": "m = ReduceMean<axes=[-1]>(x) d = Sub(x, m) q = Pow(d, two) v = ReduceMean<axes=[-1]>(q)",
    "product": "m = ReduceMean<axes=[2]>(x) d = Sub(x, m) q = Mul(d, d) v = ReduceMean<axes=[2]>(q)",
    "another axis": "m = ReduceMean<axes=[1]>(x) d = Sub(x, m) q = Mul(d, d) v = ReduceMean<axes=[1]>(q)",
}
NORM_END = " s = Add(v, epsilon) r = Sqrt(s) y = Div(d, r)"
NUMBERS = {
    "root": 2**0.5, "inverse": 0.5**0.5, "one": 1, "half": 0.5, "two": 2, "epsilon": 1e-5, "other": 3,
    "zero": 0, "six": 6, "sixth": 1 / 6,
}  # fmt: skip


def model(nodes: str) -> Model:
    """The nodes, then ``z = y * w``, so that there is something to train."""
    text = '<ir_version: 8, opset_import: ["" : 13]> agraph (float[2,3,4] x) => (float[2,3,4] z)'
    proto = parser.parse_model(f"{text} {{ {nodes} z = Mul(y, w) }}")
    proto.graph.initializer.append(numpy_helper.from_array(np.arange(4, dtype=np.float32), "w"))
    used = {name for node in proto.graph.node for name in node.input}
    for name in sorted(used & NUMBERS.keys()):
        proto.graph.initializer.append(numpy_helper.from_array(np.float32(NUMBERS[name]), name))
    return Model(proto)


def kinds(view: TorchView) -> list[str]:
    return [step.where.rpartition("(")[2].rstrip(")") for step in view._plan.block.steps]


def values(view: TorchView, name: str = "z") -> NDArray[Any]:
    found: NDArray[Any] = view({"x": torch.from_numpy(X)})[name].detach().numpy()
    return found


@pytest.mark.parametrize("nodes", [*GELU.values(), *SWISH.values(), *(t + NORM_END for t in NORM.values())])
def test_a_group_runs_as_one(nodes: str) -> None:
    written = model(nodes)
    view = TorchView(written)
    kind = "Gelu" if "Erf" in nodes else "HardSwish" if "Clip" in nodes else "Normalize"
    assert kinds(view) == [kind, "Mul"]
    np.testing.assert_allclose(
        values(view), session(written.proto).run(None, {"x": X})[0], rtol=1e-5, atol=1e-6
    )


def test_gelu_is_exact_where_no_gradient_is_wanted() -> None:
    x = torch.linspace(-6, 6, 100_001)
    right = 0.5 * x.double() * (1 + torch.erf(x.double() * 0.5**0.5))
    assert (gelu(x) - right).abs().max() < 6e-7
    learning = x.clone().requires_grad_()
    torch.testing.assert_close(gelu(learning).detach(), gelu(x), rtol=1e-5, atol=2e-6)
    with torch.no_grad():
        assert torch.equal(gelu(learning), gelu(x))


@pytest.mark.parametrize("name", ["d", "e", "a", "m"])
def test_a_value_that_is_asked_for_stays(name: str) -> None:
    view = TorchView(model(GELU["torch"]), outputs=["z", name])
    assert "Erf" in kinds(view)
    assert values(view, name).shape == X.shape


@pytest.mark.parametrize(
    "nodes",
    [
        GELU["torch"].replace("one", "other"),
        GELU["torch"].replace("root", "other"),
        GELU["torch"].replace("Mul(m, half)", "Mul(m, e)"),
        GELU["torch"].replace("Mul(x, a)", "Mul(d, a)"),
        "d = Div(x, root) h = Mul(d, half) e = Erf(d) a = Add(one, e) y = Mul(h, a)",
        SWISH["paddle"].replace("zero", "half"),
        SWISH["paddle"].replace("other", "two"),
        SWISH["paddle"].replace("Mul(x, c)", "Mul(a, c)"),
        SWISH["paddle"].replace("Div(m, six)", "Div(m, other)"),
        SWISH["paddle"].replace("Div(m, six)", "Div(six, m)"),
        SWISH["torch"].replace("Mul(x, d)", "Mul(d, d)"),
        SWISH["torch"].replace("Mul(x, d)", "Mul(sixth, d)"),
        SWISH["torch"].replace("Mul(x, d)", "Mul(c, d)"),
        NORM["torch"] + NORM_END.replace("Div(d, r)", "Div(r, d)"),
        NORM["torch"].replace("two", "other") + NORM_END,
        NORM["torch"].replace("[-1]>(q)", "[1]>(q)") + NORM_END,
        NORM["torch"].replace("Pow(d, two)", "Mul(d, x)") + NORM_END,
        NORM["torch"] + NORM_END.replace("Div(d, r)", "Div(v, r)"),
    ],
)
def test_what_only_looks_like_a_group_stays(nodes: str) -> None:
    written = model(nodes)
    view = TorchView(written)
    assert not {"Gelu", "HardSwish", "Normalize"} & set(kinds(view))
    np.testing.assert_allclose(
        values(view), session(written.proto).run(None, {"x": X})[0], rtol=1e-4, atol=1e-5
    )


def test_a_factor_that_is_trained_stays() -> None:
    view = TorchView(model(GELU["torch"]), trainable=["half", "w"])
    view({"x": torch.from_numpy(X)})["z"].sum().backward()
    assert view.weights["half"].grad is not None


def test_a_cut_inside_a_group_stays() -> None:
    view = TorchView(model(GELU["torch"]), feeds_from=["e"])
    assert view.inputs == ("e", "x")
