"""Who reads the units: the unit of each input feature, whatever way a weight is stored."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from onnxprune.calibration.data import from_iterable
from onnxprune.layers import find_layers
from onnxprune.model import Model
from onnxprune.progress import NullProgress
from onnxprune.recipe import Recipe
from onnxprune.slim.readers import find_readers, judged
from onnxprune.slim.ready import prepare
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


EINSUM = 'b = Einsum<equation = "bi,ij->bj">(r, w)'


@pytest.mark.parametrize("other", [EINSUM, "t = Transpose(wt) b = MatMul(r, t)"])
def test_what_is_no_layer_reads_as_well(build_model: Build, other: str) -> None:
    text = f"""g (float[N, 16] x) => (float[N, 8] y) {{
        h = MatMul(x, w0) r = Relu(h) a = MatMul(r, w1) {other} y = Add(a, b) }}"""
    first, second = weight(32, 8) * np.float32(0.1), weight(32, 8)
    first[:16] = 0  # units that only the other weight reads, and those are worth most
    second[16:] = 0
    name = "w" if "Einsum" in other else "wt"
    weights = {"w0": weight(16, 32), "w1": first, name: second if name == "w" else second.T.copy()}
    model = Model(build_model(text, weights))
    feeds = [{"x": weight(8, 16)} for _ in range(4)]
    structure = find_structure(model, feeds[0])
    (group,) = structure.groups
    assert not judged([group], find_readers([group], find_layers(model, min_size=1)[0]))
    recipe = Recipe(pattern="neuron", samples=24, threads=1)
    found = prepare(model, from_iterable(model, feeds, recipe), recipe, NullProgress()).narrowings[0]
    assert set(found.units[:16].tolist()) == set(range(16, 32))
    assert found.damage[8] > 0


def test_units_that_only_the_recurrence_reads(build_model: Build) -> None:
    text = """g (float[6, N, 12] x) => (float[N, 4] y) {
        o, h = LSTM<hidden_size=16>(x, W, R) q = Squeeze(h, first) y = MatMul(q, V) }"""
    recurrent, read = np.zeros((1, 64, 16), np.float32), weight(16, 4)
    recurrent[0, 48:, :8] = weight(16, 8)
    read[:8] = 0  # these units are the memory: nothing reads them but the layer itself
    weights = {"W": weight(1, 64, 12), "R": recurrent, "V": read, "first": np.array([0])}
    model = Model(build_model(text, weights))
    feeds = [{"x": weight(6, 8, 12)} for _ in range(4)]
    recipe = Recipe(pattern="hidden", samples=24, threads=1)
    found = prepare(model, from_iterable(model, feeds, recipe), recipe, NullProgress()).narrowings[0]
    assert (found.damage[4:] > 0).all()
