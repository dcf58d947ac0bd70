"""Which outputs count beside classes, and for how much."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper, parser
from scipy.special import rel_entr, softmax

import onnxprune
from onnxprune.answers import LEAST, information, output_kinds
from onnxprune.model import Model
from onnxprune.outputs import EXACT, FEATURES, LOGITS, NONE, PROBABILITIES, OutputKind

RNG = np.random.default_rng(0)
SCORES = softmax(3 * RNG.normal(size=(16, 5)), axis=1).astype(np.float32)
STATE = RNG.normal(size=(16, 8)).astype(np.float32)
SHAPES = {"trunk": (12, 8), "head": (8, 5), "boxes_w": (8, 4), "bias": (8,)}


def model(nodes: str, outputs: str) -> Model:
    text = f'<ir_version: 8, opset_import: ["" : 17]> g (float[N, 12] x) => ({outputs}) {{ {nodes} }}'
    proto = parser.parse_model(text)
    for name, shape in SHAPES.items():
        if name in nodes:
            tensor = numpy_helper.from_array(RNG.normal(size=shape).astype(np.float32), name)
            proto.graph.initializer.append(tensor)
    return Model(proto)


TRUNK = "h = MatMul(x, trunk) r = Relu(h) l = MatMul(r, head) scores = Softmax(l) "
DETECTOR = model(TRUNK + "boxes = MatMul(r, boxes_w)", "float[N, 5] scores, float[N, 4] boxes")
ENCODER = model(TRUNK + "state = Add(r, bias)", "float[N, 5] scores, float[N, 8] state")


def test_features_with_weights_of_their_own_count() -> None:
    kinds = output_kinds({"scores": SCORES, "boxes": STATE[:, :4]}, DETECTOR)
    assert kinds["boxes"].counts and kinds["boxes"].family == FEATURES
    assert kinds["scores"].counts and kinds["scores"].family == PROBABILITIES
    assert kinds["scores"].information == pytest.approx(information(SCORES, kinds["scores"]))


def test_features_that_lead_to_classes_do_not() -> None:
    kinds = output_kinds({"scores": SCORES, "state": STATE}, ENCODER)  # a bias of its own is no matrix
    assert not kinds["state"].counts
    assert kinds["scores"] == OutputKind(PROBABILITIES, 1, kinds["scores"].reason)


def test_without_a_model_classes_speak() -> None:
    kinds = output_kinds({"scores": SCORES, "boxes": STATE, "ids": np.arange(16), "list": [1]})
    assert [kinds[name].counts for name in ("scores", "boxes", "ids")] == [True, False, False]
    assert kinds["ids"].family == EXACT and kinds["list"].family == NONE
    assert all(kind.counts for kind in output_kinds({"boxes": STATE, "ids": np.arange(16)}).values())


@pytest.mark.parametrize("family", [LOGITS, PROBABILITIES])
@pytest.mark.parametrize("axis", [1, 2])
def test_information_is_that_of_sample_and_class(family: str, axis: int) -> None:
    logits = RNG.normal(size=(6, 4, 5)) * 2
    value = (softmax(logits, axis=axis) if family == PROBABILITIES else logits).astype(np.float32)
    rows = np.moveaxis(softmax(logits, axis=axis), axis, -1).reshape(-1, logits.shape[axis])
    wanted = rel_entr(rows, rows.mean(axis=0)).sum(axis=1).mean()
    assert information(value, OutputKind(family, axis)) == pytest.approx(wanted, rel=1e-4)


def test_information_where_rows_say_little() -> None:
    one = np.array([[9.0, 1, 1]], np.float32)
    assert information(one, OutputKind(LOGITS, 1)) == pytest.approx(math.log(3))
    assert information(np.repeat(one, 4, 0), OutputKind(LOGITS, 1)) == pytest.approx(LEAST * math.log(3))
    assert information(one[:0], OutputKind(LOGITS, 1)) == pytest.approx(math.log(3))
    masked = np.array([[-np.inf, 1, 1], [2, -np.inf, 1]], np.float32)
    assert 0 < information(masked, OutputKind(LOGITS, 1)) < math.log(3)
    assert information(np.full((4, 3), np.nan, np.float32), OutputKind(LOGITS, 1)) == pytest.approx(
        math.log(3)
    )


def detector() -> tuple[Model, NDArray[np.float32]]:
    """Two heads of the same size on a trunk; scores that say much."""
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 24] x)
        => (float[N, 6] scores, float[N, 4] boxes) {
        h = MatMul(x, trunk) r = Relu(h)
        c = MatMul(r, class_in) cr = Relu(c) l = MatMul(cr, class_out) scores = Softmax(l)
        b = MatMul(r, box_in) br = Relu(b) boxes = MatMul(br, box_out)
    }"""
    proto, random = parser.parse_model(text), np.random.default_rng(0)
    shapes = {
        "trunk": (24, 48),
        "class_in": (48, 48),
        "box_in": (48, 48),
        "class_out": (48, 6),
        "box_out": (48, 4),
    }
    for name, shape in shapes.items():
        scale = (4 if name == "class_out" else 1) / shape[0] ** 0.5
        array = (random.normal(size=shape) * scale).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return Model(proto), random.normal(size=(256, 24)).astype(np.float32)


def test_pruning_leaves_the_boxes_beside_the_scores() -> None:
    dense, x = detector()
    report = onnxprune.prune(dense.proto, data={"x": x}, sparsity=0.5, dry_run=True, target_runtime="stock")
    zeros = {layer.name: layer.sparsity for layer in report.layers}
    assert zeros["box_in"] < 0.9  # nothing of it shows in the scores: it was 0.98
    boxes = next(item for item in report.agreements if item["name"] == "boxes")
    assert boxes["correlation"] > 0.85  # it was 0.55
