"""What a pass did with each weight it was asked to store in another form."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StoredWeight:
    """One weight.

    Attributes:
        name: initializer, or output of a Constant node.
        form: ``packed``, ``sparse-initializer`` or ``dense``.
        dense_bytes: size as a plain tensor.
        stored_bytes: size of all tensors that hold it now.
        reason: why it stayed dense, or what else is worth knowing; empty otherwise.
    """

    name: str
    form: str
    dense_bytes: int
    stored_bytes: int
    reason: str = ""


@dataclass(frozen=True)
class PackReport:
    """Result of a storage pass: every weight it was given, in order."""

    weights: tuple[StoredWeight, ...]

    def by_name(self, name: str) -> StoredWeight | None:
        """Return the entry of weight ``name``, or None when the pass was not asked for it."""
        return next((weight for weight in self.weights if weight.name == name), None)

    @property
    def changed(self) -> tuple[StoredWeight, ...]:
        """The weights that are no longer dense."""
        return tuple(weight for weight in self.weights if weight.form != "dense")
