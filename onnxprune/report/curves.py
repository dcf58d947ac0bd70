"""Draw the sensitivity curves of a model: one line a layer, the most sensitive ones named."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from onnxprune.errors import ResourceError, UsageError
from onnxprune.files.atomic import atomic_write_bytes
from onnxprune.report.units import clean, shorten

if TYPE_CHECKING:
    from onnxprune.sensitivity import SensitivityReport

FORMATS = ("png", "svg")
NAMED = 8  # lines in the legend


def check_plot(path: Path) -> str:
    """Return the format of a figure, before the work that it will show.

    Raises:
        UsageError: when the ending is none of ours.
        ResourceError: when matplotlib is missing.
    """
    form = path.suffix.lower().lstrip(".")
    if form not in FORMATS:
        raise UsageError(f"--plot is {str(path)!r}, wanted a file that ends in .png or .svg")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ResourceError(
            "--plot needs matplotlib, which is not installed", "pip install matplotlib"
        ) from error
    return form


def draw(report: SensitivityReport, path: Path, *, force: bool = False) -> None:
    """Write the figure.

    Args:
        report: what to draw: the model's output, or the layers' own errors where only they were measured.
        path: its ending, ``.png`` or ``.svg``, chooses the format.
        force: overwrite an existing file.

    Raises:
        UsageError: for another ending, or when the file exists.
        ResourceError: when matplotlib is missing.
    """
    form = check_plot(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    whole = all(item.output for item in report.layers)
    curves = {item.name: item.output if whole else item.error for item in report.layers}
    order = sorted(curves, key=lambda name: -curves[name][-1])
    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for rank, name in enumerate(order):
        values = [max(value, 1e-12) for value in curves[name]]
        if rank < NAMED:
            label = shorten(clean(name), 40).replace("$", r"\$")
            axes.plot(report.levels, values, label=label, marker="o", markersize=3)
        else:
            axes.plot(report.levels, values, color="0.75", linewidth=0.8, zorder=1)
    axes.set(
        yscale="log",
        xlabel="sparsity of the layer alone",
        ylabel="divergence of the model's output" if whole else "relative error of the layer's output",
        title=f"{shorten(clean(Path(report.model).name), 50)}: {len(order)} layers",
    )
    axes.legend(fontsize="small", title="most sensitive")
    target = io.BytesIO()
    # Without a date and with fixed ids, so that the same curves give the same bytes
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "onnxprune"}):
        figure.savefig(target, format=form, dpi=150, metadata={"Date": None} if form == "svg" else None)
    atomic_write_bytes(path, target.getvalue(), force=force)
