"""What does not go with structured patterns is refused, none of it ignored."""

from __future__ import annotations

from typing import Any

import pytest

from onnxprune.errors import UsageError
from onnxprune.recipe import Recipe


def refused(message: str, **fields: Any) -> None:
    with pytest.raises(UsageError, match=message):
        Recipe(**fields)


@pytest.mark.parametrize("pattern", ["structured", "head+2:4", "structured+unstructured"])
@pytest.mark.parametrize("criterion", ["fisher", "activation", "obs+fisher", "0.7*wanda+0.3*magnitude"])
def test_criteria_of_single_weights(pattern: str, criterion: str) -> None:
    refused("scores weights one by one", pattern=pattern, criterion=criterion)
    for known in ("obs", "wanda", "magnitude"):
        Recipe(pattern=pattern, criterion=known)
