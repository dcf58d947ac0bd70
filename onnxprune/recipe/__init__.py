"""What a run is told to do: the recipe, the words its fields take, and the checks of what goes together."""

from onnxprune.recipe.recipe import Recipe as Recipe

__all__ = ["Recipe"]
