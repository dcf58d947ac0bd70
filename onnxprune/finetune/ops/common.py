"""What several families of operators share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])
UNSIGNED = frozenset({torch.uint16, torch.uint32, torch.uint64})  # torch stores them and computes little
NARROW = frozenset({torch.float16, torch.bfloat16})


def wide(function: F) -> F:
    """Let ``function`` compute unsigned integers as int64.

    Wraps around like the unsigned type does. Only uint64 values above 2**63 compare and divide wrongly.
    """

    @functools.wraps(function)
    def run(first: Tensor, *rest: Any, **attributes: Any) -> Any:
        if first.dtype not in UNSIGNED:
            return function(first, *rest, **attributes)
        signed = [x.to(torch.int64) if isinstance(x, Tensor) and x.dtype == first.dtype else x for x in rest]
        result = function(first.to(torch.int64), *signed, **attributes)
        if isinstance(result, tuple):  # values first, then indices
            return result[0].to(first.dtype), *result[1:]
        return result.to(first.dtype) if result.dtype == torch.int64 else result

    return run  # type: ignore[return-value]


def ints(tensor: Tensor | None) -> list[int] | None:
    """Return a host tensor as Python integers."""
    return None if tensor is None else [int(item) for item in tensor.reshape(-1).tolist()]


def at(axis: int, rank: int) -> int:
    """Return a non-negative axis."""
    if not -rank <= axis < max(rank, 1):
        raise IndexError(f"axis {axis} of a tensor with {rank} dimensions")
    return axis + rank if axis < 0 else axis


def all_at(axes: Iterable[int], rank: int) -> list[int]:
    """Return non-negative axes."""
    return [at(axis, rank) for axis in axes]
