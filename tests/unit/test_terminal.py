from __future__ import annotations

import errno
import io
import json
import sys
import warnings
from typing import Any

import click
import pytest
from rich.console import Console

from onnxprune import errors
from onnxprune.terminal import complain, emit, explain, working


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (errors.VerificationError("a b"), 1, "error: a b"),
        (errors.UsageError("a b"), 2, "error: a b"),
        (errors.ModelError("a b"), 3, "error: a b"),
        (errors.DataError("a b"), 3, "error: a b"),
        (errors.ResourceError("a b"), 4, "error: a b"),
        (click.UsageError("Wrong."), 2, "error: Wrong"),
        (click.BadParameter("Wrong."), 2, "error: Invalid value: Wrong"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
        (click.Abort(), 130, "error: interrupted"),
        (MemoryError(), 4, "error: out of memory"),
        (MemoryError("unable to allocate 3 GiB"), 4, "error: out of memory: unable to allocate 3 GiB"),
        (OSError(errno.ENOSPC, "No space left on device"), 4, "error: output: No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 4, "error: /x: Permission denied"),
        (OSError("odd"), 4, "error: odd"),
        (BrokenPipeError(), 141, ""),
        (ModuleNotFoundError("No module named 'scipy'", name="scipy"), 4, "error: No module named 'scipy'"),
        (ImportError("no x", name="onnxprune.y"), 70, "internal error: ImportError: no x"),
        (RuntimeError("a\nb"), 70, r"internal error: RuntimeError: a\nb"),
        (RecursionError("deep"), 70, "internal error: RecursionError: deep"),
        (AssertionError(), 70, "internal error: AssertionError: "),
    ],
    ids=lambda item: type(item).__name__ if isinstance(item, BaseException) else "",
)
def test_every_end_has_its_status_and_line(
    capsys: pytest.CaptureFixture[str], error: BaseException, status: int, line: str
) -> None:
    assert explain(error) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.split("\n")[0].rstrip() == line.rstrip()


def test_hint_is_the_next_line(capsys: pytest.CaptureFixture[str]) -> None:
    explain(errors.ModelError("broken", "mend it"))
    assert capsys.readouterr().err == "error: broken\nhint: mend it\n"


def test_usage_errors_point_at_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    from onnxprune.cli import cli

    with pytest.raises(click.UsageError) as caught, cli.make_context("onnxprune", ["inspect"]) as ctx:
        cli.invoke(ctx)
    explain(caught.value)
    assert "hint: onnxprune inspect --help" in capsys.readouterr().err


class TestComplain:
    def test_control_characters_do_not_reach_the_terminal(self, capsys: pytest.CaptureFixture[str]) -> None:
        complain("error", "node \x1b[31mred\r\n", "a\x07b")
        assert capsys.readouterr().err == "error: node \\x1b[31mred\\r\\n\nhint: a\\x07b\n"

    @pytest.mark.parametrize(("no_colour", "coloured"), [("", True), ("1", False)])
    def test_colour_on_a_terminal(
        self, monkeypatch: pytest.MonkeyPatch, no_colour: str, coloured: bool
    ) -> None:
        class Terminal(io.StringIO):
            def isatty(self) -> bool:
                return True

        monkeypatch.setenv("NO_COLOR", no_colour)
        monkeypatch.setattr(sys, "stderr", Terminal())
        complain("error", "x")
        assert ("\x1b[" in sys.stderr.getvalue()) is coloured

    def test_closed_stderr_is_no_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Closed(io.StringIO):
            def write(self, text: str) -> int:
                raise BrokenPipeError

        monkeypatch.setattr(sys, "stderr", Closed())
        complain("error", "x")


class TestEmit:
    def test_json_is_one_document(self, capsys: pytest.CaptureFixture[str]) -> None:
        emit(lambda: {"a": float("nan"), "b": (1, 2)}, lambda console: console.print("never"), as_json=True)
        assert json.loads(capsys.readouterr().out) == {"a": None, "b": [1, 2]}

    def test_text_has_no_trailing_blanks(self, capsys: pytest.CaptureFixture[str]) -> None:
        def draw(console: Console) -> None:
            console.print("a   ")
            console.print()
            console.print("b", style="red")

        emit(lambda: {}, draw, as_json=False)
        assert capsys.readouterr().out == "a\n\nb\n"

    def test_without_rich_the_result_is_json(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "onnxprune.report.console", None)
        emit(lambda: {"a": 1}, lambda console: console.print("never"), as_json=False)
        assert json.loads(capsys.readouterr().out) == {"a": 1}

    def test_broken_pipe_shows_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Closed(io.StringIO):
            def flush(self) -> None:
                raise BrokenPipeError

        monkeypatch.setattr(sys, "stdout", Closed())
        with pytest.raises(BrokenPipeError):
            emit(lambda: {}, lambda console: None, as_json=True)


def test_what_user_code_prints_is_no_result(capsys: pytest.CaptureFixture[str]) -> None:
    with working(quiet=True):
        print("accuracy 0.9")
    captured = capsys.readouterr()
    assert captured.out == "" and "accuracy 0.9" in captured.err


def test_warnings_are_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxprune import terminal

    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(terminal.signal, "signal", lambda *_: None)
    terminal.prepare_process()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("mind the gap", RuntimeWarning, stacklevel=1)
    assert capsys.readouterr().err == "warning: mind the gap\n"


def test_streams_closed_by_the_caller_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxprune import terminal

    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(terminal.signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "stdout", None)
    terminal.prepare_process()
    stream: Any = sys.stdout
    print("nobody reads this")
    stream.close()
