"""What is added to the samples, and when nothing is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from onnxprune.calibration import copies
from onnxprune.calibration.copies import ENOUGH, MOST, with_copies
from onnxprune.calibration.data import CalibrationData
from onnxprune.errors import UsageError


def images(count: int, height: int = 8, width: int = 8, batch: int = 16) -> CalibrationData:
    x = np.random.default_rng(0).normal(size=(count, 3, height, width)).astype(np.float32)
    batches = tuple({"x": x[k : k + batch]} for k in range(0, count, batch))
    return CalibrationData(batches, count, False, "some images")


def test_the_given_samples_stay_and_changed_ones_come_behind() -> None:
    data = images(40)
    found = with_copies(data, ("auto",), 0)
    assert found.samples == sum(len(batch["x"]) for batch in found.batches) == 40 * (MOST + 1)
    assert found.batches[:3] == data.batches
    for k, batch in enumerate(found.batches[3:]):
        given = data.batches[k % 3]["x"]
        assert batch["x"].shape == given.shape
        assert batch["x"].dtype == given.dtype
        assert not np.allclose(batch["x"], given)
    assert not np.array_equal(found.batches[3]["x"], found.batches[6]["x"])
    assert found.source == f"some images; and {MOST} changed copies (flip, shift)"


@pytest.mark.parametrize(
    ("count", "more"), [(1, MOST), (128, MOST), (129, 2), (256, 1), (257, 0), (ENOUGH, 0)]
)
def test_no_more_than_enough(count: int, more: int) -> None:
    assert with_copies(images(count, 2, 2), ("auto",), 0).samples == count * (more + 1)


def test_a_seed_repeats_it() -> None:
    first, again, other = (with_copies(images(8), ("auto",), seed).digest() for seed in (3, 3, 4))
    assert first == again != other


def test_wide_images_may_be_text_and_stay_alone() -> None:
    data = images(8, 8, 24)
    assert with_copies(data, ("auto",), 0) is data


def test_what_is_asked_for() -> None:
    found = with_copies(images(8, 8, 24), ("flip",), 0)
    assert found.source.endswith("(flip)")
    assert with_copies(images(8), ("none",), 0).samples == 8


def test_nothing_for_other_inputs_or_made_up_ones() -> None:
    ids = CalibrationData(({"ids": np.arange(40).reshape(4, 10)},), 4, False, "text")
    for data in (ids, replace(images(8), synthetic=True), replace(images(8), batches=(), samples=0)):
        assert with_copies(data, ("auto",), 0) is data


def test_labels_go_with_their_samples() -> None:
    data = replace(images(20), labels=(np.arange(16), np.arange(4)))
    found = with_copies(data, ("auto",), 0)
    assert found.source.endswith("(shift)")  # a mirrored image may be of another class
    assert len(found.labels) == len(found.batches)
    for batch, labels in zip(found.batches, found.labels, strict=True):
        assert len(batch["x"]) == len(labels)
    with pytest.raises(UsageError, match="--augment mix"):
        with_copies(data, ("mix",), 0)


def test_copies_that_would_take_too_much_memory_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "MAX_BYTES", 2 * 8 * 3 * 64 * 4)
    assert with_copies(images(8), ("auto",), 0).samples == 3 * 8
    assert with_copies(images(17), ("auto",), 0).samples == 17


def test_copies_that_are_none_are_left_out() -> None:
    ids = CalibrationData(({"ids": np.arange(40).reshape(4, 10)},), 4, False, "text")
    assert with_copies(ids, ("flip",), 0) is ids
