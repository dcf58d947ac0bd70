"""If, Loop and Scan. Their bodies are run step by step, so gradients pass through all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from onnxprune.finetune.ops.common import at
from onnxprune.finetune.plan import Body
from onnxprune.finetune.registry import Unsupported, op

Value: TypeAlias = Any  # a tensor, a list of tensors, or None
Ints: TypeAlias = Sequence[int]


@op(1, host=(0,))
def If(cond: Tensor, *, then_branch: Body, else_branch: Body) -> tuple[Value, ...]:
    return then_branch() if bool(cond) else else_branch()


@op(1, host=(0, 1))
def Loop(M: Tensor | None, cond: Tensor | None = None, *initial: Value, body: Body) -> tuple[Value, ...]:
    trips = None if M is None else int(M)
    states, rows = tuple(initial), []
    go = torch.ones((), dtype=torch.bool) if cond is None else cond
    trip = 0
    while (trips is None or trip < trips) and bool(go):
        go, *results = body(torch.tensor(trip), go, *states)
        states = tuple(results[: len(states)])
        rows.append(results[len(states) :])
        trip += 1
    return *states, *_stacked(rows, body, 1 + len(states))


@op(8, name="Scan", host=(0,))
def Scan_8(
    sequence_lens: Tensor | None, *inputs: Tensor, body: Body, num_scan_inputs: int, directions: Ints = ()
) -> tuple[Value, ...]:
    """Scan each sequence of a batch; outputs of shorter ones end in zeros."""
    count = len(inputs) - num_scan_inputs
    longest = inputs[count].shape[1]
    batch = inputs[count].shape[0]
    lens = [longest] * batch if sequence_lens is None else [int(n) for n in sequence_lens]
    results = []
    for index, length in enumerate(lens):
        scans = [_directed(x[index, :length].unbind(0), directions, i) for i, x in enumerate(inputs[count:])]
        states, rows = _scanned([x[index] for x in inputs[:count]], scans, body)
        padded = [_padded(x, longest) for x in _stacked(rows, body, count)]
        results.append([*states, *padded])
    return tuple(torch.stack(parts) for parts in zip(*results, strict=True))


@op(9)
def Scan(
    *inputs: Value,
    body: Body,
    num_scan_inputs: int,
    scan_input_axes: Ints = (),
    scan_input_directions: Ints = (),
    scan_output_axes: Ints = (),
    scan_output_directions: Ints = (),
) -> tuple[Value, ...]:
    count = len(inputs) - num_scan_inputs
    scans = []
    for index, x in enumerate(inputs[count:]):
        axis = at(scan_input_axes[index], x.ndim) if scan_input_axes else 0
        scans.append(_directed(x.unbind(axis), scan_input_directions, index))
    if len({len(scan) for scan in scans}) > 1:
        raise ValueError(f"scan inputs of different lengths {[len(scan) for scan in scans]}")
    states, rows = _scanned(inputs[:count], scans, body)
    return *states, *_stacked(rows, body, count, scan_output_axes, scan_output_directions)


def _scanned(
    states: Sequence[Value], scans: Sequence[Sequence[Tensor]], body: Body
) -> tuple[Sequence[Value], list[list[Value]]]:
    """Run ``body`` over the scans side by side; return the last states and the outputs of each step."""
    rows = []
    for inputs in zip(*scans, strict=True):
        results = list(body(*states, *inputs))
        states = results[: len(states)]
        rows.append(results[len(states) :])
    return states, rows


def _directed(items: Sequence[Tensor], directions: Ints, index: int) -> Sequence[Tensor]:
    return items[::-1] if directions and directions[index] else items


def _stacked(
    rows: Sequence[Sequence[Value]], body: Body, first: int, axes: Ints = (), directions: Ints = ()
) -> list[Value]:
    """Stack the outputs from ``first`` on, over all steps; without a step their shape is only declared."""
    if not rows:
        return [_empty(*declared) for declared in body.types[first:]]
    stacked = []
    for index, parts in enumerate(zip(*rows, strict=True)):
        axis = at(axes[index], parts[0].ndim + 1) if axes else 0
        stacked.append(torch.stack(list(_directed(parts, directions, index)), axis))
    return stacked


def _empty(dtype: torch.dtype | None, rank: int | None) -> Tensor:
    if dtype is None or rank is None:
        raise Unsupported("no step was run, and the body does not declare type and rank of its output")
    return torch.empty((0,) * (rank + 1), dtype=dtype)


def _padded(x: Tensor, length: int) -> Tensor:
    return torch.cat([x, x.new_zeros(length - x.shape[0], *x.shape[1:])]) if x.shape[0] < length else x
