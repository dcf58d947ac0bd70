"""Judge a candidate of a search in memory: on samples that choose, or on others that may turn it down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.calibration.data import CalibrationData
from onnxprune.errors import DataError
from onnxprune.evaluate import agreement
from onnxprune.layers import Layer
from onnxprune.measure import Measure
from onnxprune.model import Model
from onnxprune.recipe import Recipe
from onnxprune.search.floor import Drop, Floor
from onnxprune.verdict import share_that_agrees


@dataclass(frozen=True)
class Judge:
    """Measures models on one set of samples and holds them against its floor."""

    floor: Floor
    session: Any  # of the dense model
    dense: Model
    data: CalibrationData
    measure: Measure | None

    @classmethod
    def make(
        cls,
        recipe: Recipe,
        dense: Model,
        session: Any,
        data: CalibrationData,
        measure: Measure | None,
        before: float | None = None,
    ) -> Judge:
        """Measure the dense model for the floor, unless ``before`` says what that gives."""
        floor = Floor(agreement=recipe.min_agreement)
        if measure is not None and recipe.max_drop is not None:
            value = before if before is not None else measure(session, data)
            drop = Drop.parse(recipe.max_drop).of(value, measure.scale)
            floor = Floor(value, drop, measure.lower, recipe.min_agreement)
        return cls(floor, session, dense, data, measure)

    def __call__(self, session: Any, metric: float | None = None) -> tuple[float | None, float | None]:
        """Return metric (unless it is given) and agreement of a session."""
        if metric is None and self.measure is not None:
            metric = self.measure(session, self.data, finite=False)
        return metric, share_that_agrees(agreement(self.session, session, self.data.batches, self.dense))


def as_stored(model: Model, layers: Sequence[Layer], recipe: Recipe) -> Model:
    """Return the model with the weights that its file will have: rounded to fp16, if the recipe says so."""
    if recipe.values != "fp16" or recipe.format != "packed":
        return model
    rounded = model.copy()
    for layer in layers:
        weight = model.array(layer.name)
        with np.errstate(over="ignore"):
            half = weight.astype(np.float16).astype(weight.dtype)
        if weight.dtype.itemsize > 2 and np.isfinite(half).all() and not np.all(weight):
            rounded.set_array(layer.name, half)
    return rounded


def split_held_out(
    held_out: CalibrationData, rest: CalibrationData, seed: int
) -> tuple[CalibrationData, CalibrationData]:
    """Return (selection, final) samples out of those that were held out.

    Raises:
        DataError: when there are too few for three disjoint parts.
    """
    selection, final = held_out.split(0.5, seed + 1) if held_out is not rest else (held_out, held_out)
    if held_out is rest or not final.batches:
        raise DataError(
            f"a search needs three samples, since some choose and some judge; there are {rest.samples}",
            "give more --data",
        )
    return selection, final
