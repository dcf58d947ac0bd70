from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.layers import Layer, find_layers
from onnxprune.model import Model
from onnxprune.solvers.columns import column_order
from onnxprune.solvers.patterns import Pattern


def layer(op: str, shape: tuple[int, ...], group: int = 1) -> Layer:
    attributes = {"group": group} if op == "Conv" else {}
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "w"], ["y"], **attributes)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ones(shape, np.float32), "w")],
    )
    return find_layers(Model(helper.make_model(graph)), min_size=1)[0][0]


@pytest.mark.parametrize("text", ["2:4", "block:4x2"])
@pytest.mark.parametrize(("shape", "group"), [((6, 4, 3, 3), 1), ((6, 4, 3), 1), ((6, 4, 2, 2, 2), 2)])
def test_channels_at_one_kernel_position_become_neighbours(
    text: str, shape: tuple[int, ...], group: int
) -> None:
    found = layer("Conv", shape, group)
    order = column_order(found, Pattern.parse(text))
    assert order is not None
    taps = int(np.prod(shape[2:]))
    assert sorted(order) == list(range(4 * taps))
    names = [(column // taps, column % taps) for column in range(4 * taps)]  # (channel, kernel position)
    for start in range(0, len(order), 4):
        neighbours = [names[column] for column in order[start : start + 4]]
        assert [channel for channel, _ in neighbours] == [0, 1, 2, 3]
        assert len({tap for _, tap in neighbours}) == 1


@pytest.mark.parametrize(
    ("op", "shape", "group", "text"),
    [
        ("Conv", (6, 4, 3, 3), 1, "unstructured"),
        ("Conv", (6, 4, 3, 3), 1, "block:4x1"),
        ("Conv", (6, 4, 1, 1), 1, "2:4"),
        ("Conv", (6, 1, 3, 3), 6, "2:4"),  # one channel only
        ("MatMul", (8, 6), 1, "2:4"),
    ],
)
def test_the_stored_order_is_right_already(op: str, shape: tuple[int, ...], group: int, text: str) -> None:
    assert column_order(layer(op, shape, group), Pattern.parse(text)) is None
