"""Groups of units that can be removed, on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from onnxprune.report import units
from onnxprune.report.console import paragraph, table

if TYPE_CHECKING:
    from onnxprune.inspection import StructureInfo


def render_structure(console: Console, found: StructureInfo) -> None:
    """Print what can be removed as a whole, what cannot and why, and how much of the weights it is."""
    rows = [
        (group.name, group.kind, group.units, units.count(group.weights), _where(group.tensors))
        for group in found.groups
    ]
    if rows:
        table(console, ("name:group", "kind", ">units", ">weights", "name:in"), rows)
        console.print()
    pinned = [(item.name, item.kind, item.size, item.reason) for item in found.pinned]
    if pinned:
        table(console, ("name:cannot shrink", "kind", ">size", "why"), pinned)
        console.print()
    share = units.percent(found.inside / found.weights) if found.weights else "none"
    what = units.plural(len(found.groups), "group")
    hold = "holds" if len(found.groups) == 1 else "hold"
    paragraph(console, f"{what} of units that can be removed {hold} {share} of the weights")


def _where(tensors: tuple[str, ...]) -> str:
    return tensors[0] + (f" and {len(tensors) - 1} more" if len(tensors) > 1 else "")
