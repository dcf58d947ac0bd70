"""Why a node cannot run."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

from onnxprune.finetune import registry
from onnxprune.finetune.registry import Implementation, Unsupported, plain

PACKED_DOMAIN = "onnxprune"


@dataclass(frozen=True)
class Gap:
    """A node that the view cannot run.

    Attributes:
        node: what messages call it.
        op: operator type, with its domain where it is not the default one.
        opset: version of that domain in the model.
        reason: why.
        outputs: value names that it makes; fine-tuning can start behind them.
    """

    node: str
    op: str
    opset: int
    reason: str
    outputs: tuple[str, ...]

    def __str__(self) -> str:
        return f"node {self.node!r} ({self.op}, opset {self.opset}): {self.reason}"


class Inside(Unsupported):
    """A finding whose text names the node inside the subgraph or function already."""


def why_not(domain: str, op: str) -> str:
    """Return what to say of an operator without an implementation."""
    if domain == PACKED_DOMAIN:
        return "a packed weight cannot be trained: `onnxprune export --format dense` makes it a plain one"
    if any(item.name == op and item.domain == plain(domain) for item in registry.registered()):
        return "this version of the operator is not supported in fine-tuning"
    return "the operator is not supported in fine-tuning"


def check_arguments(implementation: Implementation, count: int) -> None:
    """Check the number of a node's inputs.

    Raises:
        Unsupported: for fewer than the function needs, or more than it takes.
    """
    kinds = inspect.Parameter
    parameters = inspect.signature(implementation.function).parameters.values()
    positional = [p for p in parameters if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
    least = sum(p.default is kinds.empty for p in positional)
    if count < least:
        raise Unsupported(f"{count} inputs, wanted at least {least}")
    if count > len(positional) and not any(p.kind is kinds.VAR_POSITIONAL for p in parameters):
        raise Unsupported(f"{count} inputs, at most {len(positional)} are supported")
