from __future__ import annotations

from onnxprune.allocation.rules import uniform
from onnxprune.allocation.rules.facts import Facts


def test_the_same_for_all() -> None:
    facts = {"a": Facts(10, (1, 2, 5)), "b": Facts(1000, (1, 10, 100))}
    assert uniform.shares(facts, 0.3).tolist() == [0.3, 0.3]
