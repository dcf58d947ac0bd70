"""Padding is left out where the model cannot tell, and only there."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune import runtime
from onnxprune.calibration.data import CalibrationData, from_iterable
from onnxprune.calibration.inputs import input_specs
from onnxprune.calibration.mask import row_mask
from onnxprune.calibration.unpad import unpad
from onnxprune.model import Model
from onnxprune.recipe import Recipe

Build = Callable[..., onnx.ModelProto]
Feeds = dict[str, np.ndarray]

ATTENTION = """
    e = Gather(words, ids) k = Transpose<perm = [0, 2, 1]>(e) s = MatMul(e, k)
    m = Cast<to = 1>(attention_mask) off = Sub(one, m) big = Mul(off, low) b = Unsqueeze(big, axes)
    z = Add(s, b) a = Softmax<axis = -1>(z) y = MatMul(a, e) p = Gather<axis = 1>(y, zero)"""
HEAD = "g (int64[N, T] ids, int64[N, T] attention_mask) => (float[N, T, 4] y, float[N, 4] p)"
WEIGHTS = {
    "words": np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32),
    "one": np.float32(1),
    "low": np.float32(-10000),
    "axes": np.array([1]),
    "zero": np.int64(0),
}


def model_of(build_model: Build, body: str = ATTENTION, head: str = HEAD) -> Model:
    return Model(build_model(f"{head} {{ {body} }}", WEIGHTS))


def feeds(lengths: list[int], width: int, *, pad: int = 0) -> Feeds:
    """Samples padded to ``width``; every token tells which sample it is of."""
    mask = (np.arange(width) < np.array(lengths)[:, None]).astype(np.int64)
    ids = np.where(mask == 1, 1 + np.arange(len(lengths))[:, None] % 18, pad)
    return {"ids": ids, "attention_mask": mask}


def unpadded(model: Model, batches: Feeds | list[Feeds]) -> tuple[CalibrationData, CalibrationData]:
    data = from_iterable(model, batches, Recipe(samples=100))
    return data, unpad(data, input_specs(model), runtime.session(model.to_bytes(), threads=1))


def tokens(data: CalibrationData) -> list[list[int]]:
    """The real tokens of each sample, sorted."""
    found = []
    for batch in data.batches:
        mask = row_mask(batch)
        assert mask is not None
        found += [row[real].tolist() for row, real in zip(batch["ids"], mask, strict=True)]
    return sorted(found)


def test_samples_are_cut_and_sorted_by_length(build_model: Build) -> None:
    given_, found = unpadded(model_of(build_model), feeds([9, 2, 3] * 12, 30, pad=7))
    assert [batch["ids"].shape for batch in found.batches] == [(16, 3), (16, 9), (4, 9)]
    assert tokens(found) == tokens(given_) and found.samples == given_.samples
    assert found.as_given == given_.batches
    first = found.batches[0]
    assert (first["ids"][first["attention_mask"] == 0] == 7).all()


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=5), min_size=1, max_size=6), st.integers(0, 9)
)
def test_nothing_is_lost(build_model: Build, batches: list[list[int]], more: int) -> None:
    """Whatever widths the batches were padded to."""
    padded = [feeds(lengths, max(lengths) + more) for lengths in batches]
    before, after = unpadded(model_of(build_model), padded)
    assert tokens(after) == tokens(before)
    total = [sum(batch["ids"].size for batch in data.batches) for data in (before, after)]
    assert total[1] <= total[0] or after is before


def test_outputs_of_real_tokens_stay(build_model: Build) -> None:
    model = model_of(build_model)
    before, after = unpadded(model, feeds([5, 1, 7, 7], 20))
    session = runtime.session(model.to_bytes(), threads=1)

    def pooled(data: CalibrationData) -> np.ndarray:
        return np.sort(np.concatenate([session.run(["p"], batch)[0] for batch in data.batches]), axis=0)

    np.testing.assert_allclose(pooled(after), pooled(before), rtol=1e-5)


def labelled(model: Model, batch: Feeds, label: np.ndarray) -> tuple[CalibrationData, CalibrationData]:
    recipe = Recipe(samples=100, finetune=True, labels="label")
    data = from_iterable(model, {**batch, "label": label}, recipe)
    return data, unpad(data, input_specs(model), runtime.session(model.to_bytes(), threads=1))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=2, max_size=40), st.integers(0, 9), st.booleans())
def test_labels_stay_with_their_samples(
    build_model: Build, lengths: list[int], more: int, floats: bool
) -> None:
    """Labels of tokens and labels of samples, cut or not."""
    batch = feeds(lengths, max(lengths) + more)
    number = np.arange(len(lengths))
    kind = np.float32 if floats else np.int64
    model, width = model_of(build_model), batch["ids"].shape[1]
    token = (100 * number[:, None] + np.arange(width)).astype(kind)
    for label in (number.astype(kind), token):
        for data in labelled(model, batch, label):
            for feed, own in zip(data.batches, data.labels, strict=True):
                assert set(feed) == {"ids", "attention_mask"}
                real = feed["attention_mask"].astype(bool)
                for ids, mask, entry in zip(feed["ids"], real, own, strict=True):
                    if label.ndim == 1:
                        assert (ids[mask] == 1 + int(entry) % 18).all() and mask.sum() == lengths[int(entry)]
                        continue
                    assert entry.shape == ids.shape
                    sample = int(entry[0]) // 100
                    assert (entry[mask] == 100 * sample + np.arange(lengths[sample])).all()
                    assert (ids[mask] == 1 + sample % 18).all()


def test_labels_in_the_padding_are_ignored(build_model: Build) -> None:
    batch = feeds([2, 3, 1], 30)
    for kind, fill in ((np.int64, -100), (np.float32, 0)):
        _, found = labelled(model_of(build_model), batch, np.full((3, 30), 5, kind))
        (label,), (feed,) = found.labels, found.batches
        np.testing.assert_array_equal(label, np.where(feed["attention_mask"] == 1, 5, fill))


def test_labels_as_wide_as_the_text_but_not_of_its_tokens(build_model: Build) -> None:
    """Only a model with outputs of tokens can have labels of tokens."""
    head = HEAD.replace("float[N, T, 4] y, ", "")
    before, after = labelled(model_of(build_model, head=head), feeds([2, 3], 30), np.zeros((2, 30)))
    assert after is not before and after.labels[0].shape == (2, 30)
    # Both kinds of outputs are 4 wide: nobody can tell
    before, after = labelled(model_of(build_model), feeds([1, 2], 4), np.zeros((2, 4)))
    assert after is before


class TestLeftAlone:
    """Returned as it is."""

    def same(self, model: Model, batches: Feeds | list[Feeds]) -> bool:
        before, after = unpadded(model, batches)
        return after is before

    def test_little_padding(self, build_model: Build) -> None:
        assert self.same(model_of(build_model), feeds([19, 20, 20], 20))

    def test_padding_before_the_text(self, build_model: Build) -> None:
        batch = {name: array[:, ::-1] for name, array in feeds([3, 4], 20).items()}
        assert self.same(model_of(build_model), batch)

    def test_a_sample_without_tokens(self, build_model: Build) -> None:
        assert self.same(model_of(build_model), feeds([3, 0], 20))

    def test_a_fixed_length(self, build_model: Build) -> None:
        head = HEAD.replace("T]", "20]").replace("T,", "20,")
        assert self.same(model_of(build_model, head=head), feeds([3, 4], 20))

    def test_a_fixed_batch(self, build_model: Build) -> None:
        assert self.same(model_of(build_model, head=HEAD.replace("[N", "[2")), feeds([3, 4], 20))

    def test_no_mask(self, build_model: Build) -> None:
        head = HEAD.replace("attention_mask", "flags")
        body = ATTENTION.replace("attention_mask", "flags")
        batch = feeds([3, 4], 20)
        batch["flags"] = batch.pop("attention_mask")
        assert self.same(model_of(build_model, body, head), batch)

    def test_a_model_that_looks_at_its_padding(self, build_model: Build) -> None:
        body = ATTENTION.replace("Gather<axis = 1>(y, zero)", "ReduceMean<axes = [1], keepdims = 0>(e)")
        assert self.same(model_of(build_model, body), feeds([3, 4], 20))

    def test_a_model_that_cannot_run_without(self, build_model: Build) -> None:
        body = ATTENTION.replace("e = Gather(words, ids)", "h = Gather(words, ids) e = Reshape(h, wide)")
        model = Model(build_model(f"{HEAD} {{ {body} }}", WEIGHTS | {"wide": np.array([-1, 20, 4])}))
        assert self.same(model, feeds([3, 4], 20))

    @pytest.mark.parametrize("kind", ["positions", "square"])
    def test_another_input_that_goes_on_in_the_padding(self, build_model: Build, kind: str) -> None:
        shape = {"positions": "[N, T]", "square": "[N, T, T]"}[kind]
        head = HEAD.replace("int64[N, T] ids", f"int64{shape} other, int64[N, T] ids")
        batch = feeds([3, 4], 20)
        batch["other"] = (
            np.tile(np.arange(20), (2, 1)) if kind == "positions" else np.zeros((2, 20, 20), np.int64)
        )
        assert self.same(model_of(build_model, head=head), batch)
