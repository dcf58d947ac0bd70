"""Amounts against models that really are smaller: weights and multiplications counted again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxprune.allocation.widths import Group, total
from onnxprune.io import load
from onnxprune.model import Model
from onnxprune.slim.branches import bypass, find_branches
from onnxprune.slim.gains import multiplications
from onnxprune.slim.summary import parameters
from onnxprune.slim.works import Owners, flop_works, weight_works
from onnxprune.structure.find import find_structure
from onnxprune.structure.groups import Structure
from onnxprune.structure.removal import remove_units
from onnxprune.structure.sample import sample

Build = Callable[..., onnx.ModelProto]


def check(model: Model, feeds: dict[str, np.ndarray], structure: Structure) -> None:
    """Remove different shares of the groups; compare the works with the smaller model."""
    one = {name: array[:1] for name, array in feeds.items()}
    shapes, _ = sample(model, one)
    owners = Owners(structure.groups, structure.layout)
    groups = {g.name: Group(g.units, (0,), (0.0,)) for g in structure.groups}
    counts = {g.name: (k % 3 + 1) * g.units // 4 for k, g in enumerate(structure.groups)}
    removed = {g.name: np.arange(g.units) < counts[g.name] for g in structure.groups}
    removed = {name: gone for name, gone in removed.items() if gone.any()}
    smaller = remove_units(model, structure, removed)
    flops, weights = flop_works(model, owners, shapes), weight_works(model, owners)
    assert total(flops, groups, {}) == multiplications(model, [one])
    assert total(flops, groups, counts) == pytest.approx(multiplications(smaller, [one]))
    gone = parameters(model) - parameters(smaller)
    assert total(weights, groups, {}) - total(weights, groups, counts) == pytest.approx(gone)


@pytest.mark.parametrize("name", ["digits_cnn", "digits_transformer"])
def test_samples(samples_dir: Path, name: str) -> None:
    model = load(samples_dir / f"{name}.onnx")
    archive = samples_dir / ("digits.npz" if name == "digits_cnn" else "digits_tokens.npz")
    with np.load(archive) as data:
        feeds = {n: data[n][:4] for n in model.index.inputs}
    check(model, feeds, find_structure(model, feeds))


def test_concatenation_depthwise_and_transposed_convolution(build_model: Build) -> None:
    rng = np.random.default_rng(0)
    text = """g (float[N, 3, 6, 6] x) => (float[N, 2, 6, 6] y) {
        a = Conv<pads=[1, 1, 1, 1]>(x, w1) b = Conv(x, w2) c = Concat<axis=1>(a, b)
        d = Conv<group=12, pads=[1, 1, 1, 1]>(c, w3) e = Relu(d) y = ConvTranspose(e, w4) }"""
    shapes = {"w1": (8, 3, 3, 3), "w2": (4, 3, 1, 1), "w3": (12, 1, 3, 3), "w4": (12, 2, 1, 1)}
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    model = Model(build_model(text, weights))
    feeds = {"x": rng.normal(size=(2, 3, 6, 6)).astype(np.float32)}
    structure = find_structure(model, feeds)
    assert len(structure.groups) == 2
    check(model, feeds, structure)


def test_a_branch_takes_all_of_its_work_with_it(samples_dir: Path) -> None:
    model = load(samples_dir / "digits_transformer.onnx")
    with np.load(samples_dir / "digits_tokens.npz") as data:
        feeds = {n: data[n][:4] for n in model.index.inputs}
    one = {n: a[:1] for n, a in feeds.items()}
    structure, (shapes, _) = find_structure(model, feeds), sample(model, one)
    branches = find_branches(model, shapes)
    assert len(branches) == 4
    owners = Owners(structure.groups, structure.layout, branches)
    groups = {g.name: Group(g.units, (0,), (0.0,)) for g in structure.groups}
    groups |= {b.name: Group(1, (0, 1), (0.0, 1.0)) for b in branches}
    smaller = bypass(model, branches[1:3])
    counts = {b.name: 1 for b in branches[1:3]}
    flops = flop_works(model, owners, shapes)
    assert total(flops, groups, counts) == pytest.approx(multiplications(smaller, [one]))
    weights = weight_works(model, owners)
    gone = total(weights, groups, {}) - total(weights, groups, counts)
    assert gone == pytest.approx(parameters(model) - parameters(smaller), rel=0.01)


def test_recurrent_layers_count_both_of_their_matrices(build_model: Build) -> None:
    rng = np.random.default_rng(0)
    text = """g (float[S, N, 5] x) => (float[S, N, 3] y) {
        a, h, c = LSTM<hidden_size=8>(x, W, R) b = Squeeze(a, one) y = MatMul(b, V) }"""
    sizes = {"W": (1, 32, 5), "R": (1, 32, 8), "V": (8, 3)}
    weights = {name: rng.normal(size=size).astype(np.float32) for name, size in sizes.items()}
    model = Model(build_model(text, weights | {"one": np.array([1])}))
    feed = {"x": rng.normal(size=(7, 1, 5)).astype(np.float32)}
    assert multiplications(model, [feed]) == 7 * (32 * 5 + 32 * 8 + 8 * 3)
    check(model, {"x": feed["x"]}, find_structure(model, {"x": np.repeat(feed["x"], 2, 1)}))


def test_units_between_equations(build_model: Build) -> None:
    rng = np.random.default_rng(0)
    text = """g (float[N, 5, 6] x) => (float[N, 5, 4] y) {
        a = Einsum<equation="bsd,de->bse">(x, w1) b = Relu(a) y = Einsum<equation="bse,ef->bsf">(b, w2) }"""
    weights = {
        name: rng.normal(size=size).astype(np.float32) for name, size in (("w1", (6, 16)), ("w2", (16, 4)))
    }
    model = Model(build_model(text, weights))
    feeds = {"x": rng.normal(size=(2, 5, 6)).astype(np.float32)}
    structure = find_structure(model, feeds)
    assert len(structure.groups) == 1
    check(model, feeds, structure)
