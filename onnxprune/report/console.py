"""The terminal: one console for results on stdout and the table style that all commands share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from onnxprune.report.units import clean, shorten

PIPE_WIDTH = 160  # nobody looks at the right edge of a pipe; wide enough for whole names
MIN_NAME, MAX_NAME = 16, 64  # columns
LEVEL_STYLES = {"ok": "green", "note": "yellow", "problem": "bold red"}
VERDICT_STYLES = {"ok": "bold green", "degraded": "bold yellow", "broken": "bold red"}
SYNTHETIC = "SYNTHETIC DATA: THE NUMBERS MEAN LITTLE"


def open_console(stream: TextIO | None = None) -> Console:
    """Return the console for results: width of the terminal, no colour in a pipe.

    Markup, highlighting and emoji codes are off: names of nodes are shown as they are.
    """
    stream = stream or sys.stdout
    width = None if stream.isatty() or os.environ.get("COLUMNS", "").isdigit() else PIPE_WIDTH
    return Console(file=stream, width=width, markup=False, highlight=False, emoji=False, soft_wrap=False)


def table(
    console: Console, columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = ""
) -> None:
    """Print a borderless table, without the columns that have a heading and nothing below it.

    Args:
        console: where to.
        columns: headings. ``>`` in front aligns a column of numbers to the right; ``name:`` marks a column
            whose cells may lose their middle on a narrow terminal, ``wrap:`` one of sentences, which wraps.
            The last column wraps unless marked.
        rows: cells, taken as text; a :class:`rich.text.Text` keeps its style.
        title: a line above the table.
    """
    cells = [[cell if isinstance(cell, Text) else Text(clean(cell)) for cell in row] for row in rows]
    used = [i for i, column in enumerate(columns) if not column or any(row[i].plain for row in cells)]
    columns, cells = [columns[i] for i in used], [[row[i] for i in used] for row in cells]
    _fit(cells, columns, console.width)
    grid = Table(box=None, padding=(0, 2, 0, 0), show_header=any(columns), header_style="dim", pad_edge=False)
    last = len(columns) - 1
    for position, column in enumerate(columns):
        right, name = column.startswith(">"), column.startswith("name:")
        wraps = column.startswith("wrap:")
        grid.add_column(
            column.removeprefix("name:").removeprefix("wrap:").removeprefix(">"),
            justify="right" if right else "left",
            no_wrap=not wraps and (position != last or right or name),
            overflow="fold" if wraps or position == last else "crop",  # rich's ellipsis is no ASCII
        )
    for row in cells:
        grid.add_row(*row)
    if title:
        console.print(Text(clean(title), style="bold"))
    console.print(grid)


def cut_title(title: str, rows: Sequence[object], items: Sequence[object]) -> str:
    """Return the title of a table that shows the first ``rows`` of ``items``."""
    return title if len(rows) == len(items) else f"{title} ({len(rows)} of {len(items)}, all with --json)"


def _fit(cells: list[list[Text]], columns: Sequence[str], width: int) -> None:
    """Shorten names so that the other columns keep their room; a column that wraps can do with little."""
    names = [position for position, column in enumerate(columns) if column.startswith("name:")]
    if not names or not cells:
        return
    wide = [max(len(columns[i]), *(len(row[i].plain) for row in cells)) for i in range(len(columns))]
    for i, column in enumerate(columns):
        if column.startswith("wrap:") or (i == len(columns) - 1 and not column.startswith((">", "name:"))):
            wide[i] = min(wide[i], MIN_NAME)
    room = width - sum(wide[i] + 2 for i in range(len(columns)) if i not in names)
    budget = min(max(room // len(names) - 2, MIN_NAME), MAX_NAME)
    for row in cells:
        for i in names:
            row[i] = Text(shorten(row[i].plain, budget), style=row[i].style)


def paragraph(console: Console, text: str, style: str = "") -> None:
    """Print one paragraph, wrapped at the width of the terminal."""
    console.print(Text(clean(text), style=style))
