"""Fused operators of com.microsoft against ONNX Runtime, or against their parts where it has no kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from onnxprune import runtime
from onnxprune.finetune.registry import Unsupported, find
from onnxprune.finetune.view import TorchView
from onnxprune.model import Model
from tests.unit.finetune.ops.one_node import Array, Node, assert_gradients, assert_same

MS = "com.microsoft"


def draw(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def node(op: str, *inputs: Array | None, outputs: int = 1, **attributes: Any) -> Node:
    return Node(op, inputs, attributes, outputs, 1, MS)


def check(example: Node) -> None:
    assert_same(example.by_torch(), example.by_ort())
    assert_gradients(example)


@pytest.mark.parametrize(
    "example",
    [
        node("Gelu", draw(3, 4)),
        node("FastGelu", draw(2, 3, 4)),
        node("FastGelu", draw(2, 3, 4), draw(4)),
        node("BiasGelu", draw(2, 3, 4), draw(4)),
        node("QuickGelu", draw(3, 4)),
        node("QuickGelu", draw(3, 4), alpha=0.7),
    ],
    ids=["Gelu", "FastGelu", "FastGelu_bias", "BiasGelu", "QuickGelu", "QuickGelu_alpha"],
)
def test_activations(example: Node) -> None:
    check(example)


def test_bias_add() -> None:
    x, bias, skip = draw(2, 5, 4), draw(4), draw(2, 5, 4, seed=1)
    example = node("BiasAdd", x, bias, skip)
    assert_same(example.by_torch(), [x + bias + skip])
    assert_gradients(example)


@pytest.mark.parametrize(
    ("axis", "inner", "shape"),
    [(3, 1, (2, 1, 1, 4)), (3, 0, (1, 1, 5, 4)), (2, 0, (1, 1, 5, 4)), (-1, 0, (5, 4))],
)
def test_bias_softmax(axis: int, inner: int, shape: tuple[int, ...]) -> None:
    data, bias = draw(2, 3, 5, 4), draw(*shape, seed=1)
    example = node("BiasSoftmax", data, bias, axis=axis, is_inner_broadcast=inner)
    axes = tuple(range(axis % 4, 4))
    powers = np.exp(data + bias)
    assert_same(example.by_torch(), [powers / powers.sum(axes, keepdims=True)])
    assert_gradients(example)


def matrices(transpose: str) -> tuple[Array, Array, dict[str, int]]:
    """Inputs whose product is (2, 4, 3, 6) once turned as ``transpose`` says: any of a, b, A, B."""
    a, b = draw(2, 4, 3, 5), draw(2, 4, 5, 6, seed=1)
    a, b = (
        np.ascontiguousarray(x.swapaxes(-1, -2)) if t in transpose else x for x, t in ((a, "a"), (b, "b"))
    )
    a, b = (
        np.ascontiguousarray(np.moveaxis(x, -2, 0)) if t in transpose else x for x, t in ((a, "A"), (b, "B"))
    )
    flags = {"transA": "a", "transB": "b", "transBatchA": "A", "transBatchB": "B"}
    return a, b, {name: int(letter in transpose) for name, letter in flags.items()}


@pytest.mark.parametrize("alpha", [1.0, 0.3])
@pytest.mark.parametrize("transpose", ["", "a", "b", "ab", "A", "B", "AB", "aA", "bB", "abAB"])
def test_fused_matmul(transpose: str, alpha: float) -> None:
    a, b, flags = matrices(transpose)
    check(node("FusedMatMul", a, b, alpha=alpha, **flags))


@pytest.mark.parametrize("shapes", [((5,), (5, 6)), ((3, 5), (5,)), ((3, 5), (2, 5, 6))], ids=str)
def test_fused_matmul_of_other_ranks(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    check(node("FusedMatMul", draw(*shapes[0]), draw(*shapes[1], seed=1), alpha=2.0))


def test_transpose_matmul() -> None:
    check(node("TransposeMatMul", draw(5, 3), draw(6, 5, seed=1), transA=1, transB=1, alpha=0.5))


GEMM_ACTIVATIONS: list[tuple[str, dict[str, float]]] = [
    *((name, {}) for name in ("Relu", "Tanh", "Sigmoid", "Softplus", "Softsign")),
    *((name, {"activation_alpha": 0.3}) for name in ("LeakyRelu", "Elu", "Celu", "ThresholdedRelu")),
    ("HardSigmoid", {"activation_alpha": 0.3, "activation_beta": 0.4}),
    ("Selu", {"activation_alpha": 1.5, "activation_gamma": 1.1}),
]


@pytest.mark.parametrize(("activation", "numbers"), GEMM_ACTIVATIONS, ids=str)
def test_fused_gemm(activation: str, numbers: dict[str, float]) -> None:
    check(
        node(
            "FusedGemm",
            draw(5, 3),
            draw(6, 5, seed=1),
            draw(6, seed=2),
            transA=1,
            transB=1,
            activation=activation,
            **numbers,
        )
    )


def test_fused_gemm_factors() -> None:
    check(
        node(
            "FusedGemm",
            draw(3, 5),
            draw(5, 6, seed=1),
            draw(1, 6, seed=2),
            alpha=0.5,
            beta=2.0,
            activation="Relu",
        )
    )


CONV_ACTIVATIONS: list[tuple[str, list[float]]] = [
    *((name, []) for name in ("Relu", "Tanh", "Sigmoid", "HardSwish")),
    ("LeakyRelu", [0.2]),
    ("Clip", [-0.5, 0.7]),
    ("HardSigmoid", [0.2, 0.4]),
]


@pytest.mark.parametrize("added", [False, True], ids=["", "Z"])
@pytest.mark.parametrize(("activation", "numbers"), CONV_ACTIVATIONS, ids=str)
def test_fused_conv(activation: str, numbers: list[float], added: bool) -> None:
    extra = {"activation_params": numbers} if numbers else {}
    inputs: list[Array | None] = [draw(2, 4, 6, 6), draw(6, 2, 3, 3, seed=1) / 3, draw(6, seed=2)]
    inputs += [draw(2, 6, 3, 3, seed=3)] if added else []
    check(
        node("FusedConv", *inputs, activation=activation, group=2, strides=[2, 2], pads=[1, 1, 1, 1], **extra)
    )


@pytest.mark.parametrize("extra", [{"activation": "Mish"}, {"activation": "LeakyRelu"}], ids=str)
def test_unknown_fused_activation(extra: dict[str, str]) -> None:
    with pytest.raises(Unsupported, match=f"'{extra['activation']}' with 0 numbers"):
        node("FusedConv", draw(1, 2, 4, 4), draw(2, 2, 1, 1), **extra).by_torch()


@pytest.mark.parametrize("axis", [-1, 1])
def test_simplified_layer_norm(axis: int) -> None:
    scale = draw(4, seed=1) if axis == -1 else draw(3, 4, seed=1)
    example = Node("SimplifiedLayerNormalization", [draw(2, 3, 4), scale], {"axis": axis, "epsilon": 1e-3}, 2)
    assert_same(example.by_torch(), example.by_ort())
    assert_gradients(example)


@pytest.mark.parametrize("skip", [(2, 3, 4), (1, 3, 4), (3, 4)], ids=str)
@pytest.mark.parametrize("beta", [True, False], ids=["beta", ""])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", ""])
def test_skip_layer_norm(bias: bool, beta: bool, skip: tuple[int, ...]) -> None:
    inputs = [draw(2, 3, 4), draw(*skip, seed=1), draw(4, seed=2)]
    more = [draw(4, seed=3) if beta else None, draw(4, seed=4) if bias else None]
    check_skip("SkipLayerNormalization", [*inputs, *more])


@pytest.mark.parametrize("bias", [True, False], ids=["bias", ""])
@pytest.mark.parametrize("shape", [(2, 3, 4), (3, 4)], ids=str)
def test_skip_rms_norm(shape: tuple[int, ...], bias: bool) -> None:
    inputs = [draw(*shape), draw(*shape, seed=1), draw(4, seed=2), draw(4, seed=4) if bias else None]
    check_skip("SkipSimplifiedLayerNormalization", inputs)


def check_skip(op: str, inputs: list[Array | None]) -> None:
    """ONNX Runtime does not fill the statistics, so nodes ask for the first and the last output."""
    while inputs[-1] is None:
        inputs.pop()
    example = node(op, *inputs, epsilon=1e-3)
    check(example)
    model = example.model()
    model.graph.node[0].output.extend(["", "", "total"])
    model.graph.output.add().name = "total"
    ours = find(MS, op, 1).function(  # type: ignore[union-attr]
        *(None if x is None else torch.from_numpy(x) for x in inputs),
        epsilon=1e-3,
        outputs=(True, False, False, True),
    )
    assert_same([ours[0].numpy(), ours[3].numpy()], example.by_ort(model))


@pytest.mark.parametrize("op", ["SkipLayerNormalization", "SkipSimplifiedLayerNormalization"])
def test_statistics_are_refused(op: str) -> None:
    with pytest.raises(Unsupported, match="mean and inv_std_var"):
        node(op, draw(1, 3, 4), draw(1, 3, 4), draw(4), outputs=2).by_torch()


@pytest.mark.parametrize("segments", [True, False], ids=["segments", ""])
@pytest.mark.parametrize("places", [None, 1, 2], ids=["in_order", "shared", "own"])
@pytest.mark.parametrize("mask", [True, False], ids=["mask", ""])
def test_embed_layer_norm(mask: bool, places: int | None, segments: bool) -> None:
    rng = np.random.default_rng(0)

    def ids(limit: int, rows: int = 2) -> Array:
        return rng.integers(0, limit, (rows, 5), dtype=np.int32)

    inputs = [ids(9), ids(2) if segments else None, draw(9, 4), draw(7, 4, seed=1)]
    inputs += [draw(2, 4, seed=2) if segments else None, draw(4, seed=3), draw(4, seed=4)]
    inputs += [ids(2) if mask else None, ids(7, places) if places else None]
    while inputs[-1] is None:
        inputs.pop()
    example = node("EmbedLayerNormalization", *inputs, outputs=3, epsilon=1e-3)
    check(example)


def test_quantised_products_are_not_known() -> None:
    """They are refused by name when a view is made."""
    assert find(MS, "MatMulNBits", 1) is None


def test_model_as_the_optimiser_of_onnx_runtime_leaves_it(
    digits_transformer: Path, calibration_tokens_npz: Path, tmp_path: Path
) -> None:
    path = tmp_path / "optimised.onnx"
    session = runtime.session(digits_transformer, threads=1, optimized_path=path)
    model = onnx.load(path)
    assert {"FusedMatMul", "SkipLayerNormalization"} <= {
        n.op_type for n in model.graph.node if n.domain == MS
    }
    tokens = np.load(calibration_tokens_npz)["tokens"][:4]
    view = TorchView(Model(model))
    logits = view({"tokens": torch.from_numpy(tokens)})["logits"]
    assert_same([logits.detach().numpy()], session.run(["logits"], {"tokens": tokens}))
    logits.square().sum().backward()
    assert all(
        w.grad is not None and w.grad.abs().sum() > 0 for w in view.weights.values() if w.requires_grad
    )
