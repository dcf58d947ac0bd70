"""Two sessions on the same inputs, and the user's own measure. The formulas: test_agreement.py."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnx.parser
import pytest
from onnx import numpy_helper

from onnxprune import runtime
from onnxprune.errors import DataError
from onnxprune.evaluate import agreement, run, task_metric
from onnxprune.model import Model
from onnxprune.outputs import FEATURES, LOGITS, NONE
from onnxprune.verdict import verdict

RNG = np.random.default_rng(0)


class Table:
    """A session that answers batch ``i`` with ``answers[i]``; outputs are (name, value)."""

    def __init__(self, *answers: dict, kinds: dict | None = None, inputs: tuple[str, ...] = ("i",)) -> None:
        self.answers, self.kinds, self.inputs = answers, kinds or {}, inputs

    def get_inputs(self):
        return [SimpleNamespace(name=name) for name in self.inputs]

    def get_outputs(self):
        return [SimpleNamespace(name=n, type=self.kinds.get(n, "tensor(float)")) for n in self.answers[0]]

    def run(self, outputs, feeds):
        answer = self.answers[int(feeds["i"][0])]
        return [answer[name] for name in outputs or answer]


def batches(count: int, **more: np.ndarray) -> list[dict[str, np.ndarray]]:
    return [{"i": np.array([i]), **more} for i in range(count)]


def one(a: object, b: object, name: str = "y", **more: np.ndarray):
    """Agreement of a single output over a single batch."""
    (result,) = agreement(Table({name: a}), Table({name: b}), batches(1, **more))
    return result


def test_padded_tokens_do_not_count() -> None:
    mask = np.array([[1, 1, 0], [1, 0, 0]])
    a = RNG.normal(size=(2, 3, 8)).astype(np.float32)
    b = a.copy()
    b[mask == 0] = 99
    found = one(a, b, "last_hidden_state", attention_mask=mask)
    assert found.rows == 3 and found.max_abs == 0
    assert one(a, b, "logits", attention_mask=mask).top1 == 1
    assert one(a, b, "last_hidden_state").max_abs > 90


def test_what_is_no_tensor_is_named() -> None:
    kinds = {"s": "seq(map(int64,tensor(float)))", "h": "tensor(bfloat16)"}
    value = {"s": [1], "h": None, "y": np.ones((2, 3), np.float32)}
    found = agreement(Table(value, kinds=kinds), Table(value, kinds=kinds), batches(1))
    assert [item.kind.family for item in found] == [NONE, NONE, FEATURES]
    assert "no tensor" in found[0].note and "bfloat16" in found[1].note
    # only of types that cannot be read: nothing is run
    only = Table({"s": [1]}, kinds=kinds)
    assert agreement(only, only, batches(1))[0].kind.family == NONE


def test_outputs_are_matched_by_name_else_by_position() -> None:
    a, b = np.ones((2, 3), np.float32), np.zeros((2, 3), np.float32)
    swapped = agreement(Table({"p": a, "q": b}), Table({"q": b, "p": a}), batches(1))
    assert [item.max_abs for item in swapped] == [0, 0]
    renamed = agreement(Table({"p": a}), Table({"z": a}), batches(1))
    assert (renamed[0].name, renamed[0].max_abs) == ("p", 0)
    assert [item.name for item in agreement(Table({"p": a, "q": b}), Table({"q": b}), batches(1))] == ["q"]


def test_nothing_to_run() -> None:
    table = Table({"y": np.ones((1, 2), np.float32)})
    with pytest.raises(DataError, match="no sample"):
        agreement(table, table, [])


# --- with ONNX Runtime ---


def session(text: str, **weights: np.ndarray):
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    return runtime.session(proto, threads=1), Model(proto)


HEAD = "g (float[N, 8] x) => (float[N, 10] y) { y = Gemm(x, w, b) }"


def test_two_sessions_and_their_graph() -> None:
    rng = np.random.default_rng(0)
    w, b = rng.normal(size=(8, 10)).astype(np.float32), np.zeros(10, np.float32)
    dense, model = session(HEAD, w=w, b=b)
    pruned, _ = session(HEAD, w=np.where(np.abs(w) > 0.4, w, 0), b=b)
    x = rng.normal(size=(64, 8)).astype(np.float32)
    (found,) = agreement(dense, pruned, [{"x": x[:40]}, {"x": x[40:]}], model)
    assert found.kind.family == LOGITS and found.rows == 64
    expected = dense.run(None, {"x": x})[0], pruned.run(None, {"x": x})[0]
    assert found.top1 == np.mean(expected[0].argmax(1) == expected[1].argmax(1))
    assert found.max_abs == pytest.approx(np.abs(expected[0] - expected[1]).max())
    assert 0.8 < found.top1 < 1


def test_run_says_what_does_not_fit() -> None:
    dense, _ = session(HEAD, w=np.ones((8, 10), np.float32), b=np.zeros(10, np.float32))
    with pytest.raises(DataError, match="small wants input 'x', the data has 'z'"):
        run(dense, {"z": np.ones(3)}, name="small")
    with pytest.raises(DataError, match=r"cannot run the model on x float32\[2, 9\]"):
        run(dense, {"x": np.ones((2, 9), np.float32)})
    assert len(run(dense, {"x": np.ones((2, 8), np.float32), "unused": np.ones(1)})) == 1


# --- the user's own measure ---


@pytest.mark.parametrize(
    "value", [93.5, 93, np.float32(93.5), np.array(93.5), np.array([93.5]), np.int64(93)]
)
def test_task_metric_takes_any_number(value: object) -> None:
    number = task_metric(lambda session: value, None)
    assert type(number) is float and number == pytest.approx(float(np.asarray(value).ravel()[0]))


@pytest.mark.parametrize(
    "value",
    [None, "93", True, np.bool_(True), np.nan, float("inf"), [1.0], {"acc": 1}, np.ones(2), 1j, np.array([])],
)
def test_task_metric_wants_one_finite_number(value: object) -> None:
    with pytest.raises(DataError, match=r"returned .*, wanted one finite number"):
        task_metric(lambda session: value, None)


def test_task_metric_may_hand_nan_on_but_nothing_that_is_no_number() -> None:
    assert np.isnan(task_metric(lambda session: np.nan, None, finite=False))
    assert task_metric(lambda session: -np.inf, None, finite=False) == -np.inf
    for value in (None, "93", True, [1.0]):
        with pytest.raises(DataError, match="wanted one finite number"):
            task_metric(lambda session, value=value: value, None, finite=False)


def test_task_metric_names_the_users_line() -> None:
    def accuracy(session: object) -> float:
        raise KeyError("label")

    with pytest.raises(DataError, match=r"test_evaluate\.py:\d+ in .*accuracy: KeyError: 'label'"):
        task_metric(accuracy, None)


def test_task_metric_hands_over_the_session() -> None:
    dense, _ = session(HEAD, w=np.ones((8, 10), np.float32), b=np.zeros(10, np.float32))
    assert task_metric(lambda s: len(s.get_inputs()) + len(s.get_outputs()), dense) == 2


def test_boxes_and_scores_in_one_output() -> None:
    """The error of the whole is that of the boxes; scores that are lost must not be hidden by it."""
    rng = np.random.default_rng(0)
    dense = np.concatenate([rng.uniform(50, 300, (3, 4, 20)), rng.uniform(0, 0.1, (3, 5, 20))], axis=1)
    other = dense.copy()
    other[:, 4:] = rng.permuted(other[:, 4:], axis=2)
    first, second = (Table({"y": value.astype(np.float32)}) for value in (dense, other))
    boxes, scores = agreement(first, second, batches(1))
    assert (boxes.name, scores.name) == ("y[:, 0:4]", "y[:, 4:9]")
    assert boxes.relative_error == 0 and boxes.correlation == pytest.approx(1)
    assert scores.relative_error is not None and scores.relative_error > 0.3
    assert verdict([boxes, scores]).level != "ok"
    short = agreement(first, Table({"y": dense[:, :3].astype(np.float32)}), batches(1))
    assert [item.name for item in short] == ["y"] and "shape" in short[0].note
