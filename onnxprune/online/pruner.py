"""Prune from statistics that grow with the data: :class:`Pruner`."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.calibration.batching import AUTO_BATCH_ROWS, batch_key, join, row_count
from onnxprune.calibration.collect import Stage, collect, find_stages, token_counts
from onnxprune.calibration.data import CalibrationData
from onnxprune.calibration.inputs import Feed, model_inputs
from onnxprune.calibration.mask import row_mask
from onnxprune.calibration.sources.stream import pieces
from onnxprune.calibration.stats import Moments
from onnxprune.calibration.store import ArrayStore
from onnxprune.calibration.streams import Streams
from onnxprune.errors import DataError, ModelError, UsageError
from onnxprune.io import load, save
from onnxprune.layers.heads import heads
from onnxprune.model import Model
from onnxprune.online import statefile
from onnxprune.online.oneshot import Sums, measure_sums, solutions
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
        self._inputs = model_inputs(self.model)
        sites = max(len(layer.sites) for layer in self.layers)
        self.stages = tuple(
            stage for site in range(sites) for stage in find_stages(self.model, self.layers, site)
        )
        self.samples = self._batches = 0
        self._sums: list[Sums] = [self._empty(stage) for stage in self.stages]
        self._waiting: dict[tuple[object, ...], list[Feed]] = {}
        self._sessions: dict[object, Any] = {}
        self._curves: tuple[int, Measured] | None = None

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
        single = isinstance(data, Mapping | np.ndarray)
        feeds: Iterable[Any] = [data] if single else data
        full = self._inputs.fixed or AUTO_BATCH_ROWS
        for piece in pieces(feeds, self._inputs, "data"):
            count = row_count(piece, self._inputs)
            own = {name: np.array(array) for name, array in piece.items()}  # a view keeps its whole batch
            waiting = self._waiting.setdefault(batch_key(own, self._inputs, {}), [])
            waiting.append(own)
            self.samples += count
            if not self._inputs.batched or len(waiting) * count >= full:
                batch = join(waiting, self._inputs, {}) if len(waiting) > 1 else own
                try:
                    self._add_all(batch)
                except ModelError:
                    self.samples -= sum(row_count(one, self._inputs) for one in waiting)
                    raise
                finally:
                    waiting.clear()
        return self.samples

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
        state = {
            "model": np.array(self._digest()),
            "samples": np.array(self.samples),
            "batches": np.array(self._batches),
        }
        for number, sums in enumerate(self._sums):
            state |= statefile.put(f"sums.{number}.", sums)
        groups = [group for group in self._waiting.values() if group]
        for number, group in enumerate(groups):
            joined = join(group, self._inputs, {})
            state |= {f"waiting.{number}.{name}": statefile.plain(array) for name, array in joined.items()}
        return state

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what :meth:`state_dict` returned, in place of what was learnt here.

        Raises:
            DataError: when it is of another model or other layers, or not complete.
        """
        if str(state.get("model", "")) != self._digest():
            raise DataError(
                f"the state is not one of {self.model.name} with these layers",
                "a Pruner of the same model, --include, --exclude and --min-size reads it",
            )
        try:
            sums = [
                statefile.take(state, f"sums.{number}.", self._empty(stage))
                for number, stage in enumerate(self.stages)
            ]
            samples, batches = int(state["samples"]), int(state["batches"])
        except (KeyError, ValueError) as error:
            raise DataError(f"the state of {self.model.name} is damaged: {error}") from error
        self._sums, self.samples, self._batches = sums, samples, batches
        self._waiting, self._curves = {}, None
        for feed in statefile.groups(state, "waiting."):
            rows = pieces([feed], self._inputs, "state")
            found = [{name: np.array(array) for name, array in row.items()} for row in rows]
            self._waiting[batch_key(found[0], self._inputs, {})] = found

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

    def _digest(self) -> str:
        return statefile.digest(self.model, self.layers)

    def _empty(self, stage: Stage) -> Sums:
        layer = stage.layers[0]
        groups, _, features = layer.view.matrix
        if layer.kind == "embedding":
            return np.zeros(layer.view.stored[0], dtype=np.int64)
        return Moments.zeros(groups, features)

    def _add_all(self, batch: Feed) -> None:
        """Add a batch to the sums of all stages, or to none: one that overflows must not spoil the others."""
        before = copy.deepcopy(self._sums)
        try:
            self._add(self._sums, batch, self._batches)
        except ModelError:
            self._sums = before
            raise
        self._batches += 1

    def _add(self, sums: list[Sums], batch: Feed, number: int) -> None:
        """Add a batch, in place."""
        values = {name for stage in self.stages for name in stage.reads}
        masks = [row_mask(batch)]
        with ArrayStore(int(self.recipe.max_memory * 2**30)) as store, workers(self.recipe.threads):
            streams = _Streams(self, batch, values, store)
            streams.advance(sorted(values))
            for place, stage in enumerate(self.stages):
                found = sums[place]
                if isinstance(found, Moments):
                    seed = self.recipe.seed + number
                    collect(streams, stage, masks, batches=[0], seed=seed, into=found)
                else:
                    found += token_counts(streams, stage, masks)

    def _all_sums(self) -> list[Sums]:
        """Return the sums with the samples that wait; the same object each time when none does."""
        if not self.samples:
            raise DataError("nothing was fed, so there is nothing to prune from", "call feed first")
        waiting = [group for group in self._waiting.values() if group]
        if not waiting or (self._inputs.fixed and self._batches):
            return self._sums
        sums = copy.deepcopy(self._sums)
        for number, group in enumerate(waiting):
            self._add(sums, join(group, self._inputs, {}), self._batches + number)
        return sums

    def _pruned(self, sparsity: float | None) -> tuple[Model, dict[str, int], dict[str, Any]]:
        """Return the pruned copy, its zeros and their patterns."""
        recipe = self.recipe if sparsity is None else dataclasses.replace(self.recipe, sparsity=sparsity)
        sums = self._all_sums()
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


class _Streams(Streams):
    """The dense stream over one batch; its session is the same for every batch."""

    def __init__(self, pruner: Pruner, batch: Feed, values: Iterable[str], store: ArrayStore) -> None:
        recipe, batched = pruner.recipe, pruner._inputs.batched
        self._sessions = pruner._sessions
        super().__init__(pruner.model, None, [batch], values, store, recipe.threads, batched)

    def _session(self, *asked: Any) -> Any:
        """Return the session of the segment that computes all values: there is only one."""
        if not self._sessions:
            self._sessions["all"] = super()._session(*asked)
        return self._sessions["all"]


def _usable(recipe: Recipe) -> Recipe:
    """Return the recipe as it is used here.

    Raises:
        UsageError: when it asks for what needs data at hand.
    """
    asked = {
        "a floor to search for": recipe.searches,
        "--finetune": recipe.finetune,
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
