"""What is known of one attention block, and of a place that looks like one but is not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

# (batch, heads, queries, size) or (batch * heads, queries, size); (batch, queries, heads, size);
# (batch, heads, size, queries), also with batch * heads; (batch, queries, heads * size)
Layout = Literal["heads first", "heads second", "features first", "merged"]


@dataclass(frozen=True)
class Projections:
    """Names of the weights around the attention, None where none was found; equal where they are fused."""

    query: str | None = None
    key: str | None = None
    value: str | None = None
    output: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The weights that were found, each once."""
        found = (self.query, self.key, self.value, self.output)
        return tuple(dict.fromkeys(name for name in found if name is not None))


@dataclass(frozen=True)
class AttentionBlock:
    """``context = softmax(scale * query key^T + mask) value``, in whatever form the graph has it.

    Attributes:
        name: label of the softmax, or of the operator that does all of it.
        form: ``decomposed``, or the operator: ``Attention``, ``com.microsoft.MultiHeadAttention``, ...
        node: its position in graph order.
        probabilities: value (batch, heads, queries, keys) or (batch * heads, queries, keys); "" where one
            operator does all: then :mod:`onnxprune.attention.fused` computes them.
        query: value that enters the product; "" where it never leaves the operator.
        key: likewise.
        value: likewise.
        mask: the value added to the scores, or that chooses among them; "" for none.
        heads: their number, None when the graph does not tell.
        context: value of ``probabilities @ value``.
        layout: of the context; None: "heads first" with four axes, else "merged".
        weights: of the projections.
        output: value of the block that is added to the residual stream, "" when there is no such addition.
        residual: what it is added to.
    """

    name: str
    form: str
    node: int
    context: str
    probabilities: str = ""
    query: str = ""
    key: str = ""
    value: str = ""
    mask: str = ""
    heads: int | None = None
    layout: Layout | None = None
    weights: Projections = field(default_factory=Projections)
    output: str = ""
    residual: str = ""

    @property
    def fused(self) -> bool:
        """Whether one operator does all of it, so that no value holds the probabilities."""
        return not self.probabilities


@dataclass(frozen=True)
class Rejected:
    """A node that could be part of attention, and why it is not taken for it."""

    node: str
    reason: str
