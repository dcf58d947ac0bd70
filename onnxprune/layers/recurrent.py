"""The weights of LSTM, GRU and RNN: W multiplies the inputs, R the states of the step before.

What R multiplies is no value of the graph. It comes from the outputs of a second copy of the node
(:func:`states_node`), which runs for the statistics only: the node's own output must not be known before its
R is pruned.
"""

from __future__ import annotations

import numpy as np
import onnx

from onnxprune.attributes import attribute, number
from onnxprune.layers.bias import private_constant
from onnxprune.layers.layer import Bias, Layer, MatrixView, Recurrence, RefusalError, Reset, Site
from onnxprune.model import Model, label

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
_RESETS = ("sigmoid", "hardsigmoid")  # activations of a reset gate that are known
_W, _R, _B, _LENGTHS, _INITIAL = 1, 2, 3, 4, 5


def is_recurrent(node: onnx.NodeProto) -> bool:
    """Whether a node is an LSTM, GRU or RNN of the ONNX domain."""
    return node.op_type in GATES and node.domain in ("", "ai.onnx") and any(node.output)


def states_name(node: onnx.NodeProto) -> str:
    """Return what the states of a recurrent node are called: those after each step, in the shape of its Y."""
    return f"states of {next(output for output in node.output if output)}"


def states_node(node: onnx.NodeProto) -> onnx.NodeProto:
    """Return a copy of a recurrent node that gives its states, and nothing else."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.ClearField("name")
    del copy.output[:]
    copy.output.append(states_name(node))
    return copy


def recurrent(
    model: Model, name: str, dims: tuple[int, ...], node: onnx.NodeProto, position: int, slot: int
) -> Layer:
    """Build the layer of W or R.

    Both directions read the same rows of X, so W is one matrix (directions * gates * hidden, in_features). R
    has a matrix (gates * hidden, hidden) for each direction, or for each gate of it where a GRU resets the
    state before the recurrence: its candidate gate then multiplies other rows than the others.

    Raises:
        RefusalError: when the weight is neither, or something about it is unusual.
    """
    if slot not in (_W, _R):
        what = "holds the biases" if slot == _B else f"is input {slot}"
        raise RefusalError(f"{what} of {node.op_type}, neither its W nor its R")
    gates, x = GATES[node.op_type], node.input[0]
    reverse = _DIRECTIONS.get(str(attribute(node, "direction", "forward")).lower(), ())
    _check_shape(node, dims, slot, len(reverse))
    if x in model.index.tensors:
        raise RefusalError("both operands are constants")
    directions, rows, features = dims
    recurrence = Recurrence(x, bool(number(node, "layout", 0)), _input(node, _LENGTHS))
    matrix, value = (1, directions * rows, features), x
    if slot == _R:
        reset = _reset(model, node, reverse)
        recurrence = Recurrence(
            x, recurrence.batch_first, recurrence.lengths, _input(node, _INITIAL), reverse, reset
        )
        each = gates if reset else 1
        matrix, value = (directions * each, rows // each, features), states_name(node)
    view = MatrixView(dims, matrix, (0, 1, 2), matrix)
    own = private_constant(model, _input(node, _B), 2 * directions * rows)
    bias = Bias(_input(node, _B), 1, 1.0, half=slot - _W) if own else None
    output = next(output for output in node.output if output)
    return Layer(
        name,
        "rnn_input" if slot == _W else "rnn_recurrence",
        view,
        np.dtype(onnx.helper.tensor_dtype_to_np_dtype(model.index.tensors[name].data_type)),
        (Site(position, value, output, recurrence=recurrence),),
        (label(node),),
        bias=bias,
    )


def _input(node: onnx.NodeProto, slot: int) -> str:
    return str(node.input[slot]) if slot < len(node.input) else ""


def _check_shape(node: onnx.NodeProto, dims: tuple[int, ...], slot: int, directions: int) -> None:
    gates = GATES[node.op_type]
    fits = len(dims) == 3 and dims[0] == directions and dims[1] % gates == 0
    if not fits or (slot == _R and dims[1] != gates * dims[2]):
        features = "in_features" if slot == _W else "hidden"
        raise RefusalError(
            f"has shape {list(dims)}, {label(node)} wants [{directions}, {gates} * hidden, {features}]"
        )


def _reset(model: Model, node: onnx.NodeProto, reverse: tuple[bool, ...]) -> Reset | None:
    """Return the gate that the state goes through before R's candidate rows; None where there is none."""
    if node.op_type != "GRU" or number(node, "linear_before_reset", 0):
        return None
    weights = tuple(filter(None, (_input(node, slot) for slot in (_W, _R, _B))))
    if any(weight not in model.index.tensors for weight in weights):
        raise RefusalError(f"the reset gate of {label(node)} has weights or biases that are no constants")
    given = attribute(node, "activations")
    words = [str(w.decode() if isinstance(w, bytes) else w) for w in given] if isinstance(given, list) else []
    names = [w.lower() for w in words][::2] or ["sigmoid"] * len(reverse)
    own = {"activation_alpha", "activation_beta"} & {item.name for item in node.attribute}
    for word in names:
        if word not in _RESETS or (own and word == "hardsigmoid"):
            parameters = f" with {' and '.join(sorted(own))}" if own else ""
            raise RefusalError(
                f"the reset gate of {label(node)} has activation {word!r}{parameters}, "
                f"wanted one of {', '.join(_RESETS)}"
            )
    clip = number(node, "clip", 0.0) or None
    return Reset(weights, tuple(names), clip)
