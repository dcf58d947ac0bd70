"""Quantisation, as plain arithmetic: rounding has no gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from onnxprune.finetune.dtypes import FLOAT8, to_float8, torch_dtype
from onnxprune.finetune.ops.common import at
from onnxprune.finetune.registry import Unsupported, op


@op(10, frozen=(1,))
def DequantizeLinear(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Tensor:
    target = torch_dtype(output_dtype) if output_dtype else scale.dtype
    # 4-bit values would need every int32 too: float64 holds both exactly
    work = x.to(torch.float64 if x.dtype == torch.int32 else torch.float32)
    if zero_point is not None and not zero_point.is_floating_point():
        work = work - _spread(zero_point, x, axis, block_size).to(work.dtype)
    return (work * _spread(scale, x, axis, block_size)).to(target)


@op(10, frozen=(1,))
def QuantizeLinear(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
) -> Tensor:
    target = torch_dtype(output_dtype) if output_dtype else torch.uint8
    target = zero_point.dtype if zero_point is not None else target
    y = x / _spread(scale, x, axis, block_size)
    if target in FLOAT8:
        return to_float8(y, target, bool(saturate))
    limits = torch.iinfo(target)
    y = y.round()
    if zero_point is not None:
        y = y + _spread(zero_point, x, axis, block_size).to(y.dtype)
    return y.clamp(limits.min, limits.max).to(target)


def _spread(parameter: Tensor, x: Tensor, axis: int, block_size: int) -> Tensor:
    """Bring a scale or zero point (one, one per channel, one per block) to a shape that broadcasts."""
    if parameter.numel() == 1 and parameter.ndim <= 1:
        return parameter.reshape(())
    axis = at(axis, x.ndim)
    if parameter.ndim == 1:
        return parameter.view(-1, *(1,) * (x.ndim - 1 - axis))
    if not block_size:
        raise Unsupported(f"a scale of {parameter.ndim} dimensions without block_size")
    wide = parameter if parameter.is_floating_point() else parameter.to(torch.int64)
    return wide.repeat_interleave(block_size, axis).narrow(axis, 0, x.shape[axis])


@op(11)
def DynamicQuantizeLinear(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = (high - low) / 255
    zero = torch.where(scale == 0, 0, -low / scale).round().clamp(0, 255)
    y = (x / torch.where(scale == 0, 1, scale)).round() + zero
    return y.clamp(0, 255).to(torch.uint8), scale, zero.to(torch.uint8)
