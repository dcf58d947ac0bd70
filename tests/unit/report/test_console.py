from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.text import Text

from onnxprune.report.console import MIN_NAME, PIPE_WIDTH, cut_title, open_console, paragraph, table


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def drawn(columns: tuple[str, ...], rows: list[tuple[object, ...]], width: int = 80, title: str = "") -> str:
    console = Console(file=io.StringIO(), width=width, markup=False, highlight=False)
    table(console, columns, rows, title)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


class TestOpenConsole:
    def test_pipe_is_wide_and_has_no_colour(self) -> None:
        stream = io.StringIO()
        console = open_console(stream)
        assert console.width == PIPE_WIDTH
        console.print("x", style="bold red")
        assert stream.getvalue() == "x\n"

    def test_columns_rule(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "72")
        assert open_console(io.StringIO()).width == 72

    def test_odd_columns_do_not(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "wide")
        assert open_console(io.StringIO()).width == PIPE_WIDTH

    def test_terminal_has_colour_unless_told_otherwise(self, monkeypatch: pytest.MonkeyPatch) -> None:
        stream = Terminal()
        open_console(stream).print("x", style="red")
        assert "\x1b[" in stream.getvalue()
        monkeypatch.setenv("NO_COLOR", "1")
        stream = Terminal()
        open_console(stream).print("x", style="red")
        assert stream.getvalue() == "x\n"

    def test_names_are_not_markup(self) -> None:
        stream = io.StringIO()
        open_console(stream).print("[bold]w[/bold] :smile: 1.5")
        assert stream.getvalue() == "[bold]w[/bold] :smile: 1.5\n"


class TestTable:
    def test_numbers_are_aligned_to_the_right(self) -> None:
        lines = drawn(("name:layer", ">weights"), [("a", "1"), ("bb", "1000")]).splitlines()
        assert [line.rstrip() for line in lines] == ["layer  weights", "a            1", "bb        1000"]

    def test_title_and_no_headings(self) -> None:
        assert drawn(("", ""), [("a", "b")], title="both").splitlines()[0] == "both"
        assert len(drawn(("", ""), [("a", "b")]).splitlines()) == 1

    def test_empty_columns_vanish_when_they_have_a_heading(self) -> None:
        assert "gone" not in drawn(("a", "gone", "b"), [("1", "", "2")])
        assert drawn(("a", "", "b"), [("1", "", "2")]).splitlines()[0].split() == ["a", "b"]

    def test_long_names_give_way_to_the_numbers(self) -> None:
        output = drawn(("name:layer", ">weights"), [("x" * 300, "123456")], width=40)
        assert "123456" in output and ".." in output
        assert max(len(line) for line in output.splitlines()) <= 40

    def test_names_keep_a_least_width(self) -> None:
        row = drawn(("name:layer", ">n"), [("abcdefgh" * 9, "1" * 60)], width=40).splitlines()[-1]
        assert row.startswith("abcdef") and len(row.split()[0]) <= MIN_NAME

    def test_last_column_wraps(self) -> None:
        output = drawn(("a", "why"), [("x", "many words " * 20)], width=40)
        assert output.count("many") == 20 and len(output.splitlines()) > 5

    def test_sentences_before_the_last_column_wrap(self) -> None:
        row = ("1", "12.3 k", "many words " * 20, "name")
        output = drawn((">n", ">elements", "wrap:reason", "name:for example"), [row], width=60)
        assert output.count("many") == 20 and output.splitlines()[0].split()[:2] == ["n", "elements"]
        assert "12.3 k" in output and "name" in output
        assert max(len(line) for line in output.splitlines()) <= 60

    def test_text_keeps_its_style(self) -> None:
        console = Console(file=io.StringIO(), width=40, force_terminal=True, color_system="standard")
        table(console, ("", ""), [(Text("ok", "green"), "x")])
        assert isinstance(console.file, io.StringIO)
        assert "\x1b[32mok" in console.file.getvalue()

    def test_control_characters_are_spelled_out(self) -> None:
        assert r"a\x1b[2J" in drawn(("n",), [("a\x1b[2J",)], title="t\x07")
        assert "\x07" not in drawn(("n",), [("a",)], title="t\x07")

    def test_no_rows(self) -> None:
        assert drawn(("a", "b"), []).strip() == ""


def test_paragraph_wraps_and_cleans() -> None:
    console = Console(file=io.StringIO(), width=20, markup=False)
    paragraph(console, "one two three four five six\x1b[0m [i]")
    assert isinstance(console.file, io.StringIO)
    output = console.file.getvalue()
    assert output.splitlines()[1].rstrip() == r"five six\x1b[0m [i]"


def test_a_title_says_what_was_cut() -> None:
    assert cut_title("weights", [1, 2], [1, 2]) == "weights"
    assert cut_title("weights", [1, 2], [1, 2, 3]) == "weights (2 of 3, all with --json)"
