"""Sequences are lists of tensors, never changed in place; an optional value is the value or None."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor

from onnxprune.finetune.ops.common import at, ints
from onnxprune.finetune.plan import Body
from onnxprune.finetune.registry import op

Value: TypeAlias = Any  # a tensor, a list of tensors, or None


@op(11)
def SequenceEmpty(*, dtype: int = 1) -> list[Tensor]:
    return []


@op(11)
def SequenceConstruct(*inputs: Tensor) -> list[Tensor]:
    return list(inputs)


@op(11, host=(1,))
def SequenceAt(sequence: list[Tensor], position: Tensor) -> Tensor:
    return sequence[_position(position, len(sequence), len(sequence) - 1)]


@op(11, host=(2,))
def SequenceInsert(sequence: list[Tensor], x: Tensor, position: Tensor | None = None) -> list[Tensor]:
    where = len(sequence) if position is None else _position(position, len(sequence), len(sequence))
    return [*sequence[:where], x, *sequence[where:]]


@op(11, host=(1,))
def SequenceErase(sequence: list[Tensor], position: Tensor | None = None) -> list[Tensor]:
    last = len(sequence) - 1
    where = last if position is None else _position(position, len(sequence), last)
    return [*sequence[:where], *sequence[where + 1 :]]


@op(11, on_host=True)
def SequenceLength(sequence: list[Tensor]) -> Tensor:
    return torch.tensor(len(sequence))


@op(11)
def ConcatFromSequence(sequence: list[Tensor], *, axis: int, new_axis: int = 0) -> Tensor:
    return torch.stack(sequence, axis) if new_axis else torch.cat(sequence, axis)


@op(11, host=(1,))
def SplitToSequence(
    x: Tensor, split: Tensor | None = None, *, axis: int = 0, keepdims: int = 1
) -> list[Tensor]:
    axis = at(axis, x.ndim)
    if split is None:
        return list(x.split(1, axis) if keepdims else x.unbind(axis))  # type: ignore[no-untyped-call]
    sizes = ints(split) or []
    if split.ndim and sum(sizes) != x.shape[axis]:
        raise ValueError(f"parts of sizes {sizes} of an axis of {x.shape[axis]}")
    return list(torch.split(x, sizes if split.ndim else sizes[0], axis))


@op(17)
def SequenceMap(sequence: list[Tensor], *additional: Value, body: Body) -> tuple[list[Tensor], ...]:
    rows = [
        body(item, *(more[index] if isinstance(more, list) else more for more in additional))
        for index, item in enumerate(sequence)
    ]
    return tuple([row[index] for row in rows] for index in range(body.outputs))


@op(15)
def Optional(x: Value = None, *, type: Any = None) -> Value:
    return x


@op(15, on_host=True)
def OptionalHasElement(x: Value = None) -> Tensor:
    return torch.tensor(x is not None)


@op(15)
def OptionalGetElement(x: Value) -> Value:
    if x is None:
        raise ValueError("the optional value is empty")
    return x


def _position(position: Tensor, length: int, last: int) -> int:
    where = int(position)
    if not -length <= where <= last:
        raise IndexError(f"position {where} in a sequence of {length}")
    return where + length if where < 0 else where
