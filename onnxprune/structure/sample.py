"""Run a model once to know the shape of each of its values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.calibration.data import load_data
from onnxprune.errors import ModelError
from onnxprune.inmemory import session_of
from onnxprune.model import Model
from onnxprune.recipe import Recipe

Sizes = dict[str, tuple[int, ...]]
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
    present = {value.name for value in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made if name not in present)
    wanted = [*model.index.inputs, *made]
    session = session_of(Model(proto), threads=threads, name=model.name)
    given = {item.name: feeds[item.name] for item in session.get_inputs() if item.name in feeds}
    try:
        values = dict(zip(made, session.run(made, given), strict=True)) if made else {}
    except Exception as error:  # ORT raises many classes, all private
        raise ModelError(f"{model.name}: it does not run on the sample: {error}") from error
    values |= given
    for name in wanted:
        if isinstance(value := values.get(name), np.ndarray):
            sizes[name] = value.shape
            if value.dtype.kind in "iub" and value.size <= _MAX_NUMBERS:
                numbers[name] = value
    return sizes, numbers
