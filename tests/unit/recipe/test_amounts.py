from __future__ import annotations

import pytest

from onnxprune.errors import UsageError
from onnxprune.recipe import amounts


@pytest.mark.parametrize(
    ("text", "bytes_"),
    [
        ("5MB", 5_000_000),
        ("5 mb", 5_000_000),
        ("1.5GiB", 3 * 2**29),
        (".5kB", 500),
        ("800", 800),
        ("1e6B", 10**6),
    ],
)
def test_sizes(text: str, bytes_: int) -> None:
    assert amounts.size(text, "--target-size") == bytes_


@pytest.mark.parametrize("text", ["", "MB", "5 apples", "-3MB", "0", "0.1B", "5MB!", "1e400kB", "nan"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="--target-size is"):
        amounts.size(text, "--target-size")


@pytest.mark.parametrize(("text", "value"), [("2x", 2.0), ("2", 2.0), ("1.25 X", 1.25), ("1", 1.0)])
def test_factors(text: str, value: float) -> None:
    assert amounts.factor(text, "--target-speedup") == value


@pytest.mark.parametrize("text", ["", "x", "0.5x", "two", "2%", "1e400", "-2"])
def test_what_is_no_factor(text: str) -> None:
    with pytest.raises(UsageError, match="--target-speedup is"):
        amounts.factor(text, "--target-speedup")
