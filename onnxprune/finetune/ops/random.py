"""Random numbers from torch's default generator: the file's seed would not repeat another runtime's."""

from __future__ import annotations

import torch
from torch import Tensor

from onnxprune.finetune.dtypes import torch_dtype
from onnxprune.finetune.registry import op

FLOAT = 1


@op(foldable=False)
def RandomNormal(
    *, shape: tuple[int, ...], dtype: int = FLOAT, mean: float = 0.0, scale: float = 1.0, seed: float = 0.0
) -> Tensor:
    return torch.randn(shape, dtype=torch_dtype(dtype)) * scale + mean


@op(foldable=False)
def RandomUniform(
    *, shape: tuple[int, ...], dtype: int = FLOAT, high: float = 1.0, low: float = 0.0, seed: float = 0.0
) -> Tensor:
    return torch.rand(shape, dtype=torch_dtype(dtype)) * (high - low) + low


@op(foldable=False)
def RandomNormalLike(
    x: Tensor, *, dtype: int | None = None, mean: float = 0.0, scale: float = 1.0, seed: float = 0.0
) -> Tensor:
    kind = x.dtype if dtype is None else torch_dtype(dtype)
    return torch.randn(x.shape, dtype=kind, device=x.device) * scale + mean


@op(foldable=False)
def RandomUniformLike(
    x: Tensor, *, dtype: int | None = None, high: float = 1.0, low: float = 0.0, seed: float = 0.0
) -> Tensor:
    kind = x.dtype if dtype is None else torch_dtype(dtype)
    return torch.rand(x.shape, dtype=kind, device=x.device) * (high - low) + low
