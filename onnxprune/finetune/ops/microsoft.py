"""Fused operators of com.microsoft, as ONNX Runtime's optimiser and exporters write them; attention apart."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxprune.finetune.ops import activation as act
from onnxprune.finetune.ops.common import NARROW, at
from onnxprune.finetune.ops.conv import Conv, Ints
from onnxprune.finetune.ops.matmul import Gemm
from onnxprune.finetune.registry import Unsupported, op

DOMAIN = "com.microsoft"

# -- activations -------------------------------------------------------------------------------------


@op(1, domain=DOMAIN)
def Gelu(x: Tensor) -> Tensor:
    return act.gelu(x)


@op(1, domain=DOMAIN)
def FastGelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.gelu(x if bias is None else x + bias, approximate="tanh")


@op(1, domain=DOMAIN)
def BiasGelu(x: Tensor, bias: Tensor) -> Tensor:
    return act.gelu(x + bias)


@op(1, domain=DOMAIN)
def QuickGelu(x: Tensor, *, alpha: float = 1.702) -> Tensor:
    return x * (alpha * x).sigmoid()


@op(1, domain=DOMAIN)
def BiasAdd(x: Tensor, bias: Tensor, skip: Tensor) -> Tensor:
    return x + bias + skip


@op(1, domain=DOMAIN)
def BiasSoftmax(data: Tensor, bias: Tensor, *, axis: int = 1, is_inner_broadcast: int) -> Tensor:
    # is_inner_broadcast only tells a kernel where the ones in the shape of the bias are
    return (data + bias).flatten(at(axis, data.ndim)).softmax(-1).view(data.shape)


# -- products ----------------------------------------------------------------------------------------


@op(1, domain=DOMAIN)
def FusedMatMul(
    a: Tensor,
    b: Tensor,
    *,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
    transBatchA: int = 0,
    transBatchB: int = 0,
) -> Tensor:
    y = _transposed(a, transA, transBatchA) @ _transposed(b, transB, transBatchB)
    return y if alpha == 1 else y * alpha


@op(1, domain=DOMAIN)
def TransposeMatMul(a: Tensor, b: Tensor, *, alpha: float = 1.0, transA: int = 0, transB: int = 0) -> Tensor:
    return FusedMatMul(a, b, alpha=alpha, transA=transA, transB=transB)


def _transposed(x: Tensor, last_two: int, batch: int) -> Tensor:
    if x.ndim < 2:  # ONNX Runtime: a vector stays as it is
        return x
    x = x.movedim(0, -2) if batch else x
    return x.transpose(-1, -2) if last_two else x


@op(1, domain=DOMAIN)
def FusedGemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    activation: str = "",
    activation_alpha: float | None = None,
    activation_beta: float | None = None,
    activation_gamma: float | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    y = Gemm(a, b, c, alpha=alpha, beta=beta, transA=transA, transB=transB)
    numbers = [n for n in (activation_alpha, activation_beta, activation_gamma) if n is not None]
    return _activated(y, activation, numbers)


@op(1, domain=DOMAIN)
def FusedConv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    z: Tensor | None = None,
    *,
    activation: str = "",
    activation_params: Sequence[float] = (),
    auto_pad: str = "NOTSET",
    dilations: Ints = (),
    group: int = 1,
    kernel_shape: Ints = (),
    pads: Ints = (),
    strides: Ints = (),
) -> Tensor:
    y = Conv(x, w, b, auto_pad=auto_pad, dilations=dilations, group=group, pads=pads, strides=strides)
    return _activated(y if z is None else y + z, activation, activation_params)


def _activated(x: Tensor, name: str, numbers: Sequence[float]) -> Tensor:
    """Apply a fused activation; its numbers are alpha, beta, gamma, or the limits of Clip."""
    plain = {
        "": lambda: x,
        "Relu": lambda: act.Relu(x),
        "Tanh": lambda: act.Tanh(x),
        "Sigmoid": lambda: act.Sigmoid(x),
        "Softplus": lambda: act.Softplus(x),
        "Softsign": lambda: act.Softsign(x),
        "HardSwish": lambda: act.HardSwish(x),
    }
    one = {
        "LeakyRelu": act.LeakyRelu,
        "Elu": act.Elu,
        "Celu": act.Celu,
        "ThresholdedRelu": act.ThresholdedRelu,
    }
    if name in plain:
        return plain[name]()
    if name in one and numbers:
        return one[name](x, alpha=numbers[0])
    if name == "HardSigmoid" and len(numbers) >= 2:
        return act.HardSigmoid(x, alpha=numbers[0], beta=numbers[1])
    if name == "Clip" and len(numbers) >= 2:
        return x.clamp(numbers[0], numbers[1])
    if name == "Selu" and len(numbers) >= 2:
        return act.Selu(x, alpha=numbers[0], gamma=numbers[-1])
    raise Unsupported(f"activation {name!r} with {len(numbers)} numbers is not supported")


# -- normalisations ----------------------------------------------------------------------------------


@op(1)
def SimplifiedLayerNormalization(
    x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> tuple[Tensor, ...]:
    """In the default domain, although only ONNX Runtime knows it there."""
    return _rms_norm(x, scale, tuple(range(at(axis, x.ndim), x.ndim)), epsilon)


@op(1, domain=DOMAIN)
def SkipSimplifiedLayerNormalization(
    x: Tensor,
    skip: Tensor,
    gamma: Tensor,
    bias: Tensor | None = None,
    *,
    epsilon: float = 1e-12,
    outputs: tuple[bool, ...] = (True,),
) -> tuple[Tensor, ...]:
    _no_statistics(outputs)
    total = x + skip if bias is None else x + skip + bias
    y, scale = _rms_norm(total, gamma, (-1,), epsilon)
    return y, scale, scale, total


@op(1, domain=DOMAIN)
def SkipLayerNormalization(
    x: Tensor,
    skip: Tensor,
    gamma: Tensor,
    beta: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    epsilon: float = 1e-12,
    outputs: tuple[bool, ...] = (True,),
) -> tuple[Tensor, ...]:
    _no_statistics(outputs)
    total = x + skip if bias is None else x + skip + bias
    y = F.layer_norm(total, gamma.shape, gamma, beta, epsilon)
    return y, total, total, total


@op(1, domain=DOMAIN)
def EmbedLayerNormalization(
    input_ids: Tensor,
    segment_ids: Tensor | None,
    word_embedding: Tensor,
    position_embedding: Tensor,
    segment_embedding: Tensor | None,
    gamma: Tensor,
    beta: Tensor,
    mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    *,
    epsilon: float = 1e-12,
    mask_index_type: int = 0,
) -> tuple[Tensor, ...]:
    batch, length = input_ids.shape
    places = (
        position_embedding[:length] if position_ids is None else F.embedding(position_ids, position_embedding)
    )
    total = F.embedding(input_ids, word_embedding) + places
    if segment_ids is not None and segment_embedding is not None:
        total = total + F.embedding(segment_ids, segment_embedding)
    words = torch.zeros(batch, dtype=torch.int32, device=input_ids.device)
    if mask is not None:
        words = (mask == 1).sum(1, dtype=torch.int32)
    return F.layer_norm(total, gamma.shape, gamma, beta, epsilon), words, total


def _rms_norm(x: Tensor, scale: Tensor, axes: tuple[int, ...], epsilon: float) -> tuple[Tensor, Tensor]:
    """Return the result and the factor of each row."""
    work = x.float() if x.dtype in NARROW else x
    factor = (work.square().mean(axes, keepdim=True) + epsilon).rsqrt()
    return (work * factor).to(x.dtype) * scale, factor


def _no_statistics(outputs: tuple[bool, ...]) -> None:
    if any(outputs[1:3]):
        raise Unsupported("mean and inv_std_var are asked for: ONNX Runtime does not fill them either")
