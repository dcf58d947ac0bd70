"""Which nodes of a packed model become ops with a kernel: those that this machine runs faster so.

Each distinct op is measured alone against the nodes it would replace, at the sizes of the calibration data
and with one thread and with all; then the whole model with the winners (and, for convolutions, with other
choices, since a layout change in between costs more than an op can gain) against itself without any. What is
not faster stays packed and is dense at run time. Without the library a table decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnx import numpy_helper

from onnxprune import machine, runtime
from onnxprune.calibration.data import CalibrationData
from onnxprune.errors import ModelError
from onnxprune.files.tensors import estimated_bytes
from onnxprune.kernels import library
from onnxprune.kernels.cache import Cache
from onnxprune.kernels.decision import Decision, Selection, by_weight, measured, refused
from onnxprune.kernels.feeds import extremes, typical_feeds
from onnxprune.kernels.nodes import Gain, measure
from onnxprune.kernels.stopwatch import busy
from onnxprune.kernels.table import MARGIN, expected_gain, kind_of
from onnxprune.kernels.weights import Profile, profile
from onnxprune.kernels.whole import Whole
from onnxprune.model import Model
from onnxprune.passes.chains import Chain
from onnxprune.passes.products import shared_weights
from onnxprune.passes.shapes import Shapes, infer, observe
from onnxprune.passes.sparse_ops import find_chains, rewrite
from onnxprune.progress import NullProgress, Progress
from onnxprune.storage.domain import form_of, write_functions
from onnxprune.storage.form import DOMAIN

LARGEST = 2**30  # bytes of a model that is still measured: several sessions of it are held at once


def select(
    packed: Model,
    dense: Model,
    data: CalibrationData,
    *,
    threads: int | None = None,
    cache: bool = True,
    progress: Progress | None = None,
) -> Selection:
    """Rewrite ``packed`` in place with the ops that win.

    Args:
        packed: the model with packed weights.
        dense: the same with plain weights.
        data: inputs of the sizes that count.
        threads: of ONNX Runtime besides one (default: all processors).
        cache: whether to use and keep measurements in the user's cache.
        progress: told about each measured op.
    """
    progress = progress or NullProgress()
    types = infer(dense)
    identity = library.identity()
    if identity is None or estimated_bytes(dense.proto) > LARGEST:
        shapes = Shapes(types)
        options, refusals = find_chains(packed, shapes)
        why = "no library" if identity is None else "too large to be measured"
        return _by_table(packed, dense, options, refusals, shapes, why)
    feeds = typical_feeds(data)
    try:
        shapes = Shapes(types, observe(dense, _activations(dense, types), feeds))
    except ModelError:  # ONNX Runtime cannot show some value in between
        found = find_chains(packed, Shapes(types))
        return _by_table(packed, dense, *found, Shapes(types), "cannot be measured")
    lean = without_decoders(packed, dense)
    options, refusals = find_chains(lean, shapes)
    if not any(chains[-1].product.sparse for chains in options):
        _, refusals = find_chains(packed, shapes)  # of all weights, also those that a Decode node makes
        return Selection(refused(refusals), note="no layer is one that a kernel runs" if refusals else "")
    known = Cache(f"{identity} {_machine()}", enabled=cache)
    counts = sorted({1, threads or runtime.cpu_count()})
    try:
        gains = _gains(lean, dense, options, shapes, counts, known, progress)
        whole = Whole(lean, dense, shapes, extremes(feeds), counts, library.open_session, known)
        chosen, ratios = whole.best(gains)
    finally:
        known.save()
    refusals |= _rewrite_same(packed, chosen, shapes)
    decisions = refused(refusals) | measured(gains, chosen, dense)
    notes = [
        "" if chosen else "no choice of kernels makes this model faster here: it runs dense",
        f"some choice of kernels cannot run: {whole.failure}" if whole.failure else "",
        "other programs ran while the kernels were measured; --no-cache measures again" if busy() else "",
    ]
    speed = dict(zip(counts, ratios, strict=False))
    return Selection(decisions, speed, "measured", "; ".join(note for note in notes if note))


def without_decoders(packed: Model, dense: Model) -> Model:
    """Return a copy in which weights that a ``Decode`` node makes are plain: quicker to load.

    Such weights (embedding tables) have no kernel, so they do not matter here, unless a product reads them.
    """
    lean, kept = packed.copy(), shared_weights(packed)
    for position in range(len(lean.graph.node) - 1, -1, -1):
        node = lean.graph.node[position]
        form, suffix = form_of(node) if node.domain == DOMAIN else (None, "")
        if form is not None and suffix in form.decoders and node.output[0] not in kept:
            name = node.output[0]
            del lean.graph.node[position]
            lean.graph.initializer.append(numpy_helper.from_array(dense.array(name), name))
    lean.reindex()
    write_functions(lean)
    return lean


def _rewrite_same(packed: Model, chosen: Sequence[Chain], shapes: Shapes) -> dict[str, str]:
    """Replace in ``packed`` the chains chosen in another copy of the model; return why others stay."""
    wanted = {(chain.output, chain.op_type) for chain in chosen}
    options, refusals = find_chains(packed, shapes)
    rewrite(packed, [c for chains in options for c in chains if (c.output, c.op_type) in wanted], shapes)
    return refusals


def _machine() -> str:
    versions = runtime.installed_packages()
    return f"{machine.cpu_name()} {' '.join(machine.instruction_sets())} {sorted(versions.items())}"


def _activations(dense: Model, types: Mapping[str, Any]) -> list[str]:
    """Values whose shape counts: around products, and operands of an Add of two activations."""
    names: list[str] = []
    tensors = dense.index.tensors
    for node in dense.graph.node:
        constants = [name for name in node.input if name in tensors]
        if node.domain not in ("", "ai.onnx"):
            continue
        if node.op_type in ("MatMul", "Gemm", "Conv") and constants:
            names += [*(n for n in node.input[:2] if n not in tensors), node.output[0]]
        elif node.op_type == "Pad":
            names.append(node.input[0])
        elif node.op_type == "Add" and not constants and _is_float(types, node.output[0]):
            names += [*node.input, node.output[0]]
    return [name for name in dict.fromkeys(names) if name]


def _is_float(types: Mapping[str, Any], name: str) -> bool:
    return name in types and types[name].type.tensor_type.elem_type == 1


def _profile(dense: Model, chain: Chain) -> Profile:
    product = chain.product
    trans_b = any(a.name == "transB" and a.i for a in product.attributes)
    return profile(dense.array(product.weight), product.op.consumer, trans_b)


def _gains(
    packed: Model,
    dense: Model,
    options: Sequence[tuple[Chain, ...]],
    shapes: Shapes,
    counts: Sequence[int],
    known: Cache,
    progress: Progress,
) -> list[Gain]:
    progress.stage("measuring kernels", len(options))
    gains = []
    for chains in options:
        weight = _profile(dense, chains[0])
        gains.append(measure(packed, chains, weight, shapes, counts, library.open_session, known))
        progress.advance()
    return gains


def _by_table(
    packed: Model,
    dense: Model,
    options: Sequence[tuple[Chain, ...]],
    refusals: Mapping[str, str],
    shapes: Shapes,
    why: str,
) -> Selection:
    nodes, chosen = list[Decision](), list[Chain]()
    for chains in options:
        chain = chains[-1]
        product = chain.product
        if not product.sparse:
            continue
        weight = _profile(dense, chain)
        gain = expected_gain(kind_of(product.op.consumer, product.shape), weight.group, weight.density)
        if gain >= MARGIN:
            nodes.append(Decision(product.weight, chain.op_type, gain, "from the table"))
            chosen.append(chain)
        else:
            nodes.append(Decision(product.weight, gain=gain or None, reason="too dense to be faster"))
    rewrite(packed, chosen, shapes)
    decisions = refused(refusals) | by_weight(nodes, dense)
    return Selection(decisions, {}, "table", f"{why}: kernels were chosen by a table, not measured")
