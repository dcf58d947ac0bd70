"""LSTM, GRU and RNN against ONNX Runtime over their attributes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from onnxprune.finetune.ops import rnn
from onnxprune.finetune.registry import Unsupported
from tests.unit.finetune.ops.one_node import Array, Node, assert_gradients, assert_same

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
ACTIVATIONS = {"LSTM": 3, "GRU": 2, "RNN": 1}
T, BATCH, IN, H = 5, 3, 4, 2
DIRECTIONS = ("forward", "reverse", "bidirectional")


def node(
    op: str,
    direction: str = "forward",
    *,
    lens: list[int] | None = None,
    initial: bool = False,
    bias: bool = True,
    peepholes: bool = False,
    opset: int = 14,
    dtype: Any = np.float32,
    scale: float = 1.0,
    **attributes: Any,
) -> Node:
    rng = np.random.default_rng(7)

    def draw(*shape: int) -> Array:
        return (scale * rng.standard_normal(shape)).astype(dtype)

    D, G = 2 if direction == "bidirectional" else 1, GATES[op]
    states = 2 if op == "LSTM" else 1
    inputs: list[Array | None] = [draw(T, BATCH, IN), draw(D, G * H, IN), draw(D, G * H, H)]
    inputs.append(draw(D, 2 * G * H) if bias else None)
    inputs.append(np.array(lens, np.int32) if lens else None)
    inputs += [draw(D, BATCH, H) if initial else None for _ in range(states)]
    if op == "LSTM":
        inputs.append(draw(D, 3 * H) if peepholes else None)
    while inputs[-1] is None:
        inputs.pop()
    return Node(op, inputs, {"direction": direction, "hidden_size": H, **attributes}, states + 1, opset)


@pytest.fixture
def fused_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []
    fused = rnn._fused

    def counted(kernel: str, *args: Any, **keywords: Any) -> tuple[torch.Tensor, ...]:
        calls.append(kernel)
        return fused(kernel, *args, **keywords)

    monkeypatch.setattr(rnn, "_fused", counted)
    return calls


@pytest.mark.parametrize("lens", [None, [5, 5, 5], [3, 5, 1]], ids=["all", "full", "short"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("op", GATES)
def test_fused(op: str, direction: str, lens: list[int] | None, fused_calls: list[str]) -> None:
    extra = {"linear_before_reset": 1} if op == "GRU" else {}
    example = node(op, direction, lens=lens, initial=True, **extra)
    assert_same(example.by_torch(), example.by_ort())
    assert_gradients(example)
    assert fused_calls


@pytest.mark.parametrize("lens", [None, [3, 5, 1], [3, 0, 5]], ids=["all", "short", "empty"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("op", GATES)
def test_step_by_step(op: str, direction: str, lens: list[int] | None, fused_calls: list[str]) -> None:
    """What torch has no kernel for: a clip that bites, a GRU with its reset before the product."""
    example = node(op, direction, lens=lens, initial=True, clip=1.5)
    assert_same(example.by_torch(), example.by_ort())
    assert_gradients(example)
    assert not fused_calls


@pytest.mark.parametrize("lens", [None, [3, 5, 1]], ids=["all", "short"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("op", GATES)
def test_without_bias_and_initial_state(op: str, direction: str, lens: list[int] | None) -> None:
    example = node(op, direction, lens=lens, bias=False, opset=7)
    assert_same(example.by_torch(), example.by_ort())
    assert_gradients(example)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    "extra",
    [{"peepholes": True}, {"input_forget": 1}, {"peepholes": True, "input_forget": 1, "clip": 0.4}],
    ids=["peepholes", "input_forget", "both_clipped"],
)
def test_lstm_cell(direction: str, extra: dict[str, Any]) -> None:
    example = node("LSTM", direction, initial=True, lens=[2, 5, 4], **extra)
    assert_same(example.by_torch(), example.by_ort())
    assert_gradients(example)


@pytest.mark.parametrize("linear_before_reset", [0, 1])
@pytest.mark.parametrize("bias", [True, False])
def test_gru_cell(linear_before_reset: int, bias: bool) -> None:
    example = node("GRU", bias=bias, clip=0.7, linear_before_reset=linear_before_reset)
    assert_same(example.by_torch(), example.by_ort())
    assert_gradients(example)


NEED = {"ThresholdedRelu", "Affine", "ScaledTanh"}
NAMES = [*sorted(NEED), "Relu", "Tanh", "Sigmoid", "Softsign", "Softplus", "LeakyRelu", "Elu", "HardSigmoid"]


@pytest.mark.parametrize("given", [True, False], ids=["given", "default"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("op", GATES)
def test_activations(op: str, name: str, given: bool) -> None:
    extra = {"activation_alpha": [0.03] * 3, "activation_beta": [0.2] * 3} if given else {}
    example = node(op, activations=[name] * ACTIVATIONS[op], scale=0.5, **extra)
    if name in NEED and not given:
        with pytest.raises(Unsupported, match=f"{name.lower()}.*without its alpha"):
            example.by_torch()
        return
    assert_same(example.by_torch(), example.by_ort())
    assert_gradients(example)


def test_alpha_and_beta_go_to_those_that_take_one() -> None:
    names = ["HardSigmoid", "Tanh", "LeakyRelu", "Sigmoid", "Elu", "Affine"]
    example = node(
        "LSTM",
        "bidirectional",
        activations=names,
        activation_alpha=[0.3, 0.1, 0.7, 0.9],
        activation_beta=[0.4, 0.2],
    )
    assert_same(example.by_torch(), example.by_ort())


@pytest.mark.parametrize(
    ("activations", "message"), [(["Tanh"], "1 activations"), (["Sigmoid", "Swish"], "'swish' is not known")]
)
def test_wrong_activations(activations: list[str], message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        node("GRU", activations=activations).by_torch()


def test_direction_that_does_not_fit_the_weights() -> None:
    example = node("RNN", "forward")
    with pytest.raises(Unsupported, match="'bidirectional' with weights for 1"):
        example._replace(attributes={"direction": "bidirectional"}).by_torch()


@pytest.mark.parametrize("clip", [None, 0.6], ids=["fused", "loop"])
@pytest.mark.parametrize("op", GATES)
def test_batch_first(op: str, clip: float | None) -> None:
    """ONNX Runtime has no layout 1, the reference no lengths: compared with layout 0 turned round."""
    extra = {} if clip is None else {"clip": clip}
    time_first = node(op, "bidirectional", lens=[3, 5, 1], initial=True, **extra)
    turned = [
        None if x is None else x.swapaxes(0, 1) if i in (0, 5, 6) else x
        for i, x in enumerate(time_first.inputs)
    ]
    batch_first = time_first._replace(inputs=turned, attributes={**time_first.attributes, "layout": 1})
    Y, *last = time_first.by_torch()
    assert_same(batch_first.by_torch(), [Y.transpose(2, 0, 1, 3), *(s.swapaxes(0, 1) for s in last)])


@pytest.mark.parametrize("op", GATES)
def test_batch_first_against_reference(op: str) -> None:
    extra = {"linear_before_reset": 1} if op == "GRU" else {}
    example = node(op, "reverse", opset=22, layout=1, **extra)
    assert_same(example.by_torch(), example.by_reference())


@pytest.mark.parametrize("op", GATES)
def test_no_time_steps(op: str) -> None:
    example = node(op, "bidirectional", initial=True)
    inputs = [example.inputs[0][:0], *example.inputs[1:]]  # type: ignore[index]
    Y, *last = example._replace(inputs=inputs).by_torch()
    assert Y.shape == (0, 2, BATCH, H)
    assert_same(last, inputs[5:7])  # type: ignore[arg-type]


@pytest.mark.parametrize("lens", [None, [3, 5, 1]], ids=["all", "short"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("op", GATES)
def test_loop_equals_fused(
    op: str, direction: str, lens: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = {"linear_before_reset": 1} if op == "GRU" else {}
    example = node(op, direction, lens=lens, initial=True, dtype=np.float64, **extra)
    fused, fused_gradients = example.by_torch(), example.gradients()
    monkeypatch.setattr(rnn, "_fusible", lambda X, lens: False)
    assert_same(example.by_torch(), fused, rtol=1e-12, atol=1e-12)
    for index, (mine, other) in enumerate(zip(example.gradients(), fused_gradients, strict=True)):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-10, msg=f"gradient of input {index}")


@pytest.mark.parametrize("clip", [None, 5.0], ids=["fused", "loop"])
@pytest.mark.parametrize("op", GATES)
def test_half_precision_from_autocast(op: str, clip: float | None) -> None:
    """What comes before may be half, the weights are not."""
    example = node(
        op, "bidirectional", initial=True, lens=[3, 5, 1], **({} if clip is None else {"clip": clip})
    )
    tensors = [None if x is None else torch.from_numpy(x) for x in example.inputs]
    weight = tensors[1].requires_grad_()  # type: ignore[union-attr]
    with torch.autocast("cpu", torch.bfloat16):
        Y = example.call(tensors[0].bfloat16(), *tensors[1:])[0]  # type: ignore[union-attr]
    np.testing.assert_allclose(Y.float().detach(), example.by_torch()[0], atol=0.05)
    Y.sum().backward()
    assert torch.isfinite(weight.grad).all()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("op", "extra"),
    [
        ("LSTM", {"peepholes": True, "input_forget": 1, "clip": 5.0}),
        ("LSTM", {"lens": [2, 3, 1]}),
        ("GRU", {"lens": [2, 3, 1]}),
        ("RNN", {"activations": ["Softsign", "Softplus"]}),
    ],
)
def test_gradcheck(op: str, extra: dict[str, Any]) -> None:
    example = node(op, "bidirectional", initial=True, dtype=np.float64, **extra)
    tensors = [None if x is None else torch.from_numpy(x) for x in example.inputs]
    tensors[0] = tensors[0][:3]  # type: ignore[index]
    floats = [i for i, t in enumerate(tensors) if t is not None and t.is_floating_point()]

    def function(*weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
        for i, weight in zip(floats, weights, strict=True):
            tensors[i] = weight
        return example.call(*tensors)

    given = [tensors[i].clone().requires_grad_() for i in floats]  # type: ignore[union-attr]
    assert torch.autograd.gradcheck(function, given, fast_mode=True)
