from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune.model import Model
from onnxprune.passes.pack import pack
from onnxprune.passes.products import Product, find_products, shared_weights
from onnxprune.passes.shapes import Shapes, infer

Build = Callable[..., onnx.ModelProto]
IMAGE = "g (float[N, 8, 9, 9] x) => (float y) "


def find(build: Build, pruned: Any, text: str, weights: dict[str, Any], **options: Any) -> Any:
    arrays = {name: pruned(*w) if isinstance(w, tuple) else w for name, w in weights.items()}
    opset = options.get("opset", 17)
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> {text}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in arrays.items())
    model = Model(proto)
    types = infer(model)
    pack(model, [name for name, w in weights.items() if isinstance(w, tuple)], form="gaps8")
    return find_products(model, Shapes(types, options.get("seen", ())))


def only(found: Any) -> Product:
    assert not found.refusals, found.refusals
    (product,) = found.products
    return product  # type: ignore[no-any-return]


def values(product: Product) -> dict[str, Any]:
    return {a.name: onnx.helper.get_attribute_value(a) for a in product.attributes}


def test_matmul(build_model: Build, pruned: Any) -> None:
    text = "g (float[N, S, 24] x) => (float[N, S, 32] y) { y = MatMul(x, w) }"
    product = only(find(build_model, pruned, text, {"w": (24, 32)}))
    assert (product.op.name, product.x, product.weight, product.features) == (
        "SparseGap8MatMul",
        "x",
        "w",
        32,
    )
    assert product.tensors == ("w_steps", "w") and product.axis == -1 and product.sparse
    assert values(product).keys() == {"shape", "dtype", "span"} and product.shape == (24, 32)


@pytest.mark.parametrize("bias", [(32,), (1, 32), (1,), ()])
def test_gemm(build_model: Build, pruned: Any, bias: tuple[int, ...]) -> None:
    text = "g (float[N, 24] x) => (float[N, 32] y) { y = Gemm <transB = 1> (x, w, b) }"
    found = find(build_model, pruned, text, {"w": (32, 24), "b": np.ones(bias, np.float32)})
    product = only(found)
    assert product.bias == "b" and product.features == 32 and values(product)["transB"] == 1


def test_conv_writes_its_attributes_out(build_model: Build, pruned: Any) -> None:
    found = find(
        build_model, pruned, IMAGE + "{ y = Conv <pads = [1, 1, 0, 0]> (x, w) }", {"w": (16, 8, 3, 3)}
    )
    product = only(found)
    assert product.axis == 1 and product.features == 16 and product.bias == ""
    conv = {k: v for k, v in values(product).items() if k not in ("shape", "dtype", "span")}
    assert conv == {
        "kernel_shape": [3, 3], "strides": [1, 1], "dilations": [1, 1], "pads": [1, 1, 0, 0], "group": 1,
        "auto_pad": b"NOTSET",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "size", "pads"),
    [
        ("VALID", 3, [0, 0, 0, 0]),
        ("SAME_UPPER", 3, [1, 1, 1, 1]),
        ("SAME_UPPER", 4, [1, 1, 2, 2]),
        ("SAME_LOWER", 4, [2, 2, 1, 1]),
    ],
)
def test_automatic_padding(build_model: Build, pruned: Any, kind: str, size: int, pads: list[int]) -> None:
    text = IMAGE + f'{{ y = Conv <auto_pad = "{kind}"> (x, w) }}'
    product = only(find(build_model, pruned, text, {"w": (16, 8, size, size)}))
    assert values(product)["pads"] == pads and values(product)["auto_pad"] == b"NOTSET"


def test_dense_convolutions_are_found_too(build_model: Build, pruned: Any) -> None:
    weights = {"w": np.ones((8, 1, 3, 3), np.float32), "b": np.ones(8, np.float32)}
    product = only(find(build_model, pruned, IMAGE + "{ y = Conv <group = 8> (x, w, b) }", weights))
    assert (product.op.name, product.tensors, product.bias) == ("DirectConv", ("w",), "b")
    assert not product.sparse and values(product)["group"] == 8


PADS = {
    "constant": "p = Pad(x, pads)",
    "explicit zero": "p = Pad(x, pads, zero)",
    "computed": "one = Cast <to = 7> (raw) p = Pad(x, one)",
}


@pytest.mark.parametrize("pad", PADS.values(), ids=PADS)
def test_padding_before_it_is_taken(build_model: Build, pruned: Any, pad: str) -> None:
    weights = {
        "w": (16, 8, 3, 3),
        "pads": np.array([0, 0, 1, 0, 0, 0, 2, 1]),
        "raw": np.array([0, 0, 1, 0, 0, 0, 2, 1], np.float32),
        "zero": np.zeros((), np.float32),
    }
    found = find(build_model, pruned, IMAGE + f"{{ {pad} y = Conv <pads = [1, 1, 1, 1]> (p, w) }}", weights)
    product = only(found)
    assert product.x == "x" and len(product.absorbed) == 1
    assert values(product)["pads"] == [2, 1, 3, 2]


@pytest.mark.parametrize(
    "body",
    [
        "p = Pad(x, channels) y = Conv(p, w)",
        "p = Pad(x, negative) y = Conv(p, w)",
        "p = Pad(x, pads, one) y = Conv(p, w)",
        'p = Pad <mode = "reflect"> (x, pads) y = Conv(p, w)',
        "p = Pad(x, pads) c = Conv(p, w) q = Relu(p) r = ReduceSum(q) y = Add(c, r)",
    ],
)
def test_other_padding_stays(build_model: Build, pruned: Any, body: str) -> None:
    weights = {
        "w": (16, 8, 3, 3),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "channels": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "negative": np.array([0, 0, -1, 0, 0, 0, 0, 0]),
        "one": np.ones((), np.float32),
    }
    if "channels" in body:
        weights |= {"channels": np.array([0, 1, 1, 1, 0, 0, 1, 1]), "w": (16, 9, 3, 3)}
    product = only(find(build_model, pruned, IMAGE + f"{{ {body} }}", weights))
    assert product.x == "p" and not product.absorbed


@pytest.mark.parametrize(
    ("pad", "absorbed"),
    [
        ("pads = [0, 0, 1, 0, 0, 0, 2, 1]", 1),
        ("pads = [0, 0, 1, 0, 0, 0, 2, 1], value = 0.0", 1),
        ("pads = [0, 0, 1, 0, 0, 0, 2, 1], value = 1.0", 0),
        ("pads = [0, 0, -1, 0, 0, 0, 0, 0]", 0),
        ('pads = [0, 0, 1, 0, 0, 0, 2, 1], mode = "edge"', 0),
    ],
)
def test_padding_before_opset_11(build_model: Build, pruned: Any, pad: str, absorbed: int) -> None:
    text = IMAGE + f"{{ p = Pad <{pad}> (x) y = Conv <pads = [1, 1, 1, 1]> (p, w) }}"
    product = only(find(build_model, pruned, text, {"w": (16, 8, 3, 3)}, opset=9))
    assert len(product.absorbed) == absorbed
    assert values(product)["pads"] == ([2, 1, 3, 2] if absorbed else [1, 1, 1, 1])


TOKENS = "g (float[N, 24] x, float[32, N] t, int64[N] i, float[M] b) => (float y) "
REFUSED = {
    "left operand": ("{ y = MatMul(w, t) }", {"w": (24, 32)}, "left operand"),
    "batch": ("{ y = MatMul(x, w) }", {"w": (2, 24, 32)}, "batch"),
    "vector": ("{ r = ReduceSum <keepdims = 0> (x, axis) y = MatMul(r, w) }", {"w": (24, 32)}, "a vector"),
    "transA": ("{ y = Gemm <transA = 1> (t, w) }", {"w": (32, 40)}, "transA"),
    "alpha": ("{ y = Gemm <alpha = 0.5> (x, w) }", {"w": (24, 32)}, "alpha"),
    "beta": ("{ y = Gemm <beta = 0.5> (x, w, c) }", {"w": (24, 32)}, "beta"),
    "computed C": ("{ y = Gemm(x, w, b) }", {"w": (24, 32)}, "one number for each output"),
    "table": ("{ y = Gather(w, i) }", {"w": (64, 32)}, "a table"),
    "not as a product": ("{ p = Add(x, w) q = Mul(x, w) y = Add(p, q) }", {"w": (24, 24)}, "more than one"),
    "both operands": ("{ y = MatMul(w, w) }", {"w": (24, 24)}, "not as a product"),
    "shared, left": ("{ p = MatMul(w, t) y = Concat<axis=0>(p, w) }", {"w": (24, 32)}, "not as a product"),
    "shared, transA": ("{ p = Gemm<transA=1>(t, w) y = Concat<axis=0>(p, w) }", {"w": (32, 40)}, "transA"),
    "half": ("{ h = Cast <to = 10> (x) y = MatMul(h, w) }", {"w": (24, 32)}, "not float32"),
}


@pytest.mark.parametrize(("body", "weights", "reason"), REFUSED.values(), ids=REFUSED)
def test_refusals(build_model: Build, pruned: Any, body: str, weights: Any, reason: str) -> None:
    extra = {"axis": np.array([0]), "c": np.ones(32, np.float32)}
    weights = {**weights, **{k: v for k, v in extra.items() if f"{k})" in body}}
    if "Cast" in body:
        text = f'<ir_version: 8, opset_import: ["": 17]> {TOKENS}{body}'
        proto = onnx.parser.parse_model(text)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(pruned(24, 32, dtype=np.float16), "w"))
        model = Model(proto)
        types = infer(model)
        pack(model, ["w"])
        found = find_products(model, Shapes(types))
    else:
        found = find(build_model, pruned, TOKENS + body, weights)
    assert not found.products and reason in next(iter(found.refusals.values()))


def test_nodes_that_share_a_weight_are_products_of_their_own(build_model: Build, pruned: Any) -> None:
    text = """g (float[N, 24] x, float[M, 24] z, int64[K] i) => (float y) {
        a = MatMul(x, w) b = Gemm(z, w, c) e = Gather(w, i) y = Concat<axis=0>(a, b, e) }"""
    found = find(build_model, pruned, text, {"w": (24, 32), "c": np.ones(32, np.float32)})
    assert found.refusals == {}
    assert [(p.op.name, p.x, p.weight, p.bias) for p in found.products] == [
        ("SparseGap8MatMul", "x", "w", ""), ("SparseGap8Gemm", "z", "w", "c"),
    ]  # fmt: skip
    assert {p.tensors for p in found.products} == {("w_steps", "w_values")}
    assert values(found.products[0]) | {"transB": 0} == values(found.products[1])


@pytest.mark.parametrize(
    ("body", "wanted"),
    [("a = MatMul(x, w) y = MatMul(a, w)", {"w"}), ("e = Gather(w, i) y = Relu(e)", set()),
     ("y = MatMul(x, w)", set())],
)  # fmt: skip
def test_shared_weights(pruned: Any, body: str, wanted: set[str]) -> None:
    text = f'<ir_version: 8, opset_import: ["": 17]> g (float[N, 24] x, int64[K] i) => (float y) {{ {body} }}'
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(pruned(24, 24), "w"))
    model = Model(proto)
    pack(model, ["w"])
    assert shared_weights(model) == wanted


def test_a_ragged_bitmap_says_why_it_has_no_kernel(pruned: Any) -> None:
    text = '<ir_version: 8, opset_import: ["": 17]> g (float[N, 25] x) => (float y) { y = MatMul(x, w) }'
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(pruned(25, 31), "w"))
    model = Model(proto)
    types = infer(model)
    pack(model, ["w"], form="bitmap")
    found = find_products(model, Shapes(types))
    assert found.refusals == {"w": "its 775 elements fill no whole number of bytes"}


@pytest.mark.parametrize(
    ("body", "weight", "reason"),
    [
        ('{ y = Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (x, w) }', (16, 8, 3, 3), "input's size"),
        ("{ s = ReduceSum <keepdims = 0> (x, axis) y = Conv(x, w, s) }", (16, 8, 3, 3), "bias is computed"),
        ("{ z = Unsqueeze(x, two) y = Conv(z, w) }", (16, 8, 1, 3, 3), "3 spatial axes"),
    ],
)
def test_convolutions_that_are_refused(
    build_model: Build, pruned: Any, body: str, weight: tuple[int, ...], reason: str
) -> None:
    constants = {"axis": np.array([0, 2, 3]), "two": np.array([2])}
    used = {k: v for k, v in constants.items() if f" {k})" in body}
    found = find(build_model, pruned, IMAGE + body, {"w": weight, **used})
    assert not found.products and reason in found.refusals["w"]


def test_rank_may_be_seen_instead_of_inferred(build_model: Build, pruned: Any) -> None:
    text = "g (float[N, 24] x, int64[K] s) => (float y) { r = Reshape(x, s) y = MatMul(r, w) }"
    assert "unknown" in find(build_model, pruned, text, {"w": (24, 32)}).refusals["w"]
    assert only(find(build_model, pruned, text, {"w": (24, 32)}, seen=[{"r": (2, 3, 24)}])).x == "r"
