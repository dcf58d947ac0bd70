"""Labels are joined, pinned, marked, and solved."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.structure.labels import SINGLE, Labels, RuleError
from tests.unit.structure.graphs import graph


@pytest.fixture
def labels() -> Labels:
    model, _ = graph("(float[N, 6] x) => (float[N, C] y) { y = MatMul(x, w) }", {"w": (6, 4)})
    return Labels(model, {"x": (2, 6), "w": (6, 4), "y": (2, 4)}, {"s": np.array([3])})


def test_stored_axes_have_labels_and_others_a_reason(labels: Labels) -> None:
    assert [len(axis) for axis in labels.read("w") if not isinstance(axis, str)] == [6, 4]
    assert labels.read("x") == ("it is a dimension of the graph input 'x'",) * 2
    assert labels.read("w") is labels.read("w")


def test_joined_labels_are_one_unit(labels: Labels) -> None:
    a, b, c = (labels.fresh(3) for _ in range(3))
    assert labels.join(a, b) is a
    labels.tie(np.stack([b[:2], c[:2]], 1))
    units, reasons, _ = labels.solve()
    assert (units[a] == units[b]).all() and units[a][0] == units[c][0] and units[a][2] != units[c][2]
    assert len(set(units[a].tolist())) == 3 and not reasons


def test_a_pin_reaches_all_that_is_joined(labels: Labels) -> None:
    a, b = labels.fresh(2), labels.fresh(2)
    labels.join(a, b)
    assert labels.join(b, "it is fixed") == "it is fixed"
    units, reasons, _ = labels.solve()
    assert {reasons[unit] for unit in units[a].tolist()} == {"it is fixed"}


def test_marks(labels: Labels) -> None:
    a = labels.fresh(2)
    labels.mark(a[1:], "producer")
    assert labels.solve()[2]["producer"][a].tolist() == [False, True]


def test_axes_must_fit(labels: Labels) -> None:
    with pytest.raises(RuleError):
        labels.write("y", [labels.fresh(2)])
    with pytest.raises(RuleError):
        labels.write("y", ["", labels.fresh(3)])
    with pytest.raises(RuleError):
        labels.join(labels.fresh(2), labels.fresh(3))
    with pytest.raises(RuleError):
        labels.shape("unknown")
    labels.write("y", ["why", labels.fresh(4)])
    assert labels.axes["y"][0] == "why"


def test_small_things(labels: Labels) -> None:
    assert labels.is_weak(labels.fresh_weak(2)) and not labels.is_weak(labels.fresh(2))
    assert len(labels.as_labels(SINGLE, 3)) == 3
    assert labels.number("w") is None and labels.number("s") is not None
