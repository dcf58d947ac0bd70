"""Normalisations. The statistics of BatchNormalization are constants, as in inference."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxprune.finetune.ops.common import NARROW, at
from onnxprune.finetune.registry import Unsupported, op


@op(7, name="BatchNormalization", frozen=(3, 4))
def BatchNormalization_7(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    spatial: int = 1,
    outputs: tuple[bool, ...] = (True,),
) -> Tensor:
    if any(outputs[1:]):
        raise Unsupported("the batch's statistics are asked for: a model in training mode")
    if not spatial:
        raise Unsupported("spatial 0 is not supported")
    return F.batch_norm(x, mean.detach(), var.detach(), scale, bias, False, 0.0, epsilon)


@op(14, frozen=(3, 4))
def BatchNormalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
    outputs: tuple[bool, ...] = (True,),
) -> Tensor | tuple[Tensor, ...]:
    mean, var = mean.detach(), var.detach()
    if not training_mode:
        return F.batch_norm(x, mean, var, scale, bias, False, 0.0, epsilon)
    axes = (0, *range(2, x.ndim))
    batch_var, batch_mean = torch.var_mean(x, axes, correction=0)
    y = F.batch_norm(x, None, None, scale, bias, True, 0.0, epsilon)
    return (
        y,
        mean * momentum + batch_mean.to(mean.dtype) * (1 - momentum),
        var * momentum + batch_var.to(var.dtype) * (1 - momentum),
    )


@op(6)
def InstanceNormalization(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    return _grouped(x, x.shape[1], scale, bias, epsilon)


def _grouped(x: Tensor, groups: int, scale: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """Normalise each group of channels, then scale and shift each channel.

    Not torch's own: they refuse groups of a single value, which the specification makes zero.
    """
    rows = x.reshape(x.shape[0], groups, math.prod(x.shape[1:]) // groups)
    y = F.layer_norm(rows, rows.shape[2:], eps=epsilon).view(x.shape)
    channels = (-1, *(1,) * (x.ndim - 2))
    return y * scale.view(channels) + bias.view(channels)


@op(17)
def LayerNormalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    outputs: tuple[bool, ...] = (True,),
) -> Tensor | tuple[Tensor, ...]:
    shape = x.shape[at(axis, x.ndim) :]
    if scale.shape == shape and (bias is None or bias.shape == shape):
        y = F.layer_norm(x, shape, scale, bias, epsilon)
    else:
        y = F.layer_norm(x, shape, eps=epsilon) * scale
        y = y if bias is None else y + bias
    if not any(outputs[1:]):
        return y
    work = x.float() if x.dtype in NARROW else x
    var, mean = torch.var_mean(work, tuple(range(at(axis, x.ndim), x.ndim)), correction=0, keepdim=True)
    return y, mean, (var + epsilon).rsqrt()


@op(23)
def RMSNormalization(
    x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    axes = tuple(range(at(axis, x.ndim), x.ndim))
    work = x.float() if x.dtype in NARROW and stash_type == 1 else x
    return (work * (work.square().mean(axes, keepdim=True) + epsilon).rsqrt()).to(x.dtype) * scale


@op(18, name="GroupNormalization")
def GroupNormalization_18(
    x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5
) -> Tensor:
    each = x.shape[1] // num_groups  # scale and bias are per group in this version
    return _grouped(x, num_groups, scale.repeat_interleave(each), bias.repeat_interleave(each), epsilon)


@op(21)
def GroupNormalization(
    x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    return _grouped(x, num_groups, scale, bias, epsilon)


@op()
def LRN(x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Tensor:
    before = (size - 1) // 2
    square = F.pad(x.square().flatten(2).unsqueeze(1), (0, 0, before, size - 1 - before))
    around = F.avg_pool2d(square, (size, 1), stride=1).squeeze(1).view(x.shape)
    return x / (around * alpha + bias) ** beta


@op()
def LpNormalization(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    norm = torch.linalg.vector_norm(x, p, axis, keepdim=True)
    return x / torch.where(norm == 0, 1, norm)


@op(9)
def MeanVarianceNormalization(x: Tensor, *, axes: tuple[int, ...] = (0, 2, 3)) -> Tensor:
    centred = x - x.mean(axes, keepdim=True)  # first: the difference of two large squares is all rounding
    variance = centred.square().mean(axes, keepdim=True)
    # The specification divides by the deviation plus 1e-9: zero by that, where all values are equal, which
    # zero by one is as well, with a gradient that does not drown all others.
    return centred / (torch.where(variance > 0, variance, 1).sqrt() + 1e-9)
