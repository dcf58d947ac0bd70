"""What happened in a pruning run: plain data, and its JSON form beside the pruned model."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from onnxprune.errors import UsageError

SCHEMA_VERSION = 1
# Set by the command line, so that no function in between has to hand it through.
COMMAND_LINE: ContextVar[str] = ContextVar("command_line", default="")


@dataclass(frozen=True)
class LayerReport:
    """One pruned weight.

    Attributes:
        name: the weight's name in the file.
        nodes: the nodes that use it.
        kind: conv, conv_transpose, gemm, matmul, embedding, rnn_input (W) or rnn_recurrence (R).
        shape: as stored in the dense model.
        weights: number of elements.
        zeros: how many of them are zero now.
        sparsity: zeros / weights.
        pattern: unstructured, N:M or block:RxC.
        criterion: how the weights were chosen.
        error: squared error of the layer's output relative to the dense output, None when not measured.
        sensitivity: how much pruning this layer alone moves the model's output, None when not measured.
        stored: storage form in the file (packed, dense, sparse-initializer).
        dense_bytes: size of the tensor before.
        stored_bytes: size of all tensors that replace it.
        note: anything worth a word (raised damping, a tie with another node, ...).
        kernel: the op with a sparse kernel that its node became, "" when it runs dense.
        gain: how many times faster an op with a kernel is (or would be) than the nodes it replaces, None
            when it is not known.
        kernel_note: why the node runs dense, or what the gain rests on.
        dense_readers: how many nodes read the weight dense besides those with a kernel: then it is in memory
            twice.
    """

    name: str
    nodes: tuple[str, ...]
    kind: str
    shape: tuple[int, ...]
    weights: int
    zeros: int
    sparsity: float
    pattern: str
    criterion: str
    error: float | None
    sensitivity: float | None
    stored: str
    dense_bytes: int
    stored_bytes: int
    note: str = ""
    kernel: str = ""
    gain: float | None = None
    kernel_note: str = ""
    dense_readers: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "nodes", tuple(self.nodes))
        object.__setattr__(self, "shape", tuple(int(dim) for dim in self.shape))


class SkippedWeight(NamedTuple):
    """A weight that was left alone: its name, first node, number of elements, and why."""

    name: str
    node: str
    weights: int
    reason: str


def skipped_weights(skips: Iterable[Any]) -> tuple[SkippedWeight, ...]:
    """Take over what ``onnxprune.layers`` left alone."""
    return tuple(SkippedWeight(skip.name, skip.node, skip.size, skip.reason) for skip in skips)


class Timing(NamedTuple):
    """One stage of the run, in seconds of wall clock and of processor time (all threads)."""

    stage: str
    wall_seconds: float
    cpu_seconds: float


class Speed(NamedTuple):
    """How many times faster the pruned model runs with the kernels than dense, at a number of threads."""

    threads: int
    ratio: float


@dataclass(frozen=True)
class Report:
    """Everything a user may ask about a run; :meth:`to_dict` is the JSON document.

    Attributes:
        model: path of the input. output: path of the pruned model, None after a dry run. data_files: files
        that belong to it and have to stay beside it: external data. model_digest: hash of the input file,
        "algorithm:hex". recipe: :meth:`onnxprune.recipe.Recipe.to_dict` of the settings used. data: one line
        that names the calibration data. synthetic: True when the calibration data were made up.
        file_bytes_before: the input with its external data. file_bytes_after: the output with its external
        data, None after a dry run. weights: elements of all pruned layers together. zeros: how many of them
        are zero. sparsity: zeros / weights. layers: the pruned layers in graph order. skipped: what was left
        alone. agreements: one dictionary per output, see ``onnxprune.agreement.Agreement``. verdict: level of
        the agreement with the dense model, see ``onnxprune.verdict``. verdict_text: the same as a sentence
        with what to try. metric: name of the user's own measure, "" without ``--eval``. metric_before: its
        value for the dense model. metric_after: its value for the pruned model. kernels: how it was decided
        which nodes get a sparse kernel: measured, table, device table (what onnxprune ops tune measured on a
        GPU), none (there was
            nothing to decide), or "" when the target is stock ONNX Runtime.
        kernels_note: one sentence about that, "" when there is nothing to say.
        speed: measured on this machine with the library of kernels; empty unless measured.
        finetuning: what training did, None without: steps, best (the step whose weights were kept, 0 when
            training did not help), before and after (held-out loss of the outputs), lr, skipped (steps
            without a finite gradient), seconds, features (values that were compared), start (where training
            began, "" for the inputs), weights (how many changed), shared (how many were left alone because
            several blocks use them), difference (of the written model from the trained one, relative),
            labels (None without: key, count, output and loss; output and loss are None when ``--loss`` is a
            function) and curve (step, training loss with that of the values inside, held-out loss of the
            outputs alone).
        search: what a search for an accuracy tried, None without: dense_metric (of the selection samples),
            metric_bound and agreement_bound (what must be held; None: nothing), own_data (the metric brings
            its own samples, so that it chose the model and judges it too), selection_samples, final_samples,
            chosen (sparsity asked for), stopped (why the search ended), notes, and points: every model that
            was tried, with sparsity (asked for), zeros, bytes (of the file, estimated), metric and agreement
            on the selection samples, final_metric and final_agreement on the final ones (None: not looked
            at), tuned (training steps), holds, why (not), seconds, known (measured by an earlier run).
        structured: what was removed as a whole, None without: kinds, groups (name, kind, units before and
            after, damage: what that does to the model's output, alone), pinned (name, units, reason: what
            stays), parameters and multiplications (before, after; of all floating-point constants and of one
            sample), predicted (speed, None unless one was asked for) and speed (threads, ratio: measured
            against the dense model in stock ONNX Runtime).
        attention: one dictionary per block that ``--attention`` looked at, see
            :meth:`onnxprune.attention.guide.Guide.table`: name, form, contribution to the residual stream,
            and a number per head of mass, entropy, norm, effect.
        warnings: what the user must know, one sentence each.
        timings: the stages in order.
        peak_rss_bytes: largest resident memory of the process.
        environment: versions, processor, threads, platform.
        command_line: what was typed, "" from Python.
    """

    model: str
    output: str | None
    model_digest: str
    recipe: dict[str, Any]
    data: str
    synthetic: bool
    file_bytes_before: int
    file_bytes_after: int | None
    weights: int
    zeros: int
    sparsity: float
    layers: tuple[LayerReport, ...]
    skipped: tuple[SkippedWeight, ...] = ()
    agreements: tuple[dict[str, Any], ...] = ()
    verdict: str = ""
    verdict_text: str = ""
    metric: str = ""
    metric_before: float | None = None
    metric_after: float | None = None
    kernels: str = ""
    data_files: tuple[str, ...] = ()
    kernels_note: str = ""
    speed: tuple[Speed, ...] = ()
    finetuning: dict[str, Any] | None = None
    search: dict[str, Any] | None = None
    structured: dict[str, Any] | None = None
    attention: tuple[dict[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()
    timings: tuple[Timing, ...] = ()
    peak_rss_bytes: int | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    command_line: str = field(default_factory=COMMAND_LINE.get)

    def __post_init__(self) -> None:
        # Callers may give lists and plain tuples; equality after a JSON round trip needs one form.
        object.__setattr__(self, "layers", tuple(self.layers))
        object.__setattr__(self, "skipped", tuple(SkippedWeight(*item) for item in self.skipped))
        object.__setattr__(self, "agreements", tuple(plain(item) for item in self.agreements))
        object.__setattr__(self, "attention", tuple(plain(item) for item in self.attention))
        object.__setattr__(self, "recipe", plain(self.recipe))
        object.__setattr__(self, "environment", plain(self.environment))
        object.__setattr__(self, "finetuning", plain(self.finetuning))
        object.__setattr__(self, "search", plain(self.search))
        object.__setattr__(self, "structured", plain(self.structured))
        object.__setattr__(self, "warnings", tuple(self.warnings))
        object.__setattr__(self, "data_files", tuple(self.data_files))
        object.__setattr__(self, "speed", tuple(Speed(*item) for item in self.speed))
        object.__setattr__(self, "timings", tuple(Timing(*item) for item in self.timings))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for :func:`json.dumps`; NaN and infinity become None."""
        document = {"schema_version": SCHEMA_VERSION}
        for item in dataclasses.fields(self):
            document[item.name] = plain(getattr(self, item.name))
        return document

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Report:
        """Read a document written by :meth:`to_dict`.

        Raises:
            UsageError: when the schema is another one, or a key is unknown or missing.
        """
        values = dict(document)
        version = values.pop("schema_version", None)
        if version != SCHEMA_VERSION:
            raise UsageError(f"report has schema_version {version!r}, this onnxprune reads {SCHEMA_VERSION}")
        try:
            values["layers"] = tuple(LayerReport(**layer) for layer in values.get("layers", ()))
            values["skipped"] = tuple(SkippedWeight(**item) for item in values.get("skipped", ()))
            values["speed"] = tuple(Speed(**item) for item in values.get("speed", ()))
            values["timings"] = tuple(Timing(**item) for item in values.get("timings", ()))
            return cls(**values)
        except TypeError as error:
            # "Report.__init__() got an unexpected keyword argument 'x'": the tail says it all.
            raise UsageError(
                f"report does not fit its schema: {str(error).partition('() ')[2] or error}"
            ) from error

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the JSON document; the file is complete or absent.

        Raises:
            UsageError: when the file exists (without ``force``) or its folder does not.
            ResourceError: when the disk is full or the folder cannot be written.
        """
        from onnxprune.files.atomic import atomic_write_text

        atomic_write_text(path, to_json(self.to_dict()), force=force)

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """Read a report file.

        Raises:
            UsageError: when the file is not a report.
        """
        return cls.from_dict(read_json(path))


def plain(value: Any) -> Any:
    """Turn dataclasses, named tuples, numpy scalars, paths and tuples into what JSON knows."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {key: plain(item) for key, item in value._asdict().items()}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if hasattr(value, "tolist"):  # numpy scalars and arrays, without importing numpy
        return plain(value.tolist())
    if isinstance(value, os.PathLike):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def to_json(document: Mapping[str, Any]) -> str:
    """Write ``document`` as JSON text in ASCII, keys in their own order."""
    return json.dumps(plain(document), indent=2, allow_nan=False) + "\n"


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        UsageError: when the file cannot be read or holds something else.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read report {path}: {error}") from error
    if not isinstance(document, dict):
        raise UsageError(f"cannot read report {path}: it holds a {type(document).__name__}, wanted an object")
    return document
