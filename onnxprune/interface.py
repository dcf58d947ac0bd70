"""What a caller of a model depends on, and how two models differ in it."""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from onnxprune.model import Model

OWN = "onnxprune"  # our op domain and the prefix of our metadata keys: ours to add and to take away
_MAX_TEXT = 60  # characters of a metadata value in a message


def interface_differences(before: Model, after: Model) -> tuple[str, ...]:
    """List what a caller would notice: inputs, outputs, their types and dimensions, opsets, metadata.

    Inputs with a default (initializers) are no part of it, neither are the domain and the metadata
    keys that begin with "onnxprune".

    Returns:
        One sentence per difference, () when the two are interchangeable.
    """
    differences = []
    for side in ("input", "output"):
        first, second = _values(before, side), _values(after, side)
        differences += _changes(side, first, second)
        if first.keys() == second.keys() and list(first) != list(second):
            differences.append(f"the order of the {side}s was {', '.join(first)}, is {', '.join(second)}")
    differences += _changes("opset", _opsets(before), _opsets(after))
    differences += _changes("metadata", _metadata(before), _metadata(after))
    return tuple(differences)


def type_text(kind: onnx.TypeProto) -> str:
    """Write a type as ``FLOAT[N,3,224,224]``; unknown dimensions are ``?``, an unknown rank ``[...]``."""
    which = kind.WhichOneof("value")
    if which in ("tensor_type", "sparse_tensor_type"):
        tensor = getattr(kind, which)
        element = _element(tensor.elem_type)
        dims = ",".join(_dimension(d) for d in tensor.shape.dim) if tensor.HasField("shape") else "..."
        return f"{'sparse ' if which.startswith('sparse') else ''}{element}[{dims}]"
    if which == "sequence_type":
        return f"sequence of {type_text(kind.sequence_type.elem_type)}"
    if which == "optional_type":
        return f"optional {type_text(kind.optional_type.elem_type)}"
    if which == "map_type":
        return f"map from {_element(kind.map_type.key_type)} to {type_text(kind.map_type.value_type)}"
    return str(which or "untyped")


def _dimension(dim: onnx.TensorShapeProto.Dimension) -> str:
    return str(dim.dim_value) if dim.HasField("dim_value") else str(dim.dim_param or "?")


def _element(number: int) -> str:
    names = {value: name for name, value in onnx.TensorProto.DataType.items()}
    return str(names.get(number, f"type {number}"))


def _values(model: Model, side: str) -> dict[str, str]:
    values = model.index.inputs if side == "input" else model.index.outputs
    return {name: type_text(value.type) for name, value in values.items()}


def _opsets(model: Model) -> dict[str, str]:
    return {o.domain or "ai.onnx": str(o.version) for o in model.proto.opset_import if o.domain != OWN}


def _metadata(model: Model) -> dict[str, str]:
    return {p.key: p.value for p in model.proto.metadata_props if not p.key.startswith(OWN)}


def _changes(what: str, before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    missing = [f"{what} {name!r} is missing" for name in before if name not in after]
    added = [f"{what} {name!r} is new" for name in after if name not in before]
    changed = [
        f"{what} {name!r} was {_short(before[name])}, is {_short(after[name])}"
        for name in before
        if name in after and before[name] != after[name]
    ]
    return missing + added + changed


def _short(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else f"{text[: _MAX_TEXT - 3]}..."
