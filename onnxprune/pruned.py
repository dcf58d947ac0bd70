"""A pruned model in memory, and what was done to its layers."""

from __future__ import annotations

from dataclasses import dataclass

from onnxprune.layers import Layer, Skip, find_layers
from onnxprune.model import Model
from onnxprune.plan import Plan
from onnxprune.recipe import Recipe
from onnxprune.sequential import Solved


@dataclass(frozen=True)
class Pruned:
    """A pruned model.

    Attributes:
        model: with plain weights.
        layers: of that model, in graph order.
        skips: what is no layer of it.
        plan: that its weights were pruned by.
        solved: what became of each layer.
    """

    model: Model
    layers: tuple[Layer, ...]
    skips: tuple[Skip, ...]
    plan: Plan
    solved: tuple[Solved, ...]


def as_it_is(model: Model, recipe: Recipe) -> Pruned:
    """Return a model whose weights get no zeros, such as one that units were removed from."""
    layers, skips = find_layers(
        model, include=recipe.include, exclude=recipe.exclude, min_size=recipe.min_size
    )
    plan = Plan({layer.name: 0 for layer in layers}, {}, {})
    solved = tuple(Solved(layer.name, 0, None, recipe.damping) for layer in layers)
    return Pruned(model, layers, skips, plan, solved)
