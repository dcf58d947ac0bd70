"""What doctor and ops say about this machine and its kernels, on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from onnxprune.report import units
from onnxprune.report.console import LEVEL_STYLES, paragraph, table

if TYPE_CHECKING:
    from onnxprune.cudabuild import KernelUse
    from onnxprune.doctor import Check
    from onnxprune.kernels.devicetable import DeviceTable
    from onnxprune.opsinfo import OpsInfo


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
