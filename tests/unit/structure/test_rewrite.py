"""The tables of rewrites and of rules agree."""

from __future__ import annotations

from onnxprune.structure.rewrite import READS, REWRITES
from onnxprune.structure.rules import PARAMETERS, RULES


def test_tables_agree() -> None:
    assert REWRITES.keys() <= RULES.keys()
    for op, slots in READS.items():
        assert set(slots) <= set(PARAMETERS[op])
