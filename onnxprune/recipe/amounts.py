"""Amounts as people write them: ``5MB``, ``2x``."""

from __future__ import annotations

import math
import re

from onnxprune.errors import UsageError

# Decimal units as the summary prints them, binary ones as programmers mean them.
_BYTES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_NUMBER = re.compile(r"\s*(?P<number>[0-9]*\.?[0-9]+(e[0-9]+)?)\s*(?P<unit>[a-z]*)\s*", re.IGNORECASE)


def size(text: str, option: str) -> int:
    """Return bytes.

    >>> size("5MB", "--target-size"), size("1.5 MiB", "--target-size"), size("800", "--target-size")
    (5000000, 1572864, 800)

    Raises:
        UsageError: when ``text`` is no amount of bytes above 0; the message names ``option``.
    """
    match = _NUMBER.fullmatch(text)
    unit = match["unit"].lower() if match else None
    if match is None or unit not in _BYTES or not 1 <= float(match["number"]) * _BYTES[unit] < 2**63:
        raise UsageError(f"{option} is {text!r}, wanted a size such as 5MB, 800kB or 1.5GiB")
    return int(float(match["number"]) * _BYTES[unit])


def factor(text: str, option: str) -> float:
    """Return how many times as much.

    >>> factor("2x", "--target-speedup"), factor("1.5", "--target-speedup")
    (2.0, 1.5)

    Raises:
        UsageError: when ``text`` is no number from 1 up; the message names ``option``.
    """
    match = _NUMBER.fullmatch(text)
    value = float(match["number"]) if match and match["unit"].lower() in ("", "x") else math.nan
    if not 1.0 <= value < math.inf:
        raise UsageError(f"{option} is {text!r}, wanted a number from 1 up, such as 2x")
    return value
