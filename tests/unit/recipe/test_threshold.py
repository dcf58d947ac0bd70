from __future__ import annotations

import pytest

from onnxprune.errors import UsageError
from onnxprune.recipe.threshold import Threshold


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("abs:0.01", Threshold("abs", 0.01)),
        ("rel:0.5", Threshold("rel", 0.5)),
        ("mean", Threshold("rel", 1.0)),
        ("attention:1e-1", Threshold("attention", 0.1)),
    ],
)
def test_reads(text: str, wanted: Threshold) -> None:
    assert Threshold.parse(text) == wanted


@pytest.mark.parametrize(
    "text", ["", "0.5", "abs", "abs:", "abs:0", "abs:-1", "rel:nan", "rel:inf", "mean:2", "top:3", "abs:1:2"]
)
def test_refuses(text: str) -> None:
    with pytest.raises(UsageError, match=r"wanted abs:X, rel:X, attention:X"):
        Threshold.parse(text)
