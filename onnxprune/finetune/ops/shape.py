"""Operators that move elements and change shapes."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from onnxprune.finetune.dtypes import torch_dtype
from onnxprune.finetune.ops.common import all_at, at, ints
from onnxprune.finetune.registry import Unsupported, op

Ints = tuple[int, ...]


@op()
def Identity(x: Tensor) -> Tensor:
    return x


@op(1, on_host=True, name="Shape")
def Shape_1(x: Tensor) -> Tensor:
    return torch.from_numpy(np.array(x.shape, np.int64))  # twice as fast as torch.tensor


@op(15, on_host=True)
def Shape(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    return torch.from_numpy(np.array(x.shape[start:end], np.int64))


@op(on_host=True)
def Size(x: Tensor) -> Tensor:
    return torch.tensor(x.numel(), dtype=torch.int64)


@op(5, host=(1,))
def Reshape(x: Tensor, shape: Tensor, *, allowzero: int = 0) -> Tensor:
    sizes = shape.tolist()
    if not allowzero:
        sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
    if -1 in sizes and 0 in sizes:  # torch calls that ambiguous, the answer is 0
        rest = math.prod(size for size in sizes if size > 0)
        sizes = [(x.numel() // rest if rest else 0) if size == -1 else size for size in sizes]
    return x.reshape(sizes)


@op()
def Flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    axis += x.ndim if axis < 0 else 0
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@op(1, name="Squeeze")
def Squeeze_1(x: Tensor, *, axes: Ints = ()) -> Tensor:
    return _squeeze(x, axes)


@op(13, host=(1,))
def Squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
    return _squeeze(x, ints(axes) or ())


def _squeeze(x: Tensor, axes: Ints | list[int]) -> Tensor:
    if not axes:
        return x.squeeze()
    for axis in axes:
        if x.shape[axis] != 1:
            raise ValueError(f"axis {axis} of shape {list(x.shape)} is not 1")
    return x.squeeze(tuple(axes))


@op(1, name="Unsqueeze")
def Unsqueeze_1(x: Tensor, *, axes: Ints) -> Tensor:
    return _unsqueeze(x, list(axes))


@op(13, host=(1,))
def Unsqueeze(x: Tensor, axes: Tensor) -> Tensor:
    return _unsqueeze(x, ints(axes) or [])


def _unsqueeze(x: Tensor, axes: list[int]) -> Tensor:
    if len(axes) == 1:
        return x.unsqueeze(axes[0])
    for axis in sorted(all_at(axes, x.ndim + len(axes))):
        x = x.unsqueeze(axis)
    return x


@op()
def Transpose(x: Tensor, *, perm: Ints = ()) -> Tensor:
    return x.permute(perm or tuple(reversed(range(x.ndim))))


@op(4)
def Concat(*inputs: Tensor, axis: int) -> Tensor:
    return torch.cat(inputs, axis)


@op(2, name="Split")
def Split_2(
    x: Tensor, *, axis: int = 0, split: Ints = (), outputs: tuple[bool, ...] = ()
) -> tuple[Tensor, ...]:
    return _split(x, axis, split, len(outputs))


@op(13, host=(1,))
def Split(
    x: Tensor,
    split: Tensor | None = None,
    *,
    axis: int = 0,
    num_outputs: int = 0,
    outputs: tuple[bool, ...] = (),
) -> tuple[Tensor, ...]:
    return _split(x, axis, ints(split) or (), num_outputs or len(outputs))


def _split(x: Tensor, axis: int, sizes: Ints | list[int], parts: int) -> tuple[Tensor, ...]:
    if not sizes:
        each, length = -(-x.shape[axis] // parts), x.shape[axis]
        sizes = [max(min(each, length - i * each), 0) for i in range(parts)]
    return tuple(torch.split_with_sizes(x, list(sizes), axis))


@op(1, name="Slice")
def Slice_1(x: Tensor, *, starts: Ints, ends: Ints, axes: Ints = ()) -> Tensor:
    return _slice(x, list(starts), list(ends), list(axes), [])


@op(10, host=(1, 2, 3, 4))
def Slice(
    x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None
) -> Tensor:
    return _slice(x, starts.tolist(), ends.tolist(), ints(axes) or [], ints(steps) or [])


def _slice(x: Tensor, starts: list[int], ends: list[int], axes: list[int], steps: list[int]) -> Tensor:
    whole = slice(None)
    index = [whole] * x.ndim
    backward = []
    axes = axes or list(range(len(starts)))
    for start, end, axis, step in zip(starts, ends, axes, steps or [1] * len(starts), strict=True):
        if step > 0:
            # Counted from the front: torch warns of the lowest integer, which exporters write for the start
            index[axis] = slice(*slice(start, end, step).indices(x.shape[axis]))
            continue
        chosen = range(*slice(start, end, step).indices(x.shape[axis]))  # torch only steps forward
        index[axis] = slice(chosen[-1], chosen[0] + 1, -step) if chosen else slice(0, 0)
        backward.append(axis)
    y = x[tuple(index)]
    return y.flip(backward) if backward else y


@op(1, name="Tile", host=(1, 2))
def Tile_1(x: Tensor, tiles: Tensor, axis: Tensor) -> Tensor:
    counts = [1] * x.ndim
    counts[int(axis.item())] = int(tiles.item())
    return x.repeat(counts)


@op(6, host=(1,))
def Tile(x: Tensor, repeats: Tensor) -> Tensor:
    return x.repeat(repeats.tolist())


@op(8, host=(1,))
def Expand(x: Tensor, shape: Tensor) -> Tensor:
    wanted = shape.tolist()
    wanted = [1] * (x.ndim - len(wanted)) + wanted
    own = len(wanted) - x.ndim
    return x.expand([-1 if size == 1 and i >= own else size for i, size in enumerate(wanted)])


@op(1)
def DepthToSpace(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    if mode == "CRD":
        return F.pixel_shuffle(x, blocksize)
    n, c, h, w = x.shape
    b = blocksize
    y = x.reshape(n, b, b, c // (b * b), h, w).permute(0, 3, 4, 1, 5, 2)
    return y.reshape(n, c // (b * b), h * b, w * b)


@op(1)
def SpaceToDepth(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    if mode == "CRD":
        return F.pixel_unshuffle(x, blocksize)
    n, c, h, w = x.shape
    b = blocksize
    y = x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4)
    return y.reshape(n, c * b * b, h // b, w // b)


@op(2, name="Pad")
def Pad_2(x: Tensor, *, pads: Ints, mode: str = "constant", value: float = 0.0) -> Tensor:
    return _pad(x, list(pads), value, mode)


@op(11, host=(1, 2, 3))
def Pad(
    x: Tensor,
    pads: Tensor,
    constant_value: Tensor | None = None,
    axes: Tensor | None = None,
    *,
    mode: str = "constant",
) -> Tensor:
    given = pads.tolist()
    chosen = ints(axes)
    if chosen is not None:
        half = len(chosen)
        each = {at(a, x.ndim): (given[i], given[half + i]) for i, a in enumerate(chosen)}
        pairs = [each.get(i, (0, 0)) for i in range(x.ndim)]
        given = [head for head, _ in pairs] + [tail for _, tail in pairs]
    value = 0 if constant_value is None or constant_value.numel() == 0 else constant_value.item()
    return _pad(x, given, value, mode)


def _pad(x: Tensor, pads: list[int], value: float, mode: str) -> Tensor:
    rank = x.ndim
    if mode == "constant":
        flat = [p for i in reversed(range(rank)) for p in (pads[i], pads[rank + i])]
        while len(flat) > 2 and flat[-1] == 0 and flat[-2] == 0:
            flat = flat[:-2]
        return F.pad(x, flat, value=value)
    for axis in range(rank):
        head, tail = pads[axis], pads[rank + axis]
        if head or tail:
            x = x.index_select(axis, _border(x.shape[axis], head, tail, mode).to(x.device))
    return x


def _border(size: int, head: int, tail: int, mode: str) -> Tensor:
    """Positions that a padded dimension is read from."""
    position = torch.arange(-head, size + tail)
    if mode == "edge":
        return position.clamp(0, size - 1)
    if mode == "wrap":
        return position % size
    if mode == "reflect":
        period = max(2 * (size - 1), 1)
        position = position % period
        return torch.where(position >= size, period - position, position)
    raise Unsupported(f"mode {mode!r}")


@op(9, host=(0,))
def ConstantOfShape(shape: Tensor, *, value: Tensor | None = None) -> Tensor:
    sizes = shape.tolist()
    return torch.zeros(sizes) if value is None else value.reshape(()).expand(sizes)


@op(11, host=(0, 1, 2))
def Range(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    first, last, step = start.item(), limit.item(), delta.item()
    count = max(math.ceil((last - first) / step), 0)
    if start.is_floating_point():  # torch.arange rounds each element differently
        return start + delta * torch.arange(count).to(start.dtype)
    return torch.arange(first, last, step, dtype=start.dtype) if count else start.new_empty(0)


@op(9)
def EyeLike(x: Tensor, *, dtype: int | None = None, k: int = 0) -> Tensor:
    kind = x.dtype if dtype is None else torch_dtype(dtype)
    return torch.ones(x.shape, dtype=torch.int8, device=x.device).tril(k).triu(k).to(kind)


@op(14, host=(1,))
def Trilu(x: Tensor, k: Tensor | None = None, *, upper: int = 1) -> Tensor:
    diagonal = 0 if k is None else int(k.item())
    return x.triu(diagonal) if upper else x.tril(diagonal)


@op(18, host=(1,))
def CenterCropPad(x: Tensor, shape: Tensor, *, axes: Ints | None = None) -> Tensor:
    chosen = range(x.ndim) if axes is None else axes
    pads = [0] * (2 * x.ndim)
    for axis, size in zip(all_at(chosen, x.ndim), shape.tolist(), strict=True):
        have = x.shape[axis]
        if have > size:
            x = x.narrow(axis, (have - size) // 2, size)
        else:
            pads[axis] = (size - have) // 2
            pads[x.ndim + axis] = size - have - pads[axis]
    return _pad(x, pads, 0, "constant")


@op(10)
def ReverseSequence(x: Tensor, lengths: Tensor, *, batch_axis: int = 1, time_axis: int = 0) -> Tensor:
    order = torch.arange(x.shape[time_axis], device=x.device)
    ends = lengths.to(x.device).unsqueeze(1)
    source = torch.where(order < ends, ends - 1 - order, order)  # (batch, time)
    shape = [1] * x.ndim
    shape[batch_axis], shape[time_axis] = source.shape
    index = (source if batch_axis < time_axis else source.t()).reshape(shape)
    return x.gather(time_axis, index.expand(x.shape))
