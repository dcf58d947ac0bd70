"""Prune from statistics that grow with the data: :class:`Pruner`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from onnxprune.calibration.collect import Stage
from onnxprune.calibration.data import CalibrationData
from onnxprune.errors import UsageError
from onnxprune.io import load, save
from onnxprune.layers.heads import heads
from onnxprune.model import Model
from onnxprune.online import statefile
from onnxprune.online.growing import GrowingSums
from onnxprune.online.oneshot import measure_sums, solutions
from onnxprune.opening import find_prunable, folded, recipe_with
from onnxprune.parallel import workers
from onnxprune.passes.pack import pack
from onnxprune.plan import Measured, method_of, share_out
from onnxprune.recipe import Recipe
from onnxprune.recipe.mixture import Mixture
from onnxprune.sequential import layer_pattern
from onnxprune.verify import Expected, verify_file


class Pruner:
    """Prunes a model from sums over all data that it was ever fed; new data add to them.

    >>> pruner = Pruner("model.onnx")  # doctest: +SKIP
    >>> pruner.feed(batch)  # doctest: +SKIP
    >>> pruner.save("model.pruned.onnx", 0.7)  # doctest: +SKIP

    What is kept is the dense model's second moments of each layer's inputs (``in_features`` squared numbers
    each), however much is fed, and fewer than 16 samples of each shape that wait for a batch to be full:
    so samples give the same sums in whatever portions they come.

    It differs from :func:`onnxprune.prune`, which needs all data at once: there each layer is solved on the
    inputs that the already pruned layers before it give, and aimed at the dense model's outputs; here all
    layers are solved on the dense model's inputs (one-shot, as ``--solve one-shot``), so errors pile up from
    layer to layer. Zeros are shared by the layers' own errors (``--allocation error``) or by a rule, since
    their effect on the output cannot be had from sums. At high sparsity expect less accuracy. The file is
    for stock ONNX Runtime: kernels are chosen by measuring, on data.

    Args:
        model: a path, or a loaded model (left as it is).
        recipe: settings; ``options`` override it. ``allocation`` ``sensitivity`` becomes
            ``error``; what needs data to run is refused.
        **options: fields of :class:`~onnxprune.recipe.Recipe`.

    Raises:
        ModelError: when there is nothing to prune.
        UsageError: for options that do not apply.
    """

    def __init__(
        self,
        model: str | Path | Model | onnx.ModelProto,
        *,
        recipe: Recipe | None = None,
        **options: Any,
    ) -> None:
        self.recipe = _usable(recipe_with(recipe, options, None)[0])
        external = self.recipe.allow_external
        given = model if isinstance(model, Model) else load(model, allow_external=external)
        self.model = folded(given, self.recipe)
        self.layers, _ = find_prunable(self.model, self.recipe)
        self._sums = GrowingSums(self.model, self.layers, self.recipe)
        self._curves: tuple[int, Measured] | None = None

    @property
    def samples(self) -> int:
        """Number of samples fed so far."""
        return self._sums.samples

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Layers that read the same values, in the order of the graph."""
        return self._sums.stages

    def feed(self, data: Mapping[str, Any] | NDArray[Any] | Iterable[Any]) -> int:
        """Add samples to the sums.

        Args:
            data: a dictionary (a batch or a single sample), an array for a model with one input, or an
                iterable of such, of any length; it is read once, one item at a time.

        Returns:
            The number of samples fed so far.

        Raises:
            DataError: when they do not fit the model's inputs. What came before them was added.
            ModelError: when activations are not finite; their batch was not added.
        """
        return self._sums.feed(data)

    def prune(self, sparsity: float | None = None) -> Model:
        """Return a pruned copy of the model, with plain weights; the sums stay, to be added to.

        Args:
            sparsity: share of zeros over all prunable weights; default as in the recipe.

        Raises:
            DataError: when nothing was fed.
            ModelError: when statistics are not finite, or cannot be inverted.
        """
        return self._pruned(sparsity)[0]

    def save(self, path: str | Path, sparsity: float | None = None, *, force: bool = False) -> Path:
        """Prune, store as the recipe says and write; the file is read back and checked first.

        Args:
            path: of the ``.onnx`` file.
            sparsity: as in :meth:`prune`.
            force: overwrite an existing file.

        Raises:
            VerificationError: when what was written is not what was planned; no file is left then.
            UsageError: when the file exists, without ``force``.
        """
        model, zeros, patterns = self._pruned(sparsity)
        final, recipe = model.copy(), self.recipe
        if recipe.format == "packed":
            pack(final, [name for name, count in zeros.items() if count], values=recipe.values)
        cast = recipe.format == "packed" and recipe.values == "fp16"
        expected = Expected(self.model, model, self.layers, zeros, patterns, cast)
        nothing = CalibrationData((), 0, False, "")  # sums can be pruned from, not run
        saved = save(
            final,
            path,
            force=force,
            check=lambda place: verify_file(place, expected, nothing, recipe.threads),
        )
        return Path(saved[0])

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Return everything that was learnt from the data as arrays by name; see :meth:`load_state_dict`."""
        return self._sums.state_dict()

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what :meth:`state_dict` returned, in place of what was learnt here.

        Raises:
            DataError: when it is of another model or other layers, or not complete.
        """
        self._curves = None
        self._sums.load_state_dict(state)

    def save_state(self, path: str | Path, *, force: bool = False) -> None:
        """Write :meth:`state_dict` to an ``.npz`` file, complete or not at all.

        Raises:
            UsageError: when the file exists, without ``force``.
        """
        statefile.write(Path(path), self.state_dict(), force=force)

    def load_state(self, path: str | Path) -> None:
        """Read what :meth:`save_state` wrote; see :meth:`load_state_dict`.

        Raises:
            DataError: when the file is no state of this model.
        """
        self.load_state_dict(statefile.read(Path(path)))

    def _pruned(self, sparsity: float | None) -> tuple[Model, dict[str, int], dict[str, Any]]:
        """Return the pruned copy, its zeros and their patterns."""
        recipe = self.recipe if sparsity is None else dataclasses.replace(self.recipe, sparsity=sparsity)
        sums = self._sums.total()
        with workers(recipe.threads):
            if self._curves is None or self._curves[0] != self.samples:
                self._curves = self.samples, measure_sums(self.model, self.stages, sums, recipe)
            data = CalibrationData((), 0, False, "")
            plan = share_out(self.model, self.layers, data, recipe, self._curves[1])
            pruned, zeros, patterns = self.model.copy(), {}, {}
            method = method_of(recipe, last=heads(self.model, self.layers))
            wanted = {layer.name: (plan.zeros[layer.name],) for layer in self.layers}
            kinds = {
                layer.name: plan.patterns.get(layer.name, layer_pattern(layer, method))
                for layer in self.layers
            }
            solved = solutions(
                self.model, self.stages, sums, method, wanted, plan.tied, repair=recipe.refit, patterns=kinds
            )
            for layer, (solution,) in solved:
                for name, array in solution.arrays(self.model, layer, pruned).items():
                    pruned.set_array(name, array)
                zeros[layer.name] = solution.zeros
                patterns[layer.name] = kinds[layer.name]
        return pruned, zeros, patterns


def _usable(recipe: Recipe) -> Recipe:
    """Return the recipe as it is used here.

    Raises:
        UsageError: when it asks for what needs data at hand.
    """
    asked = {
        "a floor to search for": recipe.searches,
        "--finetune": recipe.finetune,
        "--augment": recipe.augment not in (("auto",), ("none",)),
        f"--pattern {recipe.pattern}": recipe.pattern == "auto" or recipe.structured is not None,
        "--threshold": recipe.threshold,
        "--target-size": recipe.target_size,
        "--target-speedup": recipe.target_speedup,
        "--budget flops": recipe.budget == "flops",
        "--attention": recipe.attention != ("off",),
        f"--criterion {recipe.criterion}": Mixture.parse(recipe.criterion).gradients,
    }
    wrong = [name for name, given in asked.items() if given]
    if wrong:
        raise UsageError(
            f"{wrong[0]} needs data to run, a Pruner has only sums over them", "onnxprune.prune does it"
        )
    if recipe.format == "sparse-initializer":
        raise UsageError("a Pruner writes --format packed or dense", "onnxprune.prune writes the rest")
    if recipe.allocation == "sensitivity":
        recipe = dataclasses.replace(recipe, allocation="error")
    return dataclasses.replace(recipe, solve="one-shot", target_runtime="stock")
