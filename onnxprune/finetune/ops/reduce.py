"""Reductions, searches and running sums."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from onnxprune.finetune.ops.common import all_at, at, ints, wide
from onnxprune.finetune.registry import op

Reduction = Callable[[Tensor, list[int], bool], Tensor]


def _sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.sum(axes, keepdim=keep, dtype=x.dtype)


def _mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.mean(axes, keepdim=keep) if x.is_floating_point() else _real(x, axes, keep, torch.mean)


def _real(x: Tensor, axes: list[int], keep: bool, function: Callable[..., Tensor]) -> Tensor:
    return function(x.double(), axes, keepdim=keep).to(x.dtype)


def _limits(dtype: torch.dtype) -> tuple[float, float]:
    if dtype.is_floating_point:
        return -math.inf, math.inf
    return (0, 1) if dtype == torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)


def _max(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if x.numel() == 0:
        return _sum(x, axes, keep).fill_(_limits(x.dtype)[0])
    return x.amax(axes, keepdim=keep)


def _min(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if x.numel() == 0:
        return _sum(x, axes, keep).fill_(_limits(x.dtype)[1])
    return x.amin(axes, keepdim=keep)


def _prod(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keep, dtype=x.dtype)
    return x


def _l1(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return _sum(x.abs(), axes, keep)


def _l2(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    real = x if x.is_floating_point() else x.double()
    norm: Tensor = torch.linalg.vector_norm(real, 2, axes, keepdim=keep)
    return norm.to(x.dtype)


def _sum_square(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return _sum(x * x, axes, keep)


def _log_sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return _sum(x, axes, keep).log().to(x.dtype)


def _log_sum_exp(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.logsumexp(axes, keepdim=keep) if x.is_floating_point() else _real(x, axes, keep, torch.logsumexp)


def _register(name: str, reduction: Reduction, since: int) -> None:
    """Axes are an attribute before opset ``since``, an input from then on."""

    def old(x: Tensor, *, axes: tuple[int, ...] = (), keepdims: int = 1) -> Tensor:
        return reduction(x, all_at(axes, x.ndim) or list(range(x.ndim)), bool(keepdims))

    def new(
        x: Tensor, axes: Tensor | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> Tensor:
        chosen = all_at(ints(axes) or (), x.ndim)
        if not chosen:
            if noop_with_empty_axes:
                return reduction(x.unsqueeze(0), [0], False)  # what is done to each element remains
            chosen = list(range(x.ndim))
        return reduction(x, chosen, bool(keepdims)) if chosen else reduction(x.unsqueeze(0), [0], False)

    op(1, name=name)(wide(old))
    op(since, name=name, host=(1,))(wide(new))


for _name, _reduction in {
    "ReduceMean": _mean, "ReduceMax": _max, "ReduceMin": _min, "ReduceProd": _prod, "ReduceL1": _l1,
    "ReduceL2": _l2, "ReduceSumSquare": _sum_square, "ReduceLogSum": _log_sum,
    "ReduceLogSumExp": _log_sum_exp,
}.items():  # fmt: skip
    _register(_name, _reduction, 18)
_register("ReduceSum", _sum, 13)


@op()
@wide
def ArgMax(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    return _arg(x, axis, keepdims, select_last_index, torch.argmax)


@op()
@wide
def ArgMin(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    return _arg(x, axis, keepdims, select_last_index, torch.argmin)


def _arg(x: Tensor, axis: int, keepdims: int, last: int, function: Callable[..., Tensor]) -> Tensor:
    if not last:
        return function(x, axis, keepdim=bool(keepdims))
    return x.shape[axis] - 1 - function(x.flip(axis), axis, keepdim=bool(keepdims))


@op(1, name="TopK")
def TopK_1(x: Tensor, *, k: int, axis: int = -1) -> tuple[Tensor, Tensor]:
    return _top(x, k, axis, True)


@op(10, host=(1,))
@wide
def TopK(x: Tensor, k: Tensor, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> tuple[Tensor, Tensor]:
    return _top(x, int(k.item()), axis, bool(largest))


def _top(x: Tensor, k: int, axis: int, largest: bool) -> tuple[Tensor, Tensor]:
    # the lower index wins a tie, which torch.topk does not promise
    values, indices = torch.sort(x, dim=axis, descending=largest, stable=True)
    return values.narrow(axis, 0, k), indices.narrow(axis, 0, k)


@op(11, host=(1,))
@wide
def CumSum(x: Tensor, axis: Tensor, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    return _running(x, int(axis.item()), exclusive, reverse, 0, torch.cumsum)


@op(26, host=(1,))
@wide
def CumProd(x: Tensor, axis: Tensor, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    return _running(x, int(axis.item()), exclusive, reverse, 1, torch.cumprod)


def _running(
    x: Tensor, axis: int, exclusive: int, reverse: int, start: int, function: Callable[..., Tensor]
) -> Tensor:
    axis = at(axis, x.ndim)
    x = x.flip(axis) if reverse else x
    if exclusive:
        first = torch.full_like(x.narrow(axis, 0, min(1, x.shape[axis])), start)
        x = torch.cat([first, x.narrow(axis, 0, max(x.shape[axis] - 1, 0))], axis)
    y = function(x, axis, dtype=x.dtype)
    return y.flip(axis) if reverse else y
