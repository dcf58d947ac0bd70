"""Turn an activation into the rows that a layer's matrix multiplies: ``output_row = W @ row``."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from onnxprune.layers import Layer, Window
from onnxprune.layers.layer import RECURRENT

Floats = NDArray[np.float32]


def input_rows(layer: Layer, x: NDArray[np.generic], positions: NDArray[np.int64] | None = None) -> Floats:
    """Return the rows of ``x`` as (groups, rows, in_features) float32.

    Args:
        layer: whose input ``x`` is.
        x: activation as the graph computes it; of recurrent nodes
            :func:`onnxprune.calibration.recurrent.activation`.
        positions: indices into the rows to return, sorted; None for all.
    """
    if layer.kind == "conv":
        return _conv_rows(layer, x, positions)
    if layer.kind == "conv_transpose":
        return _channel_rows(x, layer.groups, positions)
    if layer.kind == "rnn_recurrence":
        rows = x.reshape(layer.groups, -1, x.shape[-1])
        return np.ascontiguousarray(rows if positions is None else rows[:, positions], dtype=np.float32)
    if x.ndim == 1:  # a vector is one row, on either side of a MatMul
        x = x[None]
    elif layer.transposed_input:
        x = np.swapaxes(x, -1, -2)
    return _matrix_rows(layer, x, positions)


def output_rows(layer: Layer, y: NDArray[np.generic], positions: NDArray[np.int64] | None = None) -> Floats:
    """Return an output as (groups, rows, out_features) float32, rows in the order of :func:`input_rows`."""
    if layer.kind in ("conv", "conv_transpose"):
        return _channel_rows(y, layer.groups, positions)
    if layer.kind == "matmul" and y.ndim < len(layer.view.stored):  # the input was a vector
        y = y[..., None, :]
    elif layer.kind == "matmul" and layer.transposed_input:
        y = np.swapaxes(y, -1, -2)
    return _matrix_rows(layer, y, positions)


def row_count(layer: Layer, x: NDArray[np.generic]) -> int:
    """Return how many rows :func:`input_rows` finds in ``x``."""
    if layer.kind == "conv":
        assert layer.window is not None
        return int(x.shape[0] * np.prod(_output_size(layer.window, x.shape[2:])))
    if layer.kind == "conv_transpose":
        return int(x.shape[0] * np.prod(x.shape[2:]))
    if layer.groups == 1 or layer.kind == "rnn_recurrence":
        return x.size // (layer.groups * layer.view.matrix[2])
    batch = int(np.prod(np.broadcast_shapes(x.shape[:-2], layer.view.stored[:-2])))
    rows = 1 if x.ndim == 1 else x.shape[-1 if layer.transposed_input else -2]
    return batch // layer.groups * rows


def output_shape(layer: Layer, x: NDArray[np.generic]) -> tuple[int, ...] | None:
    """Return the shape of the layer's output for input ``x``; None where rows are not output positions."""
    groups, outputs, _ = layer.view.matrix
    if layer.kind in RECURRENT:
        return None
    if layer.kind == "conv":
        assert layer.window is not None
        return (x.shape[0], groups * outputs, *_output_size(layer.window, x.shape[2:]))
    if layer.kind == "conv_transpose":
        return None
    if x.ndim == 1:
        return (*layer.view.stored[:-2], outputs)
    rows = x.shape[-1 if layer.transposed_input else -2]
    lead = np.broadcast_shapes(x.shape[:-2], layer.view.stored[:-2])
    swapped = layer.transposed_input and layer.kind == "matmul"
    return (*lead, outputs, rows) if swapped else (*lead, rows, outputs)


def _matrix_rows(layer: Layer, x: NDArray[np.generic], positions: NDArray[np.int64] | None) -> Floats:
    """(..., rows, features) -> (groups, rows of all matrices that meet the group's weight, features)."""
    if layer.groups == 1:
        flat = x.reshape(1, -1, x.shape[-1])
    else:
        batch = layer.view.stored[:-2]
        lead = np.broadcast_shapes(x.shape[:-2], batch)
        group = np.broadcast_to(np.arange(layer.groups).reshape(batch), lead).ravel()
        full = np.broadcast_to(x, lead + x.shape[-2:]).reshape(len(group), *x.shape[-2:])
        flat = full[np.argsort(group, kind="stable")].reshape(layer.groups, -1, x.shape[-1])
    if positions is not None:
        flat = flat[:, positions]
    return np.ascontiguousarray(flat, dtype=np.float32)


def _channel_rows(x: NDArray[np.generic], groups: int, positions: NDArray[np.int64] | None) -> Floats:
    """(N, C, *spatial) -> (groups, N * spatial, C / groups); only the wanted positions are copied."""
    flat = x.reshape(x.shape[0], x.shape[1], -1)
    if positions is None:
        rows = flat.swapaxes(1, 2).reshape(-1, x.shape[1])
    else:
        image, place = np.divmod(positions, flat.shape[2])
        rows = flat[image, :, place]
    return _split_groups(rows, groups)


def _split_groups(rows: NDArray[np.generic], groups: int) -> Floats:
    """(rows, features of all groups) -> (groups, rows, features)."""
    split = rows.reshape(rows.shape[0], groups, -1).transpose(1, 0, 2)
    return np.ascontiguousarray(split, dtype=np.float32)


def padding(window: Window, size: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return (begin, end) padding per spatial axis for an input of spatial ``size``."""
    rank = len(window.kernel)
    if window.auto_pad in ("NOTSET", ""):
        return [(window.pads[axis], window.pads[axis + rank]) for axis in range(rank)]
    if window.auto_pad == "VALID":
        return [(0, 0)] * rank
    pads = []
    for axis in range(rank):
        reach = (window.kernel[axis] - 1) * window.dilations[axis] + 1
        count = -(-size[axis] // window.strides[axis])
        total = max(0, (count - 1) * window.strides[axis] + reach - size[axis])
        small, large = total // 2, total - total // 2
        pads.append((small, large) if window.auto_pad == "SAME_UPPER" else (large, small))
    return pads


def _output_size(window: Window, size: tuple[int, ...]) -> list[int]:
    pads = padding(window, size)
    return [
        (size[i] + sum(pads[i]) - (window.kernel[i] - 1) * window.dilations[i] - 1) // window.strides[i] + 1
        for i in range(len(size))
    ]


def _conv_rows(layer: Layer, x: NDArray[np.generic], positions: NDArray[np.int64] | None) -> Floats:
    """im2col, only at the wanted output positions."""
    window = layer.window
    assert window is not None
    rank = len(window.kernel)
    pads = padding(window, x.shape[2:])
    steps = tuple(slice(None, None, s) for s in window.strides)
    if all(k == 1 for k in window.kernel) and not any(begin or end for begin, end in pads):
        return _channel_rows(x[(slice(None), slice(None), *steps)], layer.groups, positions)
    if any(begin or end for begin, end in pads):
        x = np.pad(x, [(0, 0), (0, 0), *pads])
    reach = tuple((k - 1) * d + 1 for k, d in zip(window.kernel, window.dilations, strict=True))
    views = sliding_window_view(x, reach, axis=tuple(range(2, 2 + rank)))
    taps = tuple(slice(None, None, d) for d in window.dilations)
    views = views[(slice(None), slice(None), *steps, *taps)]  # (N, C, *out, *kernel)
    views = np.moveaxis(views, 1, 1 + rank)  # (N, *out, C, *kernel)
    lead = views.shape[: 1 + rank]
    if positions is None:
        rows = views.reshape(int(np.prod(lead)), -1)
    else:
        rows = views[np.unravel_index(positions, lead)].reshape(len(positions), -1)
    return _split_groups(rows, layer.groups)
