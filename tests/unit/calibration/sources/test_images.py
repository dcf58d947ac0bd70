from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxprune.calibration.sources import Request, images
from onnxprune.errors import DataError, ResourceError, UsageError

Image = pytest.importorskip("PIL.Image")
Ask = Callable[..., Request]
NCHW = "float[N, 3, 8, 8] x"
# Red grows to the right, green downwards.
RAMP = np.stack([*np.meshgrid(np.arange(8) * 10, np.arange(8) * 20), np.full((8, 8), 7)], -1).astype(np.uint8)


def save(path: Path, pixels: np.ndarray = RAMP, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def load(path: Path, request: Request) -> np.ndarray:
    loaded = images.load(str(path), request)
    return np.concatenate([s["x"] for s in loaded.samples])


def test_scaled_to_one_by_default_and_said(tmp_path: Path, ask: Ask) -> None:
    save(tmp_path / "a.png")
    loaded = images.load(str(tmp_path), ask(NCHW))
    assert loaded.samples[0]["x"].dtype == np.float32
    np.testing.assert_allclose(loaded.samples[0]["x"][0], RAMP.transpose(2, 0, 1) / 255, rtol=1e-6)
    assert "0..1" in loaded.notes[0]


@pytest.mark.parametrize(
    ("mean", "std", "wanted"),
    [
        ((0.5,), (0.25,), (RAMP / 255 - 0.5) / 0.25),
        ((0.1, 0.2, 0.3), (0.5, 0.5, 1.0), (RAMP / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.5, 1]),
        ((127.0,), (128.0,), (RAMP - 127.0) / 128),
        ((0.0,), (255.0,), RAMP / 255),
        ((), (2.0,), RAMP / 2),
        ((100.0,), (), RAMP - 100.0),
    ],
)
def test_mean_and_std(
    tmp_path: Path, ask: Ask, mean: tuple[float, ...], std: tuple[float, ...], wanted: np.ndarray
) -> None:
    save(tmp_path / "a.png")
    got = load(tmp_path, ask("float[N, 8, 8, 3] x", mean=mean, std=std))
    np.testing.assert_allclose(got[0], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("inputs", "shape"),
    [
        ("float[N, 3, 8, 8] x", (1, 3, 8, 8)),
        ("float[N, 8, 8, 3] x", (1, 8, 8, 3)),
        ("float[1, 1, 8, 8] x", (1, 1, 8, 8)),
        ("float[N, 8, 8, 1] x", (1, 8, 8, 1)),
        ("float[N, 4, 8, 8] x", (1, 4, 8, 8)),
        ("float[3, 8, 8] x", (3, 8, 8)),
        ("float16[N, 3, 8, 8] x", (1, 3, 8, 8)),
    ],
)
def test_layouts_and_channels(tmp_path: Path, ask: Ask, inputs: str, shape: tuple[int, ...]) -> None:
    save(tmp_path / "a.png")
    (sample,) = images.load(str(tmp_path), ask(inputs)).samples
    assert sample["x"].shape == shape


def test_uint8_inputs_get_raw_pixels(tmp_path: Path, ask: Ask) -> None:
    save(tmp_path / "a.png")
    np.testing.assert_array_equal(load(tmp_path, ask("uint8[N, 8, 8, 3] x"))[0], RAMP)
    with pytest.raises(UsageError, match="raw pixels"):
        images.load(str(tmp_path), ask("uint8[N, 8, 8, 3] x", mean=(0.5,)))


def test_the_centre_is_cropped(tmp_path: Path, ask: Ask) -> None:
    wide = np.zeros((8, 12, 3), np.uint8)
    wide[:, 2:10] = RAMP
    save(tmp_path / "a.png", wide)
    np.testing.assert_array_equal(load(tmp_path, ask("uint8[N, 8, 8, 3] x"))[0], RAMP)


def test_resize_sets_the_shorter_side(tmp_path: Path, ask: Ask) -> None:
    save(tmp_path / "a.png", np.full((20, 40, 3), 9, np.uint8))
    target = images.Target.of(*_parts(ask("uint8[N, 8, 8, 3] x", resize=10)))
    assert target.resize == 10
    assert load(tmp_path, ask("uint8[N, 8, 8, 3] x", resize=10)).shape == (1, 8, 8, 3)
    with pytest.raises(UsageError, match=r"--resize 4 makes a\.png 8x4, smaller than the input's 8x8"):
        images.load(str(tmp_path), ask("uint8[N, 8, 8, 3] x", resize=4))


def _parts(request: Request) -> tuple[Any, Any, Any]:
    return request.model, request.inputs, request.recipe


def test_small_images_are_enlarged_to_cover_the_crop(tmp_path: Path, ask: Ask) -> None:
    for name, size in (("a", (3, 5)), ("b", (5, 3)), ("c", (1, 1)), ("d", (7, 100))):
        save(tmp_path / f"{name}.png", np.zeros((*size, 3), np.uint8))
    assert load(tmp_path, ask("float[N, 3, 8, 6] x")).shape == (4, 3, 8, 6)


def test_free_height_and_width_need_resize(tmp_path: Path, ask: Ask) -> None:
    save(tmp_path / "a.png", np.zeros((20, 40, 3), np.uint8))
    with pytest.raises(UsageError, match="leaves height and width free") as caught:
        images.load(str(tmp_path), ask("float[N, 3, h, w] x"))
    assert "--resize" in caught.value.hint
    assert load(tmp_path, ask("float[N, 3, h, w] x", resize=16)).shape == (1, 3, 16, 16)


def test_one_free_side_keeps_the_shape_of_the_image(tmp_path: Path, ask: Ask) -> None:
    save(tmp_path / "a.png", np.zeros((24, 100, 3), np.uint8))
    assert load(tmp_path, ask("float[N, 3, 48, w] x")).shape == (1, 3, 48, 192)
    assert load(tmp_path, ask("float[N, 3, h, 50] x")).shape == (1, 3, 32, 50)


def test_layout_from_the_first_convolution(tmp_path: Path, ask: Ask) -> None:
    save(tmp_path / "a.png")
    weights = {"w": np.zeros((2, 3, 3, 3), np.float32)}
    body = "t = Transpose<perm = [0, 3, 1, 2]>(x) y = Conv(t, w)"
    assert load(tmp_path, ask("float[N, h, w, c] x", body, weights, resize=8)).shape == (1, 8, 8, 3)
    with pytest.raises(DataError, match="which axis") as caught:
        images.load(str(tmp_path), ask("float[N, h, w, c] x", resize=8))
    assert "--layout" in caught.value.hint
    nhwc = ask("float[N, h, w, c] x", resize=8, layout="nhwc")
    assert load(tmp_path, nhwc).shape == (1, 8, 8, 3)


def test_subfolders_are_searched_and_other_files_are_not(tmp_path: Path, ask: Ask) -> None:
    for name in ("cat/1.png", "cat/2.JPG", "dog/deep/3.bmp", "4.webp", "dog/.hidden.png", "__MACOSX/5.png"):
        save(tmp_path / name)
    (tmp_path / "readme.txt").write_text("x")
    assert images.load(str(tmp_path), ask(NCHW)).total == 4


def test_a_choice_is_spread_over_the_folders(tmp_path: Path, ask: Ask) -> None:
    for i in range(20):
        save(tmp_path / f"{i // 10}" / f"{i:02}.png", np.full((8, 8, 3), i, np.uint8))
    got = load(tmp_path, ask("uint8[N, 8, 8, 3] x", samples=4))[:, 0, 0, 0]
    assert (got // 5).tolist() == [0, 1, 2, 3]


def test_a_single_image(tmp_path: Path, ask: Ask) -> None:
    save(tmp_path / "a.png")
    assert images.matches(str(tmp_path / "a.png"))
    assert load(tmp_path / "a.png", ask(NCHW)).shape == (1, 3, 8, 8)


def test_unusual_pixel_formats(tmp_path: Path, ask: Ask) -> None:
    deep = (np.arange(64).reshape(8, 8) * 1000).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    got = load(tmp_path, ask("uint8[N, 8, 8, 1] x"))[0, :, :, 0]
    np.testing.assert_array_equal(got, deep // 257)  # scaled, not clipped at 255
    (tmp_path / "deep.png").unlink()
    for mode in ("1", "L", "P", "LA", "RGBA", "CMYK"):
        suffix = "jpg" if mode == "CMYK" else "png"
        Image.fromarray(RAMP).convert(mode).save(tmp_path / f"{mode}.{suffix}")
    assert load(tmp_path, ask(NCHW)).shape == (6, 3, 8, 8)


def test_photos_are_turned_upright(tmp_path: Path, ask: Ask) -> None:
    image = Image.fromarray(RAMP)
    exif = image.getexif()
    exif[0x0112] = 3  # upside down
    image.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(load(tmp_path, ask("uint8[N, 8, 8, 3] x"))[0], RAMP[::-1, ::-1])


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + b"\0" * 50])
@pytest.mark.parametrize("name", ["sub/a.png", "sub/a.jpg", "sub/a.webp", "sub/a.bmp"])
def test_unreadable_images_are_named(tmp_path: Path, ask: Ask, name: str, content: bytes) -> None:
    save(tmp_path / "good.png")
    (tmp_path / "sub").mkdir()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name} cannot be read as an image"):
        images.load(str(tmp_path), ask(NCHW))


def test_the_content_decides_and_not_the_name(tmp_path: Path, ask: Ask) -> None:
    Image.fromarray(RAMP).save(tmp_path / "a.jpg", format="PNG")
    np.testing.assert_array_equal(load(tmp_path, ask("uint8[N, 8, 8, 3] x"))[0], RAMP)
    Image.fromarray(RAMP).save(tmp_path / "a.jpg", format="TIFF")  # not a decoder for strangers
    with pytest.raises(DataError, match=r"a\.jpg cannot be read"):
        images.load(str(tmp_path), ask(NCHW))


def test_truncated_images(tmp_path: Path, ask: Ask) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    for suffix in ("png", "jpg", "bmp", "webp"):
        save(tmp_path / f"a.{suffix}", noise)
        content = (tmp_path / f"a.{suffix}").read_bytes()
        (tmp_path / f"a.{suffix}").write_bytes(content[: len(content) // 2])
        with pytest.raises(DataError, match=f"a.{suffix}"):
            images.load(str(tmp_path), ask(NCHW))
        (tmp_path / f"a.{suffix}").unlink()


def test_decompression_bombs(tmp_path: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "a.png", np.zeros((64, 64, 3), np.uint8))
    for limit in (3000, 100):  # pillow warns above the limit and raises above twice the limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(DataError, match="too large an image"):
            images.load(str(tmp_path), ask(NCHW))


@pytest.mark.parametrize(
    ("inputs", "recipe", "error", "says"),
    [
        ("float[N, 3, 8, 8] x, float[N, 2] scale", {}, DataError, "images fill one input"),
        ("float[N, 64] x", {}, DataError, "images fill one input"),
        ("int32[N, 3, 8, 8] x", {}, DataError, "neither float nor uint8"),
        ("float[N, 5, 8, 8] x", {"layout": "nchw"}, DataError, "5 channels"),
        (NCHW, {"mean": (1.0, 2.0)}, UsageError, "--mean has 2 values"),
        (NCHW, {"std": (1.0, 0.0, 1.0)}, UsageError, "--std is 1, 0, 1"),
        (NCHW, {"mean": (float("nan"),)}, UsageError, "--mean is nan"),
    ],
)
def test_models_and_options_that_do_not_fit(
    tmp_path: Path, ask: Ask, inputs: str, recipe: dict[str, Any], error: type[Exception], says: str
) -> None:
    save(tmp_path / "a.png")
    with pytest.raises(error, match=says):
        images.load(str(tmp_path), ask(inputs, **recipe))


def test_without_pillow(tmp_path: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "a.png")
    monkeypatch.setitem(__import__("sys").modules, "PIL.Image", None)
    with pytest.raises(ResourceError, match="pillow") as caught:
        images.load(str(tmp_path), ask(NCHW))
    assert "pip install pillow" in caught.value.hint
