"""Types, constants, and Dropout, which does nothing in inference."""

from __future__ import annotations

import torch
from torch import Tensor

from onnxprune.finetune.dtypes import FLOAT8, to_float8, torch_dtype
from onnxprune.finetune.registry import Unsupported, op


@op(6)
def Cast(x: Tensor, *, to: int, saturate: int = 1, round_mode: str = "up") -> Tensor:
    return _cast(x, torch_dtype(to), saturate)


@op(15)
def CastLike(x: Tensor, target: Tensor, *, saturate: int = 1, round_mode: str = "up") -> Tensor:
    return _cast(x, target.dtype, saturate)


def _cast(x: Tensor, dtype: torch.dtype, saturate: int) -> Tensor:
    return to_float8(x, dtype, bool(saturate)) if dtype in FLOAT8 and x.dtype not in FLOAT8 else x.to(dtype)


@op(26)
def BitCast(x: Tensor, *, to: int) -> Tensor:
    return x.view(torch_dtype(to))


@op()
def Constant(
    *,
    value: Tensor | None = None,
    sparse_value: Tensor | None = None,
    value_float: float | None = None,
    value_floats: tuple[float, ...] | None = None,
    value_int: int | None = None,
    value_ints: tuple[int, ...] | None = None,
) -> Tensor:
    if value is not None:
        return value
    if sparse_value is not None:
        return sparse_value
    real = value_float if value_float is not None else value_floats
    if real is not None:
        return torch.tensor(real, dtype=torch.float32)
    whole = value_int if value_int is not None else value_ints
    if whole is None:
        raise Unsupported("no value")
    return torch.tensor(whole, dtype=torch.int64)


@op(1, name="Dropout")
def Dropout_1(
    x: Tensor, *, ratio: float = 0.5, is_test: int = 1, outputs: tuple[bool, ...] = (True,)
) -> tuple[Tensor, Tensor] | Tensor:
    return (x, torch.ones_like(x, dtype=torch.bool)) if any(outputs[1:]) else x


@op(12, host=(1, 2))
def Dropout(
    x: Tensor,
    ratio: Tensor | None = None,
    training_mode: Tensor | None = None,
    *,
    seed: int = 0,
    outputs: tuple[bool, ...] = (True,),
) -> tuple[Tensor, Tensor] | Tensor:
    rate = 0.5 if ratio is None else ratio.item()
    if training_mode is not None and training_mode.item() and rate:
        raise Unsupported("it drops elements at random (training_mode is true)")
    return (x, torch.ones_like(x, dtype=torch.bool)) if any(outputs[1:]) else x
