"""Gathering, scattering and selecting by index."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxprune.finetune.ops.common import UNSIGNED, at
from onnxprune.finetune.registry import Unsupported, op


def _wrapped(indices: Tensor, size: int) -> Tensor:
    """Indices may count from the end."""
    indices = indices.to(torch.int64)
    return torch.where(indices < 0, indices + size, indices)


@op()
def Gather(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    axis = at(axis, x.ndim)
    if indices.ndim == 0 and indices.is_cpu:  # nearly always one size out of a shape
        return x.select(axis, int(indices))
    chosen = _wrapped(indices, x.shape[axis])
    if axis == 0 and x.ndim == 2 and x.is_floating_point():
        return F.embedding(chosen, x)
    if chosen.ndim == 1:
        return x.index_select(axis, chosen)
    taken = x.index_select(axis, chosen.reshape(-1))
    return taken.reshape((*x.shape[:axis], *chosen.shape, *x.shape[axis + 1 :]))


@op(11)
def GatherElements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    if x.dtype in UNSIGNED:
        return GatherElements(x.to(torch.int64), indices, axis=axis).to(x.dtype)
    return x.gather(axis, _wrapped(indices, x.shape[axis]))


@op(11)
def GatherND(x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    return x[_nd_index(x, indices, batch_dims)]


def _nd_index(x: Tensor, indices: Tensor, batch_dims: int) -> tuple[Tensor, ...]:
    """One index tensor per leading dimension of ``x``."""
    depth = indices.shape[-1]
    index = [_wrapped(indices[..., i], x.shape[batch_dims + i]) for i in range(depth)]
    rank = indices.ndim - 1
    for i in range(batch_dims):
        shape = [1] * rank
        shape[i] = indices.shape[i]
        index.insert(i, torch.arange(indices.shape[i], device=x.device).view(shape))
    return tuple(index)


REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@op(9, name="Scatter")
@op(11)
def ScatterElements(
    x: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none"
) -> Tensor:
    if x.dtype in UNSIGNED:
        wide = ScatterElements(
            x.to(torch.int64), indices, updates.to(torch.int64), axis=axis, reduction=reduction
        )
        return wide.to(x.dtype)
    chosen, updates = _wrapped(indices, x.shape[axis]), updates.to(x.dtype)  # autocast may part the two
    if reduction == "none":
        return x.scatter(axis, chosen, updates)
    return x.scatter_reduce(axis, chosen, updates, _reduction(reduction))


def _reduction(name: str) -> str:
    if name not in REDUCTIONS:
        raise Unsupported(f"reduction {name!r}")
    return REDUCTIONS[name]


@op(11)
def ScatterND(x: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    depth = indices.shape[-1]
    if depth == 0:
        raise Unsupported("indices of no elements")
    updates = updates.to(x.dtype)
    if reduction == "none":
        return x.index_put(_nd_index(x, indices, 0), updates)
    if reduction == "add":
        return x.index_put(_nd_index(x, indices, 0), updates, accumulate=True)
    each = math.prod(x.shape[depth:])
    rows = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=x.device)
    for i in range(depth):
        rows = rows * x.shape[i] + _wrapped(indices[..., i], x.shape[i])
    index = rows.reshape(-1, 1).expand(-1, each)
    table = x.reshape(-1, each)
    return table.scatter_reduce(0, index, updates.reshape(-1, each), _reduction(reduction)).view(x.shape)


@op(24)
def TensorScatter(
    past: Tensor,
    update: Tensor,
    write_indices: Tensor | None = None,
    *,
    axis: int = -2,
    mode: str = "linear",
) -> Tensor:
    axis = at(axis, past.ndim)
    length = update.shape[axis]
    start = torch.zeros(past.shape[0], dtype=torch.int64) if write_indices is None else write_indices
    position = start.to(past.device).unsqueeze(1) + torch.arange(length, device=past.device)
    if mode == "circular":
        position = position % past.shape[axis]
    shape = [1] * past.ndim
    shape[0], shape[axis] = position.shape
    return past.scatter(axis, position.reshape(shape).expand(update.shape), update.to(past.dtype))


@op(9)
def NonZero(x: Tensor) -> Tensor:
    return (x != 0).nonzero().t() if x.ndim else (x != 0).reshape(1).nonzero().t()


@op(9)
def Compress(x: Tensor, condition: Tensor, *, axis: int | None = None) -> Tensor:
    chosen = condition.nonzero().squeeze(1)
    return x.reshape(-1)[chosen] if axis is None else x.index_select(axis, chosen)


@op(9, host=(1,))
def OneHot(indices: Tensor, depth: Tensor, values: Tensor, *, axis: int = -1) -> Tensor:
    count = int(depth.item())
    axis = at(axis, indices.ndim + 1)
    chosen = indices.to(torch.int64)
    inside = (chosen >= -count) & (chosen < count)  # out of range: no element is hot
    shape = [1] * (indices.ndim + 1)
    shape[axis] = count
    places = torch.arange(count, device=indices.device).view(shape)
    hot = (places == _wrapped(chosen, count).unsqueeze(axis)) & inside.unsqueeze(axis)
    return torch.where(hot, values[1], values[0])


@op(11)
def Unique(x: Tensor, *, axis: int | None = None, sorted: int = 1) -> tuple[Tensor, ...]:
    x, dim = (x.reshape(-1), 0) if axis is None else (x, at(axis, x.ndim))
    _, inverse, counts = torch.unique(x.detach(), return_inverse=True, return_counts=True, dim=dim)
    places = torch.arange(inverse.numel(), device=x.device)
    first = torch.full_like(counts, inverse.numel()).scatter_reduce(0, inverse, places, "amin")
    if not sorted:  # in the order of first appearance
        order = first.argsort()
        first, counts, inverse = first[order], counts[order], order.argsort()[inverse]
    return x.index_select(dim, first), first, inverse, counts
