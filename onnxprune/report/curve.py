"""What a search for an accuracy tried, as a table: sparsity, size, metric, agreement, verdict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from onnxprune.report import units
from onnxprune.report.console import paragraph, table


def render_search(console: Console, search: Mapping[str, Any]) -> None:
    """Print the curve; ``search`` as in :class:`onnxprune.report.report.Report`."""
    rows = [_row(point, search) for point in search["points"]]
    columns = (">sparsity", ">about", ">metric", ">agreement", ">final metric", ">final", ">trained", "")
    tried = "1 model was" if len(rows) == 1 else f"{len(rows)} models were"
    known = sum(point.get("known", False) for point in search["points"])
    earlier = f", {known} by an earlier run" if known else ""
    table(console, columns, rows, f"{tried} tried for {_floor(search)}{earlier}")
    paragraph(console, judged_on(search), "dim")
    console.print()


def judged_on(search: Mapping[str, Any]) -> str:
    """Say which samples chose, and which judged what was chosen."""
    chose, judged = (units.plural(search[name], "sample") for name in ("selection_samples", "final_samples"))
    if search["own_data"] and search["metric_bound"] is not None:
        return (
            "the metric's own samples chose the model, so its value flatters it a little; agreement: "
            f"{chose} of selection, {judged} that chose nothing"
        )
    return f"{chose} chose the model, {judged} that chose nothing judge it (final)"


def _floor(search: Mapping[str, Any]) -> str:
    parts = []
    if search["metric_bound"] is not None:
        bound, dense = units.digits(search["metric_bound"], 4), units.digits(search["dense_metric"], 4)
        parts.append(f"a metric of {bound} (dense {dense})")
    if search["agreement_bound"] is not None:
        parts.append(f"an agreement of {units.digits(search['agreement_bound'], 4)}")
    return " and ".join(parts)


def _row(point: Mapping[str, Any], search: Mapping[str, Any]) -> tuple[str, ...]:
    verdict = "holds" if point["holds"] else point["why"]
    if point["holds"] and point["sparsity"] == search["chosen"]:
        verdict = "chosen"
    final = None if search["own_data"] else point["final_metric"]
    return (
        f"{point['sparsity']:.2f}",
        units.size(point["bytes"]) if point["bytes"] else "",
        _number(point["metric"]),
        _number(point["agreement"]),
        _number(final),
        _number(point["final_agreement"]),
        units.plural(point["tuned"], "step") if point["tuned"] else "",
        verdict,
    )


def _number(value: float | None) -> str:
    return "" if value is None else units.digits(value, 4)
