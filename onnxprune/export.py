"""Store the weights of a model in another form: packed, dense or as ONNX sparse initializers.

The values stay as they are (``values="fp16"`` rounds packed ones), so no data is needed. Use it to
hand a packed model to a runtime without local functions, or to pack what another tool pruned.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.errors import ModelError, UsageError, VerificationError
from onnxprune.interface import interface_differences
from onnxprune.io import load, save, total_bytes
from onnxprune.layers import find_layers
from onnxprune.model import Model
from onnxprune.passes.pack import pack
from onnxprune.passes.sparse_initializer import to_sparse_initializers
from onnxprune.passes.unpack import unpack
from onnxprune.recipe.choices import FORMATS, VALUES
from onnxprune.runtime import session


@dataclass(frozen=True)
class ExportResult:
    """What :func:`export` wrote.

    Attributes:
        model: path of the input, or its name.
        output: path of the new file.
        format: packed, dense or sparse-initializer.
        tensors: how many weights are stored in that form now; for dense, how many were not before.
        file_bytes_before: the input with its external data; its tensors alone when it came from memory.
        file_bytes_after: the output with its external data.
        kept_dense: weights with zeros that this form does not make smaller or cannot hold, and why.
    """

    model: str
    output: str
    format: str
    tensors: int
    file_bytes_before: int
    file_bytes_after: int
    kept_dense: dict[str, str]


def export(
    model: str | Path | Model | onnx.ModelProto,
    output: str | Path,
    *,
    format: str = "dense",
    values: str = "same",
    force: bool = False,
    allow_external: bool = False,
) -> ExportResult:
    """Write ``model`` with its weights stored as ``format``.

    Args:
        model: a path, or a loaded model (left as it is).
        output: where to write.
        format: ``packed`` (only where it is smaller), ``dense`` or ``sparse-initializer``.
        values: type of packed values, ``same`` or ``fp16``.
        force: overwrite an existing output.
        allow_external: trust external data outside the model's own folder.

    Raises:
        UsageError: for an unknown format, or an output that exists.
        ModelError: when the model is broken or unsafe, or ONNX Runtime refuses it packed or sparse.
        VerificationError: when the file that was written does not hold the same weights; it is removed.
    """
    for name, value, choices in (("format", format, FORMATS), ("values", values, VALUES)):
        if value not in choices:
            raise UsageError(f"--{name} is {value!r}, wanted one of {', '.join(choices)}")
    if values != "same" and format != "packed":
        raise UsageError(f"--values {values} is for packed weights", "add --format packed")
    dense = model.copy() if isinstance(model, Model) else load(model, allow_external=allow_external)
    before = total_bytes(dense.path, allow_external=True) if dense.path else dense.proto.ByteSize()
    were_stored = unpack(dense)
    final = dense.copy()
    tensors, kept_dense = len(were_stored), {}
    if format != "dense":
        names = _pruned_weights(dense)
        packed = format == "packed"
        report = pack(final, names, values=values) if packed else to_sparse_initializers(final, names)
        tensors = len(report.changed)
        kept_dense = {weight.name: weight.reason for weight in report.weights if weight.form == "dense"}
    save(final, output, force=force, check=lambda path: _verify(path, dense, format, values))
    source, after = str(dense.path or dense.name), total_bytes(output)
    return ExportResult(source, str(output), format, tensors, before, after, kept_dense)


def _pruned_weights(model: Model) -> list[str]:
    """Names of the layers' weights that hold zeros; the rest can only grow."""
    layers, _ = find_layers(model, min_size=1)
    return [layer.name for layer in layers if np.count_nonzero(model.array(layer.name)) < layer.size]


def _verify(path: Path, dense: Model, form: str, values: str) -> None:
    """Read the file back and compare it with what was meant."""
    written = load(path)
    differences = interface_differences(dense, written)
    if differences:
        raise VerificationError(f"the written model has another interface: {'; '.join(differences)}")
    unpack(written)
    for name in dense.index.tensors:
        try:
            wanted, found = dense.array(name), written.array(name)
        except ModelError as error:
            raise VerificationError(f"weight {name!r} is not in the file that was written") from error
        if values == "fp16" and wanted.dtype.kind == "f" and found.dtype == wanted.dtype:
            wanted, found = wanted.astype(np.float16), found.astype(np.float16)
        if wanted.shape != found.shape or wanted.dtype != found.dtype or not _same(wanted, found):
            raise VerificationError(f"weight {name!r} differs in the file that was written")
    if form != "dense":  # plain tensors are nothing new to whatever ran the model before
        session(path, threads=1, name="the written model")


def _same(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Equal element by element; NaN in a constant equals itself, -0.0 equals 0.0."""
    return bool(((a == b) | ((a != a) & (b != b))).all())
