"""Find the most compressed model that holds a floor: ``--max-drop`` and ``--min-agreement``.

What all candidates need is measured once. Each is made on the calibration samples (``candidate.py``), and
judged in memory on the selection samples. Those that hold are judged on the final samples as well, which
have no part in the search: they can only turn a candidate down.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from onnxprune.clock import now
from onnxprune.finetune.stage import share_of
from onnxprune.outcome import Outcome
from onnxprune.progress import Progress
from onnxprune.search.candidate import Candidate, Maker
from onnxprune.search.judge import Judge
from onnxprune.search.known import Known, LostError
from onnxprune.search.largest import bisect
from onnxprune.search.models import Models, Trial
from onnxprune.search.trials import Point, Search

STEP = 0.01  # of sparsity: the search ends when it is known so well
NEAR = 3.0  # a candidate that loses no more than so many times what is allowed is worth some training
SHORT = 8  # its training takes this part of the full one


@dataclass
class _Spent:
    """The time of one search: an earlier run's counts where its measurements do.

    Attributes:
        start: when the first model was tried.
        saved: seconds of measuring before that, and those that an earlier run spent in place of this one.
        longest: seconds of the longest trial.
    """

    start: float
    saved: float = 0.0
    longest: float = 0.0

    def count(self, seconds: float, known: float) -> None:
        """Count a trial that took ``seconds`` now and ``known`` when it was measured."""
        self.saved += max(0.0, known - seconds)
        self.longest = max(self.longest, known)

    def ends(self, limit: float) -> bool:
        """Whether another trial may end after ``limit`` seconds."""
        return now() - self.start + self.saved + self.longest > limit


class Automatic:
    """One search.

    Args:
        outcome: with everything up to the plan.
        judges: for selection and for the end.
        maker: of the candidates.
        known: what an earlier run measured.
        progress: told about the stages.
    """

    def __init__(
        self, outcome: Outcome, judges: tuple[Judge, Judge], maker: Maker, known: Known, progress: Progress
    ) -> None:
        self.outcome, self.judges, self.maker, self.known = outcome, judges, maker, known
        self.models = Models(outcome, judges, maker, known, progress)
        self.progress = progress
        self._begin(0.0)

    def run(self) -> Candidate:
        """Return the most compressed model that holds; complete the outcome with what it is.

        Raises:
            FloorError: when none does.
        """
        outcome, begin = self.outcome, now()
        with outcome.clock.stage("measure"):
            self.maker.measure()
        measured = now() - begin
        while True:
            self._begin(self.known("measure seconds", lambda: measured))
            try:
                best = self._found()
                break
            except LostError as lost:  # all else is known: what led to it is not measured again
                self.known.forget(lost.name)
        made = best.candidate()
        self.search.choose(best.point)
        outcome.take(made)
        outcome.finetuning, outcome.search = best.finetuning, self.search
        return made

    def _begin(self, measured: float) -> None:
        """Begin the search, after ``measured`` seconds of measuring."""
        self.search = Search(*self.judges, notes=[self.known.note] if self.known.note else [])
        self.best: Trial | None = None
        self.spent = _Spent(now(), saved=measured)

    def _found(self) -> Trial:
        """Return the best model, made by then."""
        recipe, clock = self.outcome.recipe, self.outcome.clock
        with clock.stage("search"):
            self.search.stopped = bisect(
                lambda step: self._try(round(step * STEP, 2)),
                int(self.maker.highest / STEP + 1e-9),
                patience=recipe.patience,
                expired=self._expired,
            )
            if self.best is None:
                raise self.search.failure()
            if not recipe.finetune:
                self.best.candidate()
        if recipe.finetune:
            with clock.stage("fine-tune"):
                self._tune(self.best)
                self.best.candidate()
        return self.best

    def _expired(self) -> bool:
        limit = self.outcome.recipe.time_limit
        return limit is not None and self.spent.ends(60 * limit)

    def _try(self, sparsity: float) -> float:
        """Prune to ``sparsity``; return how much of what may be lost is lost on the selection samples."""
        recipe = dataclasses.replace(
            self.outcome.recipe,
            sparsity=sparsity,
            max_drop=None,
            min_agreement=None,
            patience=None,
            time_limit=None,
        )
        start, before = now(), self.known.measured
        trial = self.models.pruned(recipe)
        if trial.point.why:
            self._keep(trial, start, before)
            return math.inf
        trial = self.models.judged(trial)
        floor = self.search.selection.floor
        if recipe.finetune and 1 < floor.used(trial.point.metric, trial.point.agreement) <= NEAR:
            short = share_of(self.outcome.recipe, SHORT)
            trial = self.models.judged(self.models.trained(trial, "short", short))
        point = self._keep(trial, start, before)
        if point.holds and (self.best is None or point.zeros >= self.best.point.zeros):
            self._better(dataclasses.replace(trial, point=point))
        elif trial.finetuning is not None:
            self.known.drop_weights(trial.name)
        used = floor.used(point.metric, point.agreement)
        if point.fell:  # what the final samples turn down does not hold: the search goes on below it
            used = max(used, self.search.final.floor.used(point.final_metric, point.final_agreement))
        return used

    def _better(self, trial: Trial) -> None:
        if self.best is not None and self.best.finetuning is not None:
            self.known.drop_weights(self.best.name)
        self.best = trial

    def _keep(self, trial: Trial, start: float, before: int) -> Point:
        """Add what was tried to the curve, with the time it took, now or in an earlier run."""
        known = self.known.measured == before
        took = now() - start
        seconds = self.known(f"{trial.name} seconds", lambda: round(took, 3))
        self.spent.count(took, seconds)
        point = dataclasses.replace(trial.point, seconds=seconds, known=known)
        self.search.points.append(point)
        earlier = " (known from an earlier run)" if known else ""
        self.progress.note(f"sparsity {point.sparsity:.2f}: {point.why or 'holds'}{earlier}")
        return point

    def _tune(self, best: Trial) -> None:
        """Train the model that was found in full, and keep that if it still holds."""
        start, before = now(), self.known.measured
        tuned = self.models.judged(self.models.trained(best, "full", self.outcome.recipe))
        if tuned.point.holds:
            self.best = dataclasses.replace(tuned, point=self._keep(tuned, start, before))
        else:
            self.known.drop_weights(tuned.name)
            self.search.notes.append(
                f"fine-tuning in full was undone: {tuned.point.why}; what is written held before it"
            )
