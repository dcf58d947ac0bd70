"""If, Loop and Scan through the view, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from onnxprune.errors import ModelError
from onnxprune.finetune.view import TorchView
from onnxprune.model import Model
from tests.unit.finetune.ops.one_node import assert_same

Array: TypeAlias = NDArray[Any]
Build: TypeAlias = Callable[..., onnx.ModelProto]
Run: TypeAlias = Callable[..., list[Array]]


def draw(*shape: int, seed: int = 0) -> Array:
    return (np.random.default_rng(seed).standard_normal(shape) / 2).astype(np.float32)


def check(
    model: onnx.ModelProto, feed: Mapping[str, Array], run: Run, *, unused: tuple[str, ...] = ()
) -> TorchView:
    """Compare with ONNX Runtime; a finite gradient other than zero must reach every weight but ``unused``."""
    view = TorchView(Model(model))
    outputs = view({name: torch.from_numpy(np.array(x)) for name, x in feed.items()})
    assert_same([y.detach().numpy() for y in outputs.values()], run(model, feed))
    loss = sum((y * torch.rand_like(y)).sum() for y in outputs.values() if y.is_floating_point())
    loss.backward()  # type: ignore[union-attr]
    for name, weight in view.weights.items():
        assert weight.grad is None if name in unused else weight.grad.abs().sum() > 0, name  # type: ignore[union-attr]
        assert name in unused or torch.isfinite(weight.grad).all(), name  # type: ignore[arg-type]
    return view


IF = """g (float[3] x, bool c) => (float[3] y, float[N] z) {
    h = Mul(x, u)
    y, z = If (c) <
        then_branch = yes () => (float[3] a, float[1] b) { a = Mul(h, w)  b = ReduceSum(a) },
        else_branch = no () => (float[3] d, float[3] e) { d = Add(h, v)  e = Identity(h) }>
}"""


@pytest.mark.parametrize("chosen", [True, False])
@pytest.mark.parametrize("shape", [(), (1,)], ids=["scalar", "one"])
def test_if(build_model: Build, run_model: Run, chosen: bool, shape: tuple[int, ...]) -> None:
    """Weights of the branch that is not taken get no gradient; values around the branches are read."""
    text = IF.replace("bool c", "bool[1] c") if shape else IF
    model = build_model(text, {name: draw(3, seed=i) for i, name in enumerate("uwv")})
    feed = {"x": draw(3, seed=5), "c": np.full(shape, chosen)}
    check(model, feed, run_model, unused=("v" if chosen else "w",))


LOOP = """g (int64 m, bool c, float[2, 3] x) => (float[2, 3] last, float[N, 2, 3] all, float[N] trips) {
    last, all, trips = Loop (m, c, x) <body = one (int64 i, bool go, float[2, 3] s)
        => (bool on, float[2, 3] t, float[2, 3] step, float trip) {
        a = MatMul(s, w)
        t = Tanh(a)
        step = Add(t, v)
        trip = Cast<to = 1>(i)
        total = ReduceSum<keepdims = 0>(t)
        on = Less(total, limit)
    }>
}"""


@pytest.mark.parametrize(
    ("trips", "limit"), [(4, 1e9), (5, -1e9), (9, 0.1)], ids=["by_count", "first_only", "by_condition"]
)
def test_loop(build_model: Build, run_model: Run, trips: int, limit: float) -> None:
    weights = {"w": 1.5 * draw(3, 3), "v": draw(3, seed=1), "limit": np.array(limit, np.float32)}
    model = build_model(LOOP, weights)
    feed = {"m": np.array(trips), "c": np.array(True), "x": draw(2, 3, seed=2)}
    check(model, feed, run_model, unused=("limit",))


@pytest.mark.parametrize(("trips", "go"), [(0, True), (3, False)])
def test_loop_that_is_not_entered(build_model: Build, trips: int, go: bool) -> None:
    weights = {"w": draw(3, 3), "v": draw(3, seed=1), "limit": np.array(0, np.float32)}
    view = TorchView(Model(build_model(LOOP, weights)))
    x = torch.rand(2, 3)
    last, every, trip = view({"m": torch.tensor(trips), "c": torch.tensor(go), "x": x}).values()
    assert torch.equal(last, x)
    assert (every.shape[0], every.ndim, every.dtype) == (0, 3, torch.float32)
    assert trip.shape == (0,)


def test_loop_without_count(build_model: Build, run_model: Run) -> None:
    text = LOOP.replace("int64 m, ", "").replace("Loop (m, c", "Loop (, c")
    weights = {"w": 1.5 * draw(3, 3), "v": draw(3, seed=1), "limit": np.array(0.1, np.float32)}
    feed = {"c": np.array(True), "x": draw(2, 3, seed=2)}
    check(build_model(text, weights), feed, run_model, unused=("limit",))


def test_loop_without_condition(build_model: Build, run_model: Run) -> None:
    text = LOOP.replace(", bool c", "").replace("Loop (m, c", "Loop (m, ")
    weights = {"w": draw(3, 3), "v": draw(3, seed=1), "limit": np.array(1e9, np.float32)}
    feed = {"m": np.array(3), "x": draw(2, 3, seed=2)}
    check(build_model(text, weights), feed, run_model, unused=("limit",))


def test_loop_in_if_in_loop(build_model: Build, run_model: Run) -> None:
    """Bodies read values of all the graphs around them."""
    text = """g (float[3] x) => (float[3] y) {
        outer = Constant<value_int = 4>()
        start = Mul(x, u)
        y = Loop (outer, ) <body = first (int64 i, bool go, float[3] s) => (bool on, float[3] t) {
            on = Identity(go)
            half = Constant<value_int = 2>()
            later = Less(half, i)
            t = If (later) <
                then_branch = yes () => (float[3] a) {
                    a = Loop (i, ) <body = second (int64 j, bool c, float[3] p) => (bool d, float[3] q) {
                        d = Identity(c)
                        r = Mul(p, w)
                        q = Add(r, start)
                    }>(s)
                },
                else_branch = no () => (float[3] b) { b = Add(s, v) }>
        }>(start)
    }"""
    text = text.replace("(outer, ) <", "(outer, , start) <").replace("}>(start)", "}>")
    text = text.replace("(i, ) <", "(i, , s) <").replace("}>(s)", "}>")
    model = build_model(text, {name: draw(3, seed=i) for i, name in enumerate("uwv")})
    check(model, {"x": draw(3, seed=5)}, run_model)


SCAN = """g (float[2] s, float[A, B] x, float[C, D] z) => (float[2] t, float[E, F] p, float[G, H] q) {
    t, p, q = Scan<num_scan_inputs = 2 %s, body = one (float[2] state, float[3] row, float[2] other)
        => (float[2] next, float[2] r, float[3] o) {
        a = MatMul(row, w)
        b = Add(a, state)
        c = Mul(b, other)
        next = Tanh(c)
        r = Add(next, v)
        o = Mul(row, row)
    }>(s, x, z)
}"""


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"scan_input_axes": [1, 0]},
        {"scan_input_axes": [-1, -2]},
        {"scan_input_directions": [1, 0]},
        {"scan_output_axes": [1, 0]},
        {"scan_output_axes": [-1, 1], "scan_output_directions": [0, 1], "scan_input_axes": [1, 1]},
    ],
    ids=str,
)
@pytest.mark.parametrize("opset", [9, 17])
def test_scan(build_model: Build, run_model: Run, opset: int, attributes: dict[str, list[int]]) -> None:
    text = SCAN % "".join(f", {name} = {values}" for name, values in attributes.items())
    model = build_model(text, {"w": draw(3, 2), "v": draw(2, seed=1)}, opset)
    axes = attributes.get("scan_input_axes", [0, 0])
    x, z = draw(5, 3, seed=2), draw(5, 2, seed=3)
    feed = {"s": draw(2, seed=4), "x": x.T if axes[0] % 2 else x, "z": z.T if axes[1] % 2 else z}
    check(model, feed, run_model)


def test_scan_of_nothing(build_model: Build) -> None:
    view = TorchView(Model(build_model(SCAN % "", {"w": draw(3, 2), "v": draw(2, seed=1)})))
    s = torch.rand(2)
    t, p, q = view({"s": s, "x": torch.rand(0, 3), "z": torch.rand(0, 2)}).values()
    assert torch.equal(t, s)
    assert (p.shape[0], p.ndim, q.shape[0], q.ndim) == (0, 2, 0, 2)


def test_scan_of_different_lengths(build_model: Build) -> None:
    view = TorchView(Model(build_model(SCAN % "", {"w": draw(3, 2), "v": draw(2, seed=1)})))
    with pytest.raises(ModelError, match=r"different lengths \[5, 4\]"):
        view({"s": torch.rand(2), "x": torch.rand(5, 3), "z": torch.rand(4, 2)})


@pytest.mark.parametrize("reverse", [False, True], ids=["", "reverse"])
@pytest.mark.parametrize("lens", [None, [4, 2]], ids=["", "lens"])
def test_scan_8(build_model: Build, run_model: Run, lens: list[int] | None, reverse: bool) -> None:
    """The old Scan takes a batch, whose sequences may end early."""
    text = """g (LENS float[2, 2] s, float[2, 4, 3] x) => (float[2, 2] t, float[2, 4, 2] p) {
        t, p = Scan<num_scan_inputs = 1 ATTRIBUTES, body = one (float[2] state, float[3] row)
            => (float[2] next, float[2] r) {
            a = MatMul(row, w)
            b = Add(a, state)
            next = Tanh(b)
            r = Add(next, v)
        }>(NAME, s, x)
    }"""
    text = text.replace("LENS", "int64[2] n," if lens else "").replace("NAME", "n" if lens else "")
    text = text.replace("ATTRIBUTES", ", directions = [1]" if reverse else "")
    feed = {"s": draw(2, 2, seed=4), "x": draw(2, 4, 3, seed=2)}
    if lens:
        feed["n"] = np.array(lens)
    check(build_model(text, {"w": draw(3, 2), "v": draw(2, seed=1)}, 8), feed, run_model)


def test_gradcheck(build_model: Build) -> None:
    """Through a Loop that carries a state and stacks what it made."""
    weights = {"w": draw(3, 3), "v": draw(3, seed=1), "limit": np.array(1e9, np.float32)}
    text = LOOP.replace("float", "double").replace("to = 1>", "to = 11>")
    model = build_model(text, {name: value.astype(np.float64) for name, value in weights.items()})
    view = TorchView(Model(model))
    feeds = {"m": torch.tensor(3), "c": torch.tensor(True)}

    def function(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, ...]:
        name = next(n for n, p in view.named_parameters() if p is view.weights["w"])
        last, every, _ = torch.func.functional_call(view, {name: w}, ({**feeds, "x": x},)).values()
        return last, every

    x = torch.rand(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (x, view.weights["w"].detach().clone().requires_grad_()))
