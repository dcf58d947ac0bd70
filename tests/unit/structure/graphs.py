"""Small graphs as text with random weights, and the test of all tests: removal equals masking."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

from onnxprune.model import Model
from onnxprune.structure.check import check_removal
from onnxprune.structure.find import find_structure
from onnxprune.structure.groups import Structure
from onnxprune.structure.masking import mask_units
from onnxprune.structure.removal import remove_units

Feeds = Mapping[str, np.ndarray]
IMAGE = "(float[N, 3, H, W] x) => (float[N, C, P, Q] y)"
TOKENS = "(float[N, L, 6] x) => (float[N, L, C] y)"
CONV = "a = Conv(x, w0, b0)"
FIRST: dict[str, Any] = {"w0": (8, 3, 3, 3), "b0": (8,)}
LAST: dict[str, Any] = {"w9": (5, 8, 1, 1)}
DIMS = {"N": 2, "L": 5, "H": 6, "W": 7}


class Case(NamedTuple):
    """A graph, its weights, and the kinds and units of the groups in it."""

    text: str
    weights: dict[str, Any]
    groups: list[tuple[str, int]]
    opset: int = 17


def check(case: Case) -> Structure:
    """Removal equals masking, and the groups are those of the case."""
    model, feeds = graph(case.text, case.weights, case.opset)
    structure = assert_removal_is_masking(model, feeds)
    assert summary(structure) == case.groups
    return structure


def pinned(text: str, weights: Mapping[str, Any], opset: int = 17) -> str:
    """Return why nothing in a graph can go."""
    model, feeds = graph(text, weights, opset)
    structure = find_structure(model, feeds, 1)
    assert not structure.groups
    return reasons(structure)


def graph(text: str, weights: Mapping[str, Any], opset: int = 17) -> tuple[Model, dict[str, np.ndarray]]:
    """Return a model and one batch for it.

    ``weights``: a shape is filled with random numbers; anything else is the value, lists are int64.
    """
    head = f'<ir_version: 8, opset_import: ["": {opset}, "com.microsoft": 1]> '
    proto = onnx.parser.parse_model(f"{head} g {text}")
    rng = np.random.default_rng(zlib.crc32(text.encode()))
    for name, value in weights.items():
        if isinstance(value, tuple):
            value = rng.uniform(0.3, 1, value) * rng.choice([-1, 1], value)
            value = np.abs(value) if name.startswith("var") else value
            value = value.astype(np.float32)
        elif isinstance(value, list):
            value = np.array(value, np.int64)
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return Model(proto), feeds_of(Model(proto), rng)


def feeds_of(model: Model, rng: np.random.Generator) -> dict[str, np.ndarray]:
    feeds = {}
    for name, value in model.index.inputs.items():
        dims = value.type.tensor_type.shape.dim
        shape = [dim.dim_value if dim.HasField("dim_value") else DIMS[dim.dim_param] for dim in dims]
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            feeds[name] = rng.normal(size=shape).astype(np.float32)
        else:
            feeds[name] = rng.integers(0, 4, shape)
    return feeds


def summary(structure: Structure) -> list[tuple[str, int]]:
    return sorted((group.kind, group.units) for group in structure.groups)


def reasons(structure: Structure) -> str:
    return "; ".join(pinned.reason for pinned in structure.pinned)


def random_removal(structure: Structure, seed: int = 0) -> dict[str, np.ndarray]:
    """Return a random choice of at least one unit of each group."""
    rng = np.random.default_rng(seed)
    removed = {}
    for group in structure.groups:
        mask = np.zeros(group.units, bool)
        mask[rng.permutation(group.units)[: rng.integers(1, group.units)]] = True
        removed[group.name] = mask
    return removed


def assert_removal_is_masking(
    model: Model,
    feeds: Feeds,
    structure: Structure | None = None,
    others: Sequence[Feeds] = (),
    seed: int = 0,
) -> Structure:
    """Remove units of every group at once, then of each alone; ``others`` are feeds of other sizes."""
    structure = structure or find_structure(model, feeds, 1)
    removed = random_removal(structure, seed)
    before = model.to_bytes()
    for chosen in (removed, *({name: mask} for name, mask in removed.items())):
        smaller, masked = remove_units(model, structure, chosen), mask_units(model, structure, chosen)
        assert sum_of_sizes(smaller) < sum_of_sizes(model) or not chosen
        for batch in (feeds, *others):
            assert check_removal(masked, smaller, batch, 1) is None, list(chosen)
    assert model.to_bytes() == before
    return structure


def sum_of_sizes(model: Model) -> int:
    return sum(int(np.prod(tensor.dims)) for tensor in model.index.tensors.values())
