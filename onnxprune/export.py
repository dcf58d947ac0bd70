"""Store the weights of a model in another form: packed, dense or as ONNX sparse initializers.

The values stay as they are (``values="fp16"`` rounds packed ones). Use it to hand a packed model to a
runtime without local functions, or to pack what another tool pruned and, with ``target_runtime="cpu"``,
to give its nodes the kernels that are faster on this machine. With ``fix``, a model that holds a network for
each value of an input becomes one network before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.calibration.data import CalibrationData, from_iterable, load_data
from onnxprune.errors import DataError, ModelError, UsageError, VerificationError
from onnxprune.interface import interface_differences
from onnxprune.io import load, save, total_bytes
from onnxprune.kernels.decision import Selection
from onnxprune.kernels.select import select
from onnxprune.layers import Layer, find_layers
from onnxprune.model import Model
from onnxprune.opening import recipe_with, separated
from onnxprune.passes.fix_input import fix_inputs, input_value
from onnxprune.passes.pack import pack
from onnxprune.passes.sparse_initializer import to_sparse_initializers
from onnxprune.passes.unpack import unpack
from onnxprune.progress import Progress
from onnxprune.recipe import Recipe
from onnxprune.recipe.choices import EXPORT_TARGETS, FORMATS, VALUES
from onnxprune.runtime import session
from onnxprune.verify import Expected, verify_file, verify_fixed

_COMPARED = 16  # samples on which a model with fixed inputs is compared with what it was


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
        switched: how many weights' nodes are ops with a kernel now.
        speed: threads -> how many times faster the whole model is with them; empty unless measured.
        note: about the kernels and the inputs that were fixed, empty when there is nothing to say.
    """

    model: str
    output: str
    format: str
    tensors: int
    file_bytes_before: int
    file_bytes_after: int
    kept_dense: dict[str, str]
    switched: int = 0
    speed: Mapping[int, float] = field(default_factory=dict)
    note: str = ""


def export(
    model: str | Path | Model | onnx.ModelProto,
    output: str | Path,
    *,
    format: str = "dense",
    values: str = "same",
    target_runtime: str = "stock",
    fix: Mapping[str, Any] | None = None,
    recipe: Recipe | None = None,
    data: Any = None,
    force: bool = False,
    allow_external: bool = False,
    progress: Progress | None = None,
) -> ExportResult:
    """Write ``model`` with its weights stored as ``format``.

    Args:
        model: a path, or a loaded model (left as it is).
        output: where to write.
        format: ``packed`` (only where it is smaller), ``dense`` or ``sparse-initializer``.
        values: type of packed values, ``same`` or ``fp16``.
        target_runtime: ``cpu`` switches packed nodes to kernels where they are faster, as ``prune`` does.
        fix: input -> the value that it will always have: branches that it chooses take the place of ``If``
            nodes, so that their weights can be pruned. The input stays, and is not read any more.
        recipe: for ``cpu`` and ``fix``: the fields about data, ``seed``, ``threads`` and ``cache``.
        data: for ``cpu`` inputs of the sizes that count, for ``fix`` any; as :func:`onnxprune.prune`, made up
            if None.
        force: overwrite an existing output.
        allow_external: trust external data outside the model's own folder.
        progress: told about the stages.

    Raises:
        UsageError: for an unknown format, or an output that exists.
        DataError: when the data do not fit the model.
        ModelError: when the model is broken or unsafe, or ONNX Runtime refuses it packed or sparse.
        VerificationError: when the file that was written does not hold the same weights; it is removed. Or
            when the model with fixed inputs does not answer as it did.
    """
    _check_options(format, values, target_runtime)
    recipe, data = recipe_with(recipe, {"format": format, "values": values}, data)
    dense = model.copy() if isinstance(model, Model) else load(model, allow_external=allow_external)
    before = total_bytes(dense.path, allow_external=True) if dense.path else dense.proto.ByteSize()
    were_stored = unpack(dense)
    fixed = _fix(dense, fix, recipe, data) if fix else ""
    kernels = target_runtime == "cpu"
    if kernels:
        dense = separated(dense, dataclasses.replace(recipe, target_runtime="cpu"))
    final, layers = dense.copy(), _pruned_layers(dense)
    tensors, kept_dense = len(were_stored), dict[str, str]()
    if format != "dense":
        tensors, kept_dense = _store(final, [layer.name for layer in layers], format, values)
    selection, samples = Selection({}), None
    if kernels:
        samples = _samples(dense, recipe, data)
        selection = select(
            final, dense, samples, threads=recipe.threads, cache=recipe.cache, progress=progress
        )

    def check(path: Path) -> None:
        _verify(path, dense, format, values)
        if samples is not None:
            verify_file(path, _expected(dense, layers, values), samples, recipe.threads)

    save(final, output, force=force, check=check)
    return ExportResult(
        str(dense.path or dense.name),
        str(output),
        format,
        tensors,
        before,
        total_bytes(output),
        kept_dense,
        selection.switched,
        selection.speed,
        "; ".join(filter(None, (_note(selection, samples), fixed))),
    )


def _store(model: Model, names: list[str], form: str, values: str) -> tuple[int, dict[str, str]]:
    """Store weights as ``form``, in place; return how many are, and why others stay dense."""
    packed = form == "packed"
    report = pack(model, names, values=values) if packed else to_sparse_initializers(model, names)
    kept_dense = {weight.name: weight.reason for weight in report.weights if weight.form == "dense"}
    return len(report.changed), kept_dense


def _fix(dense: Model, fix: Mapping[str, Any], recipe: Recipe, data: Any) -> str:
    """Fix inputs of ``dense``, in place, and compare it with what it was; return what to say about it."""
    original = dense.copy()
    decided = fix_inputs(dense, fix)
    values = {name: input_value(original, name, value) for name, value in fix.items()}
    said = " and ".join(f"{name} is always {array.tolist()}" for name, array in values.items())
    said += f": it decides {', '.join(decided) or 'no If node'}"
    try:  # sizes are made up such that the branches that are left can run
        samples = _samples(dense, dataclasses.replace(recipe, samples=_COMPARED), data)
        verify_fixed(original, dense, values, samples, recipe.threads)
    except DataError as error:
        if data is not None or recipe.data is not None:
            raise
        return f"{said}; not compared with the model as it came, give it --data: {error}"
    return said


def _check_options(form: str, values: str, target: str) -> None:
    wanted = (
        ("format", form, FORMATS),
        ("values", values, VALUES),
        ("target-runtime", target, EXPORT_TARGETS),
    )
    for name, value, choices in wanted:
        if value not in choices:
            raise UsageError(f"--{name} is {value!r}, wanted one of {', '.join(choices)}")
    if form != "packed":
        if values != "same":
            raise UsageError(f"--values {values} is for packed weights", "add --format packed")
        if target == "cpu":
            raise UsageError("--target-runtime cpu is for packed weights", "add --format packed")


def _note(selection: Selection, samples: CalibrationData | None) -> str:
    made_up = (
        "inputs were made up: --data says which sizes of inputs count"
        if samples and samples.synthetic
        else ""
    )
    return "; ".join(filter(None, (selection.note, made_up)))


def _samples(dense: Model, recipe: Recipe, data: Any) -> CalibrationData:
    return load_data(dense, recipe) if data is None else from_iterable(dense, data, recipe)


def _expected(dense: Model, layers: tuple[Layer, ...], values: str) -> Expected:
    zeros = {layer.name: layer.size - int(np.count_nonzero(dense.array(layer.name))) for layer in layers}
    return Expected(dense, dense, layers, zeros, {}, values == "fp16")


def _pruned_layers(model: Model) -> tuple[Layer, ...]:
    """Return the layers whose weights hold zeros; the rest can only grow."""
    layers, _ = find_layers(model, min_size=1)
    return tuple(layer for layer in layers if np.count_nonzero(model.array(layer.name)) < layer.size)


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
