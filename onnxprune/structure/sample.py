"""Run a model once to know the shape of each of its values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from onnxprune.calibration.batching import ONE_BY_ONE
from onnxprune.calibration.data import load_data
from onnxprune.calibration.inputs import model_inputs
from onnxprune.errors import ModelError
from onnxprune.inmemory import session_of
from onnxprune.model import Model
from onnxprune.recipe import Recipe
from onnxprune.storage.edit import Names

Sizes = dict[str, tuple[int, ...]]
_FLOATS = ("tensor(float", "tensor(double", "tensor(bfloat")
_OPSET = 13  # of Shape in a model without operators of the default domain
_MAX_NUMBERS = 4096  # elements of an integer value that may be a shape or a list of positions


def made_up(model: Model) -> Mapping[str, Any]:
    """Return one batch of inputs made up from the graph, two samples where the model takes them.

    Raises:
        DataError: when the model runs with none of the sizes tried.
    """
    return load_data(model, Recipe(samples=2)).batches[0]


def sample(
    model: Model, feeds: Mapping[str, Any], threads: int | None = None
) -> tuple[Sizes, dict[str, NDArray[Any]]]:
    """Return the shape of every value of the main graph, and the content of small integer and boolean ones.

    Args:
        model: the model.
        feeds: input name -> array, one batch. Sizes above 1 tell axes apart that are broadcast from others.
        threads: of ONNX Runtime.

    Raises:
        ModelError: when ONNX Runtime refuses the model or the sample.
    """
    sizes: Sizes = {name: tuple(tensor.dims) for name, tensor in model.index.tensors.items()}
    numbers: dict[str, NDArray[Any]] = {}
    made = [o for node in model.graph.node for o in node.output if o and o not in model.index.tensors]
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    _give_out(proto, made)
    types = {item.name: item.type for item in _session(proto, model, threads, False).get_outputs()}
    # Activations would all be kept until the run ends: of those that cannot be shapes, only the shape is
    floats = [name for name in made if types[name].startswith(_FLOATS)]
    names = Names(model)
    shapes = {name: names.fresh(f"{name}_shape") for name in floats}
    proto.graph.node.extend(helper.make_node("Shape", [name], [shapes[name]]) for name in floats)
    if not model.opset:
        proto.opset_import.append(helper.make_opsetid("", _OPSET))
    if made:
        del proto.graph.output[:]
    kept = [name for name in made if name not in shapes]
    _give_out(proto, [*kept, *shapes.values()])
    wanted = [*kept, *shapes.values()]
    ran = _run(_session(proto, model, threads), feeds, wanted)
    if isinstance(ran, Exception):
        # Optimised, values that are given out may be where ONNX Runtime moves a Transpose to a node that
        # then refuses it (1.32: Resize, mode cubic)
        ran = _run(_session(proto, model, threads, False), feeds, wanted)
    if isinstance(ran, Exception):
        raise ModelError(f"{model.name}: it does not run on the sample: {ran}", ONE_BY_ONE) from ran
    values = {name: feeds[name] for name in model.index.inputs if name in feeds} | ran
    for name in (*model.index.inputs, *kept):
        if isinstance(value := values.get(name), np.ndarray):
            sizes[name] = value.shape
            if value.dtype.kind in "iub" and value.size <= _MAX_NUMBERS:
                numbers[name] = value
    sizes.update((name, tuple(values[shape].tolist())) for name, shape in shapes.items())
    return sizes, numbers


def sample_few(
    model: Model, feeds: Mapping[str, Any], threads: int | None = None
) -> tuple[Sizes, dict[str, NDArray[Any]]]:
    """Return what :func:`sample` does, on two samples of the batch where it can be taken apart."""
    few = first_rows(model, feeds)
    try:
        return sample(model, few, threads)
    except ModelError:
        if few is feeds:
            raise
        return sample(model, feeds, threads)


def first_rows(model: Model, feeds: Mapping[str, Any], count: int = 2) -> Mapping[str, Any]:
    """Return the first samples of a batch, or all of it where it cannot be taken apart."""
    try:
        inputs = model_inputs(model)
    except ModelError:
        return feeds
    if inputs.fixed or not inputs.batched:
        return feeds
    return {name: value[:count] if name in inputs.batched else value for name, value in feeds.items()}


def _give_out(proto: onnx.ModelProto, names: list[str]) -> None:
    present = {value.name for value in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)


def _run(session: Any, feeds: Mapping[str, Any], wanted: list[str]) -> dict[str, Any] | Exception:
    given = {item.name: feeds[item.name] for item in session.get_inputs() if item.name in feeds}
    try:
        return dict(zip(wanted, session.run(wanted, given), strict=True)) if wanted else {}
    except Exception as error:  # ORT raises many classes, all private
        return error


def _session(proto: onnx.ModelProto, model: Model, threads: int | None, optimize: bool = True) -> Any:
    return session_of(Model(proto), threads=threads, name=model.name, optimize=optimize)
