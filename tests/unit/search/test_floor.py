from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.errors import DataError, UsageError
from onnxprune.search.floor import Drop, Floor


@pytest.mark.parametrize(
    ("text", "drop"),
    [
        ("1%", Drop(1.0, "%")),
        (" 0.5 % ", Drop(0.5, "%")),
        ("1pp", Drop(1.0, "pp")),
        ("2.pp", Drop(2.0, "pp")),
        ("0.5", Drop(0.5, "")),
        (".25", Drop(0.25, "")),
        ("0", Drop(0.0, "")),
    ],
)
def test_parse(text: str, drop: Drop) -> None:
    assert Drop.parse(text) == drop


@pytest.mark.parametrize(
    "text", ["", "-1%", "1 percent", "%", "pp", "1e-3", "nan", "inf", "1%%", "1,5%", "."]
)
def test_parse_refuses(text: str) -> None:
    with pytest.raises(UsageError, match="--max-drop is") as caught:
        Drop.parse(text)
    assert "1pp" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "dense", "scale", "allowed"),
    [
        ("1%", 80.0, None, 0.8),
        ("1%", 0.8, None, 0.008),
        ("1%", -2.0, None, 0.02),  # of its size: a loss turned round
        ("1pp", 0.8, None, 0.01),
        ("1pp", 1.0, None, 0.01),
        ("1pp", 80.0, None, 1.0),
        ("1pp", 1.01, None, 1.0),
        ("1pp", 0.8, 1.0, 0.01),
        ("0.5", 80.0, None, 0.5),
        ("0.5", 900.0, None, 0.5),
    ],
)
def test_drop_in_the_metrics_own_unit(text: str, dense: float, scale: float | None, allowed: float) -> None:
    assert Drop.parse(text).of(dense, scale) == pytest.approx(allowed)


def test_points_of_a_metric_without_a_scale() -> None:
    with pytest.raises(DataError, match="dense model's is 250"):
        Drop.parse("1pp").of(250.0)


def test_what_holds_by_hand() -> None:
    floor = Floor(80.0, 1.0)
    assert floor.bound == 79.0
    assert floor.why_not(79.0, None) == "" == floor.why_not(85.0, 0.0)
    assert floor.why_not(78.5, 1.0) == "metric 78.5, wanted at least 79"
    assert floor.why_not(math.nan, 1.0) and floor.why_not(None, 1.0) and floor.why_not(math.inf, 1.0)


def test_less_may_be_better() -> None:
    floor = Floor(10.0, 0.5, lower=True)
    assert floor.bound == 10.5
    assert not floor.why_not(10.5, None) and not floor.why_not(3.0, None)
    assert floor.why_not(10.6, None) == "metric 10.6, wanted at most 10.5"
    assert floor.why_not(math.nan, None)


def test_both_bounds_have_to_hold() -> None:
    floor = Floor(80.0, 1.0, agreement=0.98)
    assert not floor.why_not(79.5, 0.98)
    assert floor.why_not(79.5, 0.97) == "agreement 0.97, wanted at least 0.98"
    assert "metric" in (both := floor.why_not(70.0, None)) and "agreement unknown" in both


def test_used_by_hand() -> None:
    floor = Floor(80.0, 1.0, agreement=0.98)
    assert floor.used(79.5, 0.99) == pytest.approx(0.5)
    assert floor.used(79.5, 0.94) == pytest.approx(3.0)  # the worse one counts
    assert floor.used(78.0, 1.0) == pytest.approx(2.0)
    assert floor.used(math.nan, 1.0) == floor.used(None, 1.0) == floor.used(80.0, None) == math.inf
    assert Floor(80.0, 1.0).used(81.0, None) == -1.0
    assert Floor(3.0, 0.5, lower=True).used(3.25, None) == pytest.approx(0.5)
    assert Floor(80.0, 0.0).used(80.0, None) == 0.0
    assert Floor(80.0, 0.0).used(79.9, None) == math.inf


@given(
    metric=st.floats(-1000, 1000),
    agreement=st.floats(0, 1),
    dense=st.floats(-100, 100),
    drop=st.floats(0, 10),
    least=st.floats(0.01, 1),
    lower=st.booleans(),
)
def test_used_is_up_to_1_exactly_where_it_holds(
    metric: float, agreement: float, dense: float, drop: float, least: float, lower: bool
) -> None:
    floor = Floor(dense, drop, lower, least)
    assert (floor.used(metric, agreement) <= 1) == (not floor.why_not(metric, agreement))


@given(
    dense=st.floats(-100, 100),
    amount=st.floats(0, 50),
    unit=st.sampled_from(["%", "pp", ""]),
    lower=st.booleans(),
)
def test_the_dense_model_holds_every_floor(dense: float, amount: float, unit: str, lower: bool) -> None:
    drop = Drop(amount, unit).of(dense)
    assert drop >= 0
    assert not Floor(dense, drop, lower, 1.0).why_not(dense, 1.0)


@given(st.floats(0, 1e6), st.sampled_from(["%", "pp", ""]))
def test_what_is_written_is_read_back(amount: float, unit: str) -> None:
    drop = Drop(float(f"{amount:.4f}"), unit)
    assert Drop.parse(f"{drop.amount:.4f}{unit}") == drop
