"""Patterns that make shapes smaller: ``structured``, ``channel,head``, ``structured+2:4``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from onnxprune.errors import UsageError

UNITS = ("channel", "neuron", "head", "hidden", "width")
KINDS = (*UNITS, "layer")
ROUNDED = ("channel", "neuron", "hidden", "width")  # whose counts are made multiples
_BLOCK = re.compile(r"\d+x\d+(,adjacent)?")


@dataclass(frozen=True)
class Structured:
    """What is removed as a whole, and what becomes zero in the smaller model.

    Attributes:
        kinds: of units, some of :data:`KINDS`, in that order.
        rest: pattern of the zeros in what is left, "" for none.
    """

    kinds: tuple[str, ...]
    rest: str = ""

    @classmethod
    @lru_cache(maxsize=64)  # several properties of a recipe ask for it each time
    def parse(cls, text: str) -> Structured | None:
        """Read a pattern; None for one that names no units, such as ``2:4``.

        >>> Structured.parse("structured+4x1")
        Structured(kinds=('channel', 'neuron', 'head', 'hidden', 'width'), rest='block:4x1')
        >>> Structured.parse("head,neuron").kinds, Structured.parse("2:4")
        (('neuron', 'head'), None)

        Raises:
            UsageError: when units are named beside something else.
        """
        first, plus, rest = text.partition("+")
        words = [word.strip() for word in first.split(",")]
        named = [word for word in words if word in (*KINDS, "structured")]
        if not named:
            return None
        unknown = [word for word in words if word not in named]
        if unknown or len(set(words)) < len(words) or (plus and not rest):
            raise UsageError(
                f"--pattern is {text!r}, wanted structured or some of {', '.join(KINDS)}, "
                "and a pattern behind a + for zeros in what is left",
                "such as channel,head or structured+2:4",
            )
        chosen = set(words) | (set(UNITS) if "structured" in words else set())
        rest = f"block:{rest}" if _BLOCK.fullmatch(rest) else rest
        return cls(tuple(kind for kind in KINDS if kind in chosen), rest)

    def __str__(self) -> str:
        """Return what :meth:`parse` reads."""
        units = ",".join(self.kinds)
        for more in ((), ("layer",)):
            if set(self.kinds) == {*UNITS, *more}:
                units = ",".join(("structured", *more))
        return f"{units}+{self.rest}" if self.rest else units


def shares(sparsity: float, structured: float | None, rest: float | None) -> tuple[float, float]:
    """Return how much each of the two stages takes so that ``1 - sparsity`` of the weights is kept.

    Args:
        sparsity: of the whole.
        structured: share of the weights that is removed, None: as much as the other stage takes.
        rest: share of zeros in the smaller model, when its pattern knows no other.

    >>> shares(0.75, None, None)
    (0.5, 0.5)
    >>> [round(share, 6) for share in shares(0.7, None, 0.5)]
    [0.4, 0.5]

    Raises:
        UsageError: when one stage alone takes more than the whole, or both do not take the whole together.
    """
    kept = 1.0 - sparsity
    if structured is None:
        structured = 1.0 - kept / (1.0 - rest) if rest is not None else 1.0 - kept**0.5
    taken = max(structured, rest or 0.0)
    if structured < 0 or taken > sparsity + 1e-9:
        raise UsageError(
            f"--sparsity {sparsity:g} is for both stages together, and one alone takes {taken:g}",
            "raise --sparsity, or lower --structured-sparsity",
        )
    found = 1.0 - kept / (1.0 - structured) if rest is None else rest
    both = 1.0 - (1.0 - structured) * (1.0 - found)
    if abs(both - sparsity) > 1e-3:  # shares as people write them are rounded
        raise UsageError(
            f"--sparsity {sparsity:g} is for both stages together, but --structured-sparsity {structured:g} "
            f"and zeros in {found:g} of what is left make {both:g}",
            f"say --sparsity {both:g}, or leave one of the two out",
        )
    return structured, found
