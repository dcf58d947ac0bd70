"""The summary of a pruning run on the terminal: verdict first, then what it rests on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console

from onnxprune.report import units
from onnxprune.report.agreement import render_agreements, worst_agreement
from onnxprune.report.console import SYNTHETIC, VERDICT_STYLES, paragraph, table
from onnxprune.report.curve import render_search
from onnxprune.report.report import Report
from onnxprune.report.structured import before_after, render_structured
from onnxprune.report.structured import headline as headline_of_units
from onnxprune.report.weights import render_layers, render_skipped

LITTLE = 0.98  # of the held-out loss: training that leaves more than this did next to nothing


def render_report(console: Console, report: Report, report_path: str = "", quiet: bool = False) -> None:
    """Print the summary; with ``quiet`` only the verdict."""
    style = VERDICT_STYLES.get(report.verdict, "bold")
    paragraph(console, headline(report), style)
    if report.verdict_text:
        paragraph(console, report.verdict_text, "" if report.verdict == "ok" else style)
    if quiet:
        return
    console.print()
    table(console, ("", ">before", ">after", ""), _before_after(report))
    console.print()
    if report.search:
        render_search(console, report.search)
    render_agreements(console, report.agreements, report.synthetic)
    if report.structured:
        render_structured(console, report.structured)
    if report.zeros or not report.structured:
        render_layers(console, report.layers, report_path)
    if report.kernels_note:
        paragraph(console, report.kernels_note)
        console.print()
    render_skipped(console, report.skipped)
    _footer(console, report, report_path)


def headline(report: Report) -> str:
    """Say in one line what the run achieved."""
    parts = [
        _smaller(report),
        _faster(report),
        headline_of_units(report.structured) if report.structured else "",
        "" if report.structured and not report.zeros else _zeros(report),
    ]
    if report.metric and report.metric_before is not None and report.metric_after is not None:
        before, after = units.digits(report.metric_before), units.digits(report.metric_after)
        parts.append(f"{short_metric(report.metric)} {before} -> {after}")
    agreement = worst_agreement(report.agreements)
    if agreement:
        where = " (SYNTHETIC DATA)" if report.synthetic else ""
        parts.append(f"agreement with the dense model{where}: {agreement}")
    return ", ".join(part for part in parts if part)


def _zeros(report: Report) -> str:
    return f"{units.percent(report.sparsity)} of {units.count(report.weights)} weights zero"


def _smaller(report: Report) -> str:
    before, after = report.file_bytes_before, report.file_bytes_after
    if report.output is None:
        return "dry run, nothing written" + (f": {units.smaller(before, after)}" if after is not None else "")
    return units.smaller(before, after) if after is not None else ""


def _faster(report: Report) -> str:
    """Say how many times faster the model is, at the number of threads where it gains least."""
    if report.structured:
        return ""
    ratio = min((speed.ratio for speed in report.speed), default=1.0)
    return f"{ratio:.1f}x faster" if ratio >= 1.05 else ""


def short_metric(name: str) -> str:
    """Name the user's measure by its function.

    >>> short_metric("tasks/sts.py:spearman")
    'spearman'
    """
    return name.rpartition(":")[2]


def _before_after(report: Report) -> Iterable[Sequence[object]]:
    before, after = report.file_bytes_before, report.file_bytes_after
    if after is not None:
        yield (
            "file size",
            units.size(before),
            units.size(after),
            units.smaller(before, after).partition(" (")[0],
        )
    if report.structured:
        yield from before_after(report.structured)
    for speed in report.speed:
        name = f"speed, {units.plural(speed.threads, 'thread')}"
        beyond = " and smaller shapes" if report.structured else ""
        yield name, "", "", f"{speed.ratio:.2f}x faster with the kernels{beyond}, on this machine"
    kept = report.weights - report.zeros
    if report.zeros or not report.structured:
        yield (
            "nonzero weights",
            units.count(report.weights),
            units.count(kept),
            f"{units.percent(report.sparsity)} zero",
        )
    if report.metric and report.metric_before is not None and report.metric_after is not None:
        change = report.metric_after - report.metric_before
        yield (
            short_metric(report.metric),
            units.digits(report.metric_before, 4),
            units.digits(report.metric_after, 4),
            f"{'+' if change > 0 else ''}{units.digits(change)}" if change else "unchanged",
        )


def _training(found: Mapping[str, Any]) -> str:
    steps = units.plural(found["steps"], "step")
    before, after = units.digits(found["before"]), units.digits(found["after"])
    if not found["best"]:
        kept = "the pruned weights were kept, more samples may help"
        return f"{steps}, held-out loss likely above {before}: {kept}"
    lr = found["lr"]
    rate = "" if lr is None or lr != lr else f", lr {lr:.2g}"  # each block has its own
    more = ""
    if found["after"] >= found["before"]:
        more = ": no lower, but within the scatter of these samples; more of them may tell"
    elif found["after"] > LITTLE * found["before"]:
        more = ": hardly any less, more --minutes or samples may help"
    return f"{steps}, held-out loss {before} -> {after} (step {found['best']}{rate}){more}"


def _footer(console: Console, report: Report, report_path: str) -> None:
    data = report.data
    if report.synthetic:
        data = f"{SYNTHETIC} ({data})"
    rows = [("data", data)] if data else []
    total = sum(timing.wall_seconds for timing in report.timings)
    if report.timings:
        processor = sum(timing.cpu_seconds for timing in report.timings)
        slow = [timing for timing in report.timings if timing.wall_seconds >= max(0.01 * total, 0.05)]
        stages = ", ".join(f"{timing.stage} {units.seconds(timing.wall_seconds)}" for timing in slow)
        rows.append(("time", f"{units.seconds(total)} ({units.seconds(processor)} of processor): {stages}"))
    if report.finetuning:
        rows.append(("trained", _training(report.finetuning)))
        if labels := report.finetuning.get("labels"):
            use = f"{labels['loss']} on output {labels['output']}" if labels["output"] else "for --loss"
            rows.append(("labels", f"{labels['count']} from array {labels['key']}, {use}"))
    if report.peak_rss_bytes:
        rows.append(("memory", f"{units.size(report.peak_rss_bytes)} at most"))
    if report.output is not None:
        paths = [units.near(path) for path in (report.output, *report.data_files, report_path) if path]
        rows.append(("wrote", ", ".join(paths[:-1]) + " and " + paths[-1] if len(paths) > 1 else paths[0]))
    table(console, ("", ""), rows)
