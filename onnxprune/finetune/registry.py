"""The table of ONNX operators that the torch view can run: one plain function per operator version.

A function is named like its operator and registered with :func:`op`. It takes the node's inputs by
position (``None`` for one that is left out) and the attributes as keyword-only parameters whose defaults
are those of the ONNX specification. It returns one tensor, or a tuple with one entry per output. Among
several versions the newest one not above the model's opset is used, as the specification says.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])
FUSED_DOMAIN = "onnxprune.fused"  # of nodes that only the view makes
NODE_KEYWORDS = ("outputs",)  # filled from the node, not from an attribute


class Unsupported(Exception):  # noqa: N818 - a finding that the caller turns into an error with the node's name
    """The view cannot run a node; the text says why, without naming the node."""


@dataclass(frozen=True)
class Implementation:
    """One version of one operator.

    Attributes:
        name: operator type, as in the node.
        domain: "" for the default domain.
        since: first opset version of ``domain`` that it implements.
        function: see the module's text.
        host: input slots that hold shapes, axes and the like: given on the CPU whatever the device is.
        frozen: input slots whose weights are never trained (statistics, quantisation scales).
        foldable: whether equal inputs give equal results, so that it can be computed once.
        on_host: whether it returns CPU tensors whatever the device of its inputs is.
        attributes: names that the function takes; a node with another one is refused.
        required: attributes without a default.
    """

    name: str
    domain: str
    since: int
    function: Callable[..., Any]
    host: tuple[int, ...]
    frozen: tuple[int, ...]
    on_host: bool
    foldable: bool
    attributes: frozenset[str]
    required: frozenset[str]

    @property
    def wants_outputs(self) -> bool:
        """Whether the function asks for ``outputs``: one bool per output of the node, True if it is used."""
        return "outputs" in inspect.signature(self.function).parameters


_table: dict[tuple[str, str], list[Implementation]] = {}


def op(
    since: int = 1,
    *,
    domain: str = "",
    name: str | None = None,
    host: tuple[int, ...] = (),
    frozen: tuple[int, ...] = (),
    on_host: bool = False,
    foldable: bool = True,
) -> Callable[[F], F]:
    """Register a function as the implementation of an operator from opset ``since`` on.

    Args:
        since: first version of the domain's opset with this meaning.
        domain: operator domain; "" is the default one of ONNX.
        name: operator type; default: the function's name up to ``_`` and a number (``Softmax_1``).
        host: input slots that are read as Python numbers.
        frozen: input slots whose weights are never trained.
        on_host: its results are on the CPU.
        foldable: False for what draws random numbers.
    """

    def register(function: F) -> F:
        known = name or function.__name__.partition("_")[0]
        keywords = [
            p
            for p in inspect.signature(function).parameters.values()
            if p.kind is inspect.Parameter.KEYWORD_ONLY
        ]
        attributes = [p for p in keywords if p.name not in NODE_KEYWORDS]
        made = Implementation(
            known,
            domain,
            since,
            function,
            host,
            frozen,
            on_host,
            foldable,
            frozenset(p.name for p in attributes),
            frozenset(p.name for p in attributes if p.default is inspect.Parameter.empty),
        )
        versions = _table.setdefault((domain, known), [])
        if any(other.since == since for other in versions):
            raise ValueError(f"{domain or 'ai.onnx'}.{known} since {since} is registered twice")
        versions.append(made)
        versions.sort(key=lambda item: item.since)
        return function

    return register


def plain(domain: str) -> str:
    """Return a domain in the spelling of the table."""
    return "" if domain == "ai.onnx" else domain


def find(domain: str, name: str, version: int) -> Implementation | None:
    """Return the newest implementation not above ``version``, or None when there is none."""
    fitting = [item for item in _table.get((plain(domain), name), ()) if item.since <= version]
    return fitting[-1] if fitting else None


def registered() -> tuple[Implementation, ...]:
    """Return every implementation, sorted by domain, operator and version."""
    return tuple(item for key in sorted(_table) for item in _table[key])
