"""Which products of a model become ops for CUDA: those that a measured table says are faster so.

No kernel is run here, so the model can be written on another machine than the one that will run it. What does
not win stays an ordinary product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from onnxprune.kernels.decision import Decision, Selection
from onnxprune.kernels.devicetable import CUSPARSELT, DeviceTable, find_table
from onnxprune.model import Model
from onnxprune.parallel import workers
from onnxprune.passes.device_ops import rewrite_device
from onnxprune.passes.device_products import DeviceProduct, device_matrix, find_device_products
from onnxprune.passes.pack import pack
from onnxprune.passes.shapes import Shapes, infer
from onnxprune.recipe import Recipe
from onnxprune.report import units
from onnxprune.storage.device import LAYOUTS
from onnxprune.storage.device.functions import IMAGES, DeviceOp
from onnxprune.storage.device.layout import Layout
from onnxprune.storage.domain import packed_inputs
from onnxprune.storage.form import Array
from onnxprune.storage.report import PackReport, StoredWeight

# A measured gain from which a product is switched: less could be the spread between two measurements.
ENOUGH = 1.05
_CUSPARSELT_UNIT = 16  # rows and columns are multiples of it


@dataclass(frozen=True)
class Choice:
    """A layout for a weight.

    Attributes:
        layout: how it is stored.
        gain: how many times faster than dense a product is to be expected.
        many_rows: from so many rows of X on cuSPARSELt multiplies, 0 for never; None where nothing tells.
    """

    layout: Layout
    gain: float
    many_rows: int | None = None


def store_for_cuda(pruned: Model, weights: list[str], recipe: Recipe) -> tuple[Model, PackReport, Selection]:
    """Return a copy of ``pruned`` with ops for CUDA, other ``weights`` packed, and what became of each.

    Raises:
        UsageError: when the table of measurements cannot be read, or there are several.
        ResourceError: when there is none.
    """
    final = pruned.copy()
    selection = select_device(final, weights, find_table(recipe.cuda_table), recipe.batch or 1)
    switched = [name for name in weights if selection.decisions[name].op]
    with workers(recipe.threads):
        packed = pack(final, [name for name in weights if name not in switched], values=recipe.values)
    entries = {entry.name: entry for entry in packed.weights}
    for name in switched:
        node = final.graph.node[final.index.uses[name][0].index]
        stored = sum(final.array(tensor).nbytes for tensor in packed_inputs(node))
        entries[name] = StoredWeight(name, "packed", pruned.array(name).nbytes, stored)
    return final, PackReport(tuple(entries[name] for name in weights)), selection


def select_device(model: Model, weights: list[str], table: DeviceTable, batch: int) -> Selection:
    """Rewrite ``model`` in place with the ops for CUDA that win.

    Args:
        model: the pruned model with plain weights.
        weights: names of those that were pruned.
        table: what was measured.
        batch: rows of X at run time: samples, times tokens; of a convolution, images.
    """
    shapes = Shapes(infer(model))
    products, refusals = find_device_products(model)
    decisions: dict[str, Decision] = {}
    chosen: dict[str, Layout] = {}
    many: dict[str, int] = {}
    for name in weights:
        product = products.get(name)
        if product is None:
            decisions[name] = Decision(name, reason=refusals.get(name, "it is no matrix product"))
            continue
        matrix = device_matrix(model, product)
        if matrix is None:
            decisions[name] = Decision(name, reason="float16 cannot hold its largest value")
            continue
        pixels = _pixels(shapes, product)
        if pixels is None:
            decisions[name] = Decision(name, reason="the size of its images is not known: fix the input's")
            continue
        found = best_layout(matrix, table, batch * max(pixels, 1), pixels)
        if found is None:
            decisions[name] = Decision(name, reason="no CUDA kernel was measured on anything like it")
        elif found.gain < ENOUGH:
            decisions[name] = Decision(name, gain=found.gain, reason="no CUDA kernel is faster")
        else:
            chosen[name] = found.layout
            if found.many_rows is not None:
                many[name] = found.many_rows
            op = DeviceOp(found.layout.prefix, product.activation, bool(product.space)).name
            decisions[name] = Decision(name, op, found.gain, f"measured on {table.gpu}")
    wide = any(model.array(name).dtype == np.float32 for name in chosen)
    rewrite_device(model, chosen, many)
    note = f"CUDA ops for {units.plural(batch, 'row')}, as measured on {table.gpu}"
    if not chosen:
        note = f"no CUDA kernel is faster with {units.plural(batch, 'row')}: the model runs dense"
    elif wide:
        note += "; their weights and activations are float16"
    return Selection(decisions, {}, "device table", note)


def _pixels(shapes: Shapes, product: DeviceProduct) -> int | None:
    """Return how many pixels an image of X has, None when that is not known; 0 for a matrix."""
    if not product.space:
        return 0
    dims = [dim for dim in (shapes.dims(product.x) or ())[2:] if isinstance(dim, int)]
    return math.prod(dims) if len(dims) == product.space else None


def best_layout(weight: Array, table: DeviceTable, batch: int, pixels: int = 0) -> Choice | None:
    """Return the layout with the highest expected gain for ``weight`` (N, K), None when nothing tells.

    Only layouts that keep every value are looked at; ties go to the first of ``LAYOUTS``.

    Args:
        weight: float16 or bfloat16.
        table: what was measured.
        batch: rows of X, pixels counted.
        pixels: of an image, where it is a 1x1 convolution, else 0.
    """
    best: Choice | None = None
    nonzeros = float(np.count_nonzero(weight)) / weight.size
    for layout in LAYOUTS.values():
        if not layout.exact or layout.refusal(weight) or (pixels and layout.prefix not in IMAGES):
            continue
        density = stored_density(layout, weight, nonzeros)
        # An image of one pixel is a row of a matrix, for the kernels too
        gain = table.gain(layout.name, len(weight), weight.shape[1], density, batch, max(pixels, 1))
        found = None if gain is None else Choice(layout, gain)
        if layout.name == "nm-tile" and not pixels:
            found = _by_cusparselt(found, weight, table, batch)
        if found is not None and (best is None or found.gain > best.gain):
            best = found
    return best


def _by_cusparselt(own: Choice | None, weight: Array, table: DeviceTable, batch: int) -> Choice | None:
    """Return the better of our own kernel for 2:4 and cuSPARSELt, and where the one overtakes the other."""
    (rows, cols), density, layout = weight.shape, 0.5, LAYOUTS["nm-tile"]
    if rows % _CUSPARSELT_UNIT or cols % _CUSPARSELT_UNIT:
        return own
    many = table.overtaken(layout.name, CUSPARSELT, rows, cols, density)
    measured = any(e.layout == CUSPARSELT and e.m <= batch for e in table.entries)  # not with more rows alone
    gain = table.gain(CUSPARSELT, rows, cols, density, batch) if measured else None
    if gain is not None and (own is None or gain > own.gain):
        return Choice(layout, gain, min(many or batch, batch))
    return Choice(layout, own.gain, many) if own is not None else None


def stored_density(layout: Layout, weight: Array, nonzeros: float) -> float:
    """Return the share of the weights that ``layout`` keeps, as the table counts it."""
    if layout.name == "nm-tile":
        return 0.5  # two of four, zero or not
    kept = getattr(layout, "kept", None)
    return float(kept(weight).mean()) if kept is not None else nonzeros
