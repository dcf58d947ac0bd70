"""What the compiler knows at one place of a graph: the names in sight, and the block that grows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import onnx
from onnx import AttributeProto

from onnxprune.finetune.plan import Step
from onnxprune.finetune.registry import plain


@dataclass
class Scope:
    """Names visible at one place: values, opsets, and the attributes of the function around it."""

    slots: dict[str, int]
    opsets: Mapping[str, int]
    outer: Scope | None = None
    given: Mapping[str, AttributeProto] = field(default_factory=dict)
    prefix: str = ""
    depth: int = 0

    def find(self, name: str) -> int | None:
        """Return the slot of a value, also of one from the scopes around."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.slots:
                return scope.slots[name]
            scope = scope.outer
        return None


@dataclass
class Building:
    """A block while it grows: steps, and where its moved values are."""

    steps: list[Step] = field(default_factory=list)
    moved: dict[tuple[int, str], int] = field(default_factory=dict)
    made: set[int] = field(default_factory=set)
    outer: Building | None = None

    def known_move(self, slot: int, place: str) -> int | None:
        """Return the slot with the same value at ``place``, if there is one."""
        building: Building | None = self
        while building is not None:
            if (slot, place) in building.moved:
                return building.moved[slot, place]
            building = building.outer
        return None


def opsets(imports: Sequence[onnx.OperatorSetIdProto]) -> dict[str, int]:
    """Return domain -> version."""
    return {plain(entry.domain): entry.version for entry in imports}
