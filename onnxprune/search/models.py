"""The models of a search: pruned, trained and judged where that is not known from an earlier run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from onnxprune.errors import ModelError
from onnxprune.finetune.stage import tune
from onnxprune.inmemory import session_of
from onnxprune.model import Model
from onnxprune.outcome import Outcome
from onnxprune.progress import Progress
from onnxprune.recipe import Recipe
from onnxprune.search.candidate import Candidate, Maker
from onnxprune.search.judge import Judge, as_stored
from onnxprune.search.known import Known
from onnxprune.search.trials import Point


class Once:
    """A candidate that is made when it is asked for the first time."""

    def __init__(self, make: Callable[[], Candidate]) -> None:
        self._make: Callable[[], Candidate] | None = make
        self._made: Candidate | None = None

    def __call__(self) -> Candidate:
        """Return it.

        Raises:
            LostError: when it was trained by an earlier run, and its weights are gone.
        """
        if self._made is None:
            assert self._make is not None
            self._made, self._make = self._make(), None  # what it was made from is free
        return self._made


@dataclass(frozen=True)
class Trial:
    """A model that is tried.

    Attributes:
        name: of what is known of it: its sparsity, and what training it had.
        point: what the report says of it.
        candidate: the model itself.
        finetuning: what its training did; None without.
    """

    name: str
    point: Point
    candidate: Once
    finetuning: dict[str, Any] | None = None


class Models:
    """Makes and judges models.

    Args:
        outcome: of the run.
        judges: for selection and for the end.
        maker: of the candidates.
        known: what an earlier run measured.
        progress: told about the stages.
    """

    def __init__(
        self, outcome: Outcome, judges: tuple[Judge, Judge], maker: Maker, known: Known, progress: Progress
    ) -> None:
        self.outcome, self.maker, self.known, self.progress = outcome, maker, known, progress
        self.selection, self.final = judges

    def pruned(self, recipe: Recipe) -> Trial:
        """Return the model at ``recipe.sparsity``; its point says why, where it cannot be pruned so far."""
        assert recipe.sparsity is not None
        name, once = f"{recipe.sparsity:.2f}", Once(lambda: self.maker.make(recipe))

        def measure() -> dict[str, Any]:
            try:
                made = once()
            except ModelError as error:  # nothing left of some layer: so far it cannot be pruned
                return {"zeros": 0, "bytes": 0, "why": str(error)}
            return {"zeros": made.gone, "bytes": made.bytes, "why": ""}

        return Trial(name, Point(recipe.sparsity, **self.known(name, measure)), once)

    def trained(self, trial: Trial, word: str, recipe: Recipe) -> Trial:
        """Return ``trial`` after the training that ``recipe`` asks for; ``word`` tells it from others."""
        name = f"{trial.name} {word}"

        def make() -> Candidate:
            base = trial.candidate()
            model, _ = self.known.weights(name, base.model, lambda: self._tune(base, recipe))
            return dataclasses.replace(base, model=model)

        once = Once(make)
        if self.known.found(name) is None:
            once()
        found = self.known.found(name)
        point = dataclasses.replace(trial.point, tuned=trial.point.tuned + found["steps"])
        return Trial(name, point, once, found)

    def _tune(self, base: Candidate, recipe: Recipe) -> tuple[Model, dict[str, Any]]:
        outcome, data = self.outcome, self.selection.data
        return tune(outcome.dense, base.model, base.layers, outcome.calibration, data, recipe, self.progress)

    def judged(self, trial: Trial) -> Trial:
        """Return it with what both judges say; the final one is only asked when the first is content."""
        self.progress.stage(f"judging sparsity {trial.point.sparsity:.2f}")
        sessions: list[Any] = []

        def session() -> Any:
            if not sessions:
                recipe, made = self.outcome.recipe, trial.candidate()
                stored = as_stored(made.model, made.layers, recipe)
                sessions.append(session_of(stored, threads=recipe.threads, name="the pruned model"))
            return sessions[0]

        chosen = self.known(f"{trial.name} selection", lambda: self.selection(session()))
        why = self.selection.floor.why_not(*chosen)
        # It may have been judged before it was trained
        point = dataclasses.replace(
            trial.point,
            metric=chosen[0],
            agreement=chosen[1],
            final_metric=None,
            final_agreement=None,
            holds=False,
            why=why,
        )
        if not why:
            own = self.final.measure is not None and self.final.measure.own_data
            judged = self.known(
                f"{trial.name} final", lambda: self.final(session(), chosen[0] if own else None)
            )
            why = self.final.floor.why_not(*judged)
            point = dataclasses.replace(
                point,
                final_metric=judged[0],
                final_agreement=judged[1],
                holds=not why,
                why=f"on the final samples: {why}" if why else "",
            )
        return dataclasses.replace(trial, point=point)
