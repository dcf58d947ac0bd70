"""A folder of images (also in subfolders), or one image, for a model with one image input.

Each image is turned upright (EXIF), converted to the input's channels (1 grey, 3 RGB, 4 RGBA), resized
(bilinear) so that its shorter side is ``--resize`` (default: just large enough), cropped at the centre to
the input's height and width, and normalised as ``(x - mean) / std``. ``--mean`` and ``--std`` are on the
scale 0..255 unless all their values are at most 1; without both, floats get 0..1. uint8 inputs get the
pixels as they are.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.batching import check_memory, choose
from onnxprune.calibration.checks import cast
from onnxprune.calibration.hints import channels
from onnxprune.calibration.inputs import Array, Feed, Inputs, InputSpec, is_float
from onnxprune.calibration.sources import Loaded, Request
from onnxprune.errors import DataError, ResourceError, UsageError
from onnxprune.model import Model
from onnxprune.recipe import Recipe

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
# A free side is made a multiple of this, so that images of like shape share a batch.
_ROUND = 32
# Decoders that a file may reach, whatever its name says; pillow has dozens, few of them hardened.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF")
# What pillow's decoders raise for damaged files.
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    struct.error,
    zlib.error,
)


def matches(reference: str) -> bool:
    """Whether ``reference`` is an image or a folder with images somewhere below."""
    path = Path(reference).expanduser()
    return _is_image(path) or (path.is_dir() and next(_walk(path), None) is not None)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file() and path.name[0] != "."


def _walk(folder: Path) -> Iterator[Path]:
    return (p for p in folder.rglob("*") if _is_image(p) and "__MACOSX" not in p.parts)


def load(reference: str, request: Request) -> Loaded:
    """Decode and prepare the chosen images, one at a time.

    Raises:
        DataError: when an image cannot be read, or the model's inputs are not one image.
        ResourceError: when pillow is missing.
        UsageError: when --mean, --std, --resize or --layout do not fit the input.
    """
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise ResourceError(
            "reading images needs pillow, which is not installed", "pip install pillow"
        ) from error
    root = Path(reference).expanduser()
    target = Target.of(request.model, request.inputs, request.recipe)
    files = [root] if root.is_file() else sorted(_walk(root))
    rows = request.inputs.rows
    samples: list[Feed] = []
    size = 0
    for index in choose(len(files), request.pieces * rows, request.recipe.seed):
        path = files[index]
        array = target.prepare(path, path.name if path == root else str(path.relative_to(root)))
        samples.append({target.spec.name: array})
        size += array.nbytes
        check_memory(size, root.name)
    return Loaded(samples, len(files), (target.note,) if target.note else ())


@dataclass(frozen=True)
class Target:
    """How images must look for the model's input.

    Attributes:
        channels: 1, 3 or 4.
        last: whether channels are the last axis.
        height: pixels, None when free.
        width: pixels, None when free.
        mean: (channels,) on the 0..255 scale, None for raw pixels.
        std: (channels,) likewise.
        note: what the report should say.
    """

    spec: InputSpec
    channels: int
    last: bool
    height: int | None
    width: int | None
    resize: int | None
    mean: NDArray[np.float32] | None
    std: NDArray[np.float32] | None
    note: str

    @classmethod
    def of(cls, model: Model, inputs: Inputs, recipe: Recipe) -> Target:
        """Find the target of ``model``.

        Raises:
            DataError: when its inputs are not one image.
            UsageError: when an option does not fit.
        """
        spec = inputs.specs[0]
        rank = len(spec.shape)
        if len(inputs.specs) != 1 or rank not in (3, 4) or (rank == 3 and inputs.batched):
            raise DataError(
                f"images fill one input of shape [N,C,H,W] or [N,H,W,C], the model has {inputs}",
                "write a function that yields all inputs: --data FILE.py:function",
            )
        if spec.dtype != np.uint8 and not is_float(spec.dtype):
            raise DataError(f"images cannot fill input {spec}: it is neither float nor uint8")
        last, count = _layout(model, spec, recipe.layout)
        sides = spec.shape[-3:-1] if last else spec.shape[-2:]
        height, width = (d if isinstance(d, int) else None for d in sides)
        if height is None and width is None and recipe.resize is None:
            raise UsageError(
                f"input {spec} leaves height and width free", "give the size with --resize, such as 224"
            )
        if recipe.resize is not None:
            height, width = height or recipe.resize, width or recipe.resize
        mean, std, note = _normalisation(spec, count, recipe)
        return cls(spec, count, last, height, width, recipe.resize, mean, std, note)

    def prepare(self, path: Path, where: str) -> Array:
        """Return the image as one feed: (1, C, H, W) or (1, H, W, C), without the 1 if the input has none.

        Raises:
            DataError: when the file cannot be decoded.
        """
        pixels = np.asarray(self._fit(_decode(path, _MODES[self.channels], where), where))
        array: Array = pixels.reshape(*pixels.shape[:2], self.channels)
        if self.mean is not None and self.std is not None:
            array = (array.astype(np.float32) - self.mean) / self.std
        array = np.ascontiguousarray(array if self.last else array.transpose(2, 0, 1))
        array = cast(array, self.spec.dtype, f"{where}: input {self.spec.name!r}")
        return array[None] if len(self.spec.shape) == 4 else array

    def _fit(self, image: Image.Image, where: str) -> Image.Image:
        from PIL.Image import Resampling

        height, width = self.height, self.width
        if height is None or width is None:
            ratio = (height or 0) / image.height or (width or 0) / image.width
            free = max(1, round((image.width if width is None else image.height) * ratio / _ROUND)) * _ROUND
            return image.resize((width or free, height or free), Resampling.BILINEAR)
        if self.resize is None:
            ratio = max(height / image.height, width / image.width)
        else:
            ratio = self.resize / min(image.height, image.width)
        size = (round(image.width * ratio), round(image.height * ratio))
        if size[0] < width or size[1] < height:
            raise UsageError(
                f"--resize {self.resize} makes {where} {size[0]}x{size[1]}, "
                f"smaller than the input's {width}x{height}",
                f"give --resize {max(width, height)} or more, or leave it out",
            )
        if size != image.size:
            image = image.resize(size, Resampling.BILINEAR)
        left, top = (size[0] - width) // 2, (size[1] - height) // 2
        return image.crop((left, top, left + width, top + height))


def _layout(model: Model, spec: InputSpec, layout: str) -> tuple[bool, int]:
    """Return whether channels are last, and how many there are."""
    dims = spec.shape[-3:]
    fed = channels(model, spec.name)  # (axis counted from the end, channels) of the first convolution
    if layout == "auto":
        if dims[0] in _MODES or dims[2] in _MODES:
            last = dims[0] not in _MODES
        elif fed is not None:
            last = fed[0] == -1
        else:
            raise DataError(
                f"cannot tell which axis of input {spec} is the channels", "give --layout nchw or nhwc"
            )
    else:
        last = layout == "nhwc"
    found = dims[2] if last else dims[0]
    count = found if isinstance(found, int) else (fed[1] if fed is not None else 3)
    if count not in _MODES:
        raise DataError(
            f"input {spec} has {count} channels as {'NHWC' if last else 'NCHW'}, images have 1, 3 or 4",
            "check --layout, or write a function: --data FILE.py:function",
        )
    return last, count


def _normalisation(
    spec: InputSpec, count: int, recipe: Recipe
) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | None, str]:
    if spec.dtype == np.uint8:
        if recipe.mean or recipe.std:
            raise UsageError(
                f"input {spec} takes raw pixels, --mean and --std make no sense", "leave them out"
            )
        return None, None, ""
    for option, values in (("mean", recipe.mean), ("std", recipe.std)):
        if len(values) not in (0, 1, count):
            raise UsageError(f"--{option} has {len(values)} values, input {spec} has {count} channels")
        if not all(np.isfinite(values)) or (option == "std" and min(values, default=1.0) <= 0):
            raise UsageError(
                f"--{option} is {', '.join(f'{v:g}' for v in values)}, wanted finite values, --std above 0"
            )
    given = (*recipe.mean, *recipe.std)
    scale = 255.0 if all(v <= 1 for v in given) else 1.0
    mean = np.broadcast_to(np.array(recipe.mean or (0.0,), np.float32) * scale, count)
    std = np.broadcast_to(np.array(recipe.std or (1.0,), np.float32) * scale, count)
    return mean, std, "" if given else "pixels scaled to 0..1, for want of --mean and --std"


def _decode(path: Path, mode: str, where: str) -> Image.Image:
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as opened:
                image = ImageOps.exif_transpose(opened)
                if image.mode.startswith("I"):  # 16 bits a pixel; pillow would clip instead of scale
                    deep = np.asarray(image).astype(np.int64)
                    image = Image.fromarray(
                        (deep // (257 if deep.max() > 255 else 1)).clip(0, 255).astype(np.uint8)
                    )
                return image.convert(mode)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{where} is too large an image: {error}", "scale it down first") from error
    except _UNREADABLE as error:
        raise DataError(
            f"{where} cannot be read as an image: {error}", "remove or repair the file"
        ) from error
