"""Sessions of models that are in memory, of any size: a protobuf message ends at 2 GiB, arrays do not."""

from __future__ import annotations

import math
from typing import Any

import onnx
from numpy.typing import NDArray

from onnxprune import runtime
from onnxprune.errors import ModelError
from onnxprune.files.externalize import copy_fields
from onnxprune.model import MAX_PROTO_BYTES, Model

LARGE = 4096  # elements of a weight that is worth handing over beside the model
_KINDS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)  # types that numpy has


def is_large(tensor: onnx.TensorProto) -> bool:
    """Whether an initializer is worth handing over as an array, and of a type that numpy has."""
    return tensor.data_type in _KINDS and math.prod(tensor.dims) >= LARGE


def without_values(tensor: onnx.TensorProto) -> onnx.TensorProto:
    """Return a tensor of the same name, type and shape whose values a session is given by name."""
    empty = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    empty.data_location = onnx.TensorProto.EXTERNAL
    empty.external_data.add(key="location", value="given with the session")
    return empty


def session_of_file(model: Model, *, threads: int | None = None) -> Any:
    """Create a session of a model that is as it was loaded.

    External data is left to ONNX Runtime: of weights given as arrays it keeps its own form beside them.
    """
    if model.path is not None and model.external:
        return runtime.session(model.path, threads=threads, name=model.name)
    return session_of(model, threads=threads)


def session_of(
    model: Model,
    *,
    threads: int | None = None,
    name: str = "",
    profile: str | None = None,
    optimize: bool = True,
) -> Any:
    """Create a session of ``model``; its large initializers are not copied into the message.

    Args:
        model: as it is in memory.
        threads: as in :func:`onnxprune.runtime.session`.
        name: what messages call it, default its own name.
        profile: as in :func:`onnxprune.runtime.session`.
        optimize: as in :func:`onnxprune.runtime.session`.

    Raises:
        ModelError: when ONNX Runtime refuses the model, or the rest of it is over 2 GiB.
    """
    # ONNX Runtime drops what nothing reads before it takes the arrays, and then misses it
    inline = {value.name for value in model.graph.input}
    inline.update(t.name for t in model.graph.initializer if not model.index.uses.get(t.name))
    light = onnx.ModelProto()
    weights: dict[str, NDArray[Any]] = {}
    copy_fields(model.proto, light, skip=("graph",))
    copy_fields(model.graph, light.graph, skip=("initializer",))
    for tensor in model.graph.initializer:
        outside = is_large(tensor) and tensor.name not in inline
        light.graph.initializer.append(without_values(tensor) if outside else tensor)
        if outside:
            weights[tensor.name] = model.array(tensor.name)
    if light.ByteSize() > MAX_PROTO_BYTES:
        raise ModelError(
            f"{name or model.name}: over 2 GiB without its large initializers, no session can be made of it",
            "weights in Constant nodes count: other tools turn them into initializers",
        )
    return runtime.session(
        light,
        threads=threads,
        weights=weights,
        profile=profile,
        name=name or model.name,
        optimize=optimize,
    )
