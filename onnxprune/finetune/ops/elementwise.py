"""Arithmetic, comparison and logic, element by element; all of them broadcast."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxprune.finetune.ops.common import wide
from onnxprune.finetune.registry import Unsupported, op


@op(7)
@wide
def Add(a: Tensor, b: Tensor) -> Tensor:
    return a + b


@op(7)
@wide
def Sub(a: Tensor, b: Tensor) -> Tensor:
    return a - b


@op(7)
@wide
def Mul(a: Tensor, b: Tensor) -> Tensor:
    return a * b


@op(7)
@wide
def Div(a: Tensor, b: Tensor) -> Tensor:
    if a.is_floating_point() or a.is_complex():
        return a / b
    return torch.div(a, b, rounding_mode="trunc")


@op(7, host=(1,))
def Pow(a: Tensor, b: Tensor) -> Tensor:
    # A Python number makes squares and roots cheap; hence the exponent is wanted on the CPU.
    if b.numel() == 1 and not b.requires_grad and b.ndim <= a.ndim and b.dtype.is_signed:
        if a.is_floating_point():
            return torch.pow(a, b.item())
        return _integer_power(a, b)
    return _integer_power(a, b.to(a.device))


@wide
def _integer_power(a: Tensor, b: Tensor) -> Tensor:
    if b.dtype in (torch.uint16, torch.uint32, torch.uint64):
        b = b.to(torch.int64)
    if a.is_floating_point() or b.is_floating_point():
        return torch.pow(a, b).to(a.dtype)
    return torch.pow(a.to(torch.int64), b).to(a.dtype)


@op(10)
@wide
def Mod(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


@op(8)
def Max(*inputs: Tensor) -> Tensor:
    return functools.reduce(_maximum, inputs)


@op(8)
def Min(*inputs: Tensor) -> Tensor:
    return functools.reduce(_minimum, inputs)


_maximum = wide(torch.maximum)
_minimum = wide(torch.minimum)


@op(8)
def Sum(*inputs: Tensor) -> Tensor:
    return functools.reduce(torch.add, inputs)


@op(8)
def Mean(*inputs: Tensor) -> Tensor:
    return functools.reduce(torch.add, inputs) / len(inputs)


@op(6)
def Neg(x: Tensor) -> Tensor:
    return -x


@op(6)
@wide
def Abs(x: Tensor) -> Tensor:
    return x.abs()


@op(9)
@wide
def Sign(x: Tensor) -> Tensor:
    return x.sign()


_UNARY: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
    "Sqrt": (6, torch.sqrt),
    "Exp": (6, torch.exp),
    "Log": (6, torch.log),
    "Ceil": (6, torch.ceil),
    "Floor": (6, torch.floor),
    "Round": (11, torch.round),
    "Reciprocal": (6, torch.reciprocal),
    "Sin": (7, torch.sin),
    "Cos": (7, torch.cos),
    "Tan": (7, torch.tan),
    "Asin": (7, torch.asin),
    "Acos": (7, torch.acos),
    "Atan": (7, torch.atan),
    "Sinh": (9, torch.sinh),
    "Cosh": (9, torch.cosh),
    "Asinh": (9, torch.asinh),
    "Acosh": (9, torch.acosh),
    "Atanh": (9, torch.atanh),
    "Erf": (9, torch.erf),
}


def _register(name: str, since: int, function: Callable[[Tensor], Tensor]) -> None:
    def unary(x: Tensor) -> Tensor:  # torch's own functions have no signature to look at
        return function(x)

    op(since, name=name)(unary)


for _name, (_since, _function) in _UNARY.items():
    _register(_name, _since, _function)


@op(9)
def IsNaN(x: Tensor) -> Tensor:
    return x.isnan()


@op(10)
def IsInf(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    infinite = x.isinf()
    if not detect_negative:
        infinite = infinite & (x > 0)
    if not detect_positive:
        infinite = infinite & (x < 0)
    return infinite


@op(6, name="Clip")
def Clip_6(x: Tensor, *, min: float = -3.4028234663852886e38, max: float = 3.4028234663852886e38) -> Tensor:
    return _clipped(x, min, max)


@op(11, host=(1, 2))
@wide
def Clip(x: Tensor, min: Tensor | None = None, max: Tensor | None = None) -> Tensor:
    low, high = (None if limit is None else limit.item() for limit in (min, max))
    return x if low is None and high is None else _clipped(x, low, high)


def _clipped(x: Tensor, low: float | None, high: float | None) -> Tensor:
    """``x.clamp``, with the gradient of hardtanh where both limits are given: one pass, not six."""
    if x.is_floating_point() and low is not None and high is not None and low < high:
        clipped: Tensor = F.hardtanh(x, low, high)
        return clipped
    return x.clamp(low, high)


@op(7)
@wide
def Equal(a: Tensor, b: Tensor) -> Tensor:
    return a == b


@op(7)
@wide
def Greater(a: Tensor, b: Tensor) -> Tensor:
    return a > b


@op(7)
@wide
def Less(a: Tensor, b: Tensor) -> Tensor:
    return a < b


@op(12)
@wide
def GreaterOrEqual(a: Tensor, b: Tensor) -> Tensor:
    return a >= b


@op(12)
@wide
def LessOrEqual(a: Tensor, b: Tensor) -> Tensor:
    return a <= b


@op(7)
def And(a: Tensor, b: Tensor) -> Tensor:
    return a & b


@op(7)
def Or(a: Tensor, b: Tensor) -> Tensor:
    return a | b


@op(7)
def Xor(a: Tensor, b: Tensor) -> Tensor:
    return a ^ b


@op()
def Not(x: Tensor) -> Tensor:
    return ~x


@op(9)
def Where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(condition, a, b)


@op(18)
@wide
def BitwiseAnd(a: Tensor, b: Tensor) -> Tensor:
    return a & b


@op(18)
@wide
def BitwiseOr(a: Tensor, b: Tensor) -> Tensor:
    return a | b


@op(18)
@wide
def BitwiseXor(a: Tensor, b: Tensor) -> Tensor:
    return a ^ b


@op(18)
@wide
def BitwiseNot(x: Tensor) -> Tensor:
    return ~x


@op(11)
@wide
def BitShift(a: Tensor, b: Tensor, *, direction: str) -> Tensor:
    if direction not in ("LEFT", "RIGHT"):
        raise Unsupported(f"direction {direction!r}, wanted LEFT or RIGHT")
    return a << b if direction == "LEFT" else a >> b
