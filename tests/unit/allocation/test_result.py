from __future__ import annotations

from onnxprune.allocation.result import Measured, Plan


def test_nothing_is_known_unless_it_was_measured() -> None:
    assert Measured() == Measured(None, {}, {}, False, {}, None)
    assert Plan({"a": 1}, {}, {}).speedup is None
