"""Parts of a graph that compute one value from one other value, and what they compute.

Exporters write the same activation in many ways. So it is recognised by what it does to numbers: a
region is run on probe values, and the result compared with each known function.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from onnxprune.model import Model
from onnxprune.storage.reference import ACTIVATIONS, normalise

MAX_NODES = 12  # tanh-Gelu written with multiplications has 9
ELEMENTWISE = frozenset(
    (
        *("Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Neg", "Identity", "Min", "Max", "Erf", "Tanh"),
        *("Sigmoid", "HardSigmoid", "HardSwish", "Clip", "Relu", "Gelu"),
    )
)
NORMALISING = frozenset(("Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Reciprocal", "Identity", "ReduceMean"))
_LIMIT = float(np.finfo(np.float32).max)
_FAR = np.float32(1e30)


@dataclass(frozen=True)
class Region:
    """Nodes (positions, ascending) that make ``output`` from ``start``; nothing else reads what is inside."""

    start: str
    nodes: tuple[int, ...]
    output: str


def regions(model: Model, start: str, ops: frozenset[str], largest_constant: int) -> Iterator[Region]:
    """Yield the regions that begin at ``start``, smallest first.

    Args:
        model: the model.
        start: a value that is no graph output.
        ops: types that may be inside.
        largest_constant: elements of a constant that may be read inside.
    """
    index = model.index
    inside, seen = {start}, set[int]()
    nodes: list[int] = []
    waiting: list[int] = []

    def push(value: str) -> None:
        for use in index.uses.get(value, []):
            if use.slot >= 0 and use.index not in seen:
                seen.add(use.index)
                heapq.heappush(waiting, use.index)

    push(start)
    while waiting and len(nodes) < MAX_NODES:
        position = heapq.heappop(waiting)
        node = model.graph.node[position]
        if not _fits(model, node, inside, ops, largest_constant):
            continue
        nodes.append(position)
        inside.add(node.output[0])
        push(node.output[0])
        visible = [value for value in inside if _visible(model, value, nodes)]
        if visible == [node.output[0]]:
            yield Region(start, tuple(nodes), node.output[0])


def _fits(model: Model, node: onnx.NodeProto, inside: set[str], ops: frozenset[str], largest: int) -> bool:
    if node.domain not in ("", "ai.onnx") or node.op_type not in ops or len(node.output) != 1:
        return False
    for name in node.input:
        tensor = model.index.tensors.get(name)
        if name and name not in inside and (tensor is None or math.prod(tensor.dims) > largest):
            return False
    return True


def _visible(model: Model, value: str, nodes: list[int]) -> bool:
    """Whether anything but ``nodes`` reads a value, or nothing at all."""
    uses = model.index.uses.get(value, [])
    return (
        not uses
        or value in model.index.outputs
        or any(use.slot < 0 or use.index not in nodes for use in uses)
    )


def run(model: Model, region: Region, x: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """Return the region's output for ``x``; None when it cannot be computed from a float32 array."""
    from onnx.reference import ReferenceEvaluator

    nodes = [model.graph.node[position] for position in region.nodes]
    constants = {n for node in nodes for n in node.input if n in model.index.tensors}
    tensors = []
    for name in sorted(constants):
        tensor = onnx.TensorProto()
        tensor.CopyFrom(model.index.tensors[name])
        tensor.name = name
        tensors.append(tensor)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "region",
        [value(region.start, onnx.TensorProto.FLOAT, None)],
        [value(region.output, onnx.TensorProto.FLOAT, None)],
        tensors,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", model.opset)])
    try:
        with np.errstate(all="ignore"):
            outputs: Any = ReferenceEvaluator(proto).run(None, {region.start: x})
    except Exception:  # onnx lets through whatever numpy raises: then it is no known function
        return None
    found = outputs[0]
    return found if isinstance(found, np.ndarray) and found.shape == x.shape else None


@dataclass(frozen=True)
class Activation:
    """A function that the ops with a kernel know; ``low`` and ``high`` are the limits of ``Clip``."""

    name: str
    low: float = 0.0
    high: float = 0.0


_PROBES = np.linspace(-12, 12, 961, dtype=np.float32)
# Gelu and its tanh form differ by 5e-4; float32 and constants with 7 digits by 3e-6 at |x| = 12.
_TOLERANCE = 5e-6


def activation(model: Model, start: str) -> tuple[Region, Activation] | None:
    """Return the known activation that ``start`` goes through, and the nodes that make it.

    Of several limits in a row (Relu then Min, Max then Min) all are taken.
    """
    best = None
    for region in regions(model, start, ELEMENTWISE, 1):
        found = _known(model, region)
        if found is not None:
            best = region, found
        if best is not None and (found is None or found.name not in ("Relu", "Clip")):
            break
    return best


def _known(model: Model, region: Region) -> Activation | None:
    y = run(model, region, _PROBES)
    if y is None or not np.isfinite(y).all():
        return None
    x = _PROBES.astype(np.float64)
    for name, function in ACTIVATIONS.items():
        if (np.abs(y - function(x)) <= _TOLERANCE * np.maximum(1, np.abs(x))).all():
            return Activation(name)
    ends = run(model, region, np.array([-_FAR, _FAR]))
    if ends is None or not ends[0] < ends[1] or not np.array_equal(y, np.clip(_PROBES, ends[0], ends[1])):
        return None
    low = -_LIMIT if ends[0] == -_FAR else float(ends[0])
    high = _LIMIT if ends[1] == _FAR else float(ends[1])
    return None if (low, high) == (-_LIMIT, _LIMIT) else Activation("Clip", low, high)


@dataclass(frozen=True)
class Normalisation:
    """LayerNormalization over the last axis; ``gamma`` and ``beta`` name constants ``(N,)``."""

    gamma: str
    beta: str
    epsilon: float


def normalisation(model: Model, start: str, size: int) -> tuple[Region, Normalisation] | None:
    """Return the LayerNormalization over ``size`` features that ``start`` goes through, and its nodes."""
    uses = model.index.uses.get(start, [])
    node = model.graph.node[uses[0].index] if len(uses) == 1 and uses[0].slot == 0 else None
    if node is not None and node.op_type == "LayerNormalization" and node.domain in ("", "ai.onnx"):
        found = _operator(model, node, size)
        region = Region(start, (uses[0].index,), node.output[0])
        return (region, found) if found and start not in model.index.outputs else None
    for region in regions(model, start, NORMALISING, size):
        found = _decomposed(model, region, size)
        if found is not None:
            return region, found
    return None


def _operator(model: Model, node: onnx.NodeProto, size: int) -> Normalisation | None:
    given = {a.name: a for a in node.attribute}
    axis = given["axis"].i if "axis" in given else -1
    epsilon = given["epsilon"].f if "epsilon" in given else 1e-5
    if axis != -1 or len([o for o in node.output if o]) != 1 or len(node.input) < 3:
        return None
    vectors = [name for name in node.input[1:3] if _is_vector(model, name, size)]
    return Normalisation(vectors[0], vectors[1], epsilon) if len(vectors) == 2 else None


def _is_vector(model: Model, name: str, size: int) -> bool:
    tensor = model.index.tensors.get(name)
    return tensor is not None and list(tensor.dims) == [size] and tensor.data_type == onnx.TensorProto.FLOAT


def _decomposed(model: Model, region: Region, size: int) -> Normalisation | None:
    nodes = [model.graph.node[position] for position in region.nodes]
    if sum(node.op_type == "ReduceMean" for node in nodes) != 2:
        return None
    vectors: dict[str, list[str]] = {"Mul": [], "Add": []}
    scalars = []
    for node in nodes:
        for name in node.input:
            if _is_vector(model, name, size):
                vectors.setdefault(node.op_type, []).append(name)
            elif name in model.index.tensors and node.op_type == "Add":
                scalars.append(float(model.array(name).reshape(-1)[0]))
    if [len(names) for names in vectors.values()] != [1, 1] or len(scalars) != 1:
        return None
    found = Normalisation(vectors["Mul"][0], vectors["Add"][0], scalars[0])
    rng = np.random.default_rng(0)
    # Rows of every scale, so that epsilon counts in some of them.
    x = (rng.standard_normal((5, size)) * 10.0 ** np.arange(-4, 1)[:, None]).astype(np.float32)
    y = run(model, region, x)
    gamma, beta = (model.array(name).astype(np.float64) for name in (found.gamma, found.beta))
    wanted = normalise(x.astype(np.float64), found.epsilon) * gamma + beta
    close = y is not None and np.allclose(y, wanted, rtol=1e-4, atol=1e-5 * float(np.abs(wanted).max()))
    return found if close else None
