"""Batches hold the right rows, and every sample once an epoch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from onnxprune import runtime
from onnxprune.calibration.data import CalibrationData
from onnxprune.calibration.labels import LABELS
from onnxprune.errors import DataError
from onnxprune.finetune.batches import Batches, Taps, must_stay_whole
from tests.unit.finetune.networks import images, residual_net


def two_lengths() -> list[dict[str, np.ndarray]]:
    shapes = enumerate([(3, 4), (5, 6), (2, 4)])
    return [{"ids": np.arange(100 * k, 100 * k + n * m).reshape(n, m)} for k, (n, m) in shapes]


def test_every_sample_once_and_only_equal_shapes_together() -> None:
    feeds = two_lengths()
    batches = Batches(range(3), feeds.__getitem__, lambda n: {"y": feeds[n]["ids"] + 1}, size=2)
    assert batches.samples == 10
    random = np.random.default_rng(0)
    for _ in range(3):
        units = batches.epoch(random)
        everything = [(number, row) for number in range(3) for row in range((3, 5, 2)[number])]
        assert sorted(row for unit in units for row in unit) == everything
        for unit in units:
            inputs, targets, mask = batches.get(unit)
            assert mask is None
            assert len(inputs["ids"]) == len(unit) <= 2
            assert torch.equal(targets["y"], inputs["ids"] + 1)


def test_epochs_differ_and_a_seed_repeats_them() -> None:
    feeds = two_lengths()
    batches = Batches(range(3), feeds.__getitem__, lambda n: {"y": feeds[n]["ids"]}, size=2)
    first, second = (np.random.default_rng(7) for _ in range(2))
    a, b = batches.epoch(first), batches.epoch(first)
    assert a != b
    assert [a, b] == [batches.epoch(second), batches.epoch(second)]


def test_values_without_a_row_per_sample_keep_batches_whole() -> None:
    feeds = two_lengths()
    total = [{"y": feed["ids"].sum(keepdims=True)[0]} for feed in feeds]
    batches = Batches(range(3), feeds.__getitem__, total.__getitem__, size=2)
    assert batches.samples == 3
    units = batches.epoch(np.random.default_rng(0))
    inputs = [batches.get(unit)[0]["ids"] for unit in units]
    assert sorted(len(value) for value in inputs) == [2, 3, 5]


def test_values_of_as_many_rows_by_chance_keep_batches_whole() -> None:
    feeds = {"x": np.zeros((4, 3), np.float32)}

    def live(changed: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        steps = np.zeros((4, len(changed["x"]), 2), np.float32)  # four steps, whatever the batch
        return changed, {"y": steps}

    def refuses(changed: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        raise DataError("the batch is four")

    def rows(changed: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        return changed, {"y": changed["x"]}

    for made, whole in ((live, True), (refuses, True), (rows, False)):
        found = Batches(range(1), lambda n: feeds, lambda n, made=made: {"y": np.zeros((4, 4, 2))}, live=made)  # type: ignore[misc, arg-type]
        assert found.whole == whole
        assert len(found.pieces(4)) == (1 if whole else 4)


def test_batches_that_must_stay_whole() -> None:
    feeds = [{"x": np.ones((4, 2), np.float32), "shared": np.ones((4,), np.float32)} for _ in range(3)]
    data = CalibrationData(tuple(feeds), 12, False, "", batched=frozenset({"x", "shared"}))
    assert not must_stay_whole(data)
    assert must_stay_whole(replace(data, batched=frozenset({"x"})))
    assert must_stay_whole(replace(data, fixed=4))
    batches = Batches(range(3), feeds.__getitem__, lambda n: {"y": feeds[n]["x"]}, size=2, whole=True)
    units = batches.epoch(np.random.default_rng(0))
    assert [len(batches.get(unit)[0]["x"]) for unit in units] == [4, 4, 4]


def test_changed_feeds_get_new_targets() -> None:
    feeds = [{"x": np.ones((4, 2), np.float32)}]
    batches = Batches(
        range(1),
        feeds.__getitem__,
        lambda n: {"y": feeds[n]["x"]},
        live=lambda feed: (feed, {"y": 10 * feed["x"]}),
        augment=lambda values, random: {"x": 3 * values["x"]},
    )
    inputs, targets, _ = batches.get([(0, 1), (0, 2)], torch.Generator())
    assert torch.equal(inputs["x"], torch.full((2, 2), 3.0))
    assert torch.equal(targets["y"], torch.full((2, 2), 30.0))
    inputs, targets, _ = batches.get([(0, 1)])  # without a generator: as they are
    assert torch.equal(targets["y"], torch.ones(1, 2))


def test_mask_of_real_tokens() -> None:
    mask = np.array([[1, 1, 0], [1, 0, 0]])
    feeds = [{"input_ids": np.zeros((2, 3), np.int64), "attention_mask": mask}]
    batches = Batches(range(1), feeds.__getitem__, lambda n: {"y": mask})
    assert torch.equal(batches.get([(0, 1)])[2], torch.tensor([[True, False, False]]))  # type: ignore[arg-type]


def test_taps_give_values_inside_the_model() -> None:
    model, x = residual_net(), images(3)
    found = Taps(model, ["h1", "logits"], {"x": x})({"x": x})
    (wanted,) = runtime.session(model.to_bytes()).run(None, {"x": x})
    np.testing.assert_allclose(found["logits"], wanted, rtol=1e-5, atol=1e-5)
    assert found["h1"].shape == (3, 12, 8, 8)
    assert found["h1"].min() == 0  # behind the Relu


def test_a_label_stays_with_its_sample() -> None:
    """Mixed anew, changed, as they came, and whole."""
    feeds = [{"x": np.repeat(np.arange(10.0 * n, 10 * n + 4)[:, None], 2, axis=1)} for n in range(3)]
    labels = [np.arange(10 * n, 10 * n + 4) for n in range(3)]
    for whole in (False, True):
        batches = Batches(
            range(3),
            feeds.__getitem__,
            lambda n: {"y": feeds[n]["x"]},
            size=5,
            live=lambda feed: (feed, {"y": 10 * feed["x"]}),
            augment=lambda values, random: {"x": values["x"] + 0.5},
            labels=labels,
            whole=whole,
        )
        for random, shift in ((None, 0), (torch.Generator(), 0.5)):
            for unit in (*batches.epoch(np.random.default_rng(0)), *batches.in_order()):
                inputs, targets, _ = batches.get(unit, random)
                assert set(inputs) == {"x"} and set(targets) == {"y", LABELS}
                assert torch.equal(inputs["x"][:, 0], targets[LABELS] + shift)


def test_labels_of_other_shapes_do_not_share_a_batch() -> None:
    feeds = [{"x": np.ones((4, 2), np.float32)} for _ in range(2)]
    labels = [np.zeros((4, 3)), np.zeros((4, 5))]
    batches = Batches(range(2), feeds.__getitem__, lambda n: {"y": feeds[n]["x"]}, size=8, labels=labels)
    units = batches.epoch(np.random.default_rng(0))
    assert sorted(tuple(batches.get(unit)[1][LABELS].shape) for unit in units) == [(4, 3), (4, 5)]
