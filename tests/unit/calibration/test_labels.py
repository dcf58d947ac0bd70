"""Labels are found, checked and kept with their samples, whatever form the data has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import pytest

from onnxprune.calibration.data import CalibrationData, from_iterable, load_data
from onnxprune.calibration.inputs import Inputs
from onnxprune.calibration.labels import IGNORED, check_alike, checked, labelled, layout, put, take
from onnxprune.errors import DataError, UsageError
from onnxprune.model import Model
from onnxprune.recipe import Recipe

Load = Callable[..., CalibrationData]


def model(inputs: str = "float[N, 2] x") -> Model:
    body = "(int64[1] y) { y = Constant<value_ints = [1]>() }"
    return Model(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g ({inputs}) => {body}'))


def numbered(*shape: int) -> np.ndarray:
    """Samples that tell their number."""
    return np.zeros(shape, np.float32) + np.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1))


def pairs(data: CalibrationData) -> list[tuple[float, float]]:
    """(first value of the sample, first value of its label)."""
    assert len(data.labels) == len(data.batches)
    found: list[tuple[float, float]] = []
    for batch, label in zip(data.batches, data.labels, strict=True):
        assert set(batch) == {"x"}  # nothing else is fed
        assert len(label) == len(batch["x"])
        found += [(float(a.flat[0]), float(b.flat[0])) for a, b in zip(batch["x"], label, strict=True)]
    return found


def recipe(data: Path | None = None, **options: Any) -> Recipe:
    return Recipe(finetune=True, data=None if data is None else str(data), **{"labels": "label", **options})


def test_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=numbered(50, 2), label=np.arange(50, dtype=np.uint8), other=np.zeros(3))
    data = load_data(model(), recipe(tmp_path / "a.npz", samples=20))
    assert len(pairs(data)) == 20 and all(a == b for a, b in pairs(data))
    assert {label.dtype for label in data.labels} == {np.dtype(np.int64)}
    assert data.batched == {"x"} and data.source.endswith("ignored other")


def test_labels_that_fit_are_not_taken_for_the_input(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", data=numbered(5, 2), label=-numbered(5, 2))
    data = load_data(model(), recipe(tmp_path / "a.npz"))
    assert pairs(data) == [(i, -i) for i in range(5)]
    assert data.labels[0].dtype == np.float32


def test_a_stack_of_batches(tmp_path: Path) -> None:
    for name, shape in (("flat", (20,)), ("stacked", (5, 4))):
        np.savez(
            tmp_path / f"{name}.npz", x=numbered(20, 2).reshape(5, 4, 2), label=np.arange(20).reshape(shape)
        )
        assert pairs(load_data(model(), recipe(tmp_path / f"{name}.npz"))) == [(i, i) for i in range(20)]


def test_a_fixed_batch(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=numbered(22, 2), label=np.arange(22))
    data = load_data(model("float[4, 2] x"), recipe(tmp_path / "a.npz"))
    assert pairs(data) == [(i, i) for i in range(20)]
    rest, held = data.split(0.4, 1)
    assert sorted(pairs(rest) + pairs(held)) == [(i, i) for i in range(20)]
    assert {label.shape for label in (*rest.labels, *held.labels)} == {(4,)}


def test_a_model_without_batch_axis(tmp_path: Path) -> None:
    """Each feed has the label as it stands in the file."""
    inputs = model("float[seq, batch, 2] x")
    np.savez(tmp_path / "many.npz", x=numbered(5, 3, 1, 2), label=np.arange(5))
    data = load_data(inputs, recipe(tmp_path / "many.npz"))
    assert [int(label) for label in data.labels] == [int(batch["x"].flat[0]) for batch in data.batches]
    assert [int(label) for label in data.head(2).labels] == [0, 2]
    np.savez(tmp_path / "one.npz", x=numbered(3, 1, 2), label=np.array([7]))
    assert [label.tolist() for label in load_data(inputs, recipe(tmp_path / "one.npz")).labels] == [[7]]


@pytest.mark.parametrize(("sample", "label"), [((2,), ()), ((1, 2), ()), ((1, 2), (1,)), ((3, 2), (3,))])
def test_files_of_one_sample_or_batch(
    tmp_path: Path, sample: tuple[int, ...], label: tuple[int, ...]
) -> None:
    for i in range(12):
        np.savez(tmp_path / f"{i}.npz", x=np.full(sample, i, np.float32), label=np.full(label, i))
    data = load_data(model(), recipe(tmp_path, samples=6))
    assert len(pairs(data)) == 6 and all(a == b for a, b in pairs(data))
    assert {array.ndim for array in data.labels} == {1}


def test_a_file_for_each_array(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", numbered(9, 2))
    np.save(tmp_path / "label.npy", np.arange(9))
    assert pairs(load_data(model(), recipe(tmp_path))) == [(i, i) for i in range(9)]


def test_a_function(tmp_path: Path) -> None:
    (tmp_path / "f.py").write_text(
        "import numpy as np\n"
        "def feeds():\n"
        "    for i in range(30):\n"
        "        yield {'x': np.full((2,), i, np.float32), 'label': i}\n"
    )
    data = load_data(model(), recipe(data=tmp_path / "f.py:feeds", samples=10))
    assert len(pairs(data)) == 10 and all(a == b for a, b in pairs(data))


def test_feeds_from_python() -> None:
    def batches() -> Iterator[dict[str, Any]]:
        for start in (0, 3):
            yield {"x": numbered(9, 2)[start : start + 3], "label": list(range(start, start + 3))}

    assert pairs(from_iterable(model(), batches(), recipe())) == [(i, i) for i in range(6)]
    single = {"x": np.zeros(2, np.float32), "label": [1, 2]}
    assert from_iterable(model(), single, recipe()).labels[0].tolist() == [[1, 2]]


def test_labels_of_several_shapes_do_not_share_a_batch() -> None:
    feeds = [{"x": np.full(2, i, np.float32), "label": np.full(1 + i % 2, i)} for i in range(6)]
    data = from_iterable(model(), feeds, recipe())
    assert [label.shape for label in data.labels] == [(3, 1), (3, 2)] and all(a == b for a, b in pairs(data))


def test_content_counts() -> None:
    first, second = (
        from_iterable(model(), {"x": numbered(3, 2), "label": np.full(3, i)}, recipe()) for i in range(2)
    )
    assert first.digest() != second.digest()
    assert (
        first.digest() == from_iterable(model(), {"x": numbered(3, 2), "label": [0] * 3}, recipe()).digest()
    )


def test_without_labels_there_are_none(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=numbered(5, 2), label=np.arange(5))
    data = load_data(model(), Recipe(data=str(tmp_path / "a.npz")))
    assert data.labels == () and data.head(2).labels == ()


class TestRefused:
    """With what was found and what to do."""

    def test_a_key_that_is_not_there(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", x=numbered(5, 2), y=np.arange(5))
        with pytest.raises(DataError, match=r"a\.npz: no labels 'label'; found x, y"):
            load_data(model(), recipe(tmp_path / "a.npz"))
        with pytest.raises(DataError, match="data, item 0: no labels 'label'; found x, y"):
            from_iterable(model(), {"x": numbered(5, 2), "y": np.arange(5)}, recipe())
        with pytest.raises(DataError, match="item 0: no labels 'label'; found x"):
            from_iterable(model(), numbered(5, 2), recipe())

    def test_an_input_of_the_model(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", x=numbered(5, 2))
        with pytest.raises(UsageError, match="--labels is 'x', which is an input of the model"):
            load_data(model(), recipe(tmp_path / "a.npz", labels="x"))
        with pytest.raises(UsageError, match="an input of the model"):
            from_iterable(model(), {"x": numbered(5, 2)}, recipe(labels="x"))

    def test_another_number(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", x=numbered(5, 2), label=np.arange(4))
        with pytest.raises(DataError, match=r"labels 'label' are of shape \[4\], wanted .* of 5 samples"):
            load_data(model(), recipe(tmp_path / "a.npz"))
        with pytest.raises(DataError, match=r"item 0: labels 'label' are of shape \[4\]"):
            from_iterable(model(), {"x": numbered(5, 2), "label": np.arange(4)}, recipe())

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_no_number(self, tmp_path: Path, bad: float) -> None:
        label = np.array([0, 1, bad, 3, 4])
        np.savez(tmp_path / "a.npz", x=numbered(5, 2), label=label)
        with pytest.raises(DataError, match=rf"labels 'label' hold {bad} at \[2\] \(1 values are not finite"):
            load_data(model(), recipe(tmp_path / "a.npz"))

    def test_text(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", x=numbered(2, 2), label=np.array(["cat", "dog"]))
        with pytest.raises(DataError, match="wanted class numbers"):
            load_data(model(), recipe(tmp_path / "a.npz"))

    def test_another_kind_in_the_middle(self) -> None:
        feeds = [{"x": numbered(2, 2), "label": [0, 1]}, {"x": numbered(2, 3)[:, :2], "label": [[0.5], [1]]}]
        with pytest.raises(DataError, match="float32 with 2 dimensions and int64 with 1 dimensions"):
            from_iterable(model(), feeds, recipe())

    def test_sources_without_labels(self, tmp_path: Path) -> None:
        (tmp_path / "t.txt").write_text("some text\n")
        with pytest.raises(UsageError, match=r"--labels is for FILE\.py:function, .* but --data is \.txt"):
            load_data(model(), recipe(tmp_path / "t.txt"))
        (tmp_path / "images").mkdir()
        (tmp_path / "images" / "a.png").write_bytes(b"")
        with pytest.raises(UsageError, match=r"--labels is for .* but --data is an image folder"):
            load_data(model(), recipe(tmp_path / "images"))
        with pytest.raises(UsageError, match=r"--labels is for .* but there is no --data"):
            load_data(model(), recipe())


@pytest.mark.parametrize(
    ("shape", "count", "options", "wanted"),
    [
        ((5,), 5, {}, (5,)),
        ((5, 7), 5, {}, (5, 7)),
        ((), 1, {}, (1,)),
        ((), 1, {"alone": True}, (1,)),
        ((7,), 1, {"alone": True}, (1, 7)),
        ((2, 3, 7), 6, {"stack": (2, 3)}, (6, 7)),
        ((6, 3), 6, {"stack": (2, 3)}, (6, 3)),
    ],
)
def test_layout(shape: tuple[int, ...], count: int, options: dict[str, Any], wanted: tuple[int, ...]) -> None:
    assert layout(shape, count, "labels", **options) == wanted


@pytest.mark.parametrize("shape", [(), (4,), (1, 5), (3, 2)])
def test_layout_that_says_nothing(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="5 samples"):
        layout(shape, 5, "labels", stack=(2, 3))


def test_types() -> None:
    assert checked(np.array([True, False]), "").dtype == np.int64
    assert checked(np.array([1, IGNORED], np.int16), "").tolist() == [1, IGNORED]
    assert checked(np.array([0.5], np.float64), "").dtype == np.float32
    with pytest.raises(DataError, match="too large"):
        checked(np.array([2**63], np.uint64), "")
    with pytest.raises(DataError, match="not finite"):
        checked(np.array([1e300]), "")
    with pytest.raises(DataError, match="complex"):
        checked(np.array([1j]), "")


def test_take_undoes_put() -> None:
    batches, labels = ({"x": np.ones(2)}, {"x": np.ones(3)}), (np.arange(2), np.arange(3))
    back, own = take(put(batches, labels))
    assert [set(batch) for batch in back] == [{"x"}] * 2
    assert [label.tolist() for label in own] == [[0, 1], [0, 1, 2]]
    assert put(batches, ()) == batches and take(batches) == (batches, ())


def test_whole_feeds_stay_whole() -> None:
    assert labelled(Inputs((), frozenset(), None), "label").batched == frozenset()
    assert labelled(Inputs((), frozenset("x"), None), None) == Inputs((), frozenset("x"), None)


def test_alike() -> None:
    check_alike([], "")
    check_alike([np.arange(2), np.arange(3)], "")
    with pytest.raises(DataError, match="differ in kind"):
        check_alike([np.arange(2), np.ones(2)], "a.npz")
