"""What measuring the layers gives, and what comes of it: two small types between the stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from onnxprune.allocation.rules.facts import Facts
from onnxprune.allocation.sensitivity import Sensitivity
from onnxprune.calibration.stats import Moments
from onnxprune.scoring.evidence import Slopes
from onnxprune.solvers.patterns import Pattern


@dataclass(frozen=True)
class Measured:
    """What is known of the layers before any sparsity is chosen.

    Attributes:
        sensitivity: error curves; None when the allocation needs none.
        facts: layer name -> what rules go by; empty when the allocation is none.
        tied: statistics of the later uses of tied weights.
        cached: True when they came from the cache.
        slopes: weight name -> its gradients, where the criterion needs them.
        below: weight name -> zeros, with a threshold.
    """

    sensitivity: Sensitivity | None = None
    facts: dict[str, Facts] = field(default_factory=dict)
    tied: dict[str, Moments] = field(default_factory=dict)
    cached: bool = False
    slopes: Mapping[str, Slopes] = field(default_factory=dict)
    below: dict[str, int] | None = None


@dataclass(frozen=True)
class Plan:
    """How much each layer is pruned.

    Attributes:
        zeros: weight name -> number of zeros.
        patterns: weight name -> pattern, where it is not the recipe's.
        sensitivity: weight name -> divergence of the model's output, this layer alone at the lowest level.
        tied: statistics of the later uses of tied weights.
        cached: True when the measurements came from the cache.
        speedup: how many times faster the model is predicted to be; None unless a speed was asked for.
        slopes: weight name -> its gradients in the dense model, where the criterion needs them.
    """

    zeros: dict[str, int]
    sensitivity: dict[str, float]
    tied: dict[str, Moments]
    cached: bool = False
    patterns: dict[str, Pattern] = field(default_factory=dict)
    speedup: float | None = None
    slopes: Mapping[str, Slopes] = field(default_factory=dict)
