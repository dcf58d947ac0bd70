from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import pytest
from onnx import helper

from onnxprune.errors import ModelError
from onnxprune.storage import FORMS
from onnxprune.storage.domain import check_domain, drop_functions, form_of, packed_inputs
from onnxprune.storage.form import DOMAIN
from onnxprune.storage.functions import make_function

BITMAP = FORMS["bitmap"]


@pytest.fixture
def proto(build_model: Callable[..., onnx.ModelProto]) -> onnx.ModelProto:
    return build_model("g (float[N] x) => (float[N] y) { y = Relu(x) }")


def relu(domain: str, name: str) -> Any:
    body = [helper.make_node("Relu", ["A"], ["B"])]
    return helper.make_function(domain, name, ["A"], ["B"], body, [helper.make_opsetid("", 17)])


def test_a_model_without_our_domain_is_fine(proto: onnx.ModelProto) -> None:
    proto.functions.append(relu("mine", "BitmapMatMul"))
    check_domain(proto, "m.onnx")


@pytest.mark.parametrize("opset", [11, 17])
def test_our_own_functions_are_fine(opset: int, proto: onnx.ModelProto) -> None:
    proto.opset_import[0].version = opset
    for suffix in ("MatMul", "ConvBias", "DecodeRagged"):
        proto.functions.append(make_function(BITMAP, suffix, opset, cast=True))
    proto.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    check_domain(proto, "m.onnx")


def test_another_version(proto: onnx.ModelProto) -> None:
    proto.opset_import.append(helper.make_opsetid(DOMAIN, 3))
    with pytest.raises(ModelError, match=r"m\.onnx: packed with version 3") as caught:
        check_domain(proto, "m.onnx")
    assert "newer" in caught.value.hint


@pytest.mark.parametrize("name", ["BitmapMatMul", "Relu"])
def test_functions_that_are_not_ours(name: str, proto: onnx.ModelProto) -> None:
    proto.functions.append(relu(DOMAIN, name))
    with pytest.raises(ModelError, match=f"{DOMAIN}.{name}"):
        check_domain(proto, "m.onnx")


def test_drop_takes_only_what_is_ours(proto: onnx.ModelProto) -> None:
    proto.functions.extend([make_function(BITMAP, "Conv", 17, cast=False), relu("mine", "R")])
    proto.opset_import.extend([helper.make_opsetid(DOMAIN, 1), helper.make_opsetid("mine", 1)])
    drop_functions(proto)
    assert [f.domain for f in proto.functions] == ["mine"]
    assert [o.domain for o in proto.opset_import] == ["", "mine"]


@pytest.mark.parametrize(
    ("op", "inputs", "wanted"),
    [
        ("BitmapMatMul", ["x", "m", "v"], ["m", "v"]),
        ("BitmapConvBias", ["x", "m", "v", "b"], ["m", "v"]),
        ("BitmapDecode", ["m", "v"], ["m", "v"]),
    ],
)
def test_packed_inputs(op: str, inputs: list[str], wanted: list[str]) -> None:
    node = helper.make_node(op, inputs, ["y"], domain=DOMAIN)
    assert packed_inputs(node) == wanted and form_of(node)[0] is BITMAP


@pytest.mark.parametrize("inputs", [[], ["x"], ["x", "m"], ["x", "", "v"]])
def test_too_few_inputs(inputs: list[str]) -> None:
    with pytest.raises(ModelError, match=f"{len(inputs)} inputs"):
        packed_inputs(helper.make_node("BitmapMatMul", inputs, ["y"], domain=DOMAIN))
