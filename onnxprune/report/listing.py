"""The results of inspect, compare, bench, export, ops and doctor on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from onnxprune.report import units
from onnxprune.report.agreement import render_agreements, worst_agreement
from onnxprune.report.console import LEVEL_STYLES, SYNTHETIC, VERDICT_STYLES, paragraph, table
from onnxprune.report.report import plain, skipped_weights
from onnxprune.report.structure import render_structure
from onnxprune.report.text import short_metric
from onnxprune.report.weights import render_skipped

if TYPE_CHECKING:
    from onnxprune.compare import Comparison, WeightZeros
    from onnxprune.cudabuild import KernelUse
    from onnxprune.doctor import Check
    from onnxprune.export import ExportResult
    from onnxprune.inspection import AttentionInfo, Inspection
    from onnxprune.kernels.devicetable import DeviceTable
    from onnxprune.opsinfo import OpsInfo
    from onnxprune.sensitivity import SensitivityReport
    from onnxprune.timing import BenchResult, Timing

MAX_WEIGHTS = 16  # rows
MAX_OPS = 24


def render_checks(console: Console, checks: Sequence[Check], quiet: bool = False) -> None:
    """Print one line per check; with ``quiet`` only the problems."""
    shown = [check for check in checks if not quiet or check.level == "problem"]
    rows: list[Sequence[object]] = []
    for check in shown:
        rows.append((Text(check.level, LEVEL_STYLES[check.level]), check.name, check.detail))
        if check.hint:
            rows.append(("", "", f"hint: {check.hint}"))
    if rows:
        table(console, ("", "", ""), rows)
    if not quiet:
        console.print()
    problems = sum(check.level == "problem" for check in checks)
    verdict = f"{units.plural(problems, 'problem')}: see the hints above" if problems else "ready to prune"
    paragraph(console, verdict, "bold red" if problems else "bold green")


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


def render_ops(console: Console, info: OpsInfo, quiet: bool = False) -> None:
    """Print what is known of the library with the kernels; with ``quiet`` only the last line."""
    if not quiet:
        rows: list[Sequence[object]] = [
            ("library", info.library or "none"),
            ("kernels run on", info.level or "-"),
            ("processor has", ", ".join(info.levels) or "-"),
            ("ops", info.ops),
            ("compiled with", info.compiler or "-"),
            ("ONNX Runtime", f"{info.onnxruntime or 'none'} (wanted: {info.oldest_onnxruntime} or newer)"),
            ("sources", info.sources or "none"),
            ("CUDA library", info.cuda.library or "none"),
            ("CUDA kernels", f"{info.cuda.ops}, {info.cuda.compiler}" if info.cuda.compiler else "none"),
            ("GPUs", ", ".join(info.cuda.devices) or "none"),
            ("onnxruntime-gpu", info.cuda.onnxruntime or 'none: pip install "onnxprune[gpu]"'),
            ("cuSPARSELt", info.cuda.cusparselt or f"none: {info.cuda.cusparselt_problem}"),
            ("nvcc", info.cuda.nvcc or f"none: {info.cuda.nvcc_problem}"),
        ]
        table(console, ("", ""), rows)
        console.print()
        if info.cuda.problem:
            paragraph(console, f"no CUDA kernels: {info.cuda.problem}", "yellow")
        elif info.cuda.library:
            paragraph(console, "CUDA sessions run on the CUDA kernels", "bold green")
    if info.problem:
        paragraph(console, f"no kernels: {info.problem}", "bold yellow")
    else:
        paragraph(console, "packed models run on the kernels", "bold green")


def render_device_table(console: Console, measured: DeviceTable) -> None:
    """Print how many times faster than dense each CUDA kernel is, a column for each number of rows.

    Images of one size have a table of their own, a column for each number of them.
    """
    for pixels in sorted({entry.pixels for entry in measured.entries}):
        own = [entry for entry in measured.entries if entry.pixels == pixels]
        counts = sorted({entry.m for entry in own})
        keys = list(dict.fromkeys((e.layout, e.rows, e.cols, e.density) for e in own))
        found = {(e.layout, e.rows, e.cols, e.density, e.m): e.gain for e in own}
        rows = [
            (layout, f"{n}x{k}", units.percent(1 - density), *_gains(found, (layout, n, k, density), counts))
            for layout, n, k, density in keys
        ]
        heads = [f">M={m}" if pixels == 1 else f">images={m // pixels}" for m in counts]
        table(
            console, ("layout", "weight" if pixels == 1 else f"1x1, {pixels} pixels", "zeros", *heads), rows
        )
        console.print()


def _gains(found: dict[Any, float], key: tuple[Any, ...], counts: Sequence[int]) -> list[str]:
    gains = [found.get((*key, m)) for m in counts]
    return ["-" if gain is None else f"{gain:.2f}" for gain in gains]


def render_uses(console: Console, uses: Sequence[KernelUse]) -> None:
    """Print a row for each CUDA kernel: registers and spills on each target."""
    targets = list(dict.fromkeys(use.target for use in uses))
    names = list(dict.fromkeys(use.kernel for use in uses))
    found = {(use.kernel, use.target): use for use in uses}
    rows: list[Sequence[object]] = []
    for name in names:
        row: list[object] = [name]
        for target in targets:
            use = found.get((name, target))
            row.append("-" if use is None else f"{use.registers} / {use.spill_bytes}")
        shared = max(use.shared_bytes for use in uses if use.kernel == name)
        rows.append((*row, shared))
    table(console, ("kernel (registers / spilled bytes)", *targets, "static shared bytes"), rows)


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
        table(console, ("name:weight", "why"), rows, _cut("kept dense", rows, [*result.kept_dense]))


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
            console, ("name:op", ">first", ">second"), rows, _cut("op counts that differ", rows, result.ops)
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
    table(console, columns, rows, _cut("weights that differ in zeros", rows, changed))
    console.print()


def _zeros(zeros: int | None, item: WeightZeros) -> str:
    return "not there" if zeros is None else units.percent(zeros / item.weights if item.weights else 0.0)


def _cut(title: str, rows: Sequence[object], items: Sequence[object]) -> str:
    return title if len(rows) == len(items) else f"{title} ({len(rows)} of {len(items)}, all with --json)"


def render_bench(console: Console, result: BenchResult, quiet: bool = False) -> None:
    """Print the times; the first model is what the others are measured against."""
    for line in bench_verdicts(result):
        paragraph(console, line, "bold")
    if quiet:
        return
    console.print()
    rows = [
        (
            timing.name,
            timing.threads,
            units.seconds(timing.median_ms / 1e3),
            units.seconds(timing.p95_ms / 1e3),
            units.seconds(timing.min_ms / 1e3),
            units.seconds(timing.cpu_ms / 1e3),
            f"{100 * timing.spread:.0f} %",
            "" if timing.name == result.models[0].name else _speed(timing),
        )
        for timing in result.timings
    ]
    columns = (
        "name:model",
        ">threads",
        ">median",
        ">p95",
        ">best",
        ">processor",
        ">spread",
        ">speed (95 % interval)",
    )
    table(console, columns, rows)
    console.print()
    loads = [
        (
            item.name,
            units.size(item.file_bytes),
            units.seconds(item.load_ms / 1e3),
            units.seconds(item.load_cpu_ms / 1e3),
        )
        for item in result.models
    ]
    table(console, ("name:model", ">file", ">load", ">processor"), loads)
    console.print()
    inputs = ", ".join(f"{name} {form}" for name, form in result.inputs.items())
    rounds = ", ".join(dict.fromkeys(units.plural(timing.rounds, "round") for timing in result.timings))
    pairs = [("data", result.data), ("inputs", inputs), ("measured", rounds), ("machine", _machine(result))]
    table(console, ("", ""), [pair for pair in pairs if pair[1]])
    for note in result.notes:
        paragraph(console, f"note: {note}", "yellow")


def bench_verdicts(result: BenchResult) -> list[str]:
    """Say for each model but the first whether it is faster, once per number of threads."""
    first = result.models[0].name
    lines = []
    for timing in result.timings:
        where = units.plural(timing.threads, "thread")
        if timing.name == first:
            if len(result.models) == 1:
                lines.append(f"{timing.name} takes {units.seconds(timing.median_ms / 1e3)}, {where}")
            continue
        if not timing.ratio.median > 0:
            lines.append(f"{timing.name} is too quick for this machine's clock, {where}")
            continue
        if timing.ratio.low <= 1 <= timing.ratio.high:
            lines.append(f"{timing.name} is as fast as {first} within the noise ({_speed(timing)}), {where}")
            continue
        word = "faster" if timing.ratio.median < 1 else "slower"
        times = 1 / timing.ratio.median if word == "faster" else timing.ratio.median
        if f"{times:.2f}" == "1.00":
            lines.append(f"{timing.name} is as fast as {first} ({_speed(timing)}), {where}")
            continue
        lines.append(f"{timing.name} is {times:.2f}x {word} than {first}, {where}")
    return lines


def _speed(timing: Timing) -> str:
    """How many runs fit into the time of one run of the first model."""
    ratio = timing.ratio
    if not ratio.median > 0:  # NaN: no round could be timed
        return "unknown"
    return f"{1 / ratio.median:.2f}x ({1 / ratio.high:.2f} to {1 / ratio.low:.2f})"


def _machine(result: BenchResult) -> str:
    parts = [str(result.environment.get(key, "")) for key in ("cpu", "platform")]
    return ", ".join(part for part in parts if part)
