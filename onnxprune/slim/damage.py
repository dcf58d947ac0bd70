"""From the error of a layer to what it does to the model: a curve through a few measured points."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_TINY = 1e-12


def scaled(errors: Floats, points: Sequence[tuple[float, float]]) -> Floats:
    """Return the divergence of the output at each relative error of a layer.

    Straight lines of the logarithms between the points. Below the first one in proportion to the error, as
    both are of second order in what changes; beyond the last one as between the last two, and not slower
    than in proportion.

    Args:
        errors: (k,) relative squared errors.
        points: (error, divergence) as measured; with a divergence of NaN the errors are the answer.
    """
    known = sorted((max(e, _TINY), max(d, _TINY)) for e, d in points if not np.isnan(d))
    if not known:
        return np.asarray(errors, dtype=np.float64)
    x, y = np.log(np.array(known)).T
    y = np.maximum.accumulate(y)
    at = np.log(np.maximum(errors, _TINY))
    found = np.interp(at, x, y)
    found = np.where(at < x[0], y[0] + (at - x[0]), found)
    slope = max(1.0, (y[-1] - y[-2]) / max(x[-1] - x[-2], _TINY)) if len(x) > 1 else 1.0
    found = np.where(at > x[-1], y[-1] + (at - x[-1]) * min(slope, 3.0), found)
    return np.where(errors > 0, np.exp(found), 0.0)
