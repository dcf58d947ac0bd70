"""Pooling."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxprune.finetune.ops.conv import Ints, same_pads, split_pads, torch_pads
from onnxprune.finetune.registry import op

MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVG_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


@op()
def GlobalAveragePool(x: Tensor) -> Tensor:
    return x.mean(tuple(range(2, x.ndim)), keepdim=True)


@op()
def GlobalMaxPool(x: Tensor) -> Tensor:
    return x.amax(tuple(range(2, x.ndim)), keepdim=True)


@op(2)
def GlobalLpPool(x: Tensor, *, p: int = 2) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x, p, tuple(range(2, x.ndim)), keepdim=True)
    return norm


class _Window:
    """Where the windows of a pooling operator lie: explicit pads, and more at the end for ``ceil_mode``."""

    def __init__(
        self, x: Tensor, kernel: Ints, auto_pad: str, ceil: int, dilations: Ints, pads: Ints, strides: Ints
    ) -> None:
        rank, sizes = len(kernel), tuple(x.shape[2:])
        self.kernel, self.ones = kernel, (1,) * rank
        self.strides, self.dilations = strides or self.ones, dilations or self.ones
        if auto_pad not in ("NOTSET", ""):
            pads = same_pads(auto_pad, sizes, kernel, self.strides, self.dilations)
            ceil = 0
        self.head, self.tail = split_pads(pads, rank)
        extra = []
        for i, k, s, d, h, t in zip(
            sizes, kernel, self.strides, self.dilations, self.head, self.tail, strict=True
        ):
            span = h + i + t - (k - 1) * d - 1
            count = (math.ceil(span / s) if ceil else span // s) + 1
            if ceil and (count - 1) * s >= i + h:  # a window that starts in the padding at the end
                count -= 1
            extra.append(max((count - 1) * s - span, 0))
        self.extra = tuple(extra)

    @property
    def plain(self) -> bool:
        """Whether torch's own padding does."""
        return (
            self.head == self.tail
            and not any(self.extra)
            and all(2 * h <= k for h, k in zip(self.head, self.kernel, strict=True))
        )

    def padded(self, x: Tensor, value: float) -> Tensor:
        tail = [t + e for t, e in zip(self.tail, self.extra, strict=True)]
        return F.pad(x, torch_pads(self.head, tail), value=value)

    def sums(self, x: Tensor) -> Tensor:
        """Sum of each window of the padded ``x``."""
        ones = torch.ones(1, 1, *self.kernel, dtype=x.dtype, device=x.device)
        rows = x.reshape(-1, 1, *x.shape[2:])
        zeros = (0,) * len(self.kernel)
        sums = torch.convolution(rows, ones, None, self.strides, zeros, self.dilations, False, zeros, 1)
        return sums.view(*x.shape[:2], *sums.shape[2:])


@op()
def AveragePool(
    x: Tensor,
    *,
    kernel_shape: Ints,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Ints = (),
    pads: Ints = (),
    strides: Ints = (),
) -> Tensor:
    window = _Window(x, kernel_shape, auto_pad, ceil_mode, dilations, pads, strides)
    if window.plain and window.dilations == window.ones and len(kernel_shape) in AVG_POOL:
        average = AVG_POOL[len(kernel_shape)]
        return average(x, kernel_shape, window.strides, window.head, False, bool(count_include_pad))
    inside = torch.ones(1, 1, *x.shape[2:], dtype=x.dtype, device=x.device)
    if count_include_pad:
        inside = F.pad(inside, torch_pads(window.head, window.tail), value=1)
        inside = F.pad(inside, torch_pads((0,) * len(window.extra), window.extra))
    else:
        inside = window.padded(inside, 0)
    return window.sums(window.padded(x, 0)) / window.sums(inside)


@op()
def LpPool(
    x: Tensor,
    *,
    kernel_shape: Ints,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Ints = (),
    p: int = 2,
    pads: Ints = (),
    strides: Ints = (),
) -> Tensor:
    window = _Window(x, kernel_shape, auto_pad, ceil_mode, dilations, pads, strides)
    total = window.sums(window.padded(x, 0).abs() ** p)
    some = total > 0  # a root has no gradient at zero
    return torch.where(some, torch.where(some, total, 1) ** (1 / p), 0)


@op()
def MaxPool(
    x: Tensor,
    *,
    kernel_shape: Ints,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Ints = (),
    pads: Ints = (),
    storage_order: int = 0,
    strides: Ints = (),
    outputs: tuple[bool, ...] = (True,),
) -> Tensor | tuple[Tensor, Tensor]:
    window = _Window(x, kernel_shape, auto_pad, ceil_mode, dilations, pads, strides)
    pool = MAX_POOL[len(kernel_shape)]
    shape, head = x.shape, window.head
    if not window.plain:
        lowest = -math.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
        x, head = window.padded(x, lowest), (0,) * len(kernel_shape)
    padding = tuple(head)
    if len(outputs) == 1 or not outputs[1]:
        if x.is_floating_point():
            return pool(x, kernel_shape, window.strides, padding, window.dilations)
        return pool(x.double(), kernel_shape, window.strides, padding, window.dilations).to(x.dtype)
    work = x if x.is_floating_point() else x.double()
    y, flat = pool(work, kernel_shape, window.strides, padding, window.dilations, return_indices=True)
    shift = (0,) * len(kernel_shape) if window.plain else window.head
    return y.to(x.dtype), _positions(flat, tuple(x.shape[2:]), tuple(shape), shift, storage_order)


def _positions(flat: Tensor, padded: Ints, shape: Ints, head: Ints, storage_order: int) -> Tensor:
    """Turn torch's positions in a padded plane into positions in the whole input."""
    spatial = []
    for size, before in zip(reversed(padded), reversed(head), strict=True):
        spatial.append(flat % size - before)
        flat = flat // size
    spatial.reverse()
    sizes = shape[2:]
    order = range(len(sizes)) if not storage_order else reversed(range(len(sizes)))
    position = torch.zeros_like(flat)
    for i in order:
        position = position * sizes[i] + spatial[i]
    planes = torch.arange(shape[0] * shape[1], device=flat.device) * math.prod(sizes)
    return position + planes.view(shape[0], shape[1], *(1,) * len(sizes))


@op(9, host=(2,))
def MaxUnpool(
    x: Tensor,
    indices: Tensor,
    output_shape: Tensor | None = None,
    *,
    kernel_shape: Ints,
    pads: Ints = (),
    strides: Ints = (),
) -> Tensor:
    rank = len(kernel_shape)
    head, tail = split_pads(pads, rank)
    sizes = [
        (i - 1) * s + k - h - t
        for i, s, k, h, t in zip(x.shape[2:], strides or (1,) * rank, kernel_shape, head, tail, strict=True)
    ]
    natural = (*x.shape[:2], *sizes)
    shape = natural if output_shape is None else tuple(int(n) for n in output_shape.tolist())
    # The positions count in the natural shape; a larger output has it in its corner.
    flat = torch.zeros(math.prod(natural), dtype=x.dtype, device=x.device)
    y = flat.scatter(0, indices.reshape(-1), x.reshape(-1)).view(natural)
    return F.pad(y, [p for n, s in zip(reversed(natural), reversed(shape), strict=True) for p in (0, s - n)])
