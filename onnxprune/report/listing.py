"""The results of inspect, sensitivity and export on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from onnxprune.report import units
from onnxprune.report.console import SYNTHETIC, cut_title, paragraph, table
from onnxprune.report.report import skipped_weights
from onnxprune.report.structure import render_structure
from onnxprune.report.weights import render_skipped

if TYPE_CHECKING:
    from onnxprune.export import ExportResult
    from onnxprune.inspection import AttentionInfo, Inspection
    from onnxprune.sensitivity import SensitivityReport

MAX_WEIGHTS = 16  # rows


def render_sensitivity(console: Console, report: SensitivityReport, path: str, quiet: bool = False) -> None:
    """Print a row per layer, the most sensitive first; with ``quiet`` only what was written."""
    if report.synthetic:
        paragraph(console, SYNTHETIC, "bold yellow")
    whole = all(item.output for item in report.layers)
    if not quiet:
        level = [f"{100 * level:g} %" for level in report.levels]
        ranked = sorted(report.layers, key=lambda item: -(item.output or item.error)[-1])
        rows = [
            (
                item.name,
                units.count(item.weights),
                *(units.digits(value, 2) for value in (item.output if whole else item.error)),
                f"{100 * item.sparsity:.1f} %" + (f" {item.pattern}" if item.pattern else ""),
            )
            for item in ranked
        ]
        table(console, ("layer", "weights", *level, "plan"), rows)
        what = "divergence of the model's output" if whole else "relative error of the layer's own output"
        paragraph(console, f"{what}, each layer pruned alone; plan: {100 * report.sparsity:.1f} % in all")
    if path:
        paragraph(console, f"{path}: onnxprune MODEL --plan {path}")


def render_inspection(console: Console, path: str, result: Inspection, quiet: bool = False) -> None:
    """Print what of one model can be pruned; with ``quiet`` only the first line."""
    weights = sum(layer.weights for layer in result.layers)
    zeros = sum(layer.zeros for layer in result.layers)
    line = f"{path}: {units.plural(len(result.layers), 'layer')}, {units.count(weights)} prunable weights"
    line += f" ({units.size(sum(layer.bytes for layer in result.layers))})"
    paragraph(console, line + (f", {units.percent(zeros / weights)} zero already" if zeros else ""), "bold")
    if quiet:
        return
    for side, values in (("in", result.inputs), ("out", result.outputs)):
        for name, kind in values.items():
            paragraph(console, f"{side:3}  {name} {kind}", "dim")
    console.print()
    rows = [
        (
            layer.name,
            layer.kind,
            units.shape(layer.shape),
            layer.dtype,
            units.count(layer.weights),
            units.size(layer.bytes),
            units.percent(layer.zeros / layer.weights) if layer.zeros else "",
            layer.storage,
        )
        for layer in result.layers
    ]
    columns = ("name:layer", "kind", "shape", "type", ">weights", ">size", ">zero", "stored")
    if rows:
        table(console, columns, rows)
        console.print()
    render_skipped(console, skipped_weights(result.skipped))
    if result.attention is not None:
        render_attention(console, result.attention)
    if result.structure is not None:
        render_structure(console, result.structure)


def render_attention(console: Console, found: AttentionInfo) -> None:
    """Print what attends to what, and which candidates do not."""
    rows: list[Sequence[object]] = [
        (
            block.name,
            block.form,
            block.heads or "?",
            *(name or "-" for name in (block.weights.query, block.weights.key, block.weights.value)),
            block.weights.output or "-",
        )
        for block in found.blocks
    ]
    columns: tuple[str, ...] = ("name:attention", "form", ">heads", "name:query", "name:key", "name:value")
    if rows:
        table(console, (*columns, "name:output"), rows)
        console.print()
    gates = [(gate.name, ", ".join(gate.weights)) for gate in found.gates]
    if gates:
        table(console, ("name:gate of channels", "weights"), gates)
        console.print()
    refused = [(item.node, item.reason) for item in found.rejected]
    if refused:
        table(console, ("name:no attention", "why"), refused)
        console.print()
    if not rows and not gates:
        paragraph(console, "no attention between tokens or channels")


def render_export(console: Console, result: ExportResult, quiet: bool = False) -> None:
    """Print what was written; with ``quiet`` only the first line."""
    size = units.smaller(result.file_bytes_before, result.file_bytes_after)
    what = units.plural(result.tensors, "tensor")
    paragraph(console, f"{units.near(result.output)}: {what} stored as {result.format}, {size}", "bold")
    for threads, ratio in result.speed.items():
        paragraph(
            console,
            f"{ratio:.2f}x faster with the kernels, {units.plural(threads, 'thread')}, on this machine",
        )
    if result.note:
        paragraph(console, result.note)
    if result.kept_dense and not quiet:
        console.print()
        rows = [*result.kept_dense.items()][:MAX_WEIGHTS]
        table(console, ("name:weight", "why"), rows, cut_title("kept dense", rows, [*result.kept_dense]))
