"""The loss on labels against formulas written out in numpy, and which output it takes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.calibration.data import CalibrationData
from onnxprune.errors import DataError
from onnxprune.finetune.task import Task, alike, find_task, label_report
from onnxprune.outputs import BY_NAME, EXACT, FEATURES, LOGITS, PROBABILITIES, OutputKind

VALUES = OutputKind(FEATURES)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def data_of(*labels: np.ndarray, **feeds: np.ndarray) -> CalibrationData:
    batches = tuple({"x": np.zeros(array.shape[:1]), **feeds} for array in labels)
    return CalibrationData(batches, 0, False, "", labels=labels)


def loss(task: Task, output: np.ndarray, labels: np.ndarray, mask: np.ndarray | None = None) -> float:
    wanted = None if mask is None else torch.from_numpy(mask)
    return float(task(torch.from_numpy(output), torch.from_numpy(labels), wanted))


class TestLoss:
    """Of one batch."""

    @pytest.mark.parametrize(
        ("shape", "axis"), [((5, 7), -1), ((5, 7), 1), ((3, 4, 7), -1), ((3, 7, 4, 2), 1)]
    )
    @pytest.mark.parametrize("family", [LOGITS, PROBABILITIES])
    def test_class_numbers(self, shape: tuple[int, ...], axis: int, family: str) -> None:
        logits = noise(*shape)
        p = np.exp(logits) / np.exp(logits).sum(axis, keepdims=True)
        labels = np.random.default_rng(1).integers(0, 7, np.delete(shape, axis))
        right = np.take_along_axis(p, np.expand_dims(labels, axis), axis)
        task = Task("y", OutputKind(family, axis))
        given_ = logits if family == LOGITS else p
        assert loss(task, given_, labels) == pytest.approx(-np.log(right).mean(), rel=1e-5)

    def test_ignored_labels_do_not_count(self) -> None:
        task, output = Task("y", OutputKind(LOGITS, -1)), noise(4, 3, 7)
        labels = np.random.default_rng(1).integers(0, 7, (4, 3))
        labels[1:, 1:] = -100
        rows = labels != -100
        assert loss(task, output, labels) == pytest.approx(loss(task, output[rows], labels[rows]), rel=1e-5)
        assert loss(task, output, np.full((4, 3), -100)) == 0.0

    def test_a_batch_without_labels_has_a_gradient_of_zero(self) -> None:
        for task, labels in (
            (Task("y", OutputKind(LOGITS, -1)), torch.full((2, 3), -100)),
            (Task("y", VALUES), torch.ones(2, 3, 7)),
        ):
            output = torch.ones(2, 3, 7, requires_grad=True)
            value = task(output, labels, torch.zeros(2, 3, dtype=torch.bool))
            value.backward()
            assert float(value.detach()) == 0 and output.grad is not None and not output.grad.any()

    def test_labels_of_padding_do_not_count(self) -> None:
        mask = np.array([[True, True, False], [True, False, False]])
        output, numbers, values = noise(2, 3, 7), np.zeros((2, 3), np.int64), noise(2, 3, 7)[::-1].copy()
        task = Task("y", OutputKind(LOGITS, -1))
        expected = loss(task, output[mask], numbers[mask])
        assert loss(task, output, numbers, mask) == pytest.approx(expected, rel=1e-5)
        assert loss(Task("y", VALUES, 2.0), output, values, mask) == pytest.approx(
            float(np.square(output[mask] - values[mask]).mean()) / 2, rel=1e-5
        )

    def test_values(self) -> None:
        output, labels = noise(6, 1), noise(12)[6:]
        task = Task("y", VALUES, 4.0)
        expected = float(np.square(output[:, 0] - labels).mean()) / 4
        assert loss(task, output, labels) == pytest.approx(expected, rel=1e-5)  # never (6, 6) by broadcasting

    def test_an_impossible_probability_is_no_infinity(self) -> None:
        task = Task("y", OutputKind(PROBABILITIES, 1))
        assert np.isfinite(loss(task, np.array([[0.0, 1.0]], np.float32), np.array([0])))

    def test_half_precision(self) -> None:
        output, labels = noise(5, 7), np.arange(5)
        task = Task("y", OutputKind(LOGITS, 1))
        assert loss(task, output.astype(np.float16), labels) == pytest.approx(
            loss(task, output, labels), rel=1e-2
        )

    def test_labels_that_do_not_fit_a_later_batch(self) -> None:
        with pytest.raises(DataError, match=r"labels of shape \[4, 3\] do not fit output 'y', \[4, 5, 7\]"):
            loss(Task("y", OutputKind(LOGITS, -1)), noise(4, 5, 7), np.zeros((4, 3), np.int64))


OUTPUTS = {
    "hidden": (noise(4, 6, 8), VALUES),
    "pooled": (noise(4, 8), OutputKind(FEATURES, reason=BY_NAME)),
    "number": (noise(4, 1), VALUES),
    "logits": (noise(4, 10), OutputKind(LOGITS, 1)),
    "found": (np.zeros(4, np.int64), OutputKind(EXACT)),
    "map": (noise(4, 3, 5, 5), OutputKind(FEATURES)),
}


def find(labels: np.ndarray, held: np.ndarray | None = None, names: tuple[str, ...] = tuple(OUTPUTS)) -> Task:
    values = {name: OUTPUTS[name][0] for name in names}
    kinds = {name: OUTPUTS[name][1] for name in names}
    return find_task("label", data_of(labels), None if held is None else data_of(held), values, kinds)


class TestChoice:
    """Of the output."""

    @pytest.mark.parametrize(
        ("labels", "output", "axis"),
        [
            (np.arange(4), "logits", 1),  # classes before the features that stand first
            (np.arange(4)[:, None], "logits", 1),
            (np.zeros((4, 6), np.int64), "hidden", 2),
            (np.zeros((4, 5, 5), np.int64), "map", 1),
        ],
    )
    def test_class_numbers(self, labels: np.ndarray, output: str, axis: int) -> None:
        task = find(labels)
        assert (task.output, task.kind.axis, task.kind.family) == (output, axis, LOGITS)
        assert (task.scale, task.count) == (1.0, labels.size)

    @pytest.mark.parametrize(
        ("shape", "output"), [((4,), "number"), ((4, 1), "number"), ((4, 8), "pooled"), ((4, 10), "logits")]
    )
    def test_values(self, shape: tuple[int, ...], output: str) -> None:
        labels = 3 * noise(*shape)
        task = find(labels)
        assert (task.output, task.kind.family, task.count) == (output, FEATURES, labels.size)
        assert task.scale == pytest.approx(float(labels.var()), rel=1e-4)

    def test_values_that_are_all_the_same(self) -> None:
        assert find(np.full(4, 3, np.float32)).scale == pytest.approx(9)
        assert find(np.zeros(4, np.float32)).scale > 0

    def test_features_by_name_hold_no_classes(self) -> None:
        with pytest.raises(DataError, match=r"outputs are pooled: float32\[4,8\]"):
            find(np.arange(4), names=("pooled",))

    @pytest.mark.parametrize(
        ("labels", "text"),
        [
            (np.zeros((4, 7), np.int64), r"int64\[4,7\]"),
            (noise(4, 3), r"float32\[4,3\]"),
            (noise(5), r"float32\[5\]"),
        ],
    )
    def test_nothing_fits(self, labels: np.ndarray, text: str) -> None:
        with pytest.raises(
            DataError, match=rf"--labels label: {text} .* logits: float32\[4,10\]; found: int64"
        ):
            find(labels)

    @pytest.mark.parametrize("wrong", [10, -1, -99])
    def test_class_numbers_that_the_output_does_not_have(self, wrong: int) -> None:
        for labels, held in ((np.array([0, 1, wrong, 2]), None), (np.arange(4), np.array([wrong]))):
            with pytest.raises(DataError, match=rf"class number {wrong}, .*'logits'.* 10 classes, 0 to 9"):
                find(labels, held)

    def test_ignored_labels(self) -> None:
        assert find(np.array([0, -100, 2, -100]), np.array([-100])).count == 2
        with pytest.raises(DataError, match="all labels are -100"):
            find(np.full(4, -100))

    def test_labels_of_padding_are_not_looked_at(self) -> None:
        mask = np.arange(6) < np.array([[6], [1], [2], [3]])
        output = {"y": noise(4, 6, 8)}
        labels = np.where(mask, 1, 99)
        task = find_task("label", data_of(labels, attention_mask=mask), None, output, {"y": VALUES})
        assert task.count == 12
        values = np.where(mask[..., None], noise(4, 6, 8), 1e6).astype(np.float32)
        task = find_task("label", data_of(values, attention_mask=mask), None, output, {"y": VALUES})
        assert 0.5 < task.scale < 2 and task.count == 12 * 8


@given(st.lists(st.integers(1, 3), max_size=4), st.integers(0, 2))
def test_ones_at_the_end_say_nothing(shape: list[int], more: int) -> None:
    assert alike(tuple(shape), (*shape, *[1] * more) if shape else ())
    assert not alike((2, *shape), (3, *shape))


def test_ones_in_front_do() -> None:
    assert alike((), (1,)) and alike((1, 1), ())
    assert not alike((1, 3), (3,)) and not alike((3,), (3, 2))


@pytest.mark.parametrize(
    ("kind", "wanted"), [(OutputKind(LOGITS, 1), "cross entropy"), (VALUES, "squared error"), (None, None)]
)
def test_what_the_report_says(kind: OutputKind | None, wanted: str | None) -> None:
    task = None if kind is None else Task("y", kind, 1.0, 7)
    found: dict[str, Any] = json.loads(json.dumps(label_report("label", task, [np.arange(3), np.arange(4)])))
    assert found == {"key": "label", "count": 7, "output": kind and "y", "loss": wanted}
