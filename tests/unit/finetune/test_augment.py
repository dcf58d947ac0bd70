"""What is changed, what is not, and that a seed repeats it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from onnxprune.errors import UsageError
from onnxprune.finetune.augment import (
    CHANNELS,
    CONTRAST,
    STRETCH,
    TINT,
    is_image,
    make,
    mixed,
    moved,
    toned,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def image(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=shape).astype(np.float32))


@pytest.mark.parametrize("shape", [(4, 3, 8, 8), (4, 8, 8, 3), (4, 1, 6, 9)])
def test_images_keep_shape_and_change(shape: tuple[int, ...]) -> None:
    x = image(*shape)
    for name in ("shift", "crop"):
        y = moved(x, {name}, seeded())
        assert y.shape == x.shape
        assert y.dtype == x.dtype
        assert not torch.allclose(x, y)
        assert torch.isfinite(y).all()


def test_flip_mirrors_some_images_exactly() -> None:
    x = image(16, 3, 4, 6)
    y = moved(x, {"flip"}, seeded())
    mirrored = [torch.allclose(b, a.flip(-1), atol=1e-5) for a, b in zip(x, y, strict=True)]
    same = [torch.allclose(b, a, atol=1e-5) for a, b in zip(x, y, strict=True)]
    assert all(m != s for m, s in zip(mirrored, same, strict=True))
    assert 0 < sum(mirrored) < 16


def test_channels_last_moves_as_channels_first() -> None:
    x = image(3, 8, 8, 3)
    a = moved(x, {"crop", "flip"}, seeded(3))
    b = moved(x.movedim(3, 1).contiguous(), {"crop", "flip"}, seeded(3)).movedim(1, 3)
    torch.testing.assert_close(a, b)


def test_what_is_no_image_stays() -> None:
    for value in (torch.arange(12).reshape(3, 4), image(2, 5, 7), image(2, 8, 5, 5)):
        assert not is_image(value)
        assert moved(value, {"flip", "crop", "shift"}, seeded()) is value


def test_blends_lie_between_two_samples() -> None:
    x = torch.arange(6.0).reshape(6, 1).repeat(1, 5)
    y = mixed({"x": x, "z": 2 * x}, seeded())
    assert (y["x"] == y["x"][:, :1]).all()  # one share for a whole sample
    torch.testing.assert_close(y["z"], 2 * y["x"])  # the same one in every input
    assert y["x"].min() >= 0
    assert y["x"].max() <= 5
    assert not torch.equal(y["x"], x)


def test_spans_of_tokens_move_together() -> None:
    ids = torch.arange(40).reshape(4, 10)
    feeds = {"input_ids": ids, "mask": (ids % 3 > 0).long(), "other": torch.ones(4, 2)}
    found = mixed(feeds, seeded(1))
    assert torch.equal(found["input_ids"] % 10, torch.arange(10).expand(4, 10))  # positions stay
    assert torch.equal(found["mask"], (found["input_ids"] % 3 > 0).long())
    assert torch.equal(found["other"], feeds["other"])
    assert not torch.equal(found["input_ids"], ids)


def test_inputs_without_a_common_batch_are_left_alone() -> None:
    feeds = {"x": image(4, 3), "k": torch.tensor(3)}
    assert mixed(feeds, seeded()) is feeds
    feeds = {"x": image(4, 3), "table": image(7, 3)}
    assert mixed(feeds, seeded()) is feeds


def test_auto_fits_the_inputs() -> None:
    assert make(("none",), {"x": image(2, 3, 8, 8)}) is None
    change = make(("auto",), {"x": image(2, 3, 8, 8)})
    assert change is not None
    x = image(8, 3, 8, 8)
    a, b = change({"x": x}, seeded(5)), change({"x": x}, seeded(5))
    assert torch.equal(a["x"], b["x"])
    assert not torch.equal(a["x"], x)
    ids = torch.arange(40).reshape(4, 10)
    change = make(("auto",), {"ids": ids})
    assert change is not None
    seen = {tuple(change({"ids": ids}, seeded(k))["ids"].flatten().tolist()) for k in range(8)}
    assert len(seen) > 4  # every batch is mixed in its own way


def test_masks_of_zeros_and_ones_are_not_blended() -> None:
    random = torch.Generator().manual_seed(0)
    mask = (torch.rand(8, 5, generator=random) > 0.5).float()
    feeds = {"inputs_embeds": torch.rand(8, 5, 3, generator=random), "attention_mask": mask}
    found = mixed(feeds, random)
    assert torch.equal(found["attention_mask"], mask)
    assert not torch.equal(found["inputs_embeds"], feeds["inputs_embeds"])
    alone = mixed({"bitmap": mask}, random)  # nothing beside it: it is what there is to see
    assert not torch.equal(alone["bitmap"], mask)


FEEDS = {"x": image(4, 1, 8, 8)}


class TestLabels:
    """Nothing is done unasked that a label does not stand."""

    def changed(self, names: tuple[str, ...], labels: torch.Tensor, times: int = 8) -> torch.Tensor:
        change = make(names, FEEDS, labels)
        assert change is not None
        return torch.stack([change(FEEDS, seeded(i))["x"] for i in range(times)])

    def test_with_class_numbers_images_are_neither_mirrored_nor_mixed(self) -> None:
        for wide, names in ((False, {"shift"}), (True, {"shift", "stretch"})):
            x = image(4, 1, 8, 12) if wide else FEEDS["x"]
            change = make(("auto",), {"x": x}, torch.arange(4))
            assert change is not None
            for i in range(8):
                random = seeded(i)
                wanted = toned(moved(x, names, random), random)
                torch.testing.assert_close(change({"x": x}, seeded(i))["x"], wanted)

    @pytest.mark.parametrize("labels", [torch.ones(4), torch.ones(4, 2), torch.zeros(4, 8, 8).long()])
    def test_other_labels_stand_nothing(self, labels: torch.Tensor) -> None:
        assert make(("auto",), FEEDS, labels) is None

    def test_what_is_no_image(self) -> None:
        assert make(("auto",), {"ids": torch.zeros(4, 5).long()}, torch.arange(4)) is None

    def test_what_was_asked_for_is_done(self) -> None:
        found = self.changed(("flip",), torch.ones(4, 4))
        torch.testing.assert_close(found[0], moved(FEEDS["x"], {"flip"}, seeded(0)))

    def test_refused(self) -> None:
        with pytest.raises(UsageError, match="--augment mix"):
            make(("flip", "mix"), FEEDS, torch.arange(4))
        with pytest.raises(UsageError, match=r"--augment crop .* \[4, 8, 8\]"):
            make(("crop",), FEEDS, torch.zeros(4, 8, 8))


def test_auto_does_not_blend_what_may_be_text() -> None:
    """Images of one colour each: a shift leaves them as they are, a mixture does not."""
    colours = torch.arange(8.0).view(8, 1, 1, 1)
    for shape, blended in (((8, 3, 8, 32), False), ((8, 3, 8, 8), True)):
        x = colours.expand(shape).contiguous()
        change = make(("auto",), {"x": x})
        assert change is not None
        found = [change({"x": x}, seeded(k))["x"] for k in range(8)]
        assert any(not torch.allclose(value, x, atol=1e-4) for value in found) == blended


@pytest.mark.parametrize("shape", [(4, 3, 8, 16), (4, 8, 16, 3), (4, 1, 6, 9)])
def test_tone_changes_each_image_by_a_line_for_each_channel(shape: tuple[int, ...]) -> None:
    x = image(*shape)
    found = toned(x, seeded())
    channel = 1 if shape[1] in CHANNELS else 3
    assert found.shape == x.shape
    for before, after in zip(
        x.movedim(channel, 1).flatten(0, 1), found.movedim(channel, 1).flatten(0, 1), strict=True
    ):
        slope, shift = np.polyfit(before.flatten().numpy(), after.flatten().numpy(), 1)
        np.testing.assert_allclose(after, slope * before + shift, atol=1e-4)
        assert np.exp(-CONTRAST) - 1e-4 <= slope <= np.exp(CONTRAST) + 1e-4
        assert abs(after.mean() - before.mean()) <= 1.5 * TINT * before.std()
    assert not torch.equal(found[0] - x[0], found[1] - x[1])


def test_a_stretch_keeps_the_middle_and_the_height() -> None:
    rows = torch.arange(8.0).view(1, 1, 8, 1).expand(4, 1, 8, 32).contiguous()
    torch.testing.assert_close(moved(rows, {"stretch"}, seeded()), rows, atol=1e-4, rtol=0)
    columns = torch.linspace(-1, 1, 32).expand(4, 1, 8, 32).contiguous()
    found = moved(columns, {"stretch"}, seeded())
    slopes = (found[:, 0, 0, 20] - found[:, 0, 0, 11]) / (columns[:, 0, 0, 20] - columns[:, 0, 0, 11])
    assert len(set(slopes.tolist())) == 4
    assert (slopes.log().abs() <= STRETCH + 1e-4).all()
    assert found[:, 0, 0, 15:17].mean(1).abs().max() < 1e-4
