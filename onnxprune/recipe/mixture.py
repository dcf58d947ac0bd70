"""The text of ``--criterion`` taken apart: one criterion, or a weighted sum of several.

Only names and numbers here, so that the recipe can be checked without numpy; :mod:`onnxprune.scoring` has
the criteria themselves.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache

from onnxprune.errors import UsageError

SOLVER = "obs"  # chooses and repairs weights in one go, see onnxprune.solvers
GRADIENT_CRITERIA = ("gradient", "fisher", "taylor", "adaptive")  # need gradients, and so torch
CRITERIA = (SOLVER, "wanda", "magnitude", "activation", "attention", *GRADIENT_CRITERIA)
_TERM = re.compile(r"(?:(?P<weight>[0-9.eE+-]+?)\*)?(?P<name>[a-z]+)")
_PLUS = re.compile(r"(?<![0-9][eE])\+")  # not the sign of an exponent


@dataclass(frozen=True)
class Mixture:
    """A weighted sum of criteria.

    Attributes:
        terms: (name, weight) in the order written; weights above 0.
    """

    terms: tuple[tuple[str, float], ...]

    @classmethod
    @lru_cache(maxsize=64)
    def parse(cls, text: str) -> Mixture:
        """Read ``fisher``, ``obs+fisher`` or ``0.7*wanda+0.3*fisher``; without a number the weight is 1.

        Raises:
            UsageError: for an unknown name, one named twice, or a weight that is not above 0.
        """
        terms: dict[str, float] = {}
        for part in _PLUS.split("".join(text.split())):
            match = _TERM.fullmatch(part)
            if not match or match["name"] not in CRITERIA:
                raise UsageError(
                    f"--criterion is {text!r}, wanted one of {', '.join(CRITERIA)}, or several joined by +",
                    "such as obs+fisher or 0.7*wanda+0.3*fisher",
                )
            if match["name"] in terms:
                raise UsageError(f"--criterion is {text!r}, which names {match['name']} twice")
            terms[match["name"]] = _weight(match["weight"], text)
        return cls(tuple(terms.items()))

    @property
    def solves(self) -> bool:
        """Whether the OBS solver chooses (and repairs); the other terms then weigh its energy."""
        return any(name == SOLVER for name, _ in self.terms)

    @property
    def scores(self) -> tuple[tuple[str, float], ...]:
        """The terms that are scores: all but ``obs``."""
        return tuple(term for term in self.terms if term[0] != SOLVER)

    @property
    def gradients(self) -> tuple[str, ...]:
        """The terms that need gradients of a loss."""
        return tuple(name for name, _ in self.terms if name in GRADIENT_CRITERIA)

    def weight(self, name: str) -> float:
        """Return the weight of a term; 0 when it is not there."""
        return dict(self.terms).get(name, 0.0)


def _weight(text: str | None, whole: str) -> float:
    try:
        weight = 1.0 if text is None else float(text)
    except ValueError:
        weight = math.nan
    if not 0.0 < weight < math.inf:
        raise UsageError(f"--criterion is {whole!r}: {text!r} is no weight, wanted a number above 0")
    return weight
