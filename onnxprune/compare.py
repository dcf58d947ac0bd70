"""Compare two models: what a caller sees, what they weigh, what they compute."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnxprune.agreement import Agreement
from onnxprune.errors import DataError
from onnxprune.evaluate import agreement, load_function, task_metric, verdict
from onnxprune.files.tensors import Found, byte_size, walk
from onnxprune.interface import OWN, interface_differences
from onnxprune.io import load, total_bytes
from onnxprune.model import Model, subgraphs
from onnxprune.outputs import is_float
from onnxprune.progress import NullProgress, Progress
from onnxprune.recipe import Recipe
from onnxprune.runtime import session
from onnxprune.verdict import BROKEN

if TYPE_CHECKING:
    import onnx

    from onnxprune.calibration.data import CalibrationData

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class OpCount:
    """How often an op occurs in each model; ``op`` has its domain in front unless it is ONNX's own."""

    op: str
    first: int
    second: int


@dataclass(frozen=True)
class WeightZeros:
    """Zeros of one weight in each model; None where the model has no such tensor of that shape.

    Attributes:
        name: of the weight.
        shape: in the first model that has it.
        weights: number of elements.
        first: zeros in the first model.
        second: zeros in the second.
    """

    name: str
    shape: tuple[int, ...]
    weights: int
    first: int | None
    second: int | None


@dataclass(frozen=True)
class Comparison:
    """Two models side by side; pairs are (first, second).

    Attributes:
        models: the two files.
        file_bytes: each file with its external data.
        tensor_bytes: all tensors in each file: initializers, Constant nodes, subgraphs, functions.
        ops: op counts that differ, main graph and subgraphs.
        differences: of the interface, one sentence each; see :mod:`onnxprune.interface`.
        weights: zeros per weight of at least ``recipe.min_size`` elements and two axes.
        agreements: one per output.
        verdict: ok, degraded or broken.
        verdict_text: the same in words.
        metric: name of the user's measure, "" without ``--eval``.
        metric_values: its value for each model, None without.
        data: one line that names the inputs.
        synthetic: True when the inputs were made up.
    """

    models: tuple[str, str]
    file_bytes: tuple[int, int]
    tensor_bytes: tuple[int, int]
    ops: tuple[OpCount, ...]
    differences: tuple[str, ...]
    weights: tuple[WeightZeros, ...]
    agreements: tuple[Agreement, ...]
    verdict: str
    verdict_text: str
    metric: str = ""
    metric_values: tuple[float, float] | None = None
    data: str = ""
    synthetic: bool = False

    @property
    def agrees(self) -> bool:
        """True when the second can stand in for the first: equal interface, verdict not "broken"."""
        return not self.differences and self.verdict != BROKEN

    @property
    def sparsity(self) -> tuple[float | None, float | None]:
        """Share of zeros over :attr:`weights` in each model, None where none could be counted."""
        first = _share((item.first, item.weights) for item in self.weights)
        return first, _share((item.second, item.weights) for item in self.weights)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON; NaN and infinity become None."""
        from onnxprune.report.report import plain

        document: dict[str, Any] = plain(self)
        derived = {"agrees": self.agrees, "sparsity": list(self.sparsity)}
        return {"schema_version": SCHEMA_VERSION, **derived, **document}


def compare(
    first: str | Path | Model | onnx.ModelProto,
    second: str | Path | Model | onnx.ModelProto,
    data: CalibrationData | Iterable[Mapping[str, Any]] | None = None,
    recipe: Recipe | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Compare two models on the same inputs.

    Args:
        first: the model that is right by definition, a file or loaded.
        second: the model to judge.
        data: inputs for both, as loaded or as dictionaries; by default what ``recipe`` says (``data``,
            ``samples``, ...), else synthetic ones.
        recipe: used are the settings of the data, ``eval``, ``threads``, ``min_size``, ``allow_external``.
        progress: told how far it is.

    Raises:
        ModelError: when a model is broken or ONNX Runtime refuses it.
        DataError: when the data does not fit the first model, or the user's measure fails.
        UsageError: when ``recipe.eval`` names no function.
    """
    recipe, progress = recipe or Recipe(), progress or NullProgress()
    function = load_function(recipe.eval) if recipe.eval else None  # fail before the slow part
    progress.stage("loading")
    models = (_load(first, recipe), _load(second, recipe))
    differences = interface_differences(*models)
    inputs = _inputs(models[0], data, recipe)
    sessions = tuple(_session(model, recipe) for model in models)
    progress.stage("comparing", len(inputs.batches))
    agreements: tuple[Agreement, ...] = ()
    try:
        agreements = agreement(sessions[0], sessions[1], _counted(inputs.batches, progress), models[0])
        level, sentence = verdict(agreements)
    except DataError as error:
        # Other inputs, so the data cannot fit both; with equal inputs it is the user's to know.
        if not any(line.startswith("input") for line in differences):
            raise
        level, sentence = BROKEN, f"The outputs were not compared, the models want different inputs: {error}"
    values = None
    if function is not None:
        progress.stage("evaluating", 2)
        values = (task_metric(function, sessions[0]), task_metric(function, sessions[1]))
    return Comparison(
        models=(_path(models[0]), _path(models[1])),
        file_bytes=(_file_bytes(models[0], recipe), _file_bytes(models[1], recipe)),
        tensor_bytes=(tensor_bytes(models[0]), tensor_bytes(models[1])),
        ops=_op_changes(*models),
        differences=differences,
        weights=_zeros(*models, recipe.min_size),
        agreements=agreements,
        verdict=level,
        verdict_text=sentence,
        metric=recipe.eval or "",
        metric_values=values,
        data=inputs.source,
        synthetic=inputs.synthetic,
    )


def tensor_bytes(model: Model) -> int:
    """Bytes of all tensors in the model, wherever they are."""
    tensors = (found for found in walk(model.proto) if isinstance(found, Found))
    return sum(byte_size(found.tensor, found.where) for found in tensors)


def _file_bytes(model: Model, recipe: Recipe) -> int:
    if model.path is None:
        return int(model.proto.ByteSize())
    return total_bytes(model.path, allow_external=recipe.allow_external)


def _load(model: str | Path | Model | onnx.ModelProto, recipe: Recipe) -> Model:
    if isinstance(model, Model):
        return model
    return load(model, allow_external=recipe.allow_external)


def _inputs(
    model: Model, data: CalibrationData | Iterable[Mapping[str, Any]] | None, recipe: Recipe
) -> CalibrationData:
    from onnxprune.calibration.data import CalibrationData, from_iterable, load_data

    if data is None:
        return load_data(model, recipe)
    if isinstance(data, str | Path):
        return load_data(model, dataclasses.replace(recipe, data=str(data)))
    return data if isinstance(data, CalibrationData) else from_iterable(model, data, recipe)


def _session(model: Model, recipe: Recipe) -> Any:
    source = model.path if model.path is not None else model.to_bytes()
    return session(source, threads=recipe.threads, name=model.name)


def _path(model: Model) -> str:
    return str(model.path) if model.path is not None else model.name


def _counted(batches: Iterable[Any], progress: Progress) -> Iterator[Any]:
    for batch in batches:
        yield batch
        progress.advance()


def _op_changes(first: Model, second: Model) -> tuple[OpCount, ...]:
    before, after = _ops(first.graph), _ops(second.graph)
    changed = [op for op in sorted(before | after) if before[op] != after[op]]
    return tuple(OpCount(op, before[op], after[op]) for op in changed)


def _ops(graph: onnx.GraphProto) -> Counter[str]:
    counts: Counter[str] = Counter()
    for node in graph.node:
        counts[node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"] += 1
        for inner in subgraphs(node):
            counts.update(_ops(inner))
    return counts


def _zeros(first: Model, second: Model, min_size: int) -> tuple[WeightZeros, ...]:
    tables = [_count_zeros(model, min_size) for model in (first, second)]
    rows = []
    for name in dict.fromkeys([*tables[0], *tables[1]]):
        shape = next(table[name][0] for table in tables if name in table)
        counts = [table[name][1] if table.get(name, ((),))[0] == shape else None for table in tables]
        rows.append(WeightZeros(name, shape, math.prod(shape), *counts))
    return tuple(rows)


def _count_zeros(model: Model, min_size: int) -> dict[str, tuple[tuple[int, ...], int]]:
    """Weight name -> shape and number of zeros; packed weights are decoded first."""
    if any(entry.domain == OWN for entry in model.proto.opset_import):
        from onnxprune.passes.unpack import unpack

        model = model.copy()
        unpack(model)
    table = {}
    for name, tensor in model.index.tensors.items():
        shape = tuple(tensor.dims)
        if len(shape) >= 2 and math.prod(shape) >= min_size:
            array = model.array(name)
            if is_float(array.dtype):
                table[name] = (shape, array.size - int(np.count_nonzero(array)))
    return table


def _share(counts: Iterable[tuple[int | None, int]]) -> float | None:
    known = [(zeros, total) for zeros, total in counts if zeros is not None]
    return sum(zeros for zeros, _ in known) / sum(total for _, total in known) if known else None
