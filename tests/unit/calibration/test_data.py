from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxprune.calibration.data import CalibrationData, from_iterable, load_data
from onnxprune.calibration.mask import row_mask
from onnxprune.errors import DataError, ModelError, UsageError
from onnxprune.model import Model
from onnxprune.recipe import Recipe

Build = Callable[..., onnx.ModelProto]


@pytest.fixture
def linear(build_model: Build) -> Model:
    """Input ``x`` (N, 4)."""
    weights = {"w": np.eye(4, dtype=np.float32)}
    return Model(build_model("g (float[N, 4] x) => (float[N, 4] y) { y = MatMul(x, w) }", weights))


@pytest.fixture
def encoder(build_model: Build) -> Model:
    """Inputs ``ids`` and ``attention_mask`` (N, T); eight words."""
    return Model(
        build_model(
            "g (int64[N, T] ids, int64[N, T] attention_mask) => (float[N, T, 2] y, float[N, T] m) "
            "{ y = Gather(words, ids) m = Cast<to = 1>(attention_mask) }",
            {"words": np.zeros((8, 2), np.float32)},
        )
    )


@pytest.fixture
def fixed(build_model: Build) -> Model:
    """Input ``x`` (4, 1)."""
    return Model(build_model("g (float[4, 1] x) => (float[4, 1] y) { y = Relu(x) }"))


def numbered(count: int) -> np.ndarray:
    return np.repeat(np.arange(count, dtype=np.float32)[:, None], 4, axis=1)


def values(data: CalibrationData) -> list[float]:
    return [float(row[0]) for batch in data.feeds() for row in batch["x"]]


def test_npz_to_batches(tmp_path: Path, linear: Model) -> None:
    np.savez(tmp_path / "a.npz", x=numbered(1000), y=np.zeros(1000))
    data = load_data(linear, Recipe(data=str(tmp_path / "a.npz"), samples=40))
    assert data.source == "a.npz, 40 of 1000 samples; ignored y"
    assert data.samples == 40 and not data.synthetic
    assert [len(b["x"]) for b in data.batches] == [16, 16, 8]
    assert [int(v) // 25 for v in values(data)] == list(range(40))
    assert load_data(linear, Recipe(data=str(tmp_path / "a.npz"), samples=40)).digest() == data.digest()
    assert (
        load_data(linear, Recipe(data=str(tmp_path / "a.npz"), samples=40, seed=1)).digest() != data.digest()
    )


def test_batch_size(tmp_path: Path, linear: Model, fixed: Model) -> None:
    data = from_iterable(linear, numbered(10), Recipe(batch_size=4))
    assert [len(b["x"]) for b in data.batches] == [4, 4, 2]
    with pytest.raises(UsageError, match="fixed at 4"):
        from_iterable(fixed, np.zeros((8, 1)), Recipe(batch_size=8))


def test_no_data(linear: Model, tmp_path: Path) -> None:
    data = load_data(linear, Recipe(samples=20))
    assert data.synthetic and data.samples == 20
    assert data.source == "synthetic inputs, no --data given, 20 samples; x[4]"


def test_test_data_beside_the_model_is_mentioned_but_not_used(linear: Model, tmp_path: Path) -> None:
    folder = tmp_path / "test_data_set_0"
    folder.mkdir()
    (folder / "input_0.pb").write_bytes(numpy_helper.from_array(numbered(2)).SerializeToString())
    model = Model(linear.proto, tmp_path / "model.onnx")
    data = load_data(model, Recipe())
    assert (
        data.synthetic and f"test_data_set_0 beside the model was not used: --data {tmp_path}" in data.source
    )
    assert load_data(model, Recipe(data=str(tmp_path))).samples == 2


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ({"mean": (0.5,)}, "--mean is for an image folder, but there is no --data"),
        ({"data": "a.npz", "std": (0.5,)}, "--std is for an image folder, but --data is .npz or .npy"),
        ({"data": "a.npz", "layout": "nchw"}, "--layout"),
        ({"data": "a.npz", "tokenizer": "t.json"}, "--tokenizer is for .txt or .jsonl"),
        ({"data": "t.txt"}, "needs a tokenizer"),
        ({"data": "f.py"}, "f.py:function"),
    ],
)
def test_options_that_would_be_ignored(
    tmp_path: Path, linear: Model, monkeypatch: pytest.MonkeyPatch, recipe: dict[str, Any], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", x=numbered(3))
    Path("t.txt").write_text("a")
    Path("f.py").touch()
    with pytest.raises(UsageError, match=says):
        load_data(linear, Recipe(**recipe))


def test_function_as_the_user_wrote_it(
    tmp_path: Path, linear: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("calib.py").write_text("def feeds(samples):\n  yield {'x': [[1., 2, 3, 4]] * samples}")
    assert load_data(linear, Recipe(data="calib.py:feeds", samples=7)).source == "calib.py:feeds, 7 samples"


def test_home_and_trailing_slash(tmp_path: Path, linear: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "d").mkdir()
    np.savez(tmp_path / "d" / "a.npz", x=numbered(3))
    assert load_data(linear, Recipe(data="~/d/")).source == "d, 3 samples"


@pytest.mark.parametrize(
    "feeds",
    [
        numbered(3),
        {"x": numbered(3)},
        [{"x": numbered(3)}],
        [{"x": row} for row in numbered(3)],
        iter([{"x": numbered(3).tolist()}]),
        [numbered(1), numbered(3)[1:]],
    ],
)
def test_feeds_from_python(linear: Model, feeds: Any) -> None:
    data = from_iterable(linear, feeds, Recipe())
    assert values(data) == [0, 1, 2] and data.source == "data from Python, 3 samples"


def test_an_array_for_two_inputs(encoder: Model) -> None:
    with pytest.raises(DataError, match="one array was given, the model has 2 inputs"):
        from_iterable(encoder, np.zeros((2, 3)), Recipe())
    with pytest.raises(DataError, match="data: int was given, wanted dicts"):
        from_iterable(encoder, 3, Recipe())  # type: ignore[arg-type]


def test_text_is_sorted_and_padded(tmp_path: Path, encoder: Model) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: i for i, w in enumerate("pabcdefg")}, unk_token="p")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "t.json"))
    (tmp_path / "t.txt").write_text("a b c d\na\na b c\na b\n")
    recipe = Recipe(data=str(tmp_path / "t.txt"), tokenizer=str(tmp_path / "t.json"), batch_size=2)
    data = load_data(encoder, recipe)
    assert [b["ids"].tolist() for b in data.batches] == [[[1, 0], [1, 2]], [[1, 2, 3, 0], [1, 2, 3, 4]]]
    masks = [row_mask(b) for b in data.batches]
    assert [m.sum(axis=1).tolist() for m in masks if m is not None] == [[1, 2], [3, 4]]


def test_other_lengths_are_never_padded(encoder: Model) -> None:
    feeds = [{"ids": np.ones(n, int), "attention_mask": np.ones(n, int)} for n in (3, 5, 3, 4, 5, 3)]
    data = from_iterable(encoder, feeds, Recipe())
    assert [b["ids"].shape for b in data.batches] == [(3, 3), (2, 5), (1, 4)]


def test_ids_beyond_the_table(encoder: Model) -> None:
    feed = {"ids": [[1, 8]], "attention_mask": [[1, 1]]}
    with pytest.raises(DataError, match="input 'ids' holds 8, but table 'words' of the model ends at 7"):
        from_iterable(encoder, feed, Recipe())


def test_a_fixed_batch_drops_the_rest(fixed: Model) -> None:
    data = from_iterable(fixed, np.arange(11.0)[:, None], Recipe(samples=6))
    assert data.samples == 4 and [b["x"].shape for b in data.batches] == [(4, 1)]
    assert data.source == "data from Python, 4 of 8 samples"
    rest, held = from_iterable(fixed, np.arange(12.0)[:, None], Recipe()).split(0.4, 0)
    assert (rest.samples, held.samples) == (8, 4)
    assert all(b["x"].shape == (4, 1) for part in (rest, held) for b in part.batches)


def test_split_is_a_partition(linear: Model) -> None:
    data = from_iterable(linear, numbered(50), Recipe())
    rest, held = data.split(0.2, seed=5)
    assert (rest.samples, held.samples) == (40, 10)
    assert sorted(values(rest) + values(held)) == values(data)
    again = data.split(0.2, seed=5)
    assert (rest.digest(), held.digest()) == (again[0].digest(), again[1].digest())
    assert held.digest() != data.split(0.2, seed=6)[1].digest()
    assert [len(b["x"]) for b in rest.batches] == [16, 16, 8]


@pytest.mark.parametrize(
    ("count", "share", "sizes"),
    [(1, 0.2, (1, 0)), (2, 0.01, (1, 1)), (2, 0.99, (1, 1)), (10, 0.0, (10, 0)), (10, 1.0, (1, 9))],
)
def test_split_of_few_samples(linear: Model, count: int, share: float, sizes: tuple[int, int]) -> None:
    rest, held = from_iterable(linear, numbered(count), Recipe()).split(share, 0)
    assert (rest.samples, held.samples) == sizes
    assert (held.batches == ()) == (sizes[1] == 0)


def test_head_is_spread(linear: Model) -> None:
    data = from_iterable(linear, numbered(100), Recipe())
    assert values(data.head(4)) == [0, 25, 50, 75]
    assert data.head(4).samples == 4
    assert data.head(1000) is data
    assert data.head(0).samples == 1


def test_digest_sees_names_shapes_types_and_values() -> None:
    def digest(**arrays: np.ndarray) -> str:
        return CalibrationData((arrays,), 1, False, "any").digest()

    one = np.ones((2, 3), np.float32)
    others = [
        digest(x=one),
        digest(y=one),
        digest(x=one.reshape(3, 2)),
        digest(x=one.view(np.int32)),
        digest(x=one * 2),
        digest(x=np.array(["a"], object)),
    ]
    assert len(set(others)) == len(others)
    assert digest(x=np.asfortranarray(one)) == digest(x=one)


def test_made_by_hand() -> None:
    data = CalibrationData(({"x": numbered(3)}, {"x": numbered(2)}), 5, False, "by hand")
    rest, held = data.split(0.4, 0)
    assert (rest.samples, held.samples) == (3, 2)


def test_strings(build_model: Build) -> None:
    model = Model(build_model("g (string[N, 1] s) => (string[N, 1] y) { y = Identity(s) }"))
    data = from_iterable(model, np.array([["a"], ["b"]]), Recipe())
    assert data.batches[0]["s"].dtype == object and data.digest()


def test_a_model_without_inputs(build_model: Build) -> None:
    model = Model(build_model("g () => (int64[1] y) { y = Constant<value_ints = [1]>() }"))
    with pytest.raises(ModelError, match="no inputs"):
        load_data(model, Recipe())


def test_what_runs_in_ort(linear: Model, run_model: Callable[..., list[np.ndarray]]) -> None:
    data = from_iterable(linear, numbered(5).astype(np.float64), Recipe())
    np.testing.assert_array_equal(run_model(linear.proto, data.batches[0])[0], numbered(5))


def test_batches_are_contiguous_whatever_was_given(linear: Model, fixed: Model, tmp_path: Path) -> None:
    fortran = np.asfortranarray(numbered(6))
    np.savez(tmp_path / "a.npz", x=fortran)
    for data in (
        from_iterable(linear, fortran, Recipe()),
        load_data(linear, Recipe(data=str(tmp_path / "a.npz"))),
        from_iterable(fixed, np.asfortranarray(np.ones((8, 2)))[:, :1], Recipe()),
    ):
        assert all(a.flags.c_contiguous for b in data.batches for a in b.values())
    np.testing.assert_array_equal(data.batches[0]["x"], np.ones((4, 1)))
