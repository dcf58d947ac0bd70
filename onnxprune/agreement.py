"""How close one output of two models is, from sums over batches.

Any number of samples fits in memory. Rows are samples, or tokens where the data has an attention mask;
padded tokens never count. For classes a row is one distribution (a sample, a token, a pixel).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.divergence import (
    as_floats,
    class_rows,
    row_kl,
    square_sum,
    without_padding,
)
from onnxprune.outputs import EXACT, OutputKind, is_float

if TYPE_CHECKING:
    pass


Array = NDArray[Any]

_ROUNDING = 1e-9  # a variance this small beside the mean square is rounding


@dataclass(frozen=True)
class Agreement:
    """One output of two models on the same samples; ``a`` is the dense model's value, ``b`` the other's.

    Attributes:
        name: of the output.
        kind: what it holds, see :class:`onnxprune.outputs.OutputKind`.
        rows: samples, tokens or distributions that were compared.
        cosine: mean over rows of cos(a, b); over all values together when a row is a single value.
        correlation: cosine of all values together, the mean row taken out of a and b: 0 for a model that
            gives one answer to everything, however close. None for a single row or equal rows.
        relative_error: ||a - b|| / ||a|| over everything; None when a is zero and b is not.
        max_abs: largest |a - b|.
        kl: mean over rows of KL(a || b) in nats; None unless classes.
        top1: share of rows with the same most likely class; None unless classes.
        kappa: Cohen's kappa of the most likely class: ``top1`` corrected for what two models agree on by
            chance (a model that always says "blank" agrees with most of a CTC output). None unless classes,
            or when both models give one class everywhere.
        equal: share of equal elements; None unless integers, booleans or text.
        finite: False when b has NaN or infinity where a has none.
        note: what else must be known: not compared and why, shapes that differ, a that is not finite.
    """

    name: str
    kind: OutputKind
    rows: int = 0
    cosine: float | None = None
    correlation: float | None = None
    relative_error: float | None = None
    max_abs: float | None = None
    kl: float | None = None
    top1: float | None = None
    kappa: float | None = None
    equal: float | None = None
    finite: bool = True
    note: str = ""


class AgreementSums:
    """What :class:`Agreement` is computed from; :meth:`add` takes one batch of one output."""

    def __init__(self, name: str, kind: OutputKind) -> None:
        self.name, self.kind = name, kind
        self.batches = self.misshapen = self.rows = self.elements = self.judged = self.with_kl = 0
        self.cosine = self.ab = self.aa = self.bb = self.error = self.max_abs = self.kl = self.same = 0.0
        self.votes = np.zeros((2, 0))  # how often each class won, in a and in b
        self.totals: dict[int, tuple[int, Array]] = {}  # row width -> (rows, sums of a and of b)
        self.finite = self.reference_finite = True
        self.shapes: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())

    def add(self, a: Any, b: Any, mask: NDArray[np.bool_] | None) -> None:
        """Add a batch.

        Args:
            a: the dense model's value, an array.
            b: the other's; anything but an array of the same shape is noted and not compared.
            mask: (batch, tokens), False for padding; None when all counts.
        """
        self.batches += 1
        if not isinstance(b, np.ndarray) or a.shape != b.shape or is_float(a.dtype) != is_float(b.dtype):
            self.misshapen += 1
            self.shapes = (a.shape, getattr(b, "shape", ()))
            return
        a, kind = without_padding(a, self.kind, mask)
        b, _ = without_padding(b, self.kind, mask)
        self.elements += a.size
        if kind.family == EXACT:
            self.rows += len(a) if a.ndim else 1
            self.same += float(np.count_nonzero(a == b))
        elif a.size:
            a, b = self._repair(as_floats(a), as_floats(b))
            if kind.classes:
                a, b = class_rows(a, kind.axis), class_rows(b, kind.axis)
                self._add_classes(a, b, kind)
            self._add_rows(*(v.reshape(len(v) if v.ndim else 1, -1) for v in (a, b)))

    def _repair(self, a: Array, b: Array) -> tuple[Array, Array]:
        """Note what is not finite. Equal infinities (masked scores) agree; the rest becomes NaN in both."""
        good_a, good_b = np.isfinite(a), np.isfinite(b)
        if good_a.all() and good_b.all():
            return a, b
        bad = ~((good_a & good_b) | (a == b))
        self.reference_finite &= bool(good_a[bad].all())
        self.finite &= not bool((good_a & ~good_b).any())
        return np.where(bad, np.nan, a), np.where(bad, np.nan, b)

    def _add_classes(self, a: Array, b: Array, kind: OutputKind) -> None:
        kl = row_kl(a, b, kind)
        known = np.isfinite(kl)
        self.kl += float(kl[known].sum())
        self.with_kl += int(known.sum())
        self.judged += len(kl)  # a row with NaN has no KL but counts as disagreement
        first, second = a[known].argmax(axis=1), b[known].argmax(axis=1)
        self.same += float((first == second).sum())
        if a.shape[1] > self.votes.shape[1]:  # classes may be positions, as many as the batch has tokens
            self.votes = np.pad(self.votes, ((0, 0), (0, a.shape[1] - self.votes.shape[1])))
        for row, winners in enumerate((first, second)):
            self.votes[row] += np.bincount(winners, minlength=self.votes.shape[1])

    def _add_rows(self, a: Array, b: Array) -> None:
        usable = np.isfinite(a) & np.isfinite(b)
        if not usable.all():
            a, b = np.where(usable, a, 0), np.where(usable, b, 0)
        ab, aa, bb = (np.einsum("ij,ij->i", x, y, dtype=np.float64) for x, y in ((a, b), (a, a), (b, b)))
        difference = a - b
        self.rows += len(a)
        self.cosine += float(_cosine(ab, aa, bb).sum())
        self.ab += float(ab.sum())
        self.aa += float(aa.sum())
        self.bb += float(bb.sum())
        self.error += square_sum(difference)
        self.max_abs = max(self.max_abs, float(np.abs(difference).max(initial=0)))
        sums = np.stack([a.sum(axis=0, dtype=np.float64), b.sum(axis=0, dtype=np.float64)])
        count, before = self.totals.get(a.shape[1], (0, np.zeros_like(sums)))
        self.totals[a.shape[1]] = (count + len(a), before + sums)

    def result(self) -> Agreement:
        """Return the agreement over all batches so far."""
        if not self.elements:
            return Agreement(self.name, self.kind, finite=self.finite, note=self._note())
        if self.kind.family == EXACT:
            share = self.same / self.elements
            return Agreement(self.name, self.kind, rows=self.rows, equal=share, note=self._note())
        alone = max(self.totals) == 1  # the cosine of two numbers is only their sign
        return Agreement(
            name=self.name,
            kind=self.kind,
            rows=self.rows,
            cosine=float(_cosine(self.ab, self.aa, self.bb)) if alone else self.cosine / self.rows,
            correlation=self._correlation(),
            relative_error=math.sqrt(self.error / self.aa) if self.aa else (None if self.error else 0.0),
            max_abs=self.max_abs,
            kl=self.kl / self.with_kl if self.with_kl else None,
            top1=self.same / self.judged if self.judged else None,
            kappa=self._kappa(),
            finite=self.finite,
            note=self._note(),
        )

    def _correlation(self) -> float | None:
        centre = np.zeros((2, 2))
        for count, sums in self.totals.values():
            centre += sums @ sums.T / count
        ab, aa, bb = self.ab - centre[0, 1], self.aa - centre[0, 0], self.bb - centre[1, 1]
        if aa <= _ROUNDING * self.aa:
            return None
        return float(ab / math.sqrt(aa * bb)) if bb > _ROUNDING * self.bb else 0.0

    def _kappa(self) -> float | None:
        if not self.judged:
            return None
        chance = float(self.votes[0] @ self.votes[1]) / self.judged**2
        return (self.same / self.judged - chance) / (1 - chance) if chance < 1 - _ROUNDING else None

    def _note(self) -> str:
        notes = []
        if self.misshapen:
            first, second = self.shapes
            notes.append(
                f"shape or type differs in {self.misshapen} of {self.batches} batches "
                f"(such as {list(first)} and {list(second)}), not compared there"
            )
        elif not self.elements:
            notes.append("the output is empty")
        if not self.reference_finite:
            notes.append("the reference model gives NaN or infinity itself")
        return "; ".join(notes)


def _cosine(ab: Any, aa: Any, bb: Any) -> Any:
    """Cosine per row from its three products; 1 where both rows are zero, 0 where one is."""
    norm = np.sqrt(aa) * np.sqrt(bb)
    return np.where(norm > 0, ab / np.where(norm > 0, norm, 1), np.equal(aa, bb))


class AgreementParts:
    """The sums of each part of an output; most outputs are one part."""

    def __init__(self, name: str, kind: OutputKind) -> None:
        self.name, self.kind = name, kind
        self.sums: dict[str, AgreementSums] = {}

    def add(self, a: Any, b: Any, mask: NDArray[np.bool_] | None) -> None:
        """Take one batch, see :meth:`AgreementSums.add`."""
        parts = self.kind.parts(a.shape) if isinstance(b, np.ndarray) and a.shape == b.shape else []
        if len(parts) < 2:
            self._sums(self.name).add(a, b, mask)
            return
        for part in parts:
            self._sums(f"{self.name}[{_index(part)}]").add(a[part], b[part], mask)

    def _sums(self, name: str) -> AgreementSums:
        if name not in self.sums:
            self.sums[name] = AgreementSums(
                name, replace(self.kind, cuts=()) if self.kind.cuts else self.kind
            )
        return self.sums[name]

    def results(self) -> list[Agreement]:
        """Return the agreement of each part, in order."""
        found = self.sums.values() or [AgreementSums(self.name, self.kind)]
        return [sums.result() for sums in found]


def _index(part: tuple[slice, ...]) -> str:
    """Write a part as Python does: ``:, 4:22``."""
    return ", ".join(":" if item.start is None else f"{item.start}:{item.stop}" for item in part)
