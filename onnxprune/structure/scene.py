"""What rewriting a node needs to know: the model, its new shapes, and how to change integer inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx
from onnx import helper

from onnxprune.model import Model
from onnxprune.structure.parameters import Parameters
from onnxprune.structure.shrunk import Shrunk


@dataclass(frozen=True)
class Scene:
    """What a rewrite sees: the model, its new shapes, and how to change integer inputs.

    Attributes:
        model: as it is changed.
        shrunk: the new shapes.
        parameters: changes integer inputs.
        fixed: whether an axis of a value has the same size for every input of the model.
    """

    model: Model
    shrunk: Shrunk
    parameters: Parameters
    fixed: Callable[[str, int], bool]

    def old(self, name: str) -> tuple[int, ...]:
        """Return the shape before."""
        return self.shrunk.layout.sizes[name]

    def new(self, name: str) -> tuple[int, ...]:
        """Return the shape after."""
        return self.shrunk.shape(name)


def set_attribute(node: onnx.NodeProto, name: str, value: object) -> None:
    """Replace or add an attribute."""
    kept = [item for item in node.attribute if item.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, *([] if value is None else [helper.make_attribute(name, value)])])
