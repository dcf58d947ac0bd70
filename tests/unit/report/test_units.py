from __future__ import annotations

import doctest
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.report import units


def test_examples() -> None:
    result = doctest.testmod(units)
    assert result.attempted >= 10
    assert result.failed == 0


@pytest.mark.parametrize(
    "nasty",
    ["\x1b[31mred", "a\nb", "a\rb", "\x9b2J", "a\u202eb", "a\u2028b", "\x00", "a\tb", "\udcff", "\u200b"],
)
def test_clean_lets_no_control_through(nasty: str) -> None:
    cleaned = units.clean(nasty)
    assert cleaned.isprintable()
    assert "\\" in cleaned


def test_clean_keeps_what_people_write() -> None:
    text = "модель/слой.0 層 ü (50 %)"
    assert units.clean(text) == text


@given(st.text(max_size=80), st.integers(8, 40))
def test_shorten_fits_and_keeps_both_ends(text: str, width: int) -> None:
    short = units.shorten(text, width)
    assert len(short) <= width
    assert short == text or (len(short) == width and text.startswith(short[:2]) and text.endswith(short[-2:]))


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.0, "0"),
        (-0.0149, "-0.0149"),
        (0.99951, "1.00"),
        (99.96, "100"),
        (9.996, "10.0"),
        (123456.0, "123456"),
        (math.nan, "nan"),
        (math.inf, "inf"),
        (1e-300, "1.00e-300"),
    ],
)
def test_digits(number: float, text: str) -> None:
    assert units.digits(number) == text


@given(st.floats(1e-6, 1e6))
def test_digits_are_within_half_a_percent(number: float) -> None:
    text = units.digits(number)
    assert ("e" in text) == (number < 1e-4)
    assert float(text) == pytest.approx(number, rel=0.0051)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (999_950, "1.00 MB"),
        (1_234_567, "1.23 MB"),
        (12e9, "12.0 GB"),
    ],
)
def test_size(size: float, text: str) -> None:
    assert units.size(size) == text


def test_size_pair_has_one_unit() -> None:
    assert units.size_pair(4_194_406, 1_256_051) == "4.19 -> 1.26 MB"
    assert units.size_pair(1_000, 2_000_000) == "0.00100 -> 2.00 MB"
    assert units.size_pair(12, 0) == "12 -> 0 B"


@pytest.mark.parametrize(
    ("duration", "text"),
    [
        (0.0, "0 s"),
        (2e-10, "0.200 ns"),
        (1e-9, "1.00 ns"),
        (0.0004, "400 us"),
        (0.25, "250 ms"),
        (0.9999, "1.00 s"),
        (59.99, "60.0 s"),
        (99.97, "1 min 40 s"),
        (119.6, "2 min 0 s"),
        (7325, "2 h 2 min"),
    ],
)
def test_seconds(duration: float, text: str) -> None:
    assert units.seconds(duration) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0.0 %"), (1.0, "100.0 %"), (0.99999, "99.999 %"), (0.0001, "0.010 %"), (0.7, "70.0 %")],
)
def test_percent_never_rounds_to_all_or_nothing(share: float, text: str) -> None:
    assert units.percent(share) == text


def test_plural() -> None:
    assert [units.plural(n, "layer") for n in (0, 1, 2)] == ["0 layers", "1 layer", "2 layers"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.0, "1"),
        (0.9996, "0.9996"),
        (0.9999999, "1.000000"),
        (0.0, "0.000"),
        (-0.5, "-0.500"),
        (1.0000001, "1.000000"),
    ],
)
def test_closeness(value: float, text: str) -> None:
    assert units.closeness(value) == text


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (1000, 1001, "same size (1.00 -> 1.00 kB)"),
        (1000, 970, "3.0 % smaller (1.00 -> 0.970 kB)"),
        (1000, 500, "2.0x smaller (1.00 -> 0.500 kB)"),
        (1000, 1300, "30.0 % larger (1.00 -> 1.30 kB)"),
        (0, 0, "same size (0 -> 0 B)"),
    ],
)
def test_size_in_words(before: int, after: int, words: str) -> None:
    assert units.smaller(before, after) == words


def test_known() -> None:
    assert (units.known(None), units.known(0.12345, 2), units.known(0.0)) == ("", "0.12", "0")
