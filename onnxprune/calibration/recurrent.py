"""What the weights of LSTM, GRU and RNN multiply at each step of each sequence.

W multiplies the inputs. R multiplies the state of the step before: for a direction that goes backwards in
time the one of the next place. Steps behind the end of a sequence (``sequence_lens``) are no rows of either.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.streams import DENSE, Streams
from onnxprune.layers import Layer, Recurrence
from onnxprune.layers.layer import RECURRENT

Floats = NDArray[np.float32]
Array = NDArray[np.generic]


def activation(streams: Streams, layer: Layer, site: int, number: int, stream: int) -> Array:
    """Return what a layer's rows are taken from, in one stream (DENSE or PRUNED) and batch.

    Returns:
        Of a recurrent node's W (batch, steps, in_features), of its R (groups, batch, steps, hidden); of any
        other layer its input as it is.
    """
    place = layer.sites[site]
    value = streams.value(place.input, number, stream)
    if place.recurrence is None:
        return value
    if layer.kind == "rnn_input":
        return value if place.recurrence.batch_first else value.swapaxes(0, 1)
    found = place.recurrence
    initial = streams.value(found.initial, number, stream) if found.initial else None
    states = previous_states(value, found, initial, _lengths(streams, found, number))
    if found.reset is None:
        return states
    model = streams.models[stream if stream < len(streams.models) else DENSE]
    weights = [model.array(name).astype(np.float32) for name in found.reset.weights]
    return reset_states(states, streams.value(found.x, number, stream), found, weights)


def differs(streams: Streams, layer: Layer, site: int) -> bool:
    """Return whether a layer's rows are others in the pruned model.

    The states of a recurrent node whose R reads some units no more, but is not re-fitted yet, drift away
    from what it will give then. So its rows are those of the dense model.
    """
    if layer.kind == "rnn_recurrence" and streams.changed(layer.name):
        return False
    return any(map(streams.differs, layer.sites[site].reads))


def token_mask(
    streams: Streams, layer: Layer, site: int, number: int, mask: NDArray[np.bool_] | None
) -> NDArray[np.bool_] | None:
    """Return which tokens of a batch are real (batch, steps): by the model's mask and by sequence_lens."""
    found = layer.sites[site].recurrence
    lengths = None if found is None else _lengths(streams, found, number)
    if found is None or lengths is None:
        return mask
    # X is (steps, batch, features), the states (steps, directions, batch, hidden); or the batch comes first
    shape = streams.value(layer.sites[site].input, number, DENSE).shape
    steps = shape[1 if found.batch_first else 0]
    real = np.arange(steps) < lengths[:, None]
    return real & mask if mask is not None and mask.shape == real.shape else real


def _lengths(streams: Streams, found: Recurrence, number: int) -> NDArray[np.int64] | None:
    if not found.lengths:
        return None
    return streams.value(found.lengths, number, DENSE).astype(np.int64)


def tokens_of(layer: Layer, x: Array) -> Array | None:
    """Return the part of :func:`activation` whose first axes are tokens; None where rows are no tokens."""
    if layer.kind in RECURRENT:
        return x[0] if layer.kind == "rnn_recurrence" else x
    plain = layer.window is None and not layer.transposed_input and layer.groups == 1
    return x if plain else None


def previous_states(
    states: Array, found: Recurrence, initial: Array | None, lengths: NDArray[np.int64] | None
) -> Floats:
    """Return the state before each step: (directions, batch, steps, hidden).

    Args:
        states: the node's Y, (steps, directions, batch, hidden), or with ``found.batch_first`` (batch, steps,
            directions, hidden).
        found: how the node steps.
        initial: its initial_h, (directions, batch, hidden), the batch first likewise; None: zeros.
        lengths: (batch,) real steps; None: all. What stands behind them has no meaning.
    """
    Y = states.transpose(2, 0, 1, 3) if found.batch_first else states.transpose(1, 2, 0, 3)
    directions, batch, steps, hidden = Y.shape
    first = np.zeros((directions, batch, hidden), np.float32)
    if initial is not None:
        first[:] = initial.swapaxes(0, 1) if found.batch_first else initial
    before = np.zeros(Y.shape, np.float32)
    if not steps:
        return before
    ends = np.full(batch, steps) if lengths is None else np.clip(lengths, 1, steps)
    for d, backwards in enumerate(found.reverse):
        if backwards:
            before[d, :, :-1] = Y[d, :, 1:]
            before[d, np.arange(batch), ends - 1] = first[d]
        else:
            before[d, :, 1:] = Y[d, :, :-1]
            before[d, :, 0] = first[d]
    return before


def reset_states(states: Floats, x: Array, found: Recurrence, weights: Sequence[Floats]) -> Floats:
    """Return what the gates of a GRU multiply that resets the state first.

    Those of each direction come in the order of the file, z, r, h; the candidate gate h sees ``r * state``.
    So the shape is (directions * 3, batch, steps, hidden).

    Args:
        states: see :func:`previous_states`.
        x: the node's X.
        found: how the node steps.
        weights: W (directions, 3 * hidden, in_features), R (directions, 3 * hidden, hidden) and perhaps
            B (directions, 6 * hidden).
    """
    assert found.reset is not None
    inputs = (x if found.batch_first else x.swapaxes(0, 1)).astype(np.float32)
    hidden = states.shape[-1]
    r = slice(hidden, 2 * hidden)
    gates = []
    for d, function in enumerate(found.reset.functions):
        reset = inputs @ weights[0][d, r].T + states[d] @ weights[1][d, r].T
        if len(weights) > 2:
            reset += weights[2][d, r] + weights[2][d, 3 * hidden :][r]
        if found.reset.clip is not None:
            reset = np.clip(reset, -found.reset.clip, found.reset.clip)
        gates += [states[d], states[d], _FUNCTIONS[function](reset) * states[d]]
    return np.stack(gates)


_FUNCTIONS = {
    "sigmoid": lambda x: 0.5 * (1 + np.tanh(0.5 * x)),  # does not overflow
    "hardsigmoid": lambda x: np.clip(0.2 * x + 0.5, 0, 1),
}
