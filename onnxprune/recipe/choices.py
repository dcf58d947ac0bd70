"""The words that a recipe's fields take, and the forms of those that are more than a word."""

from __future__ import annotations

import re

from onnxprune.recipe.mixture import CRITERIA, GRADIENT_CRITERIA

__all__ = ["CRITERIA", "GRADIENT_CRITERIA"]

ALLOCATIONS = ("sensitivity", "error", "uniform", "global", "erk", "owl")
CURVES = ALLOCATIONS[:2]  # those that measure what pruning a layer does
CRITERIA_OF_UNITS = ("obs", "wanda", "magnitude")  # those that judge whole channels, neurons and heads
BUDGETS = ("weights", "flops")
FORMATS = ("packed", "dense", "sparse-initializer")
VALUES = ("same", "fp16")
TARGETS = ("cpu", "stock", "cuda")
EXPORT_TARGETS = ("stock", "cpu")  # of a model that is pruned already
ATTENTIONS = ("off", "token", "head", "channel", "layer")
SOLVES = ("sequential", "one-shot")
SOLVERS = ("admm", "sweep")
LAYOUTS = ("auto", "nchw", "nhwc")
LOSSES = ("auto", "kl", "mse")
AUGMENTATIONS = ("auto", "none", "flip", "shift", "stretch", "tone", "crop", "mix")
SCOPES = ("model", "block")
SELECTIONS = ("rank", "sample")
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
TRAINING = (
    "steps",
    "minutes",
    "lr",
    "loss",
    "schedule",
)  # fields that mean nothing without ``finetune``
SCHEDULE = re.compile(r"oneshot|cubic:(?P<n>[0-9]{1,3})")
GRANULARITY = re.compile(r"weight|neuron|hybrid(:(?P<share>0?\.[0-9]+))?")
PATTERN = re.compile(
    r"unstructured|auto|(?P<n>[0-9]+):(?P<m>[0-9]+)|block:(?P<r>[0-9]+)x(?P<c>[0-9]+)(,adjacent)?"
)
