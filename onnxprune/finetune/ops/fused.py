"""What stands for groups of nodes; see :mod:`onnxprune.finetune.fuse`."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from onnxprune.finetune.ops.activation import gelu
from onnxprune.finetune.ops.common import at
from onnxprune.finetune.registry import FUSED_DOMAIN, op


@op(domain=FUSED_DOMAIN)
def Gelu(x: Tensor) -> Tensor:
    return gelu(x)


@op(domain=FUSED_DOMAIN)
def HardSwish(x: Tensor) -> Tensor:
    return F.hardswish(x)


@op(domain=FUSED_DOMAIN)
def Normalize(x: Tensor, *, axis: int, epsilon: float) -> Tensor:
    if at(axis, x.ndim) == x.ndim - 1:
        return F.layer_norm(x, x.shape[-1:], eps=epsilon)
    centred = x - x.mean(axis, keepdim=True)
    return centred / (centred.square().mean(axis, keepdim=True) + epsilon).sqrt()
