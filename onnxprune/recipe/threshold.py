"""The text of ``--threshold``: which weights are too unimportant to stay, instead of how many.

Only words and numbers here, so that the recipe can be checked without numpy;
:mod:`onnxprune.allocation.threshold` counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from onnxprune.errors import UsageError

FORMS = ("abs", "rel", "attention")


@dataclass(frozen=True)
class Threshold:
    """A threshold on saliencies.

    Attributes:
        kind: ``abs``: on the saliency itself; ``rel``: on its share of the layer's mean; ``attention``: on an
            output feature's share of the mean sample attention of its layer.
        value: above 0; what is below it goes.
    """

    kind: Literal["abs", "rel", "attention"]
    value: float

    @classmethod
    def parse(cls, text: str) -> Threshold:
        """Read ``abs:X``, ``rel:X``, ``attention:X`` (X > 0) or ``mean``, which is ``rel:1``.

        Raises:
            UsageError: for anything else.
        """
        if text == "mean":
            return cls("rel", 1.0)
        kind, _, number = text.partition(":")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        for form in FORMS:
            if kind == form and 0.0 < value < math.inf:
                return cls(form, value)  # type: ignore[arg-type]  # one of the literals
        raise UsageError(
            f"--threshold is {text!r}, wanted abs:X, rel:X, attention:X with X above 0, or mean",
            "such as abs:0.01, or rel:0.5 for half of the layer's mean saliency",
        )
