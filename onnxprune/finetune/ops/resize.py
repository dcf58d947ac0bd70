"""Resize and Upsample: each resized axis is a weighted sum of a few source positions per target position."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from onnxprune.finetune.ops.common import all_at, ints
from onnxprune.finetune.registry import Unsupported, op

Floats = NDArray[np.floating]
COORDINATES = (
    "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "asymmetric", "align_corners",
    "tf_half_pixel_for_nn", "tf_crop_and_resize",
)  # fmt: skip


@dataclass(frozen=True)
class Method:
    """The attributes that say how to interpolate."""

    mode: str = "nearest"
    coordinates: str = "asymmetric"
    nearest: str = "floor"
    cubic: float = -0.75
    exclude_outside: bool = False
    antialias: bool = False
    extrapolation: float = 0.0


@dataclass(frozen=True)
class Axis:
    """One resized axis: sizes, the scale that maps coordinates, and the region of interest."""

    source: int
    target: int
    scale: float
    start: float = 0.0
    end: float = 1.0


@op(7, name="Upsample")
def Upsample_7(x: Tensor, *, scales: tuple[float, ...], mode: str = "nearest") -> Tensor:
    return _old(x, list(scales), mode)


@op(9, host=(1,))
def Upsample(x: Tensor, scales: Tensor, *, mode: str = "nearest") -> Tensor:
    return _old(x, scales.tolist(), mode)


@op(10, name="Resize", host=(1,))
def Resize_10(x: Tensor, scales: Tensor, *, mode: str = "nearest") -> Tensor:
    return _old(x, scales.tolist(), mode)


def _old(x: Tensor, scales: list[float], mode: str) -> Tensor:
    """Before opset 11: asymmetric coordinates; nearest takes the floor, or the ceiling when it shrinks."""
    axes = [Axis(n, math.floor(n * s), s) for n, s in zip(x.shape, scales, strict=True)]
    method = Method(mode, nearest="simple")
    if mode not in ("nearest", "linear", "bilinear"):
        raise Unsupported(f"mode {mode!r}")
    return _resize(x, axes, replace(method, mode="linear") if mode != "nearest" else method)


@op(11, host=(1, 2, 3))
def Resize(
    x: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
    *,
    antialias: int = 0,
    axes: tuple[int, ...] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Tensor:
    if mode not in ("nearest", "linear", "cubic"):
        raise Unsupported(f"mode {mode!r}")
    if coordinate_transformation_mode not in COORDINATES:
        raise Unsupported(f"coordinate_transformation_mode {coordinate_transformation_mode!r}")
    method = Method(
        mode, coordinate_transformation_mode, nearest_mode, cubic_coeff_a, bool(exclude_outside),
        bool(antialias), extrapolation_value,
    )  # fmt: skip
    chosen = list(range(x.ndim)) if axes is None else all_at(axes, x.ndim)
    each = [Axis(n, n, 1.0) for n in x.shape]
    factors = [] if scales is None else scales.tolist()
    wanted = ints(sizes) or []
    if wanted and keep_aspect_ratio_policy != "stretch":
        pick = min if keep_aspect_ratio_policy == "not_larger" else max
        factor = pick(w / x.shape[a] for w, a in zip(wanted, chosen, strict=True))
        factors, wanted = [], [math.floor(factor * x.shape[a] + 0.5) for a in chosen]
        for a, w in zip(chosen, wanted, strict=True):
            each[a] = Axis(x.shape[a], w, factor)
    elif wanted:
        for a, w in zip(chosen, wanted, strict=True):
            each[a] = Axis(x.shape[a], w, w / x.shape[a])
    else:
        for a, s in zip(chosen, factors, strict=True):
            each[a] = Axis(x.shape[a], math.floor(x.shape[a] * s), s)
    if coordinate_transformation_mode == "tf_crop_and_resize":
        region = [] if roi is None else roi.tolist()
        for i, a in enumerate(chosen):
            each[a] = replace(each[a], start=region[i], end=region[len(chosen) + i])
    return _resize(x, each, method)


def _resize(x: Tensor, axes: list[Axis], method: Method) -> Tensor:
    cropped = method.coordinates == "tf_crop_and_resize"
    todo = [i for i, a in enumerate(axes) if cropped or a.target != a.source or a.scale != 1]
    if not todo:
        return x
    direct = _torch_mode(x, axes, todo, method)
    if direct is not None:
        mode, corners = direct
        return F.interpolate(x, [a.target for a in axes[2:]], mode=mode, align_corners=corners)
    dtype = x.dtype
    y = x if method.mode == "nearest" or x.is_floating_point() else x.float()
    for i in todo:
        y = _along(y, i, axes[i], method)
    if cropped:
        for i in todo:
            outside = torch.from_numpy(_outside(axes[i], method)).to(x.device)
            y = torch.where(outside.view(-1, *(1,) * (x.ndim - 1 - i)), method.extrapolation, y)
    if not dtype.is_floating_point and y.is_floating_point():
        y = y.round()
    return y.to(dtype)


def _along(x: Tensor, i: int, axis: Axis, method: Method) -> Tensor:
    index, weight = _taps(axis, method)
    index = index.to(x.device)
    if method.mode == "nearest":
        return x.index_select(i, index[0])
    shape = (-1, *(1,) * (x.ndim - 1 - i))
    weight = weight.to(x.device, x.dtype)
    y = x.index_select(i, index[0]) * weight[0].view(shape)
    for chosen, factor in zip(index[1:], weight[1:], strict=True):
        y = y + x.index_select(i, chosen) * factor.view(shape)
    return y


def _torch_mode(
    x: Tensor, axes: list[Axis], todo: list[int], method: Method
) -> tuple[str, bool | None] | None:
    """Return mode and ``align_corners`` of torch's own interpolation where it means the same."""
    rank = x.ndim - 2
    if todo[0] < 2 or rank not in (1, 2, 3) or method.antialias or not x.is_floating_point():
        return None
    spatial = axes[2:]
    if method.mode == "nearest":
        whole = all(a.scale == int(a.scale) for a in spatial)
        centred = method.coordinates.endswith("half_pixel") and method.nearest.startswith("round")
        corner = method.coordinates == "asymmetric" and method.nearest in ("floor", "simple")
        return ("nearest", None) if whole and (centred or corner) else None
    if any(abs(a.scale * a.source - a.target) > 1e-4 for a in spatial) or method.exclude_outside:
        return None
    corners = method.coordinates == "align_corners"
    centred = method.coordinates == "half_pixel" or (
        method.coordinates == "pytorch_half_pixel" and all(a.target > 1 for a in spatial)
    )
    if not corners and not centred:
        return None
    if method.mode == "linear":
        return ("linear", "bilinear", "trilinear")[rank - 1], corners
    return ("bicubic", corners) if rank == 2 and method.cubic == -0.75 else None


def _coordinates(axis: Axis, mode: str) -> Floats:
    """Where each target position lies in the source.

    In single precision, as ONNX Runtime: a nearest position may hang on the last bit.
    """
    x = np.arange(axis.target, dtype=np.float32)
    n, out, scale = axis.source, axis.target, np.float32(axis.scale)
    if mode == "asymmetric":
        return x / scale
    if mode == "align_corners":
        return x * (n - 1) / (out - 1) if out > 1 else x * 0
    if mode == "tf_half_pixel_for_nn":
        return (x + 0.5) / scale
    if mode == "tf_crop_and_resize":
        first, last = axis.start * (n - 1), axis.end * (n - 1)
        return (
            first + x * (last - first) / (out - 1) if out > 1 else np.array([(first + last) / 2], np.float32)
        )
    if mode == "pytorch_half_pixel" and out == 1:
        return x * 0
    if mode == "half_pixel_symmetric":
        offset = n / 2 * (1 - out / (scale * n))
        return offset + (x + 0.5) / scale - 0.5
    return (x + 0.5) / scale - 0.5


def _outside(axis: Axis, method: Method) -> NDArray[np.bool_]:
    x = _coordinates(axis, method.coordinates)
    return (x < 0) | (x > axis.source - 1)


@functools.lru_cache(maxsize=256)
def _taps(axis: Axis, method: Method) -> tuple[Tensor, Tensor]:
    """Return source positions and weights, each (taps, target)."""
    x = _coordinates(axis, method.coordinates)
    if method.mode == "nearest":
        index = _nearest(x, method.nearest, axis.scale).clip(0, axis.source - 1)[None]
        return torch.from_numpy(index.astype(np.int64)), torch.empty(0)
    floor = np.floor(x)
    offsets, weight = _weights(x - floor, axis.scale, method)
    index = floor[None] + offsets[:, None]
    if method.exclude_outside:
        weight = np.where((index < 0) | (index > axis.source - 1), 0, weight)
        weight = weight / weight.sum(0)
    return torch.from_numpy(index.clip(0, axis.source - 1).astype(np.int64)), torch.from_numpy(weight)


def _nearest(x: Floats, mode: str, scale: float) -> Floats:
    if mode == "simple":
        mode = "ceil" if scale < 1 else "floor"
    if mode == "round_prefer_floor":
        x, mode = x - 0.5, "ceil"
    elif mode == "round_prefer_ceil":
        x, mode = x + 0.5, "floor"
    if mode not in ("floor", "ceil"):
        raise Unsupported(f"nearest_mode {mode!r}")
    return np.floor(x) if mode == "floor" else np.ceil(x)


def _weights(ratio: Floats, scale: float, method: Method) -> tuple[NDArray[np.int64], Floats]:
    """Return offsets from the floor (taps,) and weights (taps, target)."""
    shrink = min(scale, 1.0) if method.antialias else 1.0
    reach = 1 if method.mode == "linear" else 2
    first = math.floor(-reach / shrink) + 1
    offsets = np.arange(first, 2 - first)
    distance = np.abs(offsets[:, None] - ratio[None]) * shrink
    if method.mode == "linear":
        weight = (1 - distance).clip(0, 1)
    else:
        a, d = method.cubic, distance
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        weight = np.where(d <= 1, near, np.where(d < 2, far, 0))
    return offsets, weight / weight.sum(0) if method.antialias else weight
