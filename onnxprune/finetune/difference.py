"""Does the written model compute in ONNX Runtime what was trained in torch?"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from onnxprune.errors import VerificationError
from onnxprune.finetune.batches import Feed, Taps, tensors
from onnxprune.finetune.view import TorchView
from onnxprune.model import Model, needed_nodes
from onnxprune.rounding import NOISE, relative, shaken

TOLERANCE = 1e-3  # largest relative difference of the written model from the trained one that is let through
# The same where the model amplifies rounding, as division by a variance next to zero does: what it makes of
# weights that are shaken, up to this.
LARGEST_TOLERANCE = 0.1
HALF = 30  # times that for models in half precision
# The last bit of a value may change what these choose, and then all that is computed from it; some draw lots.
CHOICES = frozenset({"ArgMax", "ArgMin", "Compress", "NonMaxSuppression", "NonZero", "TopK", "Unique"})
LOTS = frozenset({"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform"})


def difference(model: Model, view: TorchView, start: str, feeds: Feed, threads: int | None = None) -> float:
    """Return how far ``model`` in ONNX Runtime is from ``view``, over the view's float outputs.

    Args:
        model: as written.
        view: of that model.
        start: value that the view is fed with, "" for the inputs.
        feeds: one batch.
        threads: of ONNX Runtime.

    Returns:
        The largest difference of a value, as a share of the largest value of its tensor. Values behind a
        choice (ArgMax, NonMaxSuppression) that came out differently are left out.

    Raises:
        VerificationError: when that is more than rounding, or NaN or infinity are on one side only.
    """
    names = list(view.outputs)
    wanted = [*names, *([start] if start else [])]
    written = Taps(model, wanted, feeds, threads)(feeds)
    trembling: dict[str, NDArray[Any]] = {}
    known = {**feeds, **written}
    with torch.no_grad():
        found = view(tensors({name: known[name] for name in view.inputs}))
    half = any(model.array(name).dtype.itemsize < 4 for name in view.weights)
    limit, worst = TOLERANCE * (HALF if half else 1), 0.0
    for name in names:
        value = found[name]
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            continue
        apart = relative(np.asarray(written[name], np.float64), value.double().numpy())
        if apart > limit and _behind_a_choice(model, name):
            continue
        room = limit
        if apart > limit:
            trembling = trembling or Taps(shaken(model, view.weights), wanted, feeds, threads)(feeds)
            noise = relative(np.asarray(trembling[name], np.float64), np.asarray(written[name], np.float64))
            room = min(max(limit, NOISE * noise), LARGEST_TOLERANCE)
        worst = max(worst, apart)
        if not apart <= room:
            raise VerificationError(
                f"the fine-tuned model gives other values in ONNX Runtime than in torch: "
                f"{name!r} differs by {apart:.2g}, at most {room:.2g} is rounding",
                "leave --finetune out, and report the model: an operator is not trained as it runs",
            )
    return worst


def _behind_a_choice(model: Model, name: str) -> bool:
    positions, _ = needed_nodes(model, (), [name])
    return any(model.graph.node[position].op_type in CHOICES | LOTS for position in positions)
