"""Densities by hand: (out + in + kernel sides) / weights."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.allocation.rules import erk
from onnxprune.allocation.rules.facts import Facts

SMALL = Facts(16 * 3 * 9, (1, 16, 27), (3, 3))  # (16 + 3 + 6) / 432
LARGE = Facts(64 * 64 * 9, (1, 64, 576), (3, 3))  # (64 + 64 + 6) / 36864
LINEAR = Facts(640, (1, 10, 64))  # 74 / 640
DEPTHWISE = Facts(32 * 9, (32, 1, 9), (3, 3))  # (32 + 1 + 6) / 288


@pytest.mark.parametrize(
    ("item", "raw"), [(SMALL, 25 / 432), (LARGE, 134 / 36864), (LINEAR, 74 / 640), (DEPTHWISE, 39 / 288)]
)
def test_densities_are_in_relation_as_the_papers_have_them(item: Facts, raw: float) -> None:
    facts = {"large": LARGE, "other": item}
    found = 1 - erk.shares(facts, 0.99)  # no density is cut to 1 there
    assert found[1] / found[0] == pytest.approx(raw / (134 / 36864))


def test_from_nothing_to_everything() -> None:
    facts = {"a": SMALL, "b": LARGE, "c": LINEAR}
    table = np.array([erk.shares(facts, s) for s in np.linspace(0, 1, 50)])
    assert (table[0] == 0).all() and (table[-1] == 1).all()
    assert (np.diff(table, axis=0) >= 0).all()
    assert (table[25, 1] > table[25, [0, 2]]).all()  # the large layer gives most
