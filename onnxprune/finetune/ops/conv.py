"""Convolutions."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from onnxprune.finetune.registry import Unsupported, op

Ints = tuple[int, ...]
Convolution = Callable[..., Tensor]
# By rank: autocast does not know the function for every rank, torch.convolution.
CONV: dict[int, Convolution] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED: dict[int, Convolution] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@op()
def Conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints = (),
    group: int = 1,
    kernel_shape: Ints = (),
    pads: Ints = (),
    strides: Ints = (),
) -> Tensor:
    rank = w.ndim - 2
    strides, dilations = strides or (1,) * rank, dilations or (1,) * rank
    if auto_pad not in ("NOTSET", ""):
        pads = same_pads(auto_pad, tuple(x.shape[2:]), tuple(w.shape[2:]), strides, dilations)
    head, tail = split_pads(pads, rank)
    if head != tail:
        x, head = F.pad(x, torch_pads(head, tail)), (0,) * rank
    return _of_rank(CONV, rank)(x, w, b, strides, head, dilations, group)


@op()
def ConvTranspose(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints = (),
    group: int = 1,
    kernel_shape: Ints = (),
    output_padding: Ints = (),
    output_shape: Ints = (),
    pads: Ints = (),
    strides: Ints = (),
) -> Tensor:
    rank = w.ndim - 2
    one, zero = (1,) * rank, (0,) * rank
    strides, dilations, extra = strides or one, dilations or one, output_padding or zero
    # the size before padding is cut away
    full = [
        s * (i - 1) + o + (k - 1) * d + 1
        for i, k, s, d, o in zip(x.shape[2:], w.shape[2:], strides, dilations, extra, strict=True)
    ]
    if output_shape or auto_pad.startswith("SAME"):
        wanted = output_shape[-rank:] or [i * s for i, s in zip(x.shape[2:], strides, strict=True)]
        total = [f - o for f, o in zip(full, wanted, strict=True)]  # below zero where zeros are added
        half = tuple(int(t / 2) if auto_pad == "SAME_UPPER" else t - t // 2 for t in total)
        head, tail = half, tuple(t - h for t, h in zip(total, half, strict=True))
    else:
        head, tail = split_pads(pads, rank)
    if head == tail and extra == zero:
        return _of_rank(TRANSPOSED, rank)(x, w, b, strides, head, zero, group, dilations)
    y = _of_rank(TRANSPOSED, rank)(x, w, None, strides, zero, zero, group, dilations)
    # Negative padding cuts; what output_padding adds beyond the cut is zero.
    y = F.pad(y, torch_pads([-h for h in head], [o - t for o, t in zip(extra, tail, strict=True)]))
    return y if b is None else y + b.view(-1, *one)


def _of_rank(functions: dict[int, Convolution], rank: int) -> Convolution:
    if rank not in functions:
        raise Unsupported(f"{rank} spatial dimensions")
    return functions[rank]


@functools.lru_cache(maxsize=1024)
def split_pads(pads: Ints, rank: int) -> tuple[Ints, Ints]:
    """Return the padding before and after each spatial dimension."""
    if not pads:
        return (0,) * rank, (0,) * rank
    if len(pads) != 2 * rank:
        raise Unsupported(f"{len(pads)} pads for {rank} spatial dimensions")
    return tuple(pads[:rank]), tuple(pads[rank:])


def torch_pads(head: Ints | list[int], tail: Ints | list[int]) -> list[int]:
    """Return the padding in the order of :func:`torch.nn.functional.pad`: last dimension first."""
    return [p for pair in zip(reversed(head), reversed(tail), strict=True) for p in pair]


@functools.lru_cache(maxsize=1024)
def same_pads(auto_pad: str, sizes: Ints, kernel: Ints, strides: Ints, dilations: Ints) -> Ints:
    """Return the pads that ``auto_pad`` stands for."""
    if auto_pad == "VALID":
        return ()
    if auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
        raise Unsupported(f"auto_pad {auto_pad!r}")
    total = [
        max((-(-i // s) - 1) * s + (k - 1) * d + 1 - i, 0)
        for i, k, s, d in zip(sizes, kernel, strides, dilations, strict=True)
    ]
    head = [t // 2 if auto_pad == "SAME_UPPER" else t - t // 2 for t in total]
    return (*head, *(t - h for t, h in zip(total, head, strict=True)))
