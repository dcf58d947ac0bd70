"""How close the outputs of two models are, on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from onnxprune.report import units
from onnxprune.report.console import SYNTHETIC, paragraph, table

MAX_OUTPUTS = 8


def worst_agreement(agreements: Sequence[Mapping[str, Any]]) -> str:
    """Name the worst value of each measure over the outputs, "" without any.

    Outputs that classes speak for do not count, as in the verdict: hidden states beside them move first.
    """
    classes = [item for item in agreements if item["top1"] is not None]
    counts = [item["kind"].get("counts", item in classes) for item in agreements]  # old reports do not say
    measured = [item for item, own in zip(agreements, counts, strict=True) if own or not classes]
    cosines = [item["cosine"] for item in measured if item["cosine"] is not None]
    equals = [item["equal"] for item in measured if item["equal"] is not None]
    words = [f"cosine {units.closeness(min(cosines))}"] if cosines else []
    words += [f"top-1 {units.percent(min(item['top1'] for item in classes))}"] if classes else []
    words += [f"{units.percent(min(equals))} equal"] if equals and not cosines else []
    return ", ".join(words)


def render_agreements(
    console: Console,
    agreements: Sequence[Mapping[str, Any]],
    synthetic: bool,
    title: str = "agreement with the dense model",
) -> None:
    """Print how close each output of two models is; ``agreements`` as in :class:`Report`."""
    if not agreements:
        return
    rows = [
        (
            item["name"],
            item["kind"]["family"],
            units.count(item["rows"]),
            "" if item["cosine"] is None else units.closeness(item["cosine"]),
            "" if item["correlation"] is None else units.closeness(item["correlation"]),
            units.known(item["relative_error"]),
            "" if item["top1"] is None else units.percent(item["top1"]),
            units.known(item["kl"]),
            "" if item["equal"] is None else units.percent(item["equal"]),
            "; ".join(word for word in ("" if item["finite"] else "NaN or infinity", item["note"]) if word),
        )
        for item in agreements[:MAX_OUTPUTS]
    ]
    columns = (
        "name:output",
        "holds",
        ">rows",
        ">cosine",
        ">correl.",
        ">error",
        ">top-1",
        ">KL",
        ">equal",
        "note",
    )
    table(console, columns, rows, f"{title} ({SYNTHETIC})" if synthetic else title)
    if len(agreements) > MAX_OUTPUTS:
        paragraph(console, f"and {len(agreements) - MAX_OUTPUTS} more outputs", "dim")
    console.print()
