"""A smaller model that is wrong is not returned; groups that cannot go are named."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from onnx import helper, numpy_helper

from onnxprune.model import Model
from onnxprune.structure.check import check_removal, remove_checked
from onnxprune.structure.find import find_structure
from onnxprune.structure.groups import Structure
from onnxprune.structure.masking import mask_units
from onnxprune.structure.removal import remove_units
from tests.unit.structure.graphs import Feeds, graph, random_removal

TEXT = """(float[N, L, 6] x) => (float[N, L, C] y) { a = MatMul(x, w0) b = Relu(a) c = MatMul(b, w1)
    d = Relu(c) e = MatMul(d, w2) f = Relu(e) y = MatMul(f, w3) }"""
WEIGHTS = {"w0": (6, 8), "w1": (8, 7), "w2": (7, 9), "w3": (9, 4)}


@pytest.fixture
def scene() -> tuple[Model, Feeds, Structure]:
    model, feeds = graph(TEXT, WEIGHTS)
    return model, feeds, find_structure(model, feeds)


def test_a_right_one(scene: tuple[Model, Feeds, Structure]) -> None:
    model, feeds, structure = scene
    removed = random_removal(structure)
    smaller, done, failed = remove_checked(model, structure, removed, feeds)
    assert done.keys() == removed.keys() and not failed
    assert check_removal(mask_units(model, structure, removed), smaller, feeds) is None


def test_other_numbers_are_seen(scene: tuple[Model, Feeds, Structure]) -> None:
    model, feeds, structure = scene
    removed = random_removal(structure)
    masked, smaller = mask_units(model, structure, removed), remove_units(model, structure, removed)
    smaller.set_array("w3", np.asarray(smaller.array("w3") * np.float32(1.001)))
    assert "output 'y' differs from the masked model: by" in str(check_removal(masked, smaller, feeds))


def test_rounding_that_the_model_amplifies_is_none() -> None:
    """The difference of two products that are almost equal is mostly rounding."""
    text = """(float[N, 24] x) => (float[N, C] y) { a = MatMul(x, w0) b = MatMul(a, w1) c = MatMul(a, w2)
        y = Sub(b, c) }"""
    model, feeds = graph(text, {"w0": (24, 2048), "w1": (2048, 4), "w2": (2048, 4)})
    model.set_array("w2", np.asarray(model.array("w1") * np.float32(1.01)))
    structure = find_structure(model, feeds)
    removed = random_removal(structure)
    masked, smaller = mask_units(model, structure, removed), remove_units(model, structure, removed)
    assert check_removal(masked, smaller, feeds) is None
    smaller.set_array("w2", np.asarray(smaller.array("w2") * np.float32(1.01)))
    assert "differs from the masked model: by" in str(check_removal(masked, smaller, feeds))


def test_a_broken_model_is_seen(scene: tuple[Model, Feeds, Structure]) -> None:
    model, feeds, structure = scene
    smaller = remove_units(model, structure, random_removal(structure))
    del smaller.graph.node[2]
    assert "not valid" in str(check_removal(model, smaller, feeds))
    renamed = model.copy()
    renamed.graph.output[0].name = "z"
    renamed.graph.node[-1].output[0] = "z"
    assert "another interface" in str(check_removal(model, Model(renamed.proto), feeds))


@pytest.mark.parametrize("bad", [{0}, {2}, {0, 2}, {0, 1, 2}])
def test_groups_that_are_wrong_are_left_alone(scene: tuple[Model, Feeds, Structure], bad: set[int]) -> None:
    """A group that is told wrong (it misses what reads it) fails alone, the others go."""
    model, feeds, structure = scene
    groups = [
        replace(group, parts=tuple(replace(part, reads=False) for part in group.parts)) if i in bad else group
        for i, group in enumerate(structure.groups)
    ]
    removed = random_removal(structure)
    wrong = replace(structure, groups=tuple(groups))
    smaller, done, failed = remove_checked(model, wrong, removed, feeds)
    names = [group.name for group in groups]
    assert set(failed) == {names[i] for i in bad} and all("differs" in why for why in failed.values())
    assert set(done) == set(names) - set(failed)
    assert check_removal(mask_units(model, structure, done), smaller, feeds) is None


def test_a_constant_that_is_right_for_one_size_is_seen() -> None:
    """The batch of the sample, baked into a shape."""
    text = "(float[N, 6] x) => (float[N, C] y) { a = MatMul(x, w0) b = Relu(a) y = MatMul(b, w1) }"
    model, feeds = graph(text, {"w0": (6, 8), "w1": (8, 4)})
    wrong = model.copy()
    shape = numpy_helper.from_array(np.array([2, 8]), "to")
    wrong.graph.initializer.append(shape)
    wrong.graph.node.insert(2, helper.make_node("Reshape", ["b", "to"], ["c"]))
    wrong.graph.node[3].input[0] = "c"
    reason = check_removal(model, Model(wrong.proto), feeds)
    assert reason is not None and reason.startswith("with inputs of other sizes: does not run")


DEAD = """(float[N, 6] x) => (float[N, C] y) { a = MatMul(x, w0) b = Mul(a, scale) c = Sub(b, high)
    y = Relu(c) }"""


def test_outputs_that_are_zero_say_nothing() -> None:
    weights = {"w0": (6, 4), "scale": np.float32(1), "high": np.float32(1000)}
    model, feeds = graph(DEAD, weights)
    wrong = model.copy()
    wrong.set_array("scale", np.array(2, np.float32))
    assert check_removal(model, model, feeds) is None  # larger inputs make some that are not
    assert "differs from the masked model" in str(check_removal(model, wrong, feeds))
    model.set_array("high", np.array(np.inf, np.float32))
    assert "there is nothing to compare" in str(check_removal(model, model, feeds))
