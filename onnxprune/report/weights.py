"""What became of each weight, on the terminal: the layers that were pruned, and what was left alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console

from onnxprune.report import units
from onnxprune.report.console import paragraph, table
from onnxprune.report.report import LayerReport, SkippedWeight

MAX_LAYERS = 16  # rows; more do not fit a screen, the JSON report has them all
MAX_REASONS = 8
MAX_NAMES = 4


def render_layers(console: Console, layers: Sequence[LayerReport], report_path: str) -> None:
    """Print a row for each layer, or for those that matter most, and what is noted about them."""
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
        units.known(layer.error, 2),
        units.known(layer.sensitivity, 2),
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
