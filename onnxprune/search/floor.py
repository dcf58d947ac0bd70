"""The least that a pruned model must still do: what ``--max-drop`` and ``--min-agreement`` mean.

Only numbers and text: the recipe checks its fields with it, so nothing heavy is imported.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from onnxprune.errors import DataError, UsageError

RELATIVE, POINTS, ABSOLUTE = "%", "pp", ""
_DROP = re.compile(r"(?P<amount>[0-9]+(\.[0-9]*)?|\.[0-9]+)\s*(?P<unit>%|pp|)")
_MISSED = 1.000001  # the least that counts as more than allowed
_ROUNDING = 1e-9  # a metric may be a sum of floats: as good as the bound is good enough


@dataclass(frozen=True)
class Drop:
    """How much worse a metric may get.

    Attributes:
        amount: 0 or more.
        unit: ``%`` of the dense model's value, ``pp`` (points of a hundred of the metric's scale), or ""
            for the metric's own unit.
    """

    amount: float
    unit: str

    @classmethod
    def parse(cls, text: str) -> Drop:
        """Read ``1%``, ``1pp`` or ``0.5``.

        Raises:
            UsageError: for anything else.
        """
        match = _DROP.fullmatch(text.strip())
        if not match:
            raise UsageError(
                f"--max-drop is {text!r}, wanted a number with %, pp or nothing behind it",
                "1%: of the dense model's metric; 1pp: one point of a hundred; 0.5: in the metric's own unit",
            )
        return cls(float(match["amount"]), match["unit"])

    def of(self, dense: float, scale: float | None = None) -> float:
        """Return the drop in the metric's own unit.

        Args:
            dense: the metric of the dense model.
            scale: what the metric's best value is; None reads it off ``dense``: 1 when that is from -1 to 1,
                100 when it is from -100 to 100.

        Raises:
            DataError: when points are asked for of a metric with no such scale.
        """
        if self.unit == RELATIVE:
            return self.amount / 100 * abs(dense)
        if self.unit == ABSOLUTE:
            return self.amount
        found = scale if scale is not None else 1.0 if abs(dense) <= 1 else 100.0
        if not 0 < found < math.inf or (scale is None and abs(dense) > 100):
            raise DataError(
                f"--max-drop {self}: points are for metrics up to 1 or 100, the dense model's is {dense:g}",
                "say it in percent of that (1%), or in the metric's own unit (0.5)",
            )
        return self.amount / 100 * found

    def __str__(self) -> str:
        return f"{self.amount:g}{self.unit}"


@dataclass(frozen=True)
class Floor:
    """The bounds of one set of samples.

    Attributes:
        dense: the dense model's metric; None where no metric is asked for.
        drop: how much worse it may be, in its own unit.
        lower: True when less is better.
        agreement: least agreement with the dense model, 0 to 1; None where none is asked for.
    """

    dense: float | None = None
    drop: float = 0.0
    lower: bool = False
    agreement: float | None = None

    @property
    def bound(self) -> float | None:
        """The worst value that the metric may have."""
        if self.dense is None:
            return None
        return self.dense + self.drop if self.lower else self.dense - self.drop

    def why_not(self, metric: float | None, agreement: float | None) -> str:
        """Return in words what is missed, "" when all bounds hold. NaN holds nothing."""
        missed = []
        if self.bound is not None and not self._good(metric):
            wanted = "most" if self.lower else "least"
            missed.append(f"metric {_shown(metric)}, wanted at {wanted} {_shown(self.bound)}")
        if self.agreement is not None and not (agreement or 0.0) >= self.agreement - _ROUNDING:
            missed.append(f"agreement {_shown(agreement)}, wanted at least {_shown(self.agreement)}")
        return "; ".join(missed)

    def used(self, metric: float | None, agreement: float | None) -> float:
        """Return how much of what may be lost is lost: up to 1 where the floor holds, infinity for NaN.

        Below 0 where the model is better than the dense one; of several bounds the worst.
        """
        shares = []
        if self.dense is not None:
            lost = math.nan if metric is None else (metric - self.dense) * (1 if self.lower else -1)
            shares.append(_share(lost, self.drop))
        if self.agreement is not None:
            shares.append(_share(math.nan if agreement is None else 1 - agreement, 1 - self.agreement))
        share = max(shares, default=0.0)
        return max(share, _MISSED) if self.why_not(metric, agreement) else min(share, 1.0)

    def _good(self, metric: float | None) -> bool:
        assert self.bound is not None and self.dense is not None
        if metric is None or not math.isfinite(metric):
            return False
        slack = _ROUNDING * max(1.0, abs(self.dense))
        return metric <= self.bound + slack if self.lower else metric >= self.bound - slack


def _share(lost: float, allowed: float) -> float:
    if math.isnan(lost):
        return math.inf
    return lost / allowed if allowed > 0 else math.inf if lost > 0 else 0.0


def _shown(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.6g}"
