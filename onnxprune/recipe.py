"""The recipe: every setting of a pruning run, in one frozen dataclass.

The command line, ``--config recipe.toml`` and :func:`onnxprune.prune` all fill this class; the
report stores it, so a run can be repeated from its report alone.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxprune import amounts
from onnxprune.errors import UsageError
from onnxprune.floor import Drop
from onnxprune.mixture import CRITERIA, GRADIENT_CRITERIA, Mixture
from onnxprune.threshold import Threshold

SCHEMA_VERSION = 1
ALLOCATIONS = ("sensitivity", "error", "uniform", "global", "erk", "owl")
CURVES = ALLOCATIONS[:2]  # those that measure what pruning a layer does
BUDGETS = ("weights", "flops")
FORMATS = ("packed", "dense", "sparse-initializer")
VALUES = ("same", "fp16")
TARGETS = ("cpu", "stock", "cuda")
SOLVES = ("sequential", "one-shot")
SOLVERS = ("admm", "sweep")
LAYOUTS = ("auto", "nchw", "nhwc")
LOSSES = ("auto", "kl", "mse")
AUGMENTATIONS = ("auto", "none", "flip", "shift", "stretch", "tone", "crop", "mix")
SCOPES = ("model", "block")
METRICS = (
    "accuracy",
    "top-5",
    "precision",
    "recall",
    "f1",
    "perplexity",
    "spearman",
    "rmse",
    "cosine",
    "character-accuracy",
)
SELECTIONS = ("rank", "sample")
TRAINING = (
    "steps",
    "minutes",
    "lr",
    "loss",
    "augment",
    "schedule",
)  # fields that mean nothing without ``finetune``
_SCHEDULE = re.compile(r"oneshot|cubic:(?P<n>[0-9]{1,3})")
_GRANULARITY = re.compile(r"weight|neuron|hybrid(:(?P<share>0?\.[0-9]+))?")
_PATTERN = re.compile(
    r"unstructured|auto|(?P<n>[0-9]+):(?P<m>[0-9]+)|block:(?P<r>[0-9]+)x(?P<c>[0-9]+)(,adjacent)?"
)
# The solver raises a ridge that is too small tenfold, seven times: from less it would not get anywhere.
MIN_DAMPING = 1e-8


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
        None, "Share of the prunable weights to set to zero, 0 <= s < 1 (default: 0.7; N:M: 1 - N/M)."
    )
    pattern: str = _option(
        "unstructured",
        "unstructured, N:M (such as 2:4), block:RxC (such as block:4x1: any 4 rows x 1 column; "
        "block:4x1,adjacent: neighbouring rows) or auto (per layer: as fast as can be at the damage that "
        "unstructured does at --sparsity, or as --target-speedup says).",
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
        "such as 0.98: rows with the same best class, where there are classes, else the mean cosine.",
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
        "Prune until the model is this many times faster with the kernels, such as 2x, as predicted; layers "
        "that no kernel speeds up stay dense unless --sparsity is given too.",
    )
    plan: str | None = _option(
        None,
        "In place of --sparsity: a file with the sparsity of each layer; onnxprune sensitivity writes one.",
    )
    solve: str = _option(
        "sequential", "obs only: walk the layers on the already pruned prefix, or all at once.", SOLVES
    )
    solver: str = _option(
        "admm", "obs only: ADMM over the whole layer, or the SparseGPT column sweep.", SOLVERS
    )
    refit: bool = _option(True, "Re-fit weights that stay dense (and biases) to the dense model's outputs.")
    damping: float = _option(0.01, "Ridge added to the Hessian, as a share of its mean diagonal.")
    include: tuple[str, ...] = _option(
        (), "Only prune weights whose name or node matches this glob (repeatable)."
    )
    exclude: tuple[str, ...] = _option(
        (), "Never prune weights whose name or node matches this glob (repeatable)."
    )
    min_size: int = _option(256, "Leave weights with fewer elements than this alone.")
    format: str = _option("packed", "How pruned weights are stored.", FORMATS)
    values: str = _option("same", "Type of the packed values: as in the model, or fp16.", VALUES)
    target_runtime: str | None = _option(
        None,
        "cpu: ops with a sparse CPU kernel where they are measured to be faster; stock: standard speed "
        "anywhere, the same bytes on every machine (default: cpu with --format packed).",
        TARGETS,
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
        None, "Fine-tuning: train for this time at most; a slower machine then learns less."
    )
    lr: float | None = _option(
        None,
        "Fine-tuning: largest step of a weight, as a share of its tensor's typical size, such as 0.001 "
        "(default: the best of some short trials).",
    )
    loss: str = _option(
        "auto",
        "Fine-tuning: auto (kl for classes, mse for the rest), kl, mse, or FILE.py:function that gets the "
        "student's and the teacher's outputs and the inputs, as dictionaries of torch tensors.",
    )
    labels: str | None = _option(
        None,
        "Array beside the inputs in --data with one label per sample (class numbers, or values shaped like "
        "an output), for metrics, fine-tuning and criteria that need gradients: the loss on them is added. "
        "They are among the inputs of a --loss function.",
    )
    augment: tuple[str, ...] = _option(
        ("auto",),
        "Fine-tuning: change the samples at random: flip, shift, stretch, tone, crop (images), mix (two "
        "samples), auto: what fits the inputs (and the labels), or none (repeatable).",
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
        "Keep measurements and the state of a training in the user's cache: the next run, or the same one "
        "after it was killed, goes on from there.",
    )

    def __post_init__(self) -> None:
        if self.sparsity is not None and not 0.0 <= self.sparsity < 1.0:
            raise UsageError(
                f"--sparsity is {self.sparsity:g}, wanted a share from 0 to below 1", "write 0.7 for 70 %"
            )
        for item in dataclasses.fields(self):
            choices, value = item.metadata["choices"], getattr(self, item.name)
            if choices and value not in choices and not (value is None and item.default is None):
                raise UsageError(
                    f"--{item.name.replace('_', '-')} is {value!r}, wanted one of {', '.join(choices)}"
                )
        self._check_pattern()
        self._check_choice()
        self._check_target()
        self._check_budget()
        self._check_training()
        self._check_search()
        for name in (
            "samples",
            "min_size",
            "max_length",
            "batch_size",
            "threads",
            "resize",
            "steps",
            "patience",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} is {value}, wanted at least 1")
        if not MIN_DAMPING <= self.damping < 10.0:
            raise UsageError(
                f"--damping is {self.damping:g}, wanted a share from {MIN_DAMPING:g} to below 10", "try 0.01"
            )
        if not 0.0 < self.max_memory < math.inf:
            raise UsageError(f"--max-memory is {self.max_memory:g} GiB, wanted a number above 0")
        if self.seed < 0:
            raise UsageError(f"--seed is {self.seed}, wanted 0 or more")
        for name in ("mean", "std"):
            if not all(map(math.isfinite, getattr(self, name))):
                raise UsageError(f"--{name} is {','.join(map(str, getattr(self, name)))}, wanted numbers")

    def _check_pattern(self) -> None:
        match = _PATTERN.fullmatch(self.pattern)
        if not match:
            raise UsageError(
                f"--pattern is {self.pattern!r}, wanted unstructured, N:M, block:RxC[,adjacent] or auto"
            )
        if match["n"] and not 0 < int(match["n"]) < int(match["m"]):
            raise UsageError(f"--pattern {self.pattern} keeps N of every M weights and needs 0 < N < M")
        if (
            match["n"]
            and self.sparsity is not None
            and self.sparsity > 1 - int(match["n"]) / int(match["m"]) + 1e-9
        ):
            raise UsageError(
                f"--sparsity {self.sparsity:g} is more than pattern {self.pattern} can give "
                f"({1 - int(match['n']) / int(match['m']):g})",
                "leave --sparsity out to get all that the pattern gives",
            )
        if match["r"] and int(match["r"]) * int(match["c"]) < 1:
            raise UsageError(f"--pattern {self.pattern} needs blocks of at least 1x1")

    def _check_budget(self) -> None:
        if self.pattern == "auto" and self.allocation not in CURVES:
            raise UsageError(
                f"--pattern auto measures the layers, --allocation {self.allocation} does not",
                "leave --allocation out",
            )
        amounts_of = ("target_size", "target_speedup", "plan", "threshold")
        given = [name for name in amounts_of if getattr(self, name) is not None]
        if self.sparsity is not None and given not in ([], ["target_speedup"]):
            given.append("sparsity")
        if len(given) > 1:
            names = " and ".join(f"--{name.replace('_', '-')}" for name in given)
            raise UsageError(f"{names} each say how much is pruned", "leave one of the two out")
        kind = _PATTERN.fullmatch(self.pattern)
        if given and kind is not None and kind["n"]:
            raise UsageError(
                f"--{given[0].replace('_', '-')} needs any number of zeros, pattern {self.pattern} has one",
                "leave one of the two out",
            )
        if self.target_size is not None and (self.size_limit, self.format)[1] == "dense":
            raise UsageError(
                "--target-size needs packed weights, with --format dense zeros take as much room as before",
                "leave one of the two out",
            )
        if self.budget == "flops" and self.allocation not in CURVES:
            raise UsageError(
                f"--budget flops weighs damage against multiplications, --allocation {self.allocation} knows "
                "no damage",
                f"--allocation {' or '.join(CURVES)}",
            )
        if self.budget == "flops" and (given or (kind is not None and kind["n"])):
            raise UsageError("--budget says what --sparsity is a share of", "give --sparsity")
        if self.speedup is not None and self.target == "stock":
            raise UsageError(
                "--target-speedup is what kernels gain, --target-runtime stock has none",
                "leave one of the two out",
            )

    def _check_choice(self) -> None:
        """Check how weights are chosen: criterion, threshold, selection, granularity."""
        mixture = Mixture.parse(self.criterion)
        if not 0.0 <= self.alpha < math.inf:
            raise UsageError(f"--alpha is {self.alpha:g}, wanted a number from 0 up")
        if self.alpha != 1.0 and not mixture.weight("adaptive"):
            raise UsageError("--alpha is for --criterion adaptive", "leave one of the two out")
        match = _GRANULARITY.fullmatch(self.granularity)
        if not match or (match["share"] and not float(match["share"])):
            raise UsageError(
                f"--granularity is {self.granularity!r}, wanted weight, neuron, hybrid or hybrid:S, 0 < S < 1"
            )
        if self.granularity != "weight" and self.pattern != "unstructured":
            raise UsageError(
                f"--granularity {self.granularity} and --pattern {self.pattern} both say what goes together",
                "leave one of the two out",
            )
        hybrid = self.granularity.startswith("hybrid")
        if hybrid and self.solver == "sweep" and mixture.solves:
            raise UsageError(
                f"--granularity {self.granularity} needs all columns at once, --solver sweep walks them"
            )
        if hybrid and self.selection == "sample":
            raise UsageError(
                f"--selection sample draws weights or neurons, --granularity {self.granularity} mixes them"
            )
        if self.threshold is None:
            if self.removal != 1.0:
                raise UsageError("--removal is for --threshold", "with --sparsity the share is known already")
            return
        self._check_threshold(mixture)

    def _check_threshold(self, mixture: Mixture) -> None:
        assert self.threshold is not None
        threshold = Threshold.parse(self.threshold)
        if not 0.0 < self.removal <= 1.0:
            raise UsageError(f"--removal is {self.removal:g}, wanted a share above 0 and up to 1")
        if self.sparsity is not None:
            raise UsageError(
                "--sparsity and --threshold both say how much is removed", "leave one of the two out"
            )
        if self.pattern != "unstructured":
            raise UsageError(
                f"--threshold judges each weight by itself, --pattern {self.pattern} does not",
                "with a pattern say --sparsity",
            )
        if self.granularity.startswith("hybrid"):
            raise UsageError(
                f"--threshold judges weights or neurons, --granularity {self.granularity} mixes them"
            )
        if self.allocation != "sensitivity":
            raise UsageError(
                f"--threshold says how much each layer loses, and so does --allocation {self.allocation}",
                "leave one of the two out",
            )
        if threshold.kind == "attention" and (mixture.solves or self.selection == "sample"):
            what = f"--criterion {self.criterion}" if mixture.solves else "--selection sample"
            raise UsageError(
                f"--threshold {self.threshold} says which features go, {what} chooses for itself",
                "--criterion attention goes with it",
            )

    def _check_target(self) -> None:
        if self.target_runtime == "cuda":
            raise UsageError(
                "--target-runtime cuda: there are no kernels for CUDA yet",
                "--target-runtime stock writes a model that runs on any provider at dense speed",
            )
        if self.values != "same" and self.format != "packed":
            raise UsageError(
                f"--values {self.values} is for packed weights, --format is {self.format}",
                "leave one of the two out",
            )
        if self.target_runtime == "cpu" and self.format != "packed":
            raise UsageError(
                f"--target-runtime cpu needs packed weights, --format is {self.format}",
                "leave one of the two out",
            )

    def _check_search(self) -> None:
        if self.max_drop is not None:
            Drop.parse(self.max_drop)
        if self.min_agreement is not None and not 0.0 < self.min_agreement <= 1.0:
            raise UsageError(
                f"--min-agreement is {self.min_agreement:g}, wanted a share above 0, up to 1", "try 0.98"
            )
        if self.time_limit is not None and not 0.0 < self.time_limit < math.inf:
            raise UsageError(f"--time-limit is {self.time_limit:g} minutes, wanted a number above 0")
        if self.eval is not None and self.metric is not None:
            raise UsageError("--eval and --metric both measure the task", "leave one of the two out")
        if self.metric is not None and self.labels is None:
            raise UsageError(f"--metric {self.metric} needs labels", "--labels names their array in --data")
        if not self.searches:
            asked = [name for name in ("patience", "time_limit") if getattr(self, name) is not None]
            if asked:
                raise UsageError(
                    f"--{asked[0].replace('_', '-')} is for a search", "add --max-drop or --min-agreement"
                )
            return
        floor = "--max-drop" if self.max_drop is not None else "--min-agreement"
        if self.sparsity is not None:
            raise UsageError(
                f"{floor} finds the sparsity, --sparsity {self.sparsity:g} sets it",
                f"drop --sparsity to search, or {floor} to prune to that sparsity",
            )
        for name in ("target_size", "target_speedup", "plan", "threshold"):
            if getattr(self, name) is not None:
                other = f"--{name.replace('_', '-')}"
                raise UsageError(
                    f"{floor} and {other} each say how much is pruned", "leave one of the two out"
                )
        if self.rounds > 1:
            raise UsageError(
                f"--schedule {self.schedule} needs a sparsity to grow to, {floor} finds it",
                "leave one of the two out",
            )
        if self.max_drop is not None and self.eval is None and self.metric is None:
            raise UsageError(
                "--max-drop needs a metric",
                "add --eval, or --metric and --labels; --min-agreement needs none",
            )

    def _check_training(self) -> None:
        for name, least in (("lr", 0.0), ("minutes", 0.0)):
            value = getattr(self, name)
            if value is not None and not least < value < math.inf:
                raise UsageError(f"--{name} is {value:g}, wanted a number above {least:g}")
        if not (self.loss in LOSSES or ":" in self.loss):
            raise UsageError(f"--loss is {self.loss!r}, wanted {', '.join(LOSSES)} or FILE.py:function")
        for name in self.augment:
            if name not in AUGMENTATIONS:
                raise UsageError(f"--augment is {name!r}, wanted some of {', '.join(AUGMENTATIONS)}")
        if len(self.augment) > 1 and {"auto", "none"} & set(self.augment):
            raise UsageError("--augment auto and --augment none go with nothing else")
        if self.scope == "block" and self.loss not in ("auto", "mse"):
            raise UsageError(
                f"--loss {self.loss} is for outputs, --scope block compares the values at the ends of blocks",
                "leave one of the two out",
            )
        if self.scope == "block" and self.augment not in (("auto",), ("none",)):
            raise UsageError("--augment is for --scope model: blocks learn from the samples as they are")
        self._check_labels()
        match = _SCHEDULE.fullmatch(self.schedule)
        if not match or match["n"] == "0":
            raise UsageError(f"--schedule is {self.schedule!r}, wanted oneshot or cubic:N, such as cubic:4")
        if self.rounds > 1 and ":" in self.pattern and not self.pattern.startswith("block"):
            raise UsageError(
                f"--schedule {self.schedule} grows the sparsity, pattern {self.pattern} is all or nothing",
                "leave one of the two out",
            )
        if self.steps is not None and self.rounds > self.steps:
            raise UsageError(f"--schedule {self.schedule} needs a step a round, --steps is {self.steps}")
        fields = [item for item in dataclasses.fields(self) if item.name in TRAINING]
        asked = [item.name for item in fields if getattr(self, item.name) != _default(item)]
        if asked and not self.finetune:
            raise UsageError(f"--{asked[0]} is for fine-tuning", "add --finetune")

    def _check_labels(self) -> None:
        if self.labels is None:
            return
        if not (self.finetune or self.metric or Mixture.parse(self.criterion).gradients):
            raise UsageError(
                "--labels is for fine-tuning, --metric and criteria that need gradients",
                "add --finetune or --metric",
            )
        if not self.labels:
            raise UsageError("--labels is empty", "name the array that holds the labels")
        if self.scope == "block":
            raise UsageError(
                "--labels are for outputs, --scope block compares the values at the ends of blocks",
                "leave one of the two out",
            )
        if "mix" in self.augment:
            raise UsageError(
                "--augment mix blends samples, and a blend has no label",
                "leave --augment mix or --labels out",
            )

    @property
    def rounds(self) -> int:
        """How many times the model is pruned (and fine-tuned)."""
        match = _SCHEDULE.fullmatch(self.schedule)
        assert match is not None  # checked on construction
        return int(match["n"] or 1)

    @property
    def searches(self) -> bool:
        """Whether the sparsity is to be found, not given."""
        return self.max_drop is not None or self.min_agreement is not None

    @property
    def target(self) -> str:
        """The runtime that the model is written for: ``cpu`` or ``stock``."""
        return self.target_runtime or ("cpu" if self.format == "packed" else "stock")

    @property
    def asks_for_weights(self) -> bool:
        """Whether the number of zeros is what is asked for, and not what comes of something else."""
        others = (self.target_size, self.target_speedup, self.plan, self.threshold)
        return not any(others) and self.budget == "weights" and self.pattern != "auto"

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
        return "unstructured" if self.pattern == "auto" else self.pattern

    @property
    def structure(self) -> str:
        """What becomes zero together, as :meth:`onnxprune.solvers.patterns.Pattern.parse` reads it."""
        return self.base_pattern if self.granularity == "weight" else self.granularity

    @property
    def target_sparsity(self) -> float:
        """Share of zeros wanted over all prunable weights."""
        if self.sparsity is not None:
            return self.sparsity
        return self.pattern_limit if self.pattern_limit < 1 else 0.7

    @property
    def pattern_limit(self) -> float:
        """Share of zeros that the pattern can give: 1 - N/M, or 1."""
        match = _PATTERN.fullmatch(self.pattern)
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


def _default(item: dataclasses.Field[Any]) -> Any:
    return item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default


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
