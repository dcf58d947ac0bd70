"""Agreement of two sessions: formulas on cases computed by hand, and everything real models throw at it."""

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
from onnxprune.outputs import EXACT, FEATURES, LOGITS, NONE, PROBABILITIES
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


def logits(*rows: list[float]) -> np.ndarray:
    return np.array(rows, np.float32)


def test_identical_models() -> None:
    value = RNG.normal(size=(40, 7)).astype(np.float32)
    same = one(value, value, "logits")
    assert same.kind.family == LOGITS
    assert (same.rows, same.top1, same.kappa, same.kl, same.max_abs, same.relative_error) == (
        40,
        1,
        1,
        0,
        0,
        0,
    )
    assert same.cosine == pytest.approx(1) and same.correlation == pytest.approx(1)
    assert same.finite and same.note == "" and same.equal is None


def test_features_by_hand() -> None:
    a, b = logits([3, 4], [1, 0]), logits([3, 4], [0, 2])
    found = one(a, b)
    assert found.kind.family == FEATURES
    assert found.cosine == pytest.approx((1 + 0) / 2)
    assert found.relative_error == pytest.approx(np.sqrt(5 / 26))
    assert found.max_abs == 2
    # mean rows (2, 2) and (1.5, 3): centred a = ((1, 2), (-1, -2)), b = ((1.5, 1), (-1.5, -1))
    assert found.correlation == pytest.approx(7 / np.sqrt(10 * 6.5))
    assert found.kl is None and found.top1 is None and found.kappa is None


def test_classes_by_hand() -> None:
    a = np.log(logits([0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [0.6, 0.3, 0.1]))
    b = np.log(logits([0.25, 0.5, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [0.6, 0.3, 0.1]))
    found = one(a, b, "logits")
    assert found.top1 == 0.75
    # winners 0 1 2 0 against 1 1 2 0: chance (2 * 1 + 1 * 2 + 1 * 1) / 16
    assert found.kappa == pytest.approx((0.75 - 5 / 16) / (1 - 5 / 16))
    assert found.kl == pytest.approx((0.5 * np.log(2) + 0.25 * np.log(0.5)) / 4, rel=1e-5)


def test_collapse_onto_the_common_class_has_no_kappa_left() -> None:
    """A recogniser that answers "blank" everywhere agrees with most of a CTC output."""
    a = np.eye(5, dtype=np.float32)[RNG.choice(5, size=(4, 50), p=[0.8, 0.05, 0.05, 0.05, 0.05])]
    b = np.zeros_like(a)
    b[..., 0] = 1
    found = one(a, b)
    assert found.kind.family == PROBABILITIES and found.rows == 200
    assert found.top1 > 0.7 and found.kappa == pytest.approx(0)


def test_collapse_of_features_has_no_correlation_left() -> None:
    a = 10 + RNG.normal(size=(50, 16)).astype(np.float32)
    found = one(a, np.full_like(a, 10))
    assert found.cosine > 0.99 and found.correlation == 0


def test_one_class_everywhere_has_no_kappa() -> None:
    a = logits([2, 1], [3, 1])
    found = one(a, a - 1, "logits")
    assert (found.top1, found.kappa) == (1, None)


def test_batches_add_up() -> None:
    a, b = RNG.normal(size=(2, 30, 6)).astype(np.float32)
    whole = one(a, b, "logits")
    parts = [slice(0, 7), slice(7, 8), slice(8, 30)]
    (split,) = agreement(
        Table(*({"logits": a[p]} for p in parts)), Table(*({"logits": b[p]} for p in parts)), batches(3)
    )
    for name in ("rows", "cosine", "correlation", "relative_error", "max_abs", "kl", "top1", "kappa"):
        assert getattr(split, name) == pytest.approx(getattr(whole, name), rel=1e-9), name


def test_rows_of_changing_width() -> None:
    """Classes may be positions (start_logits), features may be maps of any size."""
    first = [RNG.normal(size=(3, n)).astype(np.float32) for n in (4, 9)]
    for name in ("start_logits", "y"):
        (found,) = agreement(
            Table(*({name: v} for v in first)), Table(*({name: v + 0.01} for v in first)), batches(2)
        )
        assert found.rows == 6 and found.correlation == pytest.approx(1, abs=1e-3)


def test_padded_tokens_do_not_count() -> None:
    mask = np.array([[1, 1, 0], [1, 0, 0]])
    a = RNG.normal(size=(2, 3, 8)).astype(np.float32)
    b = a.copy()
    b[mask == 0] = 99
    found = one(a, b, "last_hidden_state", attention_mask=mask)
    assert found.rows == 3 and found.max_abs == 0
    assert one(a, b, "logits", attention_mask=mask).top1 == 1
    assert one(a, b, "last_hidden_state").max_abs > 90


def test_segmentation_counts_pixels() -> None:
    a = RNG.normal(size=(2, 5, 4, 3)).astype(np.float32)
    found = one(a, a, "logits")
    assert (found.kind.axis, found.rows) == (1, 24)


@pytest.mark.parametrize("name", ["y", "logits"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_in_the_second(name: str, bad: float) -> None:
    a = RNG.normal(size=(10, 4)).astype(np.float32)
    b = a.copy()
    b[3, 2] = bad
    with np.errstate(all="raise"):
        found = one(a, b, name)
    assert not found.finite and found.note == ""
    assert found.cosine is not None and np.isfinite(found.cosine) and found.max_abs == 0
    if name == "logits":
        assert found.top1 == pytest.approx(0.9) and found.kl == 0


def test_not_finite_in_the_first_is_not_the_seconds_fault() -> None:
    a = RNG.normal(size=(10, 4)).astype(np.float32)
    b = a.copy()
    a[3, 2] = np.nan
    for other in (a, b):
        found = one(a, other)
        assert found.finite and "reference model gives NaN" in found.note
        assert found.max_abs == 0


def test_masked_scores_agree() -> None:
    a = logits([1, 2, -np.inf], [3, 1, -np.inf])
    with np.errstate(all="raise"):
        found = one(a, a, "logits")
    assert found.finite and found.note == "" and (found.top1, found.kl, found.max_abs) == (1, 0, 0)


def test_exact_values() -> None:
    found = one(np.array([[1, 2], [3, 4]]), np.array([[1, 2], [3, 5]]))
    assert (found.kind.family, found.equal, found.rows, found.cosine) == (EXACT, 0.75, 2, None)
    words = np.array(["a", "b"], dtype=object)
    assert one(words, words).equal == 1
    assert one(np.array([True]), np.array([False])).equal == 0


def test_single_values_are_compared_as_one_vector() -> None:
    a, b = logits([1], [2], [3]), logits([1], [2], [-3])
    assert one(a, b).cosine == pytest.approx((1 + 4 - 9) / 14)
    assert one(np.array(2.0, np.float32), np.array(2.0, np.float32)).cosine == pytest.approx(1)
    assert one(a[:, 0], b[:, 0]).rows == 3


def test_zero_reference() -> None:
    zero, other = np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32)
    assert (one(zero, zero).relative_error, one(zero, zero).cosine) == (0, 1)
    assert (one(zero, other).relative_error, one(zero, other).cosine) == (None, 0)


def test_half_precision_does_not_overflow() -> None:
    a = np.full((4, 64), 60000, np.float16)
    found = one(a, -a)
    assert found.cosine == pytest.approx(-1) and found.relative_error == pytest.approx(2)


def test_shapes_that_differ_are_named() -> None:
    a = [np.ones((n, 4), np.float32) for n in (3, 5)]
    (found,) = agreement(Table({"y": a[0]}, {"y": a[1]}), Table({"y": a[0]}, {"y": a[0]}), batches(2))
    assert found.rows == 3 and "1 of 2 batches (such as [5, 4] and [3, 4])" in found.note
    lost = one(np.ones((3, 4), np.float32), np.ones((3, 4), np.int64))
    assert lost.rows == 0 and lost.cosine is None and "differs" in lost.note


def test_empty_outputs() -> None:
    found = one(np.zeros((0, 4), np.float32), np.zeros((0, 4), np.float32))
    assert found.rows == 0 and found.cosine is None and "empty" in found.note


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
    w, b = RNG.normal(size=(8, 10)).astype(np.float32), np.zeros(10, np.float32)
    dense, model = session(HEAD, w=w, b=b)
    pruned, _ = session(HEAD, w=np.where(np.abs(w) > 0.2, w, 0), b=b)
    x = RNG.normal(size=(64, 8)).astype(np.float32)
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
