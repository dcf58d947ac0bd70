"""Find the most compressed model that holds a floor: ``--max-drop`` and ``--min-agreement``.

What all candidates need is measured once. Each is made on the calibration samples (``candidate.py``), and
judged in memory on the selection samples. Those that hold are judged on the final samples as well, which
have no part in the search: they can only turn a candidate down.
"""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from typing import Any

from onnxprune.errors import ModelError
from onnxprune.finetune.stage import share_of, tune
from onnxprune.inmemory import session_of
from onnxprune.outcome import Outcome
from onnxprune.progress import Progress
from onnxprune.recipe import Recipe
from onnxprune.search.candidate import Candidate, Maker
from onnxprune.search.judge import Judge, as_stored
from onnxprune.search.largest import bisect
from onnxprune.search.trials import Point, Search

STEP = 0.01  # of sparsity: the search ends when it is known so well
NEAR = 3.0  # a candidate that loses no more than so many times what is allowed is worth some training
SHORT = 8  # its training takes this part of the full one


@dataclass
class _Best:
    """The most compressed model so far that holds the floor."""

    point: Point
    made: Candidate
    finetuning: dict[str, Any] | None = None


class Automatic:
    """One search.

    Args:
        outcome: with everything up to the plan.
        judges: for selection and for the end.
        maker: of the candidates.
        progress: told about the stages.
    """

    def __init__(
        self, outcome: Outcome, judges: tuple[Judge, Judge], maker: Maker, progress: Progress
    ) -> None:
        self.outcome, self.maker, self.progress = outcome, maker, progress
        self.search = Search(*judges)
        self.best: _Best | None = None
        self.longest, self.start = 0.0, time.monotonic()

    def run(self) -> Candidate:
        """Return the most compressed model that holds; complete the outcome with what it is.

        Raises:
            FloorError: when none does.
        """
        outcome, recipe, clock = self.outcome, self.outcome.recipe, self.outcome.clock
        with clock.stage("measure"):
            self.maker.measure()
        with clock.stage("search"):
            self.search.stopped = bisect(
                lambda step: self._try(round(step * STEP, 2)),
                int(self.maker.highest / STEP + 1e-9),
                patience=recipe.patience,
                expired=self._expired,
            )
        if self.best is None:
            raise self.search.failure()
        if recipe.finetune:
            with clock.stage("fine-tune"):
                self._tune_best()
        best = self.best
        self.search.choose(best.point)
        outcome.take(best.made)
        outcome.finetuning, outcome.search = best.finetuning, self.search
        return best.made

    def _expired(self) -> bool:
        limit = self.outcome.recipe.time_limit
        return limit is not None and time.monotonic() - self.start + self.longest > 60 * limit

    def _try(self, sparsity: float) -> float:
        """Prune to ``sparsity``; return how much of what may be lost is lost on the selection samples."""
        outcome, start = self.outcome, time.monotonic()
        recipe = dataclasses.replace(
            outcome.recipe,
            sparsity=sparsity,
            max_drop=None,
            min_agreement=None,
            patience=None,
            time_limit=None,
        )
        try:
            made = self.maker.make(recipe)
        except ModelError as error:  # nothing left of some layer: so far it cannot be pruned
            self._keep(Point(sparsity, why=str(error)), start)
            return math.inf
        best = self._judged(_Best(Point(sparsity, made.gone, made.bytes), made))
        floor = self.search.selection.floor
        if recipe.finetune and 1 < floor.used(best.point.metric, best.point.agreement) <= NEAR:
            best = self._judged(self._tuned(best, share_of(outcome.recipe, SHORT)))
        self._keep(best.point, start)
        if best.point.holds and (self.best is None or made.gone >= self.best.point.zeros):
            self.best = best
        used = floor.used(best.point.metric, best.point.agreement)
        if best.point.fell:  # what the final samples turn down does not hold: the search goes on below it
            judged = self.search.final.floor.used(best.point.final_metric, best.point.final_agreement)
            used = max(used, judged)
        return used

    def _keep(self, point: Point, start: float) -> None:
        seconds = time.monotonic() - start
        self.longest = max(self.longest, seconds)
        self.search.points.append(dataclasses.replace(point, seconds=round(seconds, 3)))
        self.progress.note(f"sparsity {point.sparsity:.2f}: {point.why or 'holds'}")

    def _judged(self, tried: _Best) -> _Best:
        """Return it with what both judges say; the final one is only asked when the first is content."""
        outcome, selection, final = self.outcome, self.search.selection, self.search.final
        self.progress.stage(f"judging sparsity {tried.point.sparsity:.2f}")
        stored = as_stored(tried.made.model, tried.made.layers, outcome.recipe)
        session = session_of(stored, threads=outcome.recipe.threads, name="the pruned model")
        metric, agreed = selection(session)
        why = selection.floor.why_not(metric, agreed)
        point = dataclasses.replace(
            tried.point,
            metric=metric,
            agreement=agreed,
            final_metric=None,  # it may have been judged before it was trained
            final_agreement=None,
            holds=False,
            why=why,
        )
        if not why:
            own = final.measure is not None and final.measure.own_data
            metric, agreed = final(session, metric if own else None)
            why = final.floor.why_not(metric, agreed)
            point = dataclasses.replace(
                point,
                final_metric=metric,
                final_agreement=agreed,
                holds=not why,
                why=f"on the final samples: {why}" if why else "",
            )
        return dataclasses.replace(tried, point=point)

    def _tuned(self, tried: _Best, recipe: Recipe) -> _Best:
        outcome = self.outcome
        model, found = tune(
            outcome.dense,
            tried.made.model,
            tried.made.layers,
            outcome.calibration,
            self.search.selection.data,
            recipe,
            self.progress,
        )
        point = dataclasses.replace(tried.point, tuned=tried.point.tuned + found["steps"])
        made = dataclasses.replace(tried.made, model=model)
        return dataclasses.replace(tried, point=point, made=made, finetuning=found)

    def _tune_best(self) -> None:
        """Train the model that was found in full, and keep that if it still holds."""
        assert self.best is not None
        start = time.monotonic()
        tuned = self._judged(self._tuned(self.best, self.outcome.recipe))
        if tuned.point.holds:
            self._keep(tuned.point, start)
            self.best = tuned
        else:
            self.search.notes.append(
                f"fine-tuning in full was undone: {tuned.point.why}; what is written held before it"
            )
