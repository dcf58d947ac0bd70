"""Matrix products."""

from __future__ import annotations

import torch
from torch import Tensor

from onnxprune.finetune.ops.common import wide
from onnxprune.finetune.registry import op


@op()
@wide
def MatMul(a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a, b)


@op(7)
@wide
def Gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    a = a.t() if transA else a
    b = b.t() if transB else b
    if not a.is_floating_point():  # factors are floats whatever the matrices are
        product = a @ b if alpha == 1 else (a @ b * alpha).to(a.dtype)
        return product if c is None else product + (c if beta == 1 else (c * beta).to(a.dtype))
    if c is None:
        return a @ b if alpha == 1 else a @ b * alpha
    return torch.addmm(c, a, b, beta=beta, alpha=alpha)


@op(12)
@wide
def Einsum(*inputs: Tensor, equation: str) -> Tensor:
    product: Tensor = torch.einsum(equation.replace(" ", ""), *inputs)
    return product


@op(11)
def Det(x: Tensor) -> Tensor:
    det: Tensor = torch.linalg.det(x)
    return det


@op(10)
def MatMulInteger(
    a: Tensor, b: Tensor, a_zero_point: Tensor | None = None, b_zero_point: Tensor | None = None
) -> Tensor:
    a, b = a.to(torch.int32), b.to(torch.int32)
    if a_zero_point is not None:
        zero = a_zero_point.to(torch.int32)
        a = a - (zero.unsqueeze(-1) if zero.ndim == 1 and zero.numel() > 1 else zero)
    if b_zero_point is not None:
        b = b - b_zero_point.to(torch.int32)
    return torch.matmul(a, b)
