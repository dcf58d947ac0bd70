"""What a structured run removed, on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from onnxprune.report import units
from onnxprune.report.console import paragraph, table

MAX_GROUPS = 24


def render_structured(console: Console, found: Mapping[str, Any]) -> None:
    """Print the groups that lost units, and why others kept theirs; ``found`` as in :class:`Report`."""
    groups = [group for group in found["groups"] if group["after"] < group["before"]]
    whole = [group for group in found["groups"] if group["after"] == group["before"]]
    rows = [
        (
            group["name"],
            group["kind"],
            str(group["before"]),
            str(group["after"]),
            units.digits(group["damage"], 2),
        )
        for group in groups[:MAX_GROUPS]
    ]
    if rows:
        title = f"{units.plural(len(groups), 'group')} made smaller"
        table(console, ("name:group", "units", ">before", ">after", ">effect"), rows, title)
    if len(groups) > MAX_GROUPS:
        paragraph(console, f"and {len(groups) - MAX_GROUPS} more", "dim")
    if whole:
        paragraph(console, f"{units.plural(len(whole), 'group')} stayed whole", "dim")
    for reason, names in _by_reason(found).items():
        more = f" and {len(names) - 2} more" if len(names) > 2 else ""
        paragraph(console, f"not removed, {reason}: {', '.join(names[:2])}{more}", "dim")
    console.print()


def _by_reason(found: Mapping[str, Any]) -> dict[str, list[str]]:
    reasons: dict[str, list[str]] = {}
    for item in found["pinned"]:
        reasons.setdefault(item["reason"], []).append(item["name"])
    for group in found["groups"]:
        if group["note"]:
            reasons.setdefault(group["note"], []).append(group["name"])
    return reasons


def before_after(found: Mapping[str, Any]) -> list[Sequence[object]]:
    """Return rows of the table of what changed: parameters, multiplications, speed."""
    rows: list[Sequence[object]] = []
    for name, text in (("parameters", "fewer"), ("multiplications", "fewer")):
        before, after = found[name]
        if before and after:
            rows.append((name, units.count(before), units.count(after), f"{before / after:.2f}x {text}"))
    predicted = found["predicted"]
    for speed in found["speed"]:
        note = f"{speed['ratio']:.2f}x faster in stock ONNX Runtime, measured here"
        if predicted and speed["threads"] == 1:
            note += f" ({predicted:.2f}x predicted)"
        rows.append((f"speed, {units.plural(speed['threads'], 'thread')}", "", "", note))
    return rows


def headline(found: Mapping[str, Any]) -> str:
    """Say in a few words what became of the shapes.

    >>> headline({"multiplications": [100, 50], "speed": [{"threads": 1, "ratio": 1.62}]})
    '1.6x faster, 2.0x fewer multiplications'
    """
    ratio = min((speed["ratio"] for speed in found["speed"]), default=1.0)
    before, after = found["multiplications"]
    parts = [f"{ratio:.1f}x faster" if ratio >= 1.05 else ""]
    parts.append(f"{before / after:.1f}x fewer multiplications" if before and after else "")
    return ", ".join(part for part in parts if part)
