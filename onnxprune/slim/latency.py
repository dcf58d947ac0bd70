"""How long a product takes when it is narrower: measured in ONNX Runtime, one node at a time.

A product with half of its channels takes anything between half of the time and all of it: kernels work on
blocks of channels, and small ones wait for memory. So each distinct product is timed alone at a few widths;
what it takes in the whole model is its share of what the profiler says the products take there. All else
goes by the number of elements that it makes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from onnxprune import machine, runtime
from onnxprune.allocation.speed import PRODUCTS
from onnxprune.allocation.widths import Table, Work
from onnxprune.attributes import attribute
from onnxprune.errors import ModelError
from onnxprune.kernels.cache import Cache
from onnxprune.model import Model
from onnxprune.profiling import fastest_seconds, op_seconds
from onnxprune.slim.branches import Shapes
from onnxprune.slim.products import ATTENTION, RECURRENT, node_works
from onnxprune.slim.works import Owners, within

SHARES = (0.25, 0.5, 0.75)  # of the widths that are timed, beside all
_SIMPLE = ("Conv", "MatMul", "Gemm")


def time_works(
    model: Model,
    owners: Owners,
    shapes: Shapes,
    feeds: Sequence[Mapping[str, Any]],
    *,
    cache: bool = True,
    round_to: int = 8,
) -> list[Work]:
    """Return where the time of one run on ``feeds`` goes, in seconds with one thread.

    Args:
        model: the dense model.
        owners: of the axes.
        shapes: of the activations on the first of ``feeds``.
        feeds: what is run.
        cache: whether to use and keep measurements in the user's cache.
        round_to: widths are multiples of it.
    """
    spent = op_seconds(model, feeds[:1], threads=1)
    products = sum(spent.get(op, 0.0) for op in (*PRODUCTS, "FusedMatMul", "Einsum", *ATTENTION))
    recurrent = sum(spent.get(op, 0.0) for op in RECURRENT)
    known = Cache(f"widths {_machine()}", enabled=cache)
    found: list[tuple[Work, float]] = []  # with seconds that were measured alone, NaN for the others
    loops: list[Work] = []
    others: list[Work] = []
    for position, node in enumerate(model.graph.node):
        works = node_works(model, node, owners, shapes)
        if node.op_type in RECURRENT:
            loops += [within(work, owners, position) for work in works]
        elif works:
            timed = (_timed(model, node, work, owners, shapes, known, round_to) for work in works)
            found += [(within(work, owners, position), seconds) for work, seconds in timed]
        elif node.output and math.prod(shapes.get(node.output[0], (0,))):
            others.append(within(_elements(node, owners, shapes), owners, position))
    known.save()
    left = sum(spent.values()) - products - recurrent
    return [*_scaled(_filled(found), products), *_scaled(loops, recurrent), *_scaled(others, left)]


def _scaled(works: Sequence[Work], seconds: float) -> list[Work]:
    """Return the works with amounts in the same proportions that sum to ``seconds``."""
    whole = sum(work.amount for work in works)
    if not whole:
        return [Work(max(seconds, 0.0))]
    return [Work(work.amount * max(seconds, 0.0) / whole, work.sides, work.table) for work in works]


def _filled(found: Sequence[tuple[Work, float]]) -> list[Work]:
    """Return works in seconds: those not measured alone take as long per multiplication as the others."""
    measured = [(work.amount, seconds) for work, seconds in found if not math.isnan(seconds)]
    flops = sum(amount for amount, _ in measured)
    rate = sum(seconds for _, seconds in measured) / flops if flops else 1.0
    return [
        Work(work.amount * rate if math.isnan(seconds) else seconds, work.sides, work.table)
        for work, seconds in found
    ]


def _elements(node: onnx.NodeProto, owners: Owners, shapes: Shapes) -> Work:
    shape = shapes[node.output[0]]
    sides = tuple(owners.value(node.output[0], axis) for axis in range(len(shape)))
    return Work(float(math.prod(shape)), tuple(side for side in sides if side.parts))


def _timed(
    model: Model,
    node: onnx.NodeProto,
    work: Work,
    owners: Owners,
    shapes: Shapes,
    known: Cache,
    round_to: int,
) -> tuple[Work, float]:
    """Return a product with its table and the seconds it takes alone, NaN where it cannot be timed."""
    axes = _axes(model, node, shapes)
    if axes is None:
        return work, math.nan
    sides = (owners.tensor(node.input[1], axes[0]), owners.tensor(node.input[1], axes[1]))
    stored = model.index.tensors[node.input[1]]
    shape, dims = shapes[node.input[0]], tuple(stored.dims)
    widths = [
        _widths(dims[axis], round_to) if side.parts else (dims[axis],)
        for axis, side in zip(axes, sides, strict=True)
    ]
    settings = sorted(helper.printable_attribute(a) for a in node.attribute)
    key = f"{node.op_type} {stored.data_type} {shape} {dims} {settings} {widths}"
    entry = known.get(key)
    if entry is None or len(entry) != len(widths[0]) * len(widths[1]):
        try:
            seconds = [_alone(model, node, shape, axes, (i, o)) for i in widths[0] for o in widths[1]]
        except ModelError:  # as when the node reads what the cut does not show
            return work, math.nan
        # Microseconds, since the cache keeps three digits behind the point
        entry = known.put(key, [1e6 * value for value in seconds])
    times = np.array(entry).reshape(len(widths[0]), -1) * 1e-6
    whole = float(times[-1, -1])
    rows = tuple(tuple(float(value) for value in row) for row in times / max(whole, 1e-9))
    inputs, outputs = (
        tuple(width / dims[axis] for width in found) for axis, found in zip(axes, widths, strict=True)
    )
    return Work(work.amount, sides, Table(inputs, outputs, rows)), whole


def _axes(model: Model, node: onnx.NodeProto, shapes: Shapes) -> tuple[int, int] | None:
    """Return the axes of the weight that are its inputs and its outputs; None for what is not simple."""
    stored = model.index.tensors
    if node.op_type not in _SIMPLE or len(node.input) < 2 or node.input[1] not in stored:
        return None
    if node.input[0] in stored or node.input[0] not in shapes:
        return None
    dims = stored[node.input[1]].dims
    if node.op_type == "Conv":
        return None if attribute(node, "group", 1) != 1 else (1, 0)
    if node.op_type == "Gemm" and attribute(node, "transA", 0):
        return None
    if len(dims) != 2:
        return None
    return (1, 0) if node.op_type == "Gemm" and attribute(node, "transB", 0) else (0, 1)


def _alone(
    model: Model,
    node: onnx.NodeProto,
    shape: tuple[int, ...],
    axes: tuple[int, int],
    widths: tuple[int, int],
) -> float:
    """Return the seconds of the fastest run of a node with so many of its inputs and outputs."""
    weight = model.array(node.input[1])
    for axis, width in zip(axes, widths, strict=True):
        weight = np.take(weight, range(width), axis)
    stored = {node.input[1]: weight}
    if len(node.input) > 2 and node.input[2] in model.index.tensors:
        bias = model.array(node.input[2])
        stored[node.input[2]] = bias[..., : widths[1]] if bias.ndim and bias.shape[-1] > 1 else bias
    narrow = list(shape)
    narrow[1 if node.op_type == "Conv" else -1] = widths[0]
    proto = _model_of(model, node, stored)
    x = np.random.default_rng(0).standard_normal(narrow).astype(weight.dtype)
    return fastest_seconds(Model(proto), {node.input[0]: x}, PRODUCTS, threads=1)


def _widths(full: int, round_to: int) -> tuple[int, ...]:
    """Return the widths to time: multiples of ``round_to`` near :data:`SHARES`, and all."""
    step = round_to if full >= 2 * round_to else 1
    return tuple(
        sorted({min(full, max(step, round(share * full / step) * step)) for share in SHARES} | {full})
    )


def _model_of(model: Model, node: onnx.NodeProto, stored: Mapping[str, NDArray[Any]]) -> onnx.ModelProto:
    graph = onnx.GraphProto(name="one node")
    graph.node.append(node)
    kind = helper.np_dtype_to_tensor_dtype(stored[node.input[1]].dtype)
    graph.input.append(helper.make_tensor_value_info(node.input[0], kind, None))
    graph.output.append(onnx.ValueInfoProto(name=node.output[0]))
    graph.initializer.extend(
        numpy_helper.from_array(np.ascontiguousarray(a), name) for name, a in stored.items()
    )
    proto = onnx.ModelProto(ir_version=max(model.proto.ir_version, 4), graph=graph)
    proto.opset_import.extend(model.proto.opset_import)
    return proto


def _machine() -> str:
    versions = runtime.installed_packages()
    return f"{machine.cpu_name()} {' '.join(machine.instruction_sets())} {sorted(versions.items())}"
