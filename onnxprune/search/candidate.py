"""What a search tries: models that are compressed to a share, made in one of two ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from onnxprune.files.tensors import estimated_bytes
from onnxprune.io import total_bytes
from onnxprune.layers import Layer
from onnxprune.model import Model
from onnxprune.outcome import Outcome
from onnxprune.passes.pack import pack
from onnxprune.plan import Measured, Plan, measure_layers, share_out
from onnxprune.progress import Progress
from onnxprune.pruned import Pruned, as_it_is
from onnxprune.recipe import Recipe
from onnxprune.sequential import Solved
from onnxprune.slim.ready import Ready, prepare
from onnxprune.slim.stage import Slimmed, slim
from onnxprune.slim.summary import parameters

HIGHEST = 0.98  # share that is tried at most


@dataclass(frozen=True)
class Candidate(Pruned):
    """A compressed model, and how much smaller it is.

    Attributes:
        gone: number of weights that are zero or removed.
        bytes: estimated size of its file.
        removal: what was known and what was removed, where units were.
    """

    gone: int
    bytes: int
    removal: tuple[Ready, Slimmed] | None = None


class Maker(Protocol):
    """Makes candidates from one dense model."""

    @property
    def highest(self) -> float:
        """Largest share that makes sense."""

    def measure(self) -> None:
        """Do once what all candidates need."""

    def make(self, recipe: Recipe) -> Candidate:
        """Return the model at ``recipe.sparsity``.

        Raises:
            ModelError: when not so much can go.
        """


@dataclass
class Weights:
    """Sets weights to zero: the layers are measured once, each candidate shares out its own sparsity."""

    outcome: Outcome
    solve: Callable[[Plan, Recipe], tuple[Model, tuple[Solved, ...]]]
    progress: Progress
    measured: Measured | None = field(default=None, init=False)
    dense_bytes: int = field(default=0, init=False)

    @property
    def highest(self) -> float:
        """Where patterns such as 2:4 end, or almost all."""
        return min(HIGHEST, self.outcome.recipe.pattern_limit)

    def measure(self) -> None:
        """Measure the layers."""
        o = self.outcome
        self.dense_bytes = _file_bytes(o.dense)
        self.measured = measure_layers(o.dense, o.layers, o.enlarged, o.recipe, self.progress)

    def make(self, recipe: Recipe) -> Candidate:
        """Share out the zeros and solve the layers."""
        o = self.outcome
        assert self.measured is not None
        plan = share_out(o.dense, o.layers, o.enlarged, recipe, self.measured)
        model, solved = self.solve(plan, recipe)
        dense = sum(layer.size * layer.dtype.itemsize for layer in o.layers)
        size = self.dense_bytes - dense + stored_bytes(model, o.layers, solved, recipe)
        return Candidate(model, o.layers, o.skips, plan, solved, sum(item.zeros for item in solved), size)


@dataclass
class Units:
    """Removes channels, heads and neurons: their order and damage are measured once.

    What turns out not to be removable stays in all candidates that follow.
    """

    outcome: Outcome
    progress: Progress
    ready: Ready | None = field(default=None, init=False)
    dense_bytes: int = field(default=0, init=False)

    @property
    def highest(self) -> float:
        """Almost all; groups keep a unit each, so that it ends before."""
        return HIGHEST

    def measure(self) -> None:
        """Find what can go, in which order, and what that costs."""
        o = self.outcome
        self.dense_bytes = _file_bytes(o.dense)
        self.ready = prepare(o.dense, o.enlarged, o.recipe, self.progress)

    def make(self, recipe: Recipe) -> Candidate:
        """Remove units and re-fit what stays."""
        o = self.outcome
        ready = self.ready
        assert ready is not None
        slimmed = slim(ready, o.enlarged, recipe, recipe.target_sparsity, self.progress)
        self.ready = ready.without(slimmed.kept)
        made = as_it_is(slimmed.model, recipe)
        gone = parameters(o.dense) - parameters(made.model)
        size = self.dense_bytes - estimated_bytes(o.dense.proto) + estimated_bytes(made.model.proto)
        return Candidate(
            made.model, made.layers, made.skips, made.plan, made.solved, gone, size, (ready, slimmed)
        )


def _file_bytes(dense: Model) -> int:
    return total_bytes(dense.path, allow_external=True) if dense.path else estimated_bytes(dense.proto)


def stored_bytes(model: Model, layers: Sequence[Layer], solved: Sequence[Solved], recipe: Recipe) -> int:
    """Return the bytes that the weights of ``layers`` will take in the file."""
    sizes = {layer.name: layer.size * layer.dtype.itemsize for layer in layers}
    pruned = [item for item in solved if item.zeros]
    if recipe.format == "packed":
        values = "fp16" if recipe.values == "fp16" else "same"
        stored = pack(model.copy(), [item.name for item in pruned], values=values)
        sizes.update({entry.name: entry.stored_bytes for entry in stored.weights})
    elif recipe.format == "sparse-initializer":
        for layer in layers:
            kept = layer.size - sum(item.zeros for item in pruned if item.name == layer.name)
            if kept < layer.size:
                sizes[layer.name] = kept * (layer.dtype.itemsize + 8)  # each value has an int64 index
    return sum(sizes.values())
