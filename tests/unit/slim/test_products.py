"""Multiplications of products other than MatMul and Conv, counted by hand."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxprune.model import Model
from onnxprune.slim.gains import multiplications


def product(text: str, sizes: dict[str, tuple[int, ...]]) -> Model:
    """Return a model of one product, which may be one of com.microsoft."""
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]> {text}')
    ones = (onnx.numpy_helper.from_array(np.ones(size, np.float32), name) for name, size in sizes.items())
    proto.graph.initializer.extend(ones)
    return Model(proto)


@pytest.mark.parametrize(
    ("node", "sizes", "wanted"),
    [
        ('Einsum<equation="bsd,de->bse">(x, w)', {"w": (8, 6)}, 2 * 4 * 8 * 6),
        ('Einsum<equation="...d,de->...e">(x, w)', {"w": (8, 6)}, 2 * 4 * 8 * 6),
        ('Einsum<equation="bsd,btd->bst">(x, x)', {}, 2 * 4 * 4 * 8),
        ('Einsum<equation="bsd->bds">(x)', {}, 0),
        ("com.microsoft.FusedMatMul<transB=1>(x, w)", {"w": (6, 8)}, 2 * 4 * 8 * 6),
        ("com.microsoft.FusedMatMul<transA=1>(x, x)", {}, 2 * 8 * 4 * 8),
        ("MatMul(x, w)", {"w": (8,)}, 2 * 4 * 8),
        (
            "com.microsoft.Attention<num_heads=2>(x, w, b)",
            {"w": (8, 24), "b": (24,)},
            2 * 4 * 8 * 24 + 2 * 2 * 4 * 4 * 8,
        ),
        ("com.microsoft.MultiHeadAttention<num_heads=2>(x, x, x)", {}, 2 * 2 * 4 * 4 * 8),
    ],
)
def test_other_products(node: str, sizes: dict[str, tuple[int, ...]], wanted: int) -> None:
    rank = "A, B" if sizes == {"w": (8,)} else "A, B, C"
    model = product(f"g (float[2, 4, 8] x) => (float[{rank}] y) {{ y = {node} }}", sizes)
    assert multiplications(model, [{"x": np.ones((2, 4, 8), np.float32)}]) == wanted


@pytest.mark.parametrize(
    ("node", "sizes", "wanted"),
    [
        ('com.microsoft.FusedConv<activation="Relu">(x, w)', {"w": (6, 8, 1, 1)}, 2 * 9 * 8 * 6),
        (
            'com.microsoft.FusedGemm<activation="Relu", transB=1>(z, w, b)',
            {"w": (6, 72), "b": (6,)},
            2 * 72 * 6,
        ),
    ],
)
def test_fused_products(node: str, sizes: dict[str, tuple[int, ...]], wanted: int) -> None:
    rank = "A, B, C, D" if "Conv" in node else "A, B"
    text = f"g (float[2, 8, 3, 3] x) => (float[{rank}] y) {{ z = Flatten(x) y = {node} }}"
    model = product(text, sizes)
    assert multiplications(model, [{"x": np.ones((2, 8, 3, 3), np.float32)}]) == wanted
