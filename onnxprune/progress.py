"""How far a run is: a small protocol that the library calls, drawn by rich on stderr.

The library never prints; it is handed a :class:`Progress`. Progress is decoration: what a user
must know goes into the report's warnings, because all of this is silent in a pipe or in CI.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.console import Console

_REFRESH_PER_SECOND = 8  # drawing competes with the solvers for the GIL


class Progress(Protocol):
    """What a stage of the pipeline tells whoever is watching."""

    def stage(self, name: str, total: int | None = None) -> None:
        """Begin a stage of ``total`` steps (None: unknown) and end the one before."""

    def advance(self, steps: int = 1) -> None:
        """Count ``steps`` steps of the current stage as done."""

    def note(self, text: str) -> None:
        """Show one line that may be missed."""


class NullProgress:
    """Watches nothing; the default of every library function."""

    def stage(self, name: str, total: int | None = None) -> None:
        """Do nothing."""

    def advance(self, steps: int = 1) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""


class RichProgress:
    """One live line on a terminal: spinner, stage, bar, steps, time. Gone when the run ends."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        # ASCII spinner where the terminal cannot show braille.
        spinner = "dots" if console.encoding.startswith("utf") else "line"
        self._bars = Bars(
            SpinnerColumn(spinner),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[steps]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            redirect_stdout=False,  # results are not progress
            refresh_per_second=_REFRESH_PER_SECOND,
        )
        self._task: int | None = None

    def stage(self, name: str, total: int | None = None) -> None:
        """Replace the live line."""
        from onnxprune.report.units import clean

        self._end()
        steps = f"0/{total}" if total else ""
        self._task = self._bars.add_task(clean(name), total=total or None, steps=steps)

    def advance(self, steps: int = 1) -> None:
        """Move the bar."""
        if self._task is None:
            return
        task = self._bars.tasks[-1]
        text = f"{task.completed + steps:.0f}" + (f"/{task.total:.0f}" if task.total else "")
        self._bars.update(task.id, advance=steps, steps=text)

    def note(self, text: str) -> None:
        """Print a line above the live one."""
        from onnxprune.report.units import clean

        self._bars.console.print(clean(text), style="dim", markup=False, highlight=False)

    def start(self) -> None:
        """Take over the bottom line of the terminal."""
        self._bars.start()

    def stop(self) -> None:
        """Clear the live line and give the cursor back."""
        self._end()
        self._bars.stop()

    def _end(self) -> None:
        if self._task is not None:
            self._bars.remove_task(self._bars.tasks[-1].id)
            self._task = None


def wanted(stream: TextIO, quiet: bool = False) -> bool:
    """True when a person watches ``stream``: a terminal that can move its cursor, outside CI."""
    return (
        not quiet
        and stream.isatty()
        and os.environ.get("TERM") != "dumb"
        and os.environ.get("CI", "").lower() in ("", "0", "false")
    )


@contextmanager
def watch(quiet: bool = False, stream: TextIO | None = None) -> Iterator[Progress]:
    """Yield a progress display for the duration of a command.

    Args:
        quiet: show nothing.
        stream: where to draw (default: stderr). ``NO_COLOR`` takes the colours away, not the bar.
    """
    stream = stream or sys.stderr
    if not wanted(stream, quiet):
        yield NullProgress()
        return
    from rich.console import Console

    display = RichProgress(Console(file=stream, highlight=False, markup=False))
    display.start()
    try:
        yield display
    finally:
        display.stop()
