"""The models that a search for an accuracy tried: its trade-off curve, as the report has it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from onnxprune.errors import FloorError, VerificationError
from onnxprune.search.judge import Judge
from onnxprune.search.largest import TIME
from onnxprune.verdict import share_that_agrees


@dataclass(frozen=True)
class Point:
    """One model that was tried.

    Attributes:
        sparsity: asked for: share of all prunable weights (or of what ``--budget`` counts) that goes.
        zeros: weights that are zero, or removed with their units.
        bytes: estimated size of its file.
        metric: on the selection samples (or the user's own); None without a metric.
        agreement: with the dense model on the selection samples; None when nothing can be compared.
        final_metric: the same on the final samples, None when it was not looked at.
        final_agreement: the same.
        tuned: steps of training that it had.
        holds: whether it holds the floor on both.
        why: why not, "" when it does.
        seconds: that it took.
        known: whether all of it was known from an earlier run.
    """

    sparsity: float
    zeros: int = 0
    bytes: int = 0
    metric: float | None = None
    agreement: float | None = None
    final_metric: float | None = None
    final_agreement: float | None = None
    tuned: int = 0
    holds: bool = False
    why: str = ""
    seconds: float = 0.0
    known: bool = False

    @property
    def fell(self) -> bool:
        """Whether it held on the selection samples, but not on the final ones."""
        return not self.holds and (self.final_metric is not None or self.final_agreement is not None)


@dataclass
class Search:
    """What was tried and what came of it.

    Attributes:
        selection: chooses.
        final: may only turn down.
        points: in the order in which they were tried.
        stopped: why the search ended.
        chosen: the point that was written, None while there is none.
        notes: what the user must know, one sentence each.
    """

    selection: Judge
    final: Judge
    points: list[Point] = field(default_factory=list)
    stopped: str = ""
    chosen: Point | None = None
    notes: list[str] = field(default_factory=list)

    def report(self) -> dict[str, Any]:
        """Return the curve as plain values, the least compressed model first."""
        floor, measure = self.selection.floor, self.selection.measure
        return {
            "dense_metric": floor.dense,
            "metric_bound": floor.bound,
            "agreement_bound": floor.agreement,
            "own_data": measure is not None and measure.own_data,
            "selection_samples": self.selection.data.samples,
            "final_samples": self.final.data.samples,
            "chosen": self.chosen.sparsity if self.chosen is not None else None,
            "stopped": self.stopped,
            "notes": list(self.notes),
            "points": [
                dataclasses.asdict(point)
                for point in sorted(self.points, key=lambda p: (p.sparsity, p.tuned))
            ],
        }

    def check(self, metric: float | None, agreements: Sequence[Any]) -> None:
        """Hold the written model against the floor.

        Raises:
            VerificationError: when it misses what the same weights held in memory.
        """
        why = self.final.floor.why_not(metric, share_that_agrees(agreements))
        if why:
            raise VerificationError(
                f"the written model misses the floor that it held in memory: {why}",
                "--target-runtime stock writes what was measured; or allow a little more",
            )

    def choose(self, point: Point) -> None:
        """Take ``point``; say so when the final samples turned down what the selection samples had chosen."""
        self.chosen = point
        if self.stopped == TIME:
            self.notes.append(
                f"out of time after {len(self.points)} models: a higher sparsity may hold; raise --time-limit"
            )
        more = [p for p in self.points if p.fell and p.zeros > point.zeros]
        if more:
            fell = max(more, key=lambda p: p.zeros)
            self.notes.append(
                f"sparsity {fell.sparsity:.2f} held on the selection samples but not on the final ones "
                f"({fell.why}), so the next less compressed model that holds on both was taken"
            )

    def failure(self) -> FloorError:
        """Return the error for a search that found nothing."""
        floor, tried = self.selection.floor, sorted(self.points, key=lambda p: p.sparsity)
        wanted = [] if floor.bound is None else [f"metric {floor.bound:.6g} (dense {floor.dense:.6g})"]
        wanted += [] if floor.agreement is None else [f"agreement {floor.agreement:g}"]
        hint = "allow more, exclude sensitive layers, give more --data, or add --finetune"
        if self.stopped == TIME:
            hint = "raise --time-limit"
        elif any(point.fell for point in tried):
            hint = "some held on the selection samples but not on the final ones: give more samples"
        return FloorError(
            f"no pruned model holds the floor of {' and '.join(wanted)}; {len(tried)} were tried, "
            f"at sparsities from {tried[0].sparsity:.2f} to {tried[-1].sparsity:.2f}",
            hint,
            self.report(),
        )
