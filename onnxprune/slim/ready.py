"""What structured pruning has to know before it chooses: what can go, in which order, and what that costs."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from onnxprune.attention.guide import NOTHING, Guide, make_guide
from onnxprune.calibration.data import CalibrationData
from onnxprune.calibration.mask import row_mask
from onnxprune.calibration.store import ArrayStore
from onnxprune.calibration.streams import Streams
from onnxprune.errors import ModelError
from onnxprune.kernels.feeds import typical_feeds
from onnxprune.layers import Layer, Skip, find_layers, why_skipped
from onnxprune.model import Model
from onnxprune.parallel import workers
from onnxprune.plan import probe_batches
from onnxprune.progress import Progress
from onnxprune.recipe import Recipe
from onnxprune.slim.branches import Branch, Shapes, find_branches, gated
from onnxprune.slim.gates import branch_effects
from onnxprune.slim.measure import measure
from onnxprune.slim.narrowing import Narrowing
from onnxprune.slim.proxy import narrowings_by_size
from onnxprune.slim.readers import Reader, find_readers, judged
from onnxprune.slim.selected import Stays, selected_branches, selected_groups
from onnxprune.slim.trial import failing, failing_branches
from onnxprune.slim.varied import varied_samples
from onnxprune.slim.works import Owners
from onnxprune.structure.find import find_structure
from onnxprune.structure.groups import Group, Pinned, Structure
from onnxprune.structure.sample import sample


@dataclass(frozen=True)
class Ready:
    """What is known before any number of units is chosen.

    Attributes:
        dense: the model.
        structure: its groups.
        narrowings: of the groups that may go.
        branches: residual branches that may go, and how far the output moves without each.
        skipped: units that stay, and why.
        layers: that may be re-fitted.
        feeds: one sample, for times and multiplications.
        shapes: of all values on it.
        failed: group name -> why removing its units fails.
        guide: what attention says.
    """

    dense: Model
    structure: Structure
    narrowings: tuple[Narrowing, ...]
    branches: tuple[tuple[Branch, float], ...]
    skipped: tuple[Pinned | Stays, ...]
    layers: tuple[Layer, ...]
    feeds: tuple[Mapping[str, Any], ...]
    shapes: Shapes = field(repr=False)
    failed: Mapping[str, str] = field(default_factory=dict)
    guide: Guide = NOTHING

    @functools.cached_property
    def owners(self) -> Owners:
        """Who owns which axis, of what may go."""
        groups = [item.group for item in self.narrowings]
        return Owners(groups, self.structure.layout, [branch for branch, _ in self.branches])

    def without(self, failed: Mapping[str, str]) -> Ready:
        """Return the same without groups whose removal fails: they are known to stay from now on.

        Args:
            failed: group name -> why.
        """
        if not failed:
            return self
        out = [item.group for item in self.narrowings if item.group.name in failed]
        left = tuple(item for item in self.narrowings if item.group.name not in failed)
        stay = (Stays(g.name, g.kind, g.units, _fails(failed[g.name])) for g in out)
        skipped = (*self.skipped, *stay)
        return replace(self, narrowings=left, skipped=skipped, failed={**self.failed, **failed})


def prepare(dense: Model, data: CalibrationData, recipe: Recipe, progress: Progress) -> Ready:
    """Find what can go, in which order, and what that costs.

    Raises:
        ModelError: when nothing can go.
    """
    structured = recipe.structured
    assert structured is not None
    progress.stage("following the shapes")
    structure = find_structure(dense, data.batches[0], recipe.threads)
    layers, alone = find_layers(dense, include=recipe.include, exclude=recipe.exclude, min_size=1)
    feeds = tuple(typical_feeds(data)[:1])
    shapes, _ = sample(dense, feeds[0], recipe.threads)
    groups, skipped = selected_groups(dense, structure, recipe)
    branches: tuple[tuple[Branch, float], ...] = ()
    if "layer" in structured.kinds:
        branches, stay = _branches(dense, feeds[0], shapes, data, recipe, progress)
        skipped += stay
    progress.stage("trying to remove units")
    failed = failing(dense, structure, groups, data.batches[0], recipe.threads)
    skipped += [Stays(g.name, g.kind, g.units, _fails(failed[g.name])) for g in groups if g.name in failed]
    groups = [group for group in groups if group.name not in failed]
    readers = find_readers(groups, layers)
    if not groups and not branches:
        raise ModelError(
            f"{dense.name}: nothing can be removed with --pattern {recipe.pattern}",
            _why_all_stay(skipped) or _nothing_found(alone),
        )
    guide = make_guide(dense, layers, data, recipe)
    fitted = judged(groups, readers)
    read = {group.name for group in fitted}
    readers = [reader for reader in readers if reader.group in read]
    narrowings = _measured(dense, fitted, readers, data, recipe, guide, progress)
    masks = [row_mask(batch) for batch in data.batches]
    probes = probe_batches(data, masks)
    narrowings += narrowings_by_size(
        dense,
        structure,
        [group for group in groups if group.name not in read],
        [data.batches[k] for k in probes],
        [masks[k] for k in probes],
        recipe.threads,
    )
    return Ready(
        dense, structure, tuple(narrowings), branches, tuple(skipped), layers, feeds, shapes, failed, guide
    )


def _why_all_stay(skipped: Sequence[Stays | Pinned]) -> str:
    """Return three of the reasons, failures first, each with what it is about, and the way out."""
    reasons: dict[str, str] = {}
    for item in sorted(skipped, key=lambda item: "fails: " not in item.reason):
        reasons.setdefault(item.reason, f"{item.name} ({item.kind}): {item.reason}")
    if not reasons:
        return ""
    found = "; ".join(list(reasons.values())[:3])
    return f"{found}. Patterns of zeros, such as block:4x1, leave all shapes as they are"


def _nothing_found(alone: tuple[Skip, ...]) -> str:
    reasons = why_skipped(alone)
    return "no channels, neurons or heads were found" + (
        f"; weights left alone: {reasons}" if reasons else ""
    )


def _fails(why: str) -> str:
    return f"removing its units fails: {why}"


def _branches(
    dense: Model,
    one: Mapping[str, Any],
    shapes: Shapes,
    data: CalibrationData,
    recipe: Recipe,
    progress: Progress,
) -> tuple[tuple[tuple[Branch, float], ...], list[Pinned | Stays]]:
    """Return the residual branches and how far the output moves without each, and why others stay."""
    feeds, others = varied_samples(dense, one, recipe.threads)
    branches, stay = selected_branches(dense, find_branches(dense, shapes, *others), recipe)
    failed = failing_branches(dense, branches, [one, *feeds[:1]], recipe.threads)
    stay += [Stays(name, "layer", 1, f"removing it fails: {why}") for name, why in failed.items()]
    branches = [branch for branch in branches if branch.name not in failed]
    if not branches:
        return (), stay
    progress.stage("measuring branches")
    model, gates = gated(dense, branches)
    masks = [row_mask(batch) for batch in data.batches]
    probes = probe_batches(data, masks)
    effects = branch_effects(
        model, gates, [data.batches[k] for k in probes], [masks[k] for k in probes], recipe.threads
    )
    return tuple((branch, effects[branch.name]) for branch in branches), stay


def _measured(
    dense: Model,
    groups: Sequence[Group],
    readers: Sequence[Reader],
    data: CalibrationData,
    recipe: Recipe,
    guide: Guide,
    progress: Progress,
) -> list[Narrowing]:
    if not groups:
        return []
    masks = [row_mask(batch) for batch in data.batches]
    targets = {name for reader in readers for name in reader.layer.sites[0].reads}
    outputs = recipe.allocation == "sensitivity"
    if outputs:
        targets |= set(dense.index.outputs)
    progress.stage("measuring units", len({reader.layer.name for reader in readers}))
    with ArrayStore(int(recipe.max_memory * 2**30)) as store, workers(recipe.threads):
        return measure(
            dense,
            groups,
            readers,
            Streams(dense, None, data.batches, targets, store, recipe.threads, data.batched),
            masks,
            probe_batches(data, masks),
            damping=recipe.damping,
            seed=recipe.seed,
            criterion=recipe.criterion,
            outputs=outputs,
            guide=guide,
            refit=recipe.refit,
            on_layer=lambda _: progress.advance(),
        )
