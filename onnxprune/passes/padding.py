"""The padding that a convolution can do itself: what ``auto_pad`` stands for, and a ``Pad`` before it."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from onnxprune.attributes import attribute, ints
from onnxprune.model import Model
from onnxprune.passes.constants import evaluate

_PAD_INPUTS_OPSET = 11  # before, Pad has pads and value as attributes


def automatic_pads(
    kind: str, kernel_shape: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[int] | None:
    """Return the padding that ``auto_pad`` stands for, None where it depends on the input's size.

    Args:
        kind: ``VALID``, ``SAME_UPPER`` or ``SAME_LOWER``.
        kernel_shape: of the convolution, as ``strides`` and ``dilations`` without defaults.
        strides: one for each spatial axis.
        dilations: one for each spatial axis.

    Returns:
        As attribute ``pads``: the begins of all spatial axes, then their ends.
    """
    if kind == "VALID":
        return [0] * 2 * len(kernel_shape)
    if any(stride != 1 for stride in strides):
        return None
    total = [d * (k - 1) for k, d in zip(kernel_shape, dilations, strict=True)]
    small, large = [t // 2 for t in total], [t - t // 2 for t in total]
    return small + large if kind == "SAME_UPPER" else large + small


class Pads:
    """Which values come from a ``Pad`` that a convolution can do itself."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.values = evaluate(
            model,
            [name for node in model.graph.node if node.op_type == "Pad" for name in node.input[1:] if name],
        )

    def before(self, value: str, space: int) -> tuple[int, list[int]] | None:
        """Return the position and the spatial padding of the ``Pad`` that makes ``value`` for one reader."""
        position = self.model.index.producer.get(value)
        node = self.model.graph.node[position] if position is not None else None
        if node is None or node.op_type != "Pad" or node.domain not in ("", "ai.onnx"):
            return None
        if len(self.model.index.uses[value]) != 1 or value in self.model.index.outputs:
            return None
        pads = self._pads(node, space + 2)
        if pads is None or str(attribute(node, "mode", "constant")) != "constant":
            return None
        begin, end = pads[: space + 2], pads[space + 2 :]
        if any(begin[:2]) or any(end[:2]) or min(pads) < 0:
            return None
        assert position is not None
        return position, [*begin[2:], *end[2:]]

    def _pads(self, node: onnx.NodeProto, rank: int) -> Sequence[int] | None:
        """All pads of a node that pads with zeros on all axes, else None."""
        if self.model.opset < _PAD_INPUTS_OPSET:
            pads = list(ints(node, "pads", ()))
            return pads if len(pads) == 2 * rank and not attribute(node, "value", 0.0) else None
        inputs = [*node.input, "", "", ""]
        if inputs[3] or len(node.input) < 2 or inputs[1] not in self.values:
            return None
        if inputs[2] and (inputs[2] not in self.values or self.values[inputs[2]].any()):
            return None
        pads = [int(p) for p in self.values[inputs[1]].reshape(-1)]
        return pads if len(pads) == 2 * rank else None
