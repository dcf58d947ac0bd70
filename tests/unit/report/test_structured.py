"""What was removed as a whole, in words and rows."""

from __future__ import annotations

import doctest
import io
from typing import Any

from rich.console import Console

from onnxprune.report import structured
from onnxprune.report.structured import before_after, headline, render_structured


def found(**changes: Any) -> dict[str, Any]:
    group = {"name": "up", "kind": "neuron", "before": 64, "after": 16, "damage": 0.0123, "note": ""}
    values = {
        "kinds": ["neuron"],
        "groups": [group, {**group, "name": "down", "after": 64, "damage": 0.0, "note": "does not run"}],
        "pinned": [{"name": f"head{k}", "units": 10, "reason": "it reaches the output"} for k in range(4)],
        "parameters": [2000, 1000],
        "multiplications": [300, 100],
        "predicted": 1.5,
        "speed": [{"threads": 1, "ratio": 1.6}, {"threads": 2, "ratio": 1.44}],
    }
    return {**values, **changes}


def rendered(values: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=120)
    render_structured(console, values)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_groups_and_reasons() -> None:
    text = rendered(found())
    assert "1 group made smaller" in text and "0.012" in text and "16" in text
    assert "1 group stayed whole" in text
    assert "not removed, it reaches the output: head0, head1 and 2 more" in text
    assert "not removed, does not run: down" in text


def test_many_groups_do_not_fill_the_screen() -> None:
    groups = [{**found()["groups"][0], "name": f"up{k}"} for k in range(40)]
    assert "and 16 more" in rendered(found(groups=groups))


def test_rows_of_what_changed() -> None:
    rows = before_after(found())
    assert [row[0] for row in rows] == [
        "parameters",
        "multiplications",
        "speed, 1 thread",
        "speed, 2 threads",
    ]
    assert rows[0][3] == "2.00x fewer" and "(1.50x predicted)" in str(rows[2][3])
    assert "predicted" not in str(before_after(found(predicted=None))[2][3])


def test_headline_takes_the_least_gain() -> None:
    assert headline(found()) == "1.4x faster, 3.0x fewer multiplications"
    assert headline(found(speed=[], multiplications=[0, 0])) == ""
    assert doctest.testmod(structured).failed == 0
