"""The recipe: every setting of a pruning run, in one frozen dataclass.

The command line, ``--config recipe.toml`` and :func:`onnxprune.prune` all fill this class; the
report stores it, so a run can be repeated from its report alone.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxprune.errors import UsageError
from onnxprune.recipe import amounts
from onnxprune.recipe.choices import (
    ALLOCATIONS,
    BUDGETS,
    CRITERIA,
    FORMATS,
    GRADIENT_CRITERIA,
    LAYOUTS,
    METRICS,
    PATTERN,
    SCHEDULE,
    SCOPES,
    SELECTIONS,
    SOLVERS,
    SOLVES,
    TARGETS,
    VALUES,
)
from onnxprune.recipe.structured import Structured

SCHEMA_VERSION = 1
STRUCTURED = 0.5  # share that structured patterns remove unless told otherwise


def _option(default: Any, text: str, choices: tuple[str, ...] | None = None) -> Any:
    """Declare a field together with the help text and the choices that the command line shows."""
    metadata = {"help": text, "choices": choices}
    if isinstance(default, tuple):
        return field(default_factory=lambda: default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Recipe:
    """Settings of one pruning run. Each field is a command-line option of the same name.

    Raises:
        UsageError: on construction, when a value is out of range or not one of the choices.
    """

    sparsity: float | None = _option(
        None,
        "Share of the prunable weights to set to zero, 0 <= s < 1; structured patterns: to remove, of those "
        "that can be (default: 0.7; N:M: 1 - N/M; structured: 0.5).",
    )
    pattern: str = _option(
        "unstructured",
        "unstructured, N:M (such as 2:4), block:RxC (such as block:4x1: any 4 rows x 1 column; "
        "block:4x1,adjacent: neighbouring rows) or auto (per layer: as fast as can be at the damage that "
        "unstructured does at --sparsity, or as --target-speedup says). Or make shapes smaller: structured, "
        "or some of channel,neuron,head,hidden,width,layer (whole residual branches; not in structured); "
        "structured+2:4 (or another pattern) sets weights of the smaller model to zero as well.",
    )
    structured_sparsity: float | None = _option(
        None,
        "With --pattern structured+X: share of the weights that is removed before X (default: both stages "
        "take the same share, N:M what it always takes; --sparsity is of both together).",
    )
    round_to: int | None = _option(
        None,
        "Structured patterns: keep counts of channels, neurons and hidden units that this number divides "
        "(default: 8, the width of ONNX Runtime's blocks of channels and of vector units; 4 in groups of "
        "less than 32).",
    )
    criterion: str = _option(
        "obs",
        f"How weights are chosen: {', '.join(CRITERIA)}; or several, such as obs+fisher or "
        f"0.7*wanda+0.3*fisher. obs repairs too. {', '.join(GRADIENT_CRITERIA)} need torch; "
        "their gradients are those of the loss on your --labels, if there are any.",
    )
    alpha: float = _option(1.0, "adaptive only: how much activations count beside gradients.")
    threshold: str | None = _option(
        None,
        "Instead of --sparsity: remove weights whose saliency is below abs:X, rel:X (X times the layer's "
        "mean) or mean; attention:X: those of output features below X times the mean sample attention.",
    )
    removal: float = _option(1.0, "Share of what is below --threshold that is removed, the lowest first.")
    selection: str = _option(
        "rank",
        "rank: the least important weights go; sample: by chance, the more important the likelier they stay.",
        SELECTIONS,
    )
    granularity: str = _option(
        "weight",
        "weight, neuron (whole output features become zero) or hybrid:S (those for a share S of the zeros, "
        "single weights for the rest; hybrid: a half).",
    )
    max_drop: str | None = _option(
        None,
        "In place of --sparsity: find the most compressed model whose metric (--eval or --metric) is at most "
        "so much worse than the dense one's. 1%: of its value; 1pp: a point of a hundred (0.01 if the dense "
        "model's is at most 1, else 1); 0.5: in the metric's own unit.",
    )
    min_agreement: float | None = _option(
        None,
        "The same without labels: least agreement with the dense model on samples that pruning has not seen, "
        "such as 0.98: of the worst output, the rows with the same best class, else the mean cosine. Hidden "
        "states that lead to classes do not count.",
    )
    patience: int | None = _option(
        None,
        "Search: end after so many models in a row that are no improvement, once one is good enough "
        "(default: when the sparsity is known to 0.01).",
    )
    time_limit: float | None = _option(
        None,
        "Search: minutes after which no other model is tried; where it ends a search, a slower machine may "
        "find another model.",
    )
    allocation: str = _option("sensitivity", "How the sparsity is shared among the layers.", ALLOCATIONS)
    budget: str = _option(
        "weights", "What --sparsity is a share of: of the weights, or of their multiplications.", BUDGETS
    )
    target_size: str | None = _option(
        None, "In place of --sparsity: prune until the file is no larger than this, such as 5MB."
    )
    target_speedup: str | None = _option(
        None,
        "In place of --sparsity: prune until the model is this many times faster with the kernels, such as "
        "2x, as predicted from where its time goes on this machine. Layers that no kernel speeds up stay "
        "dense; all are pruned with an allocation that goes by no costs. Structured patterns need no "
        "kernels.",
    )
    plan: str | None = _option(
        None,
        "In place of --sparsity: a file with the sparsity of each layer; onnxprune sensitivity writes one.",
    )
    solve: str = _option(
        "sequential",
        "obs only: walk the layers on the already pruned prefix, or all at once (structured+X: in X).",
        SOLVES,
    )
    solver: str = _option(
        "admm",
        "obs only: ADMM over the whole layer, or the SparseGPT column sweep (structured+X: in X).",
        SOLVERS,
    )
    refit: bool = _option(True, "Re-fit weights that stay dense (and biases) to the dense model's outputs.")
    damping: float = _option(0.01, "Ridge added to the Hessian, as a share of its mean diagonal.")
    attention: tuple[str, ...] = _option(
        ("off",),
        "Let attention weigh tokens and places (their rows of the statistics), heads (the outputs of their "
        "projections), channels (the outputs of convolutions with a squeeze-and-excite gate) or layers (what "
        "pruning them costs): token, head, channel, layer (repeatable), or off.",
    )
    include: tuple[str, ...] = _option(
        (), "Only prune weights whose name or node matches this glob (repeatable)."
    )
    exclude: tuple[str, ...] = _option(
        (), "Never prune weights whose name or node matches this glob (repeatable)."
    )
    min_size: int = _option(
        256, "Leave weights with fewer elements than this alone (structured+X: in X; units go all the same)."
    )
    format: str = _option("packed", "How pruned weights are stored.", FORMATS)
    values: str = _option("same", "Type of the packed values: as in the model, or fp16.", VALUES)
    target_runtime: str | None = _option(
        None,
        "cpu: ops with a sparse CPU kernel where they are measured to be faster; cuda: ops for onnxruntime-"
        "gpu where onnxprune ops tune measured them to be faster, their weights and activations float16; "
        "stock: standard speed anywhere, the same bytes everywhere (default: cpu with --format packed).",
        TARGETS,
    )
    batch: int | None = _option(
        None,
        "For CUDA: rows that a product has at run time, samples times tokens; of convolutions, images "
        "(default: 1).",
    )
    cuda_table: str | None = _option(
        None, "For CUDA: file that onnxprune ops tune wrote (default: the one in the user's cache)."
    )
    finetune: bool = _option(
        False, "Train the pruned model towards the dense one, masks held; no labels needed (needs torch)."
    )
    steps: int | None = _option(
        None,
        "Fine-tuning: updates of the weights; the same number gives the same result (default without "
        "--minutes: as many as 10 minutes allow, at most 3000).",
    )
    minutes: float | None = _option(
        None,
        "Fine-tuning: take this time at most, the comparison at the end included; a slower machine "
        "then learns less.",
    )
    lr: float | None = _option(
        None,
        "Fine-tuning: largest step of a weight, as a share of its tensor's typical size, such as 0.001 "
        "(default: 0.001, 0.003 where units went; lower when the loss runs away).",
    )
    loss: str = _option(
        "auto",
        "Fine-tuning: auto (kl for classes, mse for what they do not speak for), kl, mse, or a function "
        "FILE.py:name that gets the student's and the teacher's outputs and the inputs, as dictionaries of "
        "torch tensors.",
    )
    labels: str | None = _option(
        None,
        "Array beside the inputs in --data with one label per sample (class numbers, or values shaped like "
        "an output), for --metric, for criteria that need gradients and for training, which adds the loss on "
        "them; a function given to --loss finds them among the inputs.",
    )
    augment: tuple[str, ...] = _option(
        ("auto",),
        "Changes of samples, at random, for copies that pruning fits weights to as well and for fine-tuning: "
        "flip, shift, stretch, tone, crop (images), mix (two samples), auto: what fits the inputs (and the "
        "labels), or none (repeatable).",
    )
    scope: str = _option(
        "model", "Fine-tuning: the whole model at once, or block after block (needs less memory).", SCOPES
    )
    schedule: str = _option(
        "oneshot",
        "oneshot, or cubic:N: prune and fine-tune N times, to growing sparsity (Zhu & Gupta); the rounds "
        "share the steps.",
    )
    data: str | None = _option(
        None, "Calibration inputs: .npz, folder, images, text, test_data_set_*, FILE.py:function."
    )
    samples: int = _option(256, "Calibration samples to use at most.")
    batch_size: int | None = _option(None, "Samples per forward pass (default: chosen from the input size).")
    mean: tuple[float, ...] = _option(
        (), "Images: mean per channel, on the 0..255 scale unless all values are <= 1."
    )
    std: tuple[float, ...] = _option((), "Images: standard deviation per channel, on the scale of --mean.")
    resize: int | None = _option(None, "Images: resize the shorter side to this before the centre crop.")
    layout: str = _option("auto", "Images: channel order of the model's input.", LAYOUTS)
    tokenizer: str | None = _option(None, "Text: tokenizer.json of the model.")
    max_length: int = _option(128, "Text: longest sequence in tokens.")
    eval: str | None = _option(
        None,
        "FILE.py:function that gets an ORT-like session and returns the task metric, more is better.",
    )
    metric: str | None = _option(
        None, "Task metric on the --labels of samples that pruning has not seen, in place of --eval.", METRICS
    )
    seed: int = _option(0, "Seed of everything random.")
    threads: int | None = _option(None, "Threads of ONNX Runtime and of the solvers (default: all).")
    max_memory: float = _option(1.0, "GiB of activations to hold in memory before they go to disk.")
    allow_external: bool = _option(False, "Trust external data outside the model's own folder.")
    cache: bool = _option(
        True,
        "Keep measurements, the models of a search and the state of a training in the user's cache: the next "
        "run, or the same one after it was killed, goes on from there.",
    )

    def __post_init__(self) -> None:
        from onnxprune.recipe.checks import check

        check(self)

    @property
    def rounds(self) -> int:
        """How many times the model is pruned (and fine-tuned)."""
        match = SCHEDULE.fullmatch(self.schedule)
        assert match is not None  # checked on construction
        return int(match["n"] or 1)

    @property
    def searches(self) -> bool:
        """Whether the sparsity is to be found, not given."""
        return self.max_drop is not None or self.min_agreement is not None

    @property
    def target(self) -> str:
        """The runtime that the model is written for: ``cpu``, ``cuda`` or ``stock``."""
        return self.target_runtime or ("cpu" if self.format == "packed" else "stock")

    @property
    def asks_for_weights(self) -> bool:
        """Whether the number of zeros is what is asked for, and not what comes of something else."""
        others = (self.target_size, self.target_speedup, self.plan, self.threshold)
        plain = self.pattern != "auto" and self.structured is None
        return not any(others) and self.budget == "weights" and plain

    @property
    def size_limit(self) -> int | None:
        """``target_size`` in bytes."""
        return None if self.target_size is None else amounts.size(self.target_size, "--target-size")

    @property
    def speedup(self) -> float | None:
        """``target_speedup`` as a number."""
        if self.target_speedup is None:
            return None
        return amounts.factor(self.target_speedup, "--target-speedup")

    @property
    def base_pattern(self) -> str:
        """The pattern that layers without one of their own get."""
        structured = self.structured
        pattern = self.pattern if structured is None else structured.rest
        return "unstructured" if pattern in ("", "auto") else pattern

    @property
    def structured(self) -> Structured | None:
        """What is removed as a whole; None when the pattern keeps all shapes."""
        return Structured.parse(self.pattern)

    @property
    def structure(self) -> str:
        """What becomes zero together, as :meth:`onnxprune.solvers.patterns.Pattern.parse` reads it."""
        return self.base_pattern if self.granularity == "weight" else self.granularity

    @property
    def target_sparsity(self) -> float:
        """Share of zeros wanted over all prunable weights."""
        if self.sparsity is not None:
            return self.sparsity
        if self.structured is not None:
            if self.pattern_limit == 1:
                return STRUCTURED
            first = STRUCTURED if self.structured_sparsity is None else self.structured_sparsity
            return 1 - (1 - first) * (1 - self.pattern_limit)
        return self.pattern_limit if self.pattern_limit < 1 else 0.7

    @property
    def pattern_limit(self) -> float:
        """Share of zeros that the pattern can give: 1 - N/M, or 1."""
        match = PATTERN.fullmatch(self.base_pattern)
        assert match is not None  # checked on construction
        return 1 - int(match["n"]) / int(match["m"]) if match["n"] else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON or TOML, with the schema version."""
        return {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """Build a recipe from plain values.

        Raises:
            UsageError: for an unknown key, a value of the wrong type or a newer schema.
        """
        return cls(**cls.coerced(values))

    @classmethod
    def coerced(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Return plain values as those of fields, each by itself; see :meth:`from_dict`."""
        values = dict(values)
        version = values.pop("schema_version", SCHEMA_VERSION)
        if version != SCHEMA_VERSION:
            raise UsageError(f"recipe has schema_version {version!r}, this onnxprune reads {SCHEMA_VERSION}")
        fields = {f.name: f for f in dataclasses.fields(cls)}
        values = {key.replace("-", "_"): value for key, value in values.items()}
        for key, value in values.items():
            if key not in fields:
                raise UsageError(f"recipe has an unknown key {key!r}", known_names(key, fields))
            values[key] = _coerce(key, value, str(fields[key].type))
        return values

    @classmethod
    def from_toml(cls, path: str | Path) -> dict[str, Any]:
        """Read the values of a TOML file (the whole file, or its ``[tool.onnxprune]`` table)."""
        try:
            document = tomllib.loads(Path(path).read_text(encoding="utf8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise UsageError(f"cannot read recipe {path}: {error}") from error
        tool = document.get("tool")
        table: dict[str, Any] = tool.get("onnxprune", document) if isinstance(tool, dict) else document
        return table


def known_names(name: str, known: Iterable[str]) -> str:
    """Return the hint for a name that does not exist: the nearest one, or else all."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(names)}"


def _coerce(key: str, value: Any, kind: str) -> Any:
    """Turn a TOML or JSON value into the field's type, or say what was wanted."""
    if value is None and "None" in kind:
        return None
    if kind.startswith("tuple"):
        element: type = float if "float" in kind else str
        items = list(value) if isinstance(value, list | tuple) else [value]
        return tuple(_scalar(key, item, element) for item in items)
    for name, scalar in (("bool", bool), ("int", int), ("float", float), ("str", str)):
        if kind.startswith(name):
            return _scalar(key, value, scalar)
    raise UsageError(f"recipe key {key!r} cannot be set from a file")


def _scalar(key: str, value: Any, kind: type) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise UsageError(f"{key!r} is {value!r}, wanted a value of type {kind.__name__}")
