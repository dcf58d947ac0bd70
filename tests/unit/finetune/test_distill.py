"""Fine-tuning from models to models: what improves, what stays, where it can start, several processes."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from onnxprune import runtime
from onnxprune.calibration.data import CalibrationData, from_iterable
from onnxprune.errors import ModelError, UsageError
from onnxprune.finetune import distill
from onnxprune.finetune.distill import Options, Tuned, finetune
from onnxprune.finetune.trained import Settings
from onnxprune.layers import find_layers
from onnxprune.model import Model
from onnxprune.recipe import Recipe
from tests.unit.finetune.conftest import WorkClock
from tests.unit.finetune.networks import calibration, images, magnitude_pruned, parse, residual_net

NAMES = ("w1", "w2", "w3", "w4")
OPTIONS = Options(Settings(steps=60, lr=0.01), resume=False, threads=1)


def outputs(model: Model, x: np.ndarray) -> np.ndarray:
    (found,) = runtime.session(model.to_bytes()).run(None, {"x": x})
    return np.asarray(found)


def error(model: Model, dense: Model) -> float:
    x = images(64, seed=99)
    wanted = outputs(dense, x)
    return float(((outputs(model, x) - wanted) ** 2).mean() / wanted.var())


def tuned(dense: Model, pruned: Model, options: Options = OPTIONS) -> tuple[Model, Tuned]:
    layers, _ = find_layers(pruned, min_size=1)
    data, held = calibration(dense, 96), calibration(dense, 32)
    return finetune(dense, pruned, layers, data, held, options)


@pytest.mark.parametrize("scope", ["model", "block"])
def test_accuracy_comes_back_and_zeros_stay(scope: str) -> None:
    dense = residual_net()
    pruned = magnitude_pruned(dense, NAMES)
    before = pruned.copy()
    result, found = tuned(dense, pruned, dataclasses.replace(OPTIONS, scope=scope))
    assert error(result, dense) < 0.5 * error(before, dense)
    assert found.trained.after < found.trained.before
    assert found.difference < 1e-5
    assert found.start == ""
    for name in NAMES:
        assert np.array_equal(result.array(name) == 0, before.array(name) == 0)
        assert np.array_equal(pruned.array(name), before.array(name))  # the input is not touched
    assert set(found.weights) <= set(dense.index.tensors)
    assert set(NAMES) <= set(found.weights)


def with_front(model: Model, domain: str = "ai.onnx.ml") -> Model:
    """Put an operator before the model that only ONNX Runtime knows."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    graph = proto.graph
    for node in graph.node:
        inputs = ["scaled" if name == "x" else name for name in node.input]
        del node.input[:]
        node.input.extend(inputs)
    front = [
        helper.make_node("Reshape", ["x", "flat"], ["rows"]),
        helper.make_node("Scaler", ["rows"], ["rows_s"], "front", domain=domain, offset=[0.0], scale=[1.0]),
        helper.make_node("Reshape", ["rows_s", "square"], ["scaled"]),
    ]
    nodes = [*front, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    for name, shape in (("flat", [-1, 192]), ("square", [-1, 3, 8, 8])):
        graph.initializer.append(onnx.numpy_helper.from_array(np.array(shape, np.int64), name))
    proto.opset_import.append(helper.make_opsetid(domain, 3))
    return Model(proto)


def test_training_starts_behind_what_torch_cannot_run() -> None:
    dense = with_front(residual_net())
    pruned = magnitude_pruned(dense, NAMES)
    result, found = tuned(dense, pruned)
    assert found.start == "h0"
    assert error(result, dense) < 0.5 * error(pruned, dense)
    assert np.array_equal(result.array("ws"), pruned.array("ws"))  # before the start
    assert "w1" in found.weights


def test_an_operator_that_cannot_be_avoided_is_named() -> None:
    dense = residual_net()
    dense.graph.node[-1].output[0] = "raw"
    dense.graph.node.append(
        helper.make_node(
            "Scaler", ["raw"], ["logits"], "culprit", domain="ai.onnx.ml", offset=[0.0], scale=[1.0]
        )
    )
    dense.proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    dense = Model(dense.proto)
    layers, _ = find_layers(dense, min_size=1)
    with pytest.raises(ModelError, match=r"culprit.*Scaler") as caught:
        finetune(dense, dense.copy(), layers, calibration(residual_net()), None, OPTIONS)
    assert "pruning itself works" in caught.value.hint


def test_a_loss_for_the_outputs_does_not_go_with_blocks() -> None:
    dense = residual_net()
    with pytest.raises(UsageError, match="the values at their ends are compared"):
        tuned(dense, magnitude_pruned(dense, NAMES), dataclasses.replace(OPTIONS, scope="block", form="kl"))


def test_weights_of_several_blocks_are_reported() -> None:
    text = """g (float[N, 8] x) => (float[N, 8] y) {
        a = MatMul(x, w) b = Relu(a) c = MatMul(b, w) d = Relu(c) y = MatMul(d, v) }"""
    rng = np.random.default_rng(0)
    dense = parse(text, {name: rng.normal(size=(8, 8)).astype(np.float32) for name in ("w", "v")})
    pruned = magnitude_pruned(dense, ("w", "v"), 0.5)
    layers, _ = find_layers(pruned, min_size=1)
    data = from_iterable(dense, [{"x": rng.normal(size=(8, 8)).astype(np.float32)}] * 4, Recipe(batch_size=8))
    result, found = finetune(dense, pruned, layers, data, None, dataclasses.replace(OPTIONS, scope="block"))
    assert found.shared == ("w",)
    assert found.weights == ("v",)
    assert found.features == ("y",)
    assert np.array_equal(result.array("w"), pruned.array("w"))


class _Told:
    def __init__(self) -> None:
        self.stages: list[tuple[str, int | None]] = []
        self.steps, self.notes = 0, []  # type: ignore[var-annotated]

    def stage(self, name: str, total: int | None = None) -> None:
        self.stages.append((name, total))

    def advance(self, steps: int = 1) -> None:
        self.steps += steps

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_progress_tells_the_losses_and_the_time_left() -> None:
    dense = residual_net()
    pruned, told = magnitude_pruned(dense, NAMES), _Told()
    layers, _ = find_layers(pruned, min_size=1)
    options = dataclasses.replace(OPTIONS, settings=Settings(steps=32, lr=0.01))
    finetune(dense, pruned, layers, calibration(dense, 64), calibration(dense, 16), options, told)
    assert told.stages == [("fine-tuning", 32)]
    assert told.steps == 32
    first, *told.notes = told.notes
    assert first.startswith("smaller steps for 2 of 12 weights")
    assert len(told.notes) == 16
    assert told.notes[0].startswith("step 2: loss ")
    assert all("held-out" in note for note in told.notes)


def test_tables_are_not_trained() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> g (int64[N, 4] ids) => (float[N, 4, 6] y) {
        e = Gather(table, ids) y = MatMul(e, w) }"""
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in (("table", (20, 8)), ("w", (8, 6))):
        proto.graph.initializer.append(
            onnx.numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)
        )
    dense = Model(proto)
    pruned = magnitude_pruned(dense, ("w", "table"), 0.5)
    layers, _ = find_layers(pruned, min_size=1)
    feeds = [{"ids": rng.integers(0, 20, (8, 4))} for _ in range(4)]
    data = from_iterable(dense, feeds, Recipe(batch_size=8))
    result, found = finetune(dense, pruned, layers, data, None, OPTIONS)
    assert found.weights == ("w",)
    assert np.array_equal(result.array("table"), pruned.array("table"))


class TestLabels:
    """What the teacher does not know, they teach."""

    def learnt(self, label: np.ndarray, **options: object) -> tuple[Model, Tuned]:
        dense = residual_net()
        pruned = magnitude_pruned(dense, NAMES)
        layers, _ = find_layers(pruned, min_size=1)
        recipe = Recipe(batch_size=16, finetune=True, labels="label")
        x = images(96)
        data = from_iterable(dense, {"x": x, "label": label}, recipe)
        train, held = data.split(0.25, 0)
        chosen = dataclasses.replace(OPTIONS, labels="label", **options)
        return finetune(dense, pruned, layers, train, held, chosen)

    def share(self, model: Model, label: np.ndarray) -> float:
        return float((outputs(model, images(96)).argmax(1) == label).mean())

    def test_class_numbers_that_the_teacher_contradicts(self) -> None:
        right = outputs(residual_net(), images(96)).argmax(1)
        other = (right + 1) % 10
        agreeing, found = self.learnt(right, augment=("none",))
        assert found.labels == {"key": "label", "count": 72, "output": "logits", "loss": "cross entropy"}
        contradicting, _ = self.learnt(other, augment=("none",))
        assert self.share(agreeing, right) > self.share(contradicting, right) + 0.05
        assert self.share(contradicting, other) > self.share(agreeing, other) + 0.05

    def test_values(self) -> None:
        wanted = -outputs(residual_net(), images(96))
        result, found = self.learnt(wanted, augment=("none",), form="mse")
        assert found.labels is not None and found.labels["loss"] == "squared error"
        plain, _ = self.learnt(-wanted, augment=("none",), form="mse")
        apart = [float(((outputs(m, images(96)) - wanted) ** 2).mean()) for m in (result, plain)]
        assert apart[0] < 0.8 * apart[1]

    def test_a_loss_of_the_users_own(self) -> None:
        def custom(student: dict, teacher: dict, feeds: dict) -> torch.Tensor:  # type: ignore[type-arg]
            return torch.nn.functional.cross_entropy(student["logits"], feeds["label"])

        label = (outputs(residual_net(), images(96)).argmax(1) + 1) % 10
        result, found = self.learnt(label, custom=custom, augment=("none",))
        assert found.labels == {"key": "label", "count": 72, "output": None, "loss": None}
        assert self.share(result, label) > 0.3

    def test_the_samples_are_not_mixed(self) -> None:
        with pytest.raises(UsageError, match="--augment mix"):
            self.learnt(np.arange(96) % 10, augment=("mix",))

    def test_a_killed_run_goes_on_only_with_the_same_labels(self, monkeypatch: pytest.MonkeyPatch) -> None:
        keys: list[str] = []

        class Spy:
            def __init__(self, key: str) -> None:
                keys.append(key)
                raise UsageError("enough")

        monkeypatch.setattr(distill, "Checkpoint", Spy)
        for label in (np.zeros(96, np.int64), np.ones(96, np.int64), np.ones(96, np.int64)):
            with pytest.raises(UsageError, match="enough"):
                self.learnt(label, resume=True)
        assert keys[0] != keys[1] == keys[2]


@pytest.mark.parametrize("scope", ["model", "block"])
@pytest.mark.parametrize("lr", [None, 0.01])
def test_the_minutes_are_for_all_of_it(work_clock: WorkClock, scope: str, lr: float | None) -> None:
    work_clock.counts(distill, "find_start", 6.0)
    work_clock.counts(distill, "_kinds_and_task", 5.0)
    work_clock.counts(distill, "write_back", 1.0)
    work_clock.counts(distill, "difference", 4.0)
    dense = residual_net()
    settings = Settings(steps=10**9, minutes=2.0, lr=lr)
    options = dataclasses.replace(OPTIONS, settings=settings, scope=scope)
    _, found = tuned(dense, magnitude_pruned(dense, NAMES), options)
    # A step and an evaluation more is allowed; of blocks, the last comparison is not foreseen
    assert 110 < work_clock.value <= 120 + 1 + 2 + (4 if scope == "block" else 0)
    assert found.trained.steps > 20


def test_minutes_that_are_over_before_the_training(work_clock: WorkClock) -> None:
    work_clock.counts(distill, "find_start", 200.0)
    dense = residual_net()
    options = dataclasses.replace(OPTIONS, settings=Settings(steps=10**9, minutes=2.0))
    _, found = tuned(dense, magnitude_pruned(dense, NAMES), options)
    assert found.trained.steps == 1 and work_clock.value == 200 + 1 + 2 * 2  # before it and after it


@pytest.mark.parametrize(("shape", "perm"), [("[N, 4]", "[0, 1]"), ("[4, N]", "[1, 0]")])
def test_an_output_beside_classes_without_rows_is_left_out_aloud(shape: str, perm: str) -> None:
    random = np.random.default_rng(0)
    sizes = {"trunk": (8, 16), "head": (16, 5), "boxes_w": (16, 4)}
    dense = parse(
        f"""g (float[N, 8] x) => (float[N, 5] scores, float{shape} boxes) {{
            h = MatMul(x, trunk) r = Relu(h) l = MatMul(r, head) scores = Softmax(l)
            b = MatMul(r, boxes_w) boxes = Transpose<perm={perm}>(b)
        }}""",
        {name: random.normal(size=size).astype(np.float32) for name, size in sizes.items()},
    )
    pruned, told = magnitude_pruned(dense, list(sizes)), _Told()
    before = pruned.array("boxes_w").copy()
    layers, _ = find_layers(pruned, min_size=1)
    x = [{"x": random.normal(size=(16, 8)).astype(np.float32)} for _ in range(3)]
    data = CalibrationData(tuple(x[:2]), 32, False, "")
    held_out = CalibrationData(tuple(x[2:]), 16, False, "")
    options = dataclasses.replace(OPTIONS, settings=Settings(steps=8, lr=0.01))
    result, _ = finetune(dense, pruned, layers, data, held_out, options, told)
    rows = perm == "[0, 1]"
    assert ("output 'boxes' is not learnt: it has no row for each sample" in told.notes) is not rows
    assert bool((result.array("boxes_w") != before).any()) is rows
