"""W and R of recurrent nodes as layers: their matrices, their biases, and what is refused."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxprune.layers import Bias, Layer, Recurrence, Reset, Skip, find_layers
from onnxprune.layers.recurrent import GATES, is_recurrent, states_name, states_node
from onnxprune.model import Model

WIDTH, H = 6, 5


def network(
    op: str,
    direction: str = "forward",
    *,
    weights: dict[str, np.ndarray] | None = None,
    inputs: tuple[str, ...] = ("x", "W", "R", "B"),
    constants: bool = False,
    **attributes: object,
) -> Model:
    """One recurrent node; ``constants`` puts its weights into Constant nodes."""
    D, G = 1 + (direction == "bidirectional"), GATES[op]
    rng = np.random.default_rng(0)
    shapes = {"W": (D, G * H, WIDTH), "R": (D, G * H, H), "B": (D, 2 * G * H)}
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    arrays |= weights or {}
    node = helper.make_node(op, inputs, ["y"], name="cell", direction=direction, hidden_size=H, **attributes)
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items() if name in inputs]
    made = [helper.make_node("Constant", [], [t.name], value=t) for t in tensors] if constants else []
    values = [helper.make_tensor_value_info(n, 1, None) for n in inputs if n and n not in arrays]
    result = [helper.make_tensor_value_info("y", 1, None)]
    graph = helper.make_graph([*made, node], "g", values, result, [] if constants else tensors)
    return Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))


def found(model: Model) -> tuple[dict[str, Layer], dict[str, Skip]]:
    layers, skips = find_layers(model, min_size=1)
    return {layer.name: layer for layer in layers}, {skip.name: skip for skip in skips}


@pytest.mark.parametrize("constants", [False, True])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("op", GATES)
def test_both_weights_are_layers(op: str, direction: str, constants: bool) -> None:
    model = network(op, direction, constants=constants)
    layers, _ = found(model)
    D, G = 1 + (direction == "bidirectional"), GATES[op]
    W, R = layers["W"], layers["R"]
    assert (W.kind, R.kind) == ("rnn_input", "rnn_recurrence")
    assert W.view.matrix == (1, D * G * H, WIDTH)
    assert R.view.matrix == ((D * 3, H, H) if op == "GRU" else (D, G * H, H))
    for layer in (W, R):
        array = model.array(layer.name)
        matrix = layer.view.to_matrix(array)
        np.testing.assert_array_equal(matrix.ravel(), array.ravel())  # rows stay as they lie
        np.testing.assert_array_equal(layer.view.to_stored(matrix), array)
        assert layer.nodes == ("cell",) and layer.sites[0].output == "y"
    assert W.sites[0].reads == ("x",)
    assert R.sites[0].reads == (("states of y", "x") if op == "GRU" else ("states of y",))
    assert R.sites[0].recurrence is not None
    wanted = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}[direction]
    assert R.sites[0].recurrence.reverse == wanted
    assert (W.bias, R.bias) == (Bias("B", 1, 1.0, half=0), Bias("B", 1, 1.0, half=1))


def test_halves_of_the_bias_are_views() -> None:
    b = np.arange(12.0).reshape(2, 6)
    Bias("B", 1, 1.0, half=1).part(b)[...] = 0
    np.testing.assert_array_equal(b, [[0, 1, 2, 0, 0, 0], [6, 7, 8, 0, 0, 0]])
    assert Bias("B", 1, 1.0).part(b) is b


def test_lengths_initial_states_and_layout() -> None:
    inputs = ("x", "W", "R", "", "n", "h0", "c0")
    layers, _ = found(network("LSTM", inputs=inputs, layout=1))
    assert layers["W"].sites[0].recurrence == Recurrence("x", True, "n")
    assert layers["R"].sites[0].recurrence == Recurrence("x", True, "n", "h0", (False,))
    assert layers["R"].sites[0].reads == ("states of y", "n", "h0")
    assert layers["W"].bias is None and layers["R"].bias is None


def test_a_gru_that_resets_behind_the_recurrence_has_one_matrix_for_all_gates() -> None:
    layers, _ = found(network("GRU", linear_before_reset=1))
    assert layers["R"].view.matrix == (1, 3 * H, H)
    assert layers["R"].sites[0].recurrence == Recurrence("x", False, reverse=(False,))


def test_what_is_known_of_a_reset_gate() -> None:
    model = network("GRU", "bidirectional", activations=["Sigmoid", "Tanh", "HardSigmoid", "Tanh"], clip=2.0)
    recurrence = found(model)[0]["R"].sites[0].recurrence
    assert recurrence is not None
    assert recurrence.reset == Reset(("W", "R", "B"), ("sigmoid", "hardsigmoid"), 2.0)


@pytest.mark.parametrize(
    ("model", "name", "reason"),
    [
        (
            network("GRU", activations=["Tanh", "Tanh"]), "R",
            "the reset gate of cell has activation 'tanh', wanted one of sigmoid, hardsigmoid",
        ),
        (
            network("GRU", activations=["HardSigmoid", "Tanh"], activation_alpha=[0.5]), "R",
            "the reset gate of cell has activation 'hardsigmoid' with activation_alpha, wanted one of",
        ),
        (
            network("GRU", inputs=("x", "V", "R", "B")), "R",
            "the reset gate of cell has weights or biases that are no constants",
        ),
        (
            network("LSTM", weights={"W": np.zeros((2, 4 * H, WIDTH), np.float32)}), "W",
            "has shape [2, 20, 6], cell wants [1, 4 * hidden, in_features]",
        ),
        (
            network("LSTM", weights={"R": np.zeros((1, 4 * H, WIDTH), np.float32)}), "R",
            "has shape [1, 20, 6], cell wants [1, 4 * hidden, hidden]",
        ),
        (
            network("LSTM", "sideways"), "W", "cell wants [0, 4 * hidden, in_features]",
        ),
        (
            network("RNN", weights={"x": np.zeros((2, 3, WIDTH), np.float32)}), "W",
            "both operands are constants",
        ),
        (
            network("LSTM", "bidirectional"), "B", "holds the biases of LSTM, neither its W nor its R",
        ),
    ],
)  # fmt: skip
def test_refusals(model: Model, name: str, reason: str) -> None:
    layers, skips = found(model)
    assert name not in layers and reason in skips[name].reason


def test_a_weight_of_two_nodes_that_read_it_alike_is_one_layer() -> None:
    model = network("LSTM")
    again = model.graph.node.add()
    again.CopyFrom(model.graph.node[0])
    again.name, again.input[0], again.output[0] = "second", "y", "z"
    model = Model(model.proto)
    layers, _ = found(model)
    assert [site.input for site in layers["W"].sites] == ["x", "y"]
    assert [site.input for site in layers["R"].sites] == ["states of y", "states of z"]
    assert layers["W"].bias is None  # shifts of two sites


def test_states_nodes() -> None:
    node = helper.make_node("LSTM", ["x", "W", "R"], ["", "h"], name="cell", hidden_size=H)
    copy = states_node(node)
    assert is_recurrent(node) and is_recurrent(copy)
    assert (list(copy.input), list(copy.attribute)) == (list(node.input), list(node.attribute))
    assert list(copy.output) == [states_name(node)] == ["states of h"]
    assert list(node.output) == ["", "h"] and copy.name == ""  # names are unique
    other = onnx.NodeProto(op_type="LSTM", domain="elsewhere", output=["y"])
    assert not is_recurrent(other) and not is_recurrent(onnx.NodeProto(op_type="LSTM"))
