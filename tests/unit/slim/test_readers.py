"""Who reads the units: the unit of each input feature, whatever way a weight is stored."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from onnxprune.layers import find_layers
from onnxprune.model import Model
from onnxprune.slim.readers import find_readers
from onnxprune.structure.find import find_structure

Build = Callable[..., onnx.ModelProto]
RNG = np.random.default_rng(0)


def weight(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def test_convolution_reads_a_channel_with_all_of_its_window(build_model: Build) -> None:
    text = """g (float[N, 3, 6, 6] x) => (float[N, 5, 2, 2] y) {
        a = Conv(x, w1) r = Relu(a) y = Conv(r, w2) }"""
    model = Model(build_model(text, {"w1": weight(4, 3, 3, 3), "w2": weight(5, 4, 3, 3)}))
    structure = find_structure(model, {"x": weight(2, 3, 6, 6)})
    (reader,) = find_readers(structure.groups, find_layers(model, min_size=1)[0])
    assert reader.layer.name == "w2"
    assert reader.unit.tolist() == [np.repeat(np.arange(4), 9).tolist()]


@pytest.mark.parametrize("transposed", [False, True])
def test_products_read_rows_or_columns(build_model: Build, transposed: bool) -> None:
    form = "<transB=1>" if transposed else ""
    text = f"""g (float[N, 3] x) => (float[N, 5] y) {{
        a = MatMul(x, w1) r = Relu(a) y = Gemm{form}(r, w2, b) }}"""
    w2 = weight(5, 6) if transposed else weight(6, 5)
    model = Model(build_model(text, {"w1": weight(3, 6), "w2": w2, "b": weight(5)}))
    structure = find_structure(model, {"x": weight(2, 3)})
    (reader,) = find_readers(structure.groups, find_layers(model, min_size=1)[0])
    assert reader.unit.tolist() == [list(range(6))]


def test_behind_a_concatenation_each_group_owns_its_part(build_model: Build) -> None:
    text = """g (float[N, 3] x) => (float[N, 5] y) {
        a = MatMul(x, w1) b = MatMul(x, w2) c = Concat<axis=1>(a, b) y = MatMul(c, w3) }"""
    weights = {"w1": weight(3, 4), "w2": weight(3, 2), "w3": weight(6, 5)}
    model = Model(build_model(text, weights))
    structure = find_structure(model, {"x": weight(2, 3)})
    readers = find_readers(structure.groups, find_layers(model, min_size=1)[0])
    assert [r.unit.tolist()[0] for r in readers] == [[0, 1, 2, 3, -1, -1], [-1] * 4 + [0, 1]]
