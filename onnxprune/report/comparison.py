"""How two models differ, on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from onnxprune.report import units
from onnxprune.report.agreement import render_agreements, worst_agreement
from onnxprune.report.console import SYNTHETIC, VERDICT_STYLES, cut_title, paragraph, table
from onnxprune.report.report import plain
from onnxprune.report.text import short_metric

if TYPE_CHECKING:
    from onnxprune.compare import Comparison, WeightZeros


MAX_WEIGHTS = 16  # rows
MAX_OPS = 24


def render_comparison(console: Console, result: Comparison, quiet: bool = False) -> None:
    """Print how the second model differs from the first."""
    agreements = [plain(item) for item in result.agreements]
    size = units.smaller(*result.file_bytes)
    close = worst_agreement(agreements)
    style = "bold red" if not result.agrees else VERDICT_STYLES.get(result.verdict, "bold")
    paragraph(
        console, f"{units.near(result.models[1])}: {size}" + (f", agreement: {close}" if close else ""), style
    )
    if result.verdict_text:
        paragraph(console, result.verdict_text, "" if result.verdict == "ok" else style)
    for line in result.differences:
        paragraph(console, f"interface: {line}", style)
    if quiet:
        return
    console.print()
    table(console, ("", ">first", ">second"), _sides(result))
    console.print()
    render_agreements(console, agreements, result.synthetic, "agreement of the outputs")
    if result.ops:
        rows = [(op.op, op.first, op.second) for op in result.ops[:MAX_OPS]]
        table(
            console,
            ("name:op", ">first", ">second"),
            rows,
            cut_title("op counts that differ", rows, result.ops),
        )
        console.print()
    _changed_weights(console, result.weights)
    paragraph(console, f"data  {SYNTHETIC + ': ' if result.synthetic else ''}{result.data}")


def _sides(result: Comparison) -> Iterator[Sequence[object]]:
    yield "file size", *(units.size(value) for value in result.file_bytes)
    yield "tensors", *(units.size(value) for value in result.tensor_bytes)
    yield "zeros", *("unknown" if share is None else units.percent(share) for share in result.sparsity)
    if result.metric_values is not None:
        yield short_metric(result.metric), *(units.digits(value, 4) for value in result.metric_values)


def _changed_weights(console: Console, weights: Sequence[WeightZeros]) -> None:
    changed = sorted((item for item in weights if item.first != item.second), key=lambda item: -item.weights)
    if not changed:
        return
    rows = [
        (item.name, units.shape(item.shape), _zeros(item.first, item), _zeros(item.second, item))
        for item in changed[:MAX_WEIGHTS]
    ]
    columns = ("name:weight", "shape", ">zero in first", ">in second")
    table(console, columns, rows, cut_title("weights that differ in zeros", rows, changed))
    console.print()


def _zeros(zeros: int | None, item: WeightZeros) -> str:
    return "not there" if zeros is None else units.percent(zeros / item.weights if item.weights else 0.0)
