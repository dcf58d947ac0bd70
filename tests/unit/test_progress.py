from __future__ import annotations

import io
import os
import pty
import sys
from collections.abc import Iterator
from typing import TextIO

import pytest
from rich.console import Console

from onnxprune.progress import NullProgress, Progress, RichProgress, wanted, watch


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CI", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def work(progress: Progress) -> None:
    """What a pipeline does with it."""
    progress.advance()  # before any stage: no harm
    progress.stage("calibrate", 3)
    for _ in range(3):
        progress.advance()
    progress.stage("solve")
    progress.advance(2)
    progress.note("damping of layer [x] raised")
    progress.stage("empty", 0)


def test_null_progress_takes_everything() -> None:
    work(NullProgress())


class TestWanted:
    def test_on_a_terminal(self) -> None:
        assert wanted(Terminal())

    def test_not_in_a_pipe(self) -> None:
        assert not wanted(io.StringIO())

    def test_not_when_quiet(self) -> None:
        assert not wanted(Terminal(), quiet=True)

    @pytest.mark.parametrize("value", ["1", "true", "yes", "woodpecker"])
    def test_not_in_ci(self, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
        monkeypatch.setenv("CI", value)
        assert not wanted(Terminal())

    @pytest.mark.parametrize("value", ["", "0", "false", "False"])
    def test_ci_may_be_off(self, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
        monkeypatch.setenv("CI", value)
        assert wanted(Terminal())

    def test_not_on_a_dumb_terminal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TERM", "dumb")
        assert not wanted(Terminal())

    def test_no_colour_keeps_the_bar(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("NO_COLOR", "1")
        assert wanted(Terminal())


class TestWatch:
    def test_pipe_stays_clean(self) -> None:
        stream = io.StringIO()
        with watch(stream=stream) as progress:
            work(progress)
        assert stream.getvalue() == ""
        assert isinstance(progress, NullProgress)

    def test_terminal_sees_stage_steps_and_note(self) -> None:
        stream = Terminal()
        with watch(stream=stream) as progress:
            progress.stage("calibrate", 3)
            progress.advance(2)
            progress.note("a [bold]note[/bold]\x1b[5m")
            assert isinstance(progress, RichProgress)
            progress._bars.refresh()
        output = stream.getvalue()
        assert "calibrate" in output and "2/3" in output
        assert r"a [bold]note[/bold]\x1b[5m" in output

    def test_no_colour_has_no_colour(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("NO_COLOR", "1")
        stream = Terminal()
        with watch(stream=stream) as progress:
            work(progress)
        assert "\x1b[3" not in stream.getvalue()  # SGR colours start so

    def test_cursor_comes_back_after_an_error(self) -> None:
        stream = Terminal()
        with pytest.raises(ZeroDivisionError), watch(stream=stream) as progress:
            progress.stage("solve", 3)
            raise ZeroDivisionError
        assert (
            stream.getvalue().rstrip().endswith(("\x1b[?25h", "\x1b[2K")) or "\x1b[?25h" in stream.getvalue()
        )

    def test_leaves_stdout_alone(self) -> None:
        before = sys.stdout
        with watch(stream=Terminal()):
            assert sys.stdout is before

    def test_stderr_is_the_default(self, monkeypatch: pytest.MonkeyPatch) -> None:
        stream = Terminal()
        monkeypatch.setattr(sys, "stderr", stream)
        with watch() as progress:
            progress.stage("solve")
            progress._bars.refresh()  # type: ignore[attr-defined]
        assert "solve" in stream.getvalue()

    def test_total_unknown_then_known(self) -> None:
        console = Console(file=Terminal(), force_terminal=True, width=80)
        display = RichProgress(console)
        display.start()
        work(display)
        assert len(display._bars.tasks) == 1  # one live line, whatever the number of stages
        display.stop()
        assert not display._bars.tasks


@pytest.fixture
def terminal() -> Iterator[TextIO]:
    """The slave end of a real pseudo-terminal that can only show ASCII."""
    master, slave = pty.openpty()
    stream = os.fdopen(slave, "w", encoding="ascii")
    yield stream
    stream.close()
    os.close(master)


def test_ascii_terminal_is_no_reason_to_fail(terminal: TextIO) -> None:
    with watch(stream=terminal) as progress:
        assert isinstance(progress, RichProgress)
        work(progress)
