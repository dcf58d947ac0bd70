"""Sampling grids, windows of images and boxes."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxprune.finetune.ops.common import ints
from onnxprune.finetune.ops.conv import Ints, split_pads, torch_pads
from onnxprune.finetune.registry import Unsupported, op

SAMPLING = {"linear": "bilinear", "bilinear": "bilinear", "cubic": "bicubic", "bicubic": "bicubic"}


@op(16)
def GridSample(
    x: Tensor, grid: Tensor, *, align_corners: int = 0, mode: str = "linear", padding_mode: str = "zeros"
) -> Tensor:
    return F.grid_sample(x, grid, SAMPLING.get(mode, mode), padding_mode, bool(align_corners))


@op(20, host=(1,))
def AffineGrid(theta: Tensor, size: Tensor, *, align_corners: int = 0) -> Tensor:
    return F.affine_grid(theta, size.tolist(), bool(align_corners))


@op(18, host=(1, 2))
def Col2Im(
    x: Tensor,
    image_shape: Tensor,
    block_shape: Tensor,
    *,
    dilations: Ints = (),
    pads: Ints = (),
    strides: Ints = (),
) -> Tensor:
    image, block = ints(image_shape) or [], ints(block_shape) or []
    rank, one = len(image), (1,) * len(image)
    strides, dilations = strides or one, dilations or one
    head, tail = split_pads(pads, rank)
    counts = [
        (i + h + t - d * (k - 1) - 1) // s + 1
        for i, h, t, k, s, d in zip(image, head, tail, block, strides, dilations, strict=True)
    ]
    area = math.prod(block)
    columns = x.reshape(-1, area, *counts)  # a transposed convolution puts each column at its place
    kernel = torch.eye(area, dtype=x.dtype, device=x.device).view(area, 1, *block)
    y = torch.convolution(columns, kernel, None, strides, (0,) * rank, dilations, True, (0,) * rank, 1)
    cut = [i + h - n for i, h, n in zip(image, head, y.shape[2:], strict=True)]
    return F.pad(y, torch_pads([-h for h in head], cut)).view(x.shape[0], -1, *image)


@op(10, name="RoiAlign")
def RoiAlign_10(
    x: Tensor,
    rois: Tensor,
    batch_indices: Tensor,
    *,
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> Tensor:
    return _roi_align(
        x, rois, batch_indices, 0.0, mode, (output_height, output_width), sampling_ratio, spatial_scale
    )


@op(16)
def RoiAlign(
    x: Tensor,
    rois: Tensor,
    batch_indices: Tensor,
    *,
    coordinate_transformation_mode: str = "half_pixel",
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> Tensor:
    offset = 0.5 if coordinate_transformation_mode == "half_pixel" else 0.0
    size = (output_height, output_width)
    return _roi_align(x, rois, batch_indices, offset, mode, size, sampling_ratio, spatial_scale)


def _roi_align(
    x: Tensor,
    rois: Tensor,
    batch: Tensor,
    offset: float,
    mode: str,
    size: tuple[int, int],
    ratio: int,
    scale: float,
) -> Tensor:
    if mode not in ("avg", "max"):
        raise Unsupported(f"mode {mode!r}")
    if rois.shape[0] == 0:
        return x.new_zeros((0, x.shape[1], *size))
    # Without a ratio each box has its own number of samples.
    return torch.stack(
        [
            _one_box(x[b], box, offset, mode, size, ratio)
            for box, b in zip(rois * scale - offset, batch.tolist(), strict=True)
        ]
    )


def _one_box(x: Tensor, box: Tensor, offset: float, mode: str, size: tuple[int, int], ratio: int) -> Tensor:
    x1, y1, x2, y2 = box.unbind()
    width, height = x2 - x1, y2 - y1
    if not offset:  # malformed boxes are made one pixel wide in this mode only
        width, height = width.clamp(min=1), height.clamp(min=1)
    counts = (
        [ratio, ratio]
        if ratio > 0
        else [
            max(math.ceil(float(length.detach()) / n), 1)
            for length, n in zip((height, width), size, strict=True)
        ]
    )
    places = []
    for start, length, n, count in zip((y1, x1), (height, width), size, counts, strict=True):
        position = (torch.arange(n * count, device=x.device, dtype=x.dtype) + 0.5) / count
        places.append(start + position * length / n)
    corners = [_corners(p, limit) for p, limit in zip(places, x.shape[1:], strict=True)]
    samples = []
    for rows, row_weight in corners[0]:
        for columns, column_weight in corners[1]:
            picked = x.index_select(1, rows).index_select(2, columns)
            samples.append(picked * row_weight.unsqueeze(1) * column_weight)
    bins = (x.shape[0], size[0], counts[0], size[1], counts[1])
    if mode == "avg":
        return torch.stack(samples).sum(0).view(bins).mean((2, 4))
    return torch.stack(samples).amax(0).view(bins).amax((2, 4))  # of the weighted corners, as in the spec


def _corners(place: Tensor, limit: int) -> list[tuple[Tensor, Tensor]]:
    inside = ((place >= -1) & (place <= limit)).to(place.dtype)
    place = place.clamp(0, limit - 1)
    low = place.detach().floor().to(torch.int64)
    high = (low + 1).clamp(max=limit - 1)
    share = place - low
    return [(low, (1 - share) * inside), (high, share * inside)]


@op(10, host=(0, 1, 2, 3, 4))
def NonMaxSuppression(
    boxes: Tensor,
    scores: Tensor,
    max_output_boxes_per_class: Tensor | None = None,
    iou_threshold: Tensor | None = None,
    score_threshold: Tensor | None = None,
    *,
    center_point_box: int = 0,
) -> Tensor:
    limit = 0 if max_output_boxes_per_class is None else int(max_output_boxes_per_class.item())
    overlap = 0.0 if iou_threshold is None else iou_threshold.item()
    boxes, scores = boxes.detach(), scores.detach()
    if center_point_box:
        half = boxes[..., 2:] / 2
        low, high = boxes[..., :2] - half, boxes[..., :2] + half
    else:
        low, high = (f(boxes[..., :2], boxes[..., 2:]) for f in (torch.minimum, torch.maximum))
    chosen = [
        [batch, kind, place]
        for batch in range(scores.shape[0])
        for kind in range(scores.shape[1])
        for place in _suppress(low[batch], high[batch], scores[batch, kind], limit, overlap, score_threshold)
    ]
    return torch.tensor(chosen, dtype=torch.int64).view(-1, 3)


def _suppress(
    low: Tensor, high: Tensor, scores: Tensor, limit: int, overlap: float, threshold: Tensor | None
) -> list[int]:
    order = scores.argsort(descending=True, stable=True)
    if threshold is not None:
        order = order[scores[order] > threshold.item()]
    kept: list[int] = []
    area = (high - low).prod(-1)
    while order.numel() and len(kept) < limit:
        best, order = order[0], order[1:]
        kept.append(int(best))
        shared = (torch.minimum(high[order], high[best]) - torch.maximum(low[order], low[best])).clamp(min=0)
        inter = shared.prod(-1)
        union = area[order] + area[best] - inter
        order = order[~(inter > overlap * union)]
    return kept
