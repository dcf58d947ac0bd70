"""Laws of calibration data, for any shapes, counts, batch sizes and seeds."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import numpy as np
import onnx.parser
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.calibration.batching import assemble, choose
from onnxprune.calibration.data import CalibrationData, from_iterable, load_data
from onnxprune.calibration.inputs import Inputs
from onnxprune.calibration.mask import apply_row_mask
from onnxprune.errors import OnnxPruneError
from onnxprune.model import Model
from onnxprune.recipe import Recipe

SEEDS = st.integers(0, 2**31)


def model(inputs: str) -> Model:
    body = "(int64[1] y) { y = Constant<value_ints = [1]>() }"
    return Model(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g ({inputs}) => {body}'))


PAIR = model("float[N, T] x, int64[N] id")
FIXED = model("float[4, T] x, int64[4] id")


def ids(data: CalibrationData) -> list[int]:
    return [int(i) for batch in data.feeds() for i in batch["id"]]


@given(st.integers(0, 500), st.integers(1, 300), SEEDS)
def test_choice_is_ascending_unique_and_spread(total: int, wanted: int, seed: int) -> None:
    chosen = choose(total, wanted, seed)
    assert len(chosen) == min(total, wanted)
    assert (np.diff(chosen) > 0).all() and ((chosen >= 0) & (chosen < total)).all()
    if total > wanted:
        assert np.diff(chosen).max(initial=0) < 2 * total / wanted + 1


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=60),
    st.integers(1, 70),
    st.one_of(st.none(), st.integers(1, 9)),
    SEEDS,
)
def test_samples_stay_whole_and_distinct(
    widths: list[int], samples: int, batch: int | None, seed: int
) -> None:
    feeds = [{"x": np.full(w, i, np.float32), "id": np.int64(i)} for i, w in enumerate(widths)]
    data = from_iterable(PAIR, feeds, Recipe(samples=samples, batch_size=batch, seed=seed))
    found = ids(data)
    assert len(found) == len(set(found)) == data.samples == min(len(widths), samples)
    for feed in data.feeds():
        assert 1 <= len(feed["x"]) <= (batch or 16)
        for row, number in zip(feed["x"], feed["id"], strict=True):
            assert row.shape == (widths[number],) and (row == number).all()


@given(st.integers(1, 40), st.floats(0, 1), st.integers(1, 50), SEEDS)
def test_split_is_a_partition_and_head_a_part(count: int, share: float, n: int, seed: int) -> None:
    feeds = [{"x": np.zeros(1 + i % 3, np.float32), "id": np.int64(i)} for i in range(count)]
    data = from_iterable(PAIR, feeds, Recipe())
    rest, held = data.split(share, seed)
    assert sorted(ids(rest) + ids(held)) == list(range(count))
    assert rest.samples == len(ids(rest)) >= 1 and held.samples == len(ids(held))
    head = data.head(n)
    assert head.samples == len(set(ids(head))) == min(n, count)


@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=30),
    st.integers(1, 40),
    st.one_of(st.none(), st.integers(1, 9)),
    st.floats(0, 1),
    SEEDS,
)
def test_a_label_stays_with_its_sample(
    shapes: list[tuple[int, int]], samples: int, batch: int | None, share: float, seed: int
) -> None:
    """Through choice, batching, split and head, whatever shapes samples and labels have."""
    feeds = [
        {"x": np.zeros(width, np.float32), "id": np.int64(i), "label": np.full(entries, i)}
        for i, (width, entries) in enumerate(shapes)
    ]
    recipe = Recipe(samples=samples, batch_size=batch, seed=seed, finetune=True, labels="label")
    data = from_iterable(PAIR, feeds, recipe)
    for part in (data, *data.split(share, seed), data.head(samples // 2), data.split(share, seed)[0].head(3)):
        assert len(part.labels) == len(part.batches)
        for feed, labels in zip(part.batches, part.labels, strict=True):
            assert set(feed) == {"x", "id"}
            for number, label in zip(feed["id"], labels, strict=True):
                assert label.tolist() == [number] * shapes[number][1]


@given(st.integers(4, 60), st.integers(1, 60), SEEDS)
def test_a_fixed_batch_is_always_full(count: int, samples: int, seed: int) -> None:
    feeds = {"x": np.zeros((count, 2), np.float32), "id": np.arange(count)}
    data = from_iterable(FIXED, feeds, Recipe(samples=samples, seed=seed))
    assert data.batches and all(len(b["x"]) == len(b["id"]) == 4 for b in data.batches)
    assert data.samples == len(set(ids(data))) == 4 * max(1, min(samples // 4, count // 4))
    for part in data.split(0.5, seed):
        assert all(len(b["x"]) == 4 for b in part.batches)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=40), st.integers(1, 10))
def test_padding_adds_only_at_the_end(lengths: list[int], limit: int) -> None:
    samples = [{"x": np.full((1, n), i + 1)} for i, n in enumerate(lengths)]
    batches = assemble(samples, Inputs((), frozenset(["x"]), None), limit, {"x": 0}, "a")
    rows = [row for b in batches for row in b["x"]]
    assert sorted(int(row[0]) - 1 for row in rows) == list(range(len(lengths)))
    for row in rows:
        n = lengths[int(row[0]) - 1]
        assert (row[:n] == row[0]).all() and (row[n:] == 0).all()
    longest = [b["x"].shape[1] for b in batches]
    assert longest == sorted(longest)  # sorted by length, so a batch pads up to its own longest only


@given(st.integers(1, 4), st.integers(1, 5), st.lists(st.integers(1, 3), max_size=2), st.booleans(), SEEDS)
def test_row_mask_picks_the_rows_of_real_tokens(
    batch: int, tokens: int, inner: list[int], flat: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.integers(0, 2, (batch, tokens)).astype(bool)
    value = rng.integers(0, 100, (batch, tokens, *inner, 2))
    wanted = value[mask].reshape(-1, 2)
    shaped = value.reshape(batch * tokens, *inner, 2) if flat else value
    rows = apply_row_mask(shaped, mask)
    assert rows is not None
    np.testing.assert_array_equal(shaped.reshape(-1, 2)[rows], wanted)


def saved(compress: bool) -> bytes:
    buffer = io.BytesIO()
    save = np.savez_compressed if compress else np.savez
    save(buffer, x=np.arange(40, dtype=np.float32).reshape(10, 4), id=np.arange(10))
    return buffer.getvalue()


WHOLE = {compress: saved(compress) for compress in (False, True)}


@given(
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4),
    st.integers(0, 10**6),
)
def test_a_damaged_npz_is_refused_or_intact(compress: bool, edits: list[tuple[int, int]], cut: int) -> None:
    content = bytearray(WHOLE[compress])
    for place, value in edits:
        content[place % len(content)] = value
    if cut % 4 == 0:
        del content[cut % len(content) :]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.npz"
        path.write_bytes(content)
        try:
            data = load_data(PAIR, Recipe(data=str(path)))
        except OnnxPruneError as error:
            assert "\n" not in str(error)
        else:  # the damage hit bytes that do not matter
            np.testing.assert_array_equal(
                np.concatenate([b["x"] for b in data.batches]), np.arange(40).reshape(10, 4)
            )


@given(
    st.binary(max_size=200), st.sampled_from(["a.npz", "a.npy", "a.txt", "a.jsonl", "input_0.pb", "a.png"])
)
def test_any_bytes_give_one_line(content: bytes, name: str) -> None:
    image = model("float[N, 3, 4, 4] x")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(content)
        path = folder if name.endswith((".pb", ".png")) else str(Path(folder) / name)
        tokenizer = str(Path(folder) / name) if name.endswith(("txt", "jsonl")) else None
        try:
            load_data(image, Recipe(data=path, tokenizer=tokenizer))
        except OnnxPruneError as error:
            assert "\n" not in str(error)
