"""The summary of a pruning run on the terminal: verdict first, then what it rests on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console

from onnxprune.report import units
from onnxprune.report.console import paragraph, table
from onnxprune.report.curve import render_search
from onnxprune.report.report import LayerReport, Report, SkippedWeight
from onnxprune.report.structured import before_after, render_structured
from onnxprune.report.structured import headline as headline_of_units

MAX_LAYERS = 16  # rows; more do not fit a screen, the JSON report has them all
MAX_REASONS = 8
MAX_OUTPUTS = 8
MAX_NAMES = 4
VERDICT_STYLES = {"ok": "bold green", "degraded": "bold yellow", "broken": "bold red"}
LITTLE = 0.98  # of the held-out loss: training that leaves more than this did next to nothing
SYNTHETIC = "SYNTHETIC DATA: THE NUMBERS MEAN LITTLE"


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
        _layers(console, report.layers, report_path)
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
        return "dry run, nothing written" + (f": {smaller(before, after)}" if after is not None else "")
    return smaller(before, after) if after is not None else ""


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


def smaller(before: float, after: float) -> str:
    """Compare two file sizes in words.

    >>> smaller(90_400_000, 30_100_000)
    '3.0x smaller (90.4 -> 30.1 MB)'
    """
    pair = units.size_pair(before, after)
    if not before or not after or abs(before / after - 1) < 0.005:
        return f"same size ({pair})"
    if after < before:
        ratio = before / after
        return (
            f"{ratio:.1f}x smaller ({pair})"
            if ratio >= 1.05
            else f"{units.percent(1 - after / before)} smaller ({pair})"
        )
    ratio = after / before
    return f"{ratio:.1f}x larger ({pair})" if ratio >= 1.5 else f"{units.percent(ratio - 1)} larger ({pair})"


def worst_agreement(agreements: Sequence[Mapping[str, Any]]) -> str:
    """Name the worst value of each measure over the outputs, "" without any.

    Classes speak for the model when it has any, as in the verdict: hidden states beside them move first.
    """
    classes = [item for item in agreements if item["top1"] is not None]
    measured = classes or agreements
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
            _number(item["relative_error"]),
            "" if item["top1"] is None else units.percent(item["top1"]),
            _number(item["kl"]),
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


def _number(value: float | None, significant: int = 3) -> str:
    return "" if value is None else units.digits(value, significant)


def _before_after(report: Report) -> Iterable[Sequence[object]]:
    before, after = report.file_bytes_before, report.file_bytes_after
    if after is not None:
        yield "file size", units.size(before), units.size(after), smaller(before, after).partition(" (")[0]
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


def _layers(console: Console, layers: Sequence[LayerReport], report_path: str) -> None:
    if not layers:
        return
    shown = most_telling(layers, MAX_LAYERS)
    title = units.plural(len(layers), "layer")
    if len(shown) < len(layers):
        where = f"all in {units.near(report_path)}" if report_path else "all with --json"
        title += f", the {len(shown)} that matter most ({where})"
    columns = ("name:layer", "kind", "shape", ">zero", ">error", ">effect", ">size", "stored", ">speed")
    table(console, columns, [_layer_row(layer) for layer in shown], title)
    notes = _grouped((layer.note, layer.name) for layer in layers)
    notes |= _grouped((_why_dense(layer), layer.name) for layer in layers if not layer.kernel)
    for note, names in notes.items():
        more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
        paragraph(console, f"{note}: {', '.join(names[:MAX_NAMES])}{more}", "dim")
    console.print()


def _grouped(notes: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Group names by what is noted about them."""
    groups: dict[str, list[str]] = {}
    for note, name in notes:
        if note:
            groups.setdefault(note, []).append(name)
    return groups


def _why_dense(layer: LayerReport) -> str:
    return f"runs dense, {layer.kernel_note}" if layer.kernel_note else ""


def _layer_row(layer: LayerReport) -> tuple[str, ...]:
    speed = f"{layer.gain:.1f}x" if layer.kernel and layer.gain is not None else ""
    if layer.dense_readers:  # it is in memory twice
        speed += f" + {layer.dense_readers} dense"
    if not layer.kernel and layer.kernel_note:
        speed = "dense"
    return (
        layer.name,
        layer.kind,
        units.shape(layer.shape),
        units.percent(layer.sparsity),
        _number(layer.error, 2),
        _number(layer.sensitivity, 2),
        f"{100 * layer.stored_bytes / layer.dense_bytes:.0f} %" if layer.dense_bytes else "",
        layer.stored,
        speed,
    )


def most_telling(layers: Sequence[LayerReport], number: int) -> list[LayerReport]:
    """Choose the layers that move the output most (else: err most, else: are largest), in graph order."""
    if any(layer.sensitivity is not None for layer in layers):
        ranks = [layer.sensitivity or 0.0 for layer in layers]
    elif any(layer.error is not None for layer in layers):
        ranks = [layer.error or 0.0 for layer in layers]
    else:
        ranks = [float(layer.weights) for layer in layers]
    order = sorted(range(len(layers)), key=lambda i: (-ranks[i], i))[:number]
    return [layers[i] for i in sorted(order)]


def render_skipped(console: Console, skipped: Sequence[SkippedWeight]) -> None:
    """Print what was left alone, grouped by the reason."""
    if not skipped:
        return
    groups = group_reasons(skipped)
    title = f"{units.plural(len(skipped), 'weight')} left alone"
    rows = [
        (str(len(items)), units.count(sum(item.weights for item in items)), reason, _examples(items))
        for reason, items in groups[:MAX_REASONS]
    ]
    table(console, (">tensors", ">elements", "wrap:reason", "name:for example"), rows, title)
    hidden = groups[MAX_REASONS:]
    if hidden:
        paragraph(console, f"and {sum(len(items) for _, items in hidden)} more for other reasons", "dim")
    console.print()


def group_reasons(skipped: Sequence[SkippedWeight]) -> list[tuple[str, list[SkippedWeight]]]:
    """Group by reason, largest group first; reasons that differ only in numbers and names are one.

    >>> small = [SkippedWeight(name, "", n, f"too small: {n} elements") for name, n in (("a", 9), ("b", 8))]
    >>> [(reason, len(items)) for reason, items in group_reasons(small)]
    [('too small', 2)]
    """
    groups: dict[str, list[SkippedWeight]] = {}
    for item in skipped:
        groups.setdefault(item.reason.partition(": ")[0], []).append(item)
    named = [
        (items[0].reason if len({item.reason for item in items}) == 1 else head, items)
        for head, items in groups.items()
    ]
    return sorted(named, key=lambda group: -sum(item.weights for item in group[1]))


def _examples(items: Sequence[SkippedWeight]) -> str:
    return max(items, key=lambda item: item.weights).name


def _training(found: Mapping[str, Any]) -> str:
    steps = units.plural(found["steps"], "step")
    before, after = units.digits(found["before"]), units.digits(found["after"])
    if not found["best"]:
        kept = "the pruned weights were kept, more samples may help"
        return f"{steps}, held-out loss hardly below {before}: {kept}"
    lr = found["lr"]
    rate = "" if lr is None or lr != lr else f", lr {lr:.2g}"  # each block has its own
    little = found["after"] > LITTLE * found["before"]
    more = ": hardly any less, more --minutes or samples may help" if little else ""
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
