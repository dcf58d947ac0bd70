from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from onnxprune.errors import VerificationError
from onnxprune.search.floor import Floor
from onnxprune.search.largest import TIME
from onnxprune.search.trials import Point, Search


def judge(floor: Floor, samples: int = 8) -> Any:
    return SimpleNamespace(floor=floor, data=SimpleNamespace(samples=samples), measure=None)


FLOOR = Floor(80.0, 1.0)


def search(*points: Point, floor: Floor = FLOOR) -> Search:
    return Search(judge(floor), judge(floor, 9), list(points))


def test_report_sorts_the_curve_and_has_the_floor() -> None:
    found = search(Point(0.7, metric=70.0, why="low"), Point(0.5, metric=80.0, holds=True))
    found.choose(found.points[1])
    report = found.report()
    assert [point["sparsity"] for point in report["points"]] == [0.5, 0.7]
    assert report["points"][1]["why"] == "low"
    assert (report["dense_metric"], report["metric_bound"], report["agreement_bound"]) == (80.0, 79.0, None)
    assert (report["selection_samples"], report["final_samples"], report["chosen"]) == (8, 9, 0.5)
    assert not report["own_data"] and report["notes"] == []


def test_stepping_back_is_said() -> None:
    fell = Point(0.7, zeros=7, metric=80.0, final_metric=78.0, why="on the final samples: metric 78")
    chosen = Point(0.6, zeros=6, metric=80.0, final_metric=80.0, holds=True)
    low = Point(0.5, zeros=5, metric=80.0, final_metric=78.0, why="too")
    found = search(fell, chosen, low)
    found.choose(chosen)
    assert len(found.notes) == 1 and found.notes[0].startswith("sparsity 0.70 held on the selection samples")
    found = search(chosen, low, Point(0.8, zeros=8, metric=60.0, why="low"))
    found.choose(chosen)  # only less compressed ones fell: nobody stepped back
    assert not found.notes


def test_failure_says_what_was_wanted_and_carries_the_curve() -> None:
    found = search(Point(0.4, metric=70.0), Point(0.02, metric=78.0), floor=Floor(80.0, 1.0, agreement=0.98))
    error = found.failure()
    assert error.exit_code == 1
    assert "metric 79 (dense 80) and agreement 0.98; 2 were tried" in str(error)
    assert "from 0.02 to 0.40" in str(error)
    assert len(error.search["points"]) == 2
    found.stopped = TIME
    assert found.failure().hint == "raise --time-limit"


def test_failure_on_the_final_samples_asks_for_more() -> None:
    assert "final ones" in search(Point(0.4, metric=80.0, final_metric=70.0)).failure().hint


def test_the_written_model_is_held_against_the_floor() -> None:
    found = search()
    found.check(79.0, ())
    with pytest.raises(VerificationError, match=r"metric 78\.9, wanted at least 79"):
        found.check(78.9, ())
