from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from onnxprune.kernels.decision import Decision, Selection, by_weight, refused
from onnxprune.model import Model

FAST = Decision("w", "SparseGap4MatMul", 3.0, "measured alone")
FASTER = Decision("w", "SparseGap4MatMulRelu", 4.0, "measured alone")
SLOW = Decision("w", gain=0.9, reason="a kernel is no faster")
SLOWER = Decision("w", gain=0.5, reason="the library has no kernel for it")


@pytest.fixture
def three_readers(build_model: Callable[..., onnx.ModelProto]) -> Model:
    text = "g (float[N, 4] x) => (float[N, 4] y) { a = MatMul(x, w) b = MatMul(a, w) y = MatMul(b, w) }"
    return Model(build_model(text, {"w": np.ones((4, 4), np.float32)}))


@pytest.fixture
def one_reader(build_model: Callable[..., onnx.ModelProto]) -> Model:
    text = "g (float[N, 4] x) => (float[N, 4] y) { y = MatMul(x, w) }"
    return Model(build_model(text, {"w": np.ones((4, 4), np.float32)}))


def test_a_weight_with_one_reader_is_decided_as_its_node(one_reader: Model) -> None:
    assert by_weight([FAST], one_reader) == {"w": FAST}
    assert by_weight([SLOW], one_reader) == {"w": SLOW}


def test_the_slowest_op_and_the_dense_readers_count(three_readers: Model) -> None:
    found = by_weight([FASTER, FAST, SLOW], three_readers)["w"]
    assert (found.op, found.gain, found.dense_readers) == ("SparseGap4MatMulRelu SparseGap4MatMul", 3.0, 1)
    assert found.reason == (
        "measured alone, 2 of the 3 nodes that read the weight; for the others it is in memory once more, "
        "dense"
    )


def test_all_nodes_are_ops(three_readers: Model) -> None:
    found = by_weight([FAST, FAST, FAST], three_readers)["w"]
    assert (found.op, found.dense_readers) == ("SparseGap4MatMul", 0)
    assert found.reason == "measured alone, 3 of the 3 nodes that read the weight"


def test_the_node_that_came_nearest_speaks_for_a_dense_weight(three_readers: Model) -> None:
    assert by_weight([SLOWER, SLOW, SLOWER], three_readers)["w"] == SLOW


def test_refusals_and_the_number_of_switched_weights() -> None:
    decisions = refused({"t": "it is a table"})
    assert decisions == {"t": Decision("t", reason="it is a table")}
    assert Selection(decisions | {"w": FAST}).switched == 1
