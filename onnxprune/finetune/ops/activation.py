"""Activation functions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxprune.finetune.ops.common import NARROW
from onnxprune.finetune.registry import op


@op(6)
def Relu(x: Tensor) -> Tensor:
    return x.relu()


@op(6)
def LeakyRelu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    return F.leaky_relu(x, alpha)


@op(7)
def PRelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


@op(10)
def ThresholdedRelu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return torch.where(x > alpha, x, 0)


@op(6)
def Elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.elu(x, alpha)


@op(12)
def Celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.celu(x, alpha)


@op(6)
def Selu(x: Tensor, *, alpha: float = 1.6732632423543772, gamma: float = 1.0507009873554805) -> Tensor:
    return gamma * F.elu(x, alpha)


@op(6)
def Sigmoid(x: Tensor) -> Tensor:
    return x.sigmoid()


@op(6)
def HardSigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    return (x * alpha + beta).clamp(0, 1)


@op(14)
def HardSwish(x: Tensor) -> Tensor:
    return x * (x * (1 / 6) + 0.5).clamp(0, 1)


@op(6)
def Tanh(x: Tensor) -> Tensor:
    return x.tanh()


@op()
def Softplus(x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros_like(x))  # exact: F.softplus is linear above a threshold


@op()
def Softsign(x: Tensor) -> Tensor:
    return x / (1 + x.abs())


@op(9)
def Shrink(x: Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, 0)).to(x.dtype)


@op(18)
def Mish(x: Tensor) -> Tensor:
    return F.mish(x)


def gelu(x: Tensor) -> Tensor:
    """Gelu as ONNX Runtime computes it; the quicker one of torch where gradients are wanted.

    Torch's is off by up to 1e-6 (float32 on a CPU), more than twice what this is, and by 12 times as much
    below -3, of which MiniLM makes 1.4e-5; learning, which does not see that, takes half the time with it.
    """
    if x.dtype in NARROW or (torch.is_grad_enabled() and x.requires_grad):
        return F.gelu(x)
    return torch.erf(x * math.sqrt(0.5)).add_(1).mul_(0.5).mul_(x)


@op(20)
def Gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    return gelu(x) if approximate == "none" else F.gelu(x, approximate=approximate)


@op(24)
def Swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.silu(x) if alpha == 1 else x * (alpha * x).sigmoid()


@op(1, name="Softmax")
def Softmax_1(x: Tensor, *, axis: int = 1) -> Tensor:
    return _as_matrix(x, axis).softmax(1).view(x.shape)


@op(13)
def Softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return x.softmax(axis)


@op(1, name="LogSoftmax")
def LogSoftmax_1(x: Tensor, *, axis: int = 1) -> Tensor:
    return _as_matrix(x, axis).log_softmax(1).view(x.shape)


@op(13)
def LogSoftmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return x.log_softmax(axis)


@op(1, name="Hardmax")
def Hardmax_1(x: Tensor, *, axis: int = 1) -> Tensor:
    return Hardmax(_as_matrix(x, axis), axis=1).view(x.shape)


@op(13)
def Hardmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1)


def _as_matrix(x: Tensor, axis: int) -> Tensor:
    """Before opset 13, everything from ``axis`` on counts as one dimension."""
    axis += x.ndim if axis < 0 else 0
    rows = 1
    for size in x.shape[:axis]:
        rows *= size
    return x.reshape(rows, -1)
