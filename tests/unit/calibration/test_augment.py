"""What is changed, what is not, and that a seed repeats it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxprune.calibration.augment import (
    CHANNELS,
    CONTRAST,
    STRETCH,
    TINT,
    fitting,
    is_image,
    make,
    mixed,
    moved,
    toned,
)
from onnxprune.errors import UsageError


def seeded(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def image(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(4, 3, 8, 8), (4, 8, 8, 3), (4, 1, 6, 9)])
def test_images_keep_shape_and_change(shape: tuple[int, ...]) -> None:
    x = image(*shape)
    for name in ("shift", "crop"):
        y = moved(x, {name}, seeded())
        assert y.shape == x.shape
        assert y.dtype == x.dtype
        assert not np.allclose(x, y)
        assert np.isfinite(y).all()


def test_flip_mirrors_some_images_exactly() -> None:
    x = image(16, 3, 4, 6)
    y = moved(x, {"flip"}, seeded())
    mirrored = [np.allclose(b, a[..., ::-1], atol=1e-5) for a, b in zip(x, y, strict=True)]
    same = [np.allclose(b, a, atol=1e-5) for a, b in zip(x, y, strict=True)]
    assert all(m != s for m, s in zip(mirrored, same, strict=True))
    assert 0 < sum(mirrored) < 16


def test_channels_last_moves_as_channels_first() -> None:
    x = image(3, 8, 8, 3)
    a = moved(x, {"crop", "flip"}, seeded(3))
    b = moved(np.moveaxis(x, 3, 1), {"crop", "flip"}, seeded(3))
    np.testing.assert_allclose(a, np.moveaxis(b, 1, 3), rtol=1e-6)


def test_what_is_no_image_stays() -> None:
    for value in (np.arange(12).reshape(3, 4), image(2, 5, 7), image(2, 8, 5, 5)):
        assert not is_image(value)
        assert moved(value, {"flip", "crop", "shift"}, seeded()) is value


def test_blends_lie_between_two_samples() -> None:
    x = np.arange(6.0).reshape(6, 1).repeat(5, 1)
    y = mixed({"x": x, "z": 2 * x}, seeded())
    assert (y["x"] == y["x"][:, :1]).all()  # one share for a whole sample
    np.testing.assert_allclose(y["z"], 2 * y["x"])  # the same one in every input
    assert y["x"].min() >= 0
    assert y["x"].max() <= 5
    assert not np.array_equal(y["x"], x)


def test_spans_of_tokens_move_together() -> None:
    ids = np.arange(40).reshape(4, 10)
    feeds = {"input_ids": ids, "mask": (ids % 3 > 0).astype(np.int64), "other": np.ones((4, 2))}
    found = mixed(feeds, seeded(2))
    assert np.array_equal(found["input_ids"] % 10, np.tile(np.arange(10), (4, 1)))  # positions stay
    assert np.array_equal(found["mask"], found["input_ids"] % 3 > 0)
    assert np.array_equal(found["other"], feeds["other"])
    assert not np.array_equal(found["input_ids"], ids)


def test_inputs_without_a_common_batch_are_left_alone() -> None:
    feeds = {"x": image(4, 3), "k": np.array(3)}
    assert mixed(feeds, seeded()) is feeds
    feeds = {"x": image(4, 3), "table": image(7, 3)}
    assert mixed(feeds, seeded()) is feeds


def test_auto_fits_the_inputs() -> None:
    assert make(("none",), {"x": image(2, 3, 8, 8)}) is None
    change = make(("auto",), {"x": image(2, 3, 8, 8)})
    assert change is not None
    x = image(8, 3, 8, 8)
    a, b = change({"x": x}, seeded(5)), change({"x": x}, seeded(5))
    assert np.array_equal(a["x"], b["x"])
    assert not np.array_equal(a["x"], x)
    ids = np.arange(40).reshape(4, 10)
    change = make(("auto",), {"ids": ids})
    assert change is not None
    seen = {tuple(change({"ids": ids}, seeded(k))["ids"].flatten().tolist()) for k in range(8)}
    assert len(seen) > 4  # every batch is mixed in its own way


def test_masks_of_zeros_and_ones_are_not_blended() -> None:
    random = seeded()
    mask = (random.random((8, 5)) > 0.5).astype(np.float32)
    feeds = {"inputs_embeds": random.random((8, 5, 3)), "attention_mask": mask}
    found = mixed(feeds, random)
    assert np.array_equal(found["attention_mask"], mask)
    assert not np.array_equal(found["inputs_embeds"], feeds["inputs_embeds"])
    alone = mixed({"bitmap": mask}, random)  # nothing beside it: it is what there is to see
    assert not np.array_equal(alone["bitmap"], mask)


def test_images_of_one_sample_are_changed_alike() -> None:
    """A pair of images stays a pair, and the mask of an image stays a mask."""
    x = image(8, 3, 8, 8)
    mask = (x[:, :1] > 0).astype(np.float32)
    change = make(("flip", "shift", "tone"), {"left": x, "right": x, "mask": mask})
    assert change is not None
    found = change({"left": x, "right": x, "mask": mask}, seeded())
    assert np.array_equal(found["left"], found["right"])
    assert not np.allclose(found["left"], x)
    assert set(np.unique(found["mask"])) == {0, 1}
    agree = (
        (found["left"][:, :1] > found["left"][:, :1].mean((1, 2, 3), keepdims=True)) == found["mask"]
    ).mean()
    assert agree > 0.8


FEEDS = {"x": image(4, 1, 8, 8)}


class TestLabels:
    """Nothing is done unasked that a label does not stand."""

    def changed(self, names: tuple[str, ...], labels: NDArray[Any], times: int = 8) -> NDArray[Any]:
        change = make(names, FEEDS, labels)
        assert change is not None
        return np.stack([change(FEEDS, seeded(i))["x"] for i in range(times)])

    def test_with_class_numbers_images_are_neither_mirrored_nor_mixed(self) -> None:
        for wide, names in ((False, {"shift"}), (True, {"shift", "stretch"})):
            x = image(4, 1, 8, 12) if wide else FEEDS["x"]
            change = make(("auto",), {"x": x}, np.arange(4))
            assert change is not None
            for i in range(8):
                seed = seeded(i).integers(2**63)
                wanted = moved(x, names, seeded(seed))
                wanted = toned(wanted, np.random.default_rng([seed, 1]))
                found = change({"x": x}, seeded(i))["x"]
                np.testing.assert_allclose(found, wanted, rtol=1e-6)

    @pytest.mark.parametrize("labels", [np.ones(4), np.ones((4, 2)), np.zeros((4, 8, 8), np.int64)])
    def test_other_labels_stand_nothing(self, labels: NDArray[Any]) -> None:
        assert make(("auto",), FEEDS, labels) is None

    def test_what_is_no_image(self) -> None:
        assert make(("auto",), {"ids": np.zeros((4, 5), np.int64)}, np.arange(4)) is None

    def test_what_was_asked_for_is_done(self) -> None:
        found = self.changed(("flip",), np.ones((4, 4)))
        np.testing.assert_allclose(
            found[0], moved(FEEDS["x"], {"flip"}, seeded(seeded(0).integers(2**63))), rtol=1e-6
        )

    def test_refused(self) -> None:
        with pytest.raises(UsageError, match="--augment mix"):
            make(("flip", "mix"), FEEDS, np.arange(4))
        with pytest.raises(UsageError, match=r"--augment crop .* \[4, 8, 8\]"):
            make(("crop",), FEEDS, np.zeros((4, 8, 8)))


def test_auto_does_not_blend_what_may_be_text() -> None:
    """Images of one colour each: a shift leaves them as they are, a mixture does not."""
    colours = np.arange(8.0).reshape(8, 1, 1, 1)
    for shape, blended in (((8, 3, 8, 32), False), ((8, 3, 8, 8), True)):
        x = np.broadcast_to(colours, shape)
        change = make(("auto",), {"x": x})
        assert change is not None
        found = [change({"x": x}, seeded(k))["x"] for k in range(8)]
        assert any(not np.allclose(value, x, atol=1e-4) for value in found) == blended


@pytest.mark.parametrize("shape", [(4, 3, 8, 16), (4, 8, 16, 3), (4, 1, 6, 9)])
def test_tone_changes_each_image_by_a_line_for_each_channel(shape: tuple[int, ...]) -> None:
    x = image(*shape)
    found = toned(x, seeded())
    channel = 1 if shape[1] in CHANNELS else 3
    assert found.shape == x.shape
    planes = [np.moveaxis(value, channel, 1) for value in (x, found)]
    for before, after in zip(
        *(value.reshape(-1, value.shape[2] * value.shape[3]) for value in planes), strict=True
    ):
        slope, shift = np.polyfit(before, after, 1)
        np.testing.assert_allclose(after, slope * before + shift, atol=1e-4)
        assert np.exp(-CONTRAST) - 1e-4 <= slope <= np.exp(CONTRAST) + 1e-4
        assert abs(after.mean() - before.mean()) <= 1.5 * TINT * before.std()
    assert not np.array_equal(found[0] - x[0], found[1] - x[1])


def test_a_stretch_keeps_the_middle_and_the_height() -> None:
    rows = np.broadcast_to(np.arange(8.0).reshape(1, 1, 8, 1), (4, 1, 8, 32))
    np.testing.assert_allclose(moved(rows, {"stretch"}, seeded()), rows, atol=1e-4)
    columns = np.broadcast_to(np.linspace(-1, 1, 32), (4, 1, 8, 32))
    found = moved(columns, {"stretch"}, seeded())
    slopes = (found[:, 0, 0, 20] - found[:, 0, 0, 11]) / (columns[:, 0, 0, 20] - columns[:, 0, 0, 11])
    assert len(set(slopes.tolist())) == 4
    assert (np.abs(np.log(slopes)) <= STRETCH + 1e-4).all()
    assert np.abs(found[:, 0, 0, 15:17].mean(1)).max() < 1e-4


def test_what_only_looks_like_an_image_stays() -> None:
    """Masks for attention, whatever stands for minus infinity, and caches of keys and values."""
    ids = np.arange(20).reshape(4, 5)
    for low in (-np.inf, np.finfo(np.float32).min, 0.0):
        mask = np.where(np.random.default_rng(0).random((4, 1, 5, 5)) > 0.5, low, 1.0).astype(np.float32)
        feeds = {"input_ids": ids, "attention_mask": mask}
        assert fitting(feeds) == {"mix"}
        change = make(("flip", "shift", "tone"), feeds)
        assert change is not None
        assert change(feeds, seeded())["attention_mask"] is mask
    cache = {"input_ids": ids, "past_key_values.0.key": image(4, 4, 8, 8), "empty": image(4, 4, 0, 8)}
    assert fitting(cache) == {"mix"}


def test_half_floats_do_not_overflow() -> None:
    x = (500 * image(4, 1, 8, 8)).astype(np.float16)
    found = toned(x, seeded())
    assert found.dtype == np.float16
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, toned(x.astype(np.float32), seeded()), rtol=1e-2, atol=5)
