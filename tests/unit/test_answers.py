"""Which outputs count beside classes, and for how much."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper, parser
from scipy.special import rel_entr, softmax

import onnxprune
from onnxprune.answers import LEAST, MOST_ROWS, ROWS, distributions, information, output_kinds
from onnxprune.model import Model
from onnxprune.outputs import EXACT, FEATURES, LOGITS, NONE, PROBABILITIES, OutputKind

RNG = np.random.default_rng(0)
SCORES = softmax(3 * RNG.normal(size=(16, 5)), axis=1).astype(np.float32)
STATE = RNG.normal(size=(16, 8)).astype(np.float32)
SHAPES = {
    "trunk": (12, 8),
    "head": (8, 5),
    "boxes_w": (8, 4),
    "bias": (8,),
    "gamma": (1, 8),
    "column": (8, 1),
}


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
    assert kinds["scores"].information == pytest.approx(information(SCORES))


def test_features_that_lead_to_classes_do_not() -> None:
    kinds = output_kinds({"scores": SCORES, "state": STATE}, ENCODER)  # a bias of its own is no matrix
    assert not kinds["state"].counts and kinds["state"].reason.endswith("classes speak for it")
    assert kinds["scores"] == OutputKind(PROBABILITIES, 1, kinds["scores"].reason)


@pytest.mark.parametrize(
    ("nodes", "counts"),
    [
        ("other = Mul(r, gamma)", False),  # (1, 8): a scale, whatever its axes
        ("other = MatMul(r, column)", True),  # (8, 1): a head of one value
        ("t = Transpose<perm=[1, 0]>(column) u = Mul(r, t) other = MatMul(u, boxes_w)", True),
        ("other = Identity(boxes_w)", False),  # anchors, priors: no input leads there
    ],
)
def test_what_weights_of_its_own_are(nodes: str, counts: bool) -> None:
    found = model(TRUNK + nodes, "float[N, 5] scores, float other")
    assert output_kinds({"scores": SCORES, "other": STATE}, found)["other"].counts == counts


def test_infinite_features_do_not_count_beside_classes() -> None:
    boxes = np.where(STATE[:, :4] > 1, -np.inf, STATE[:, :4])
    found = output_kinds({"scores": SCORES, "boxes": boxes}, DETECTOR)["boxes"]
    assert not found.counts and found.reason.endswith("not finite, does not count")


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
    found = distributions(value, OutputKind(family, axis))
    np.testing.assert_allclose(found, rows, rtol=1e-5)
    assert information(found) == pytest.approx(rel_entr(rows, rows.mean(axis=0)).sum(axis=1).mean(), rel=1e-4)


def test_information_where_rows_say_little() -> None:
    one = np.array([[0.8, 0.1, 0.1]])
    assert information(one) == information(one[:0]) == pytest.approx(math.log(3))
    assert information(np.repeat(one, 4, 0)) == pytest.approx(LEAST * math.log(3))
    assert 0 < information(np.array([[0, 0.5, 0.5], [0.7, 0, 0.3]])) < math.log(3)


@pytest.mark.filterwarnings("error")
def test_rows_without_a_distribution_are_left_out() -> None:
    value = np.array([[0, 1], [-np.inf, -np.inf], [np.nan, 1], [np.inf, 0], [-np.inf, 3]], np.float32)
    found = distributions(value, OutputKind(LOGITS, 1))
    np.testing.assert_allclose(found, [softmax([0, 1]), [0, 1]], rtol=1e-6)
    assert distributions(np.zeros((2, 3), np.float32), OutputKind(PROBABILITIES, 1)).shape == (0, 3)
    assert len(distributions(np.zeros((99_999, 2), np.float32), OutputKind(LOGITS, 1))) <= MOST_ROWS
    padded = distributions(RNG.normal(size=(2, 3, 4)), OutputKind(LOGITS, 2), np.eye(2, 3, dtype=bool))
    assert padded.shape == (2, 4)


def test_information_of_batches_of_one() -> None:
    single = [{"scores": SCORES[i : i + 1], "boxes": STATE[i : i + 1, :4]} for i in range(16)]
    drawn = []

    def more() -> Iterator[tuple[dict[str, NDArray[np.float32]], None]]:
        for number, values in enumerate(single[1:]):
            drawn.append(number)
            yield values, None

    found = output_kinds(single[0], DETECTOR, more=more())
    assert found["scores"].information == pytest.approx(information(SCORES))
    drawn.clear()
    state = {"scores": SCORES, "state": STATE}
    output_kinds(state, ENCODER, more=more())
    assert not drawn  # nothing beside the classes counts: no other batch is needed
    many = np.repeat(SCORES, ROWS // 16, 0)
    output_kinds({"scores": many, "boxes": STATE[:, :4]}, DETECTOR, more=more())
    assert not drawn


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
    assert boxes["correlation"] > 0.85  # it was 0.43


def test_training_mends_the_boxes_beside_the_scores() -> None:
    pytest.importorskip("torch")
    dense, x = detector()
    found = {}
    for steps in (0, 150):
        more = {"finetune": True, "steps": steps, "lr": 0.01, "augment": ("none",)} if steps else {}
        report = onnxprune.prune(
            dense.proto, data={"x": x}, sparsity=0.8, dry_run=True, target_runtime="stock", **more
        )
        found[steps] = {item["name"]: item["correlation"] for item in report.agreements}
    assert found[150]["boxes"] > found[0]["boxes"] + 0.02
    assert found[150]["scores"] > found[0]["scores"] - 0.02
