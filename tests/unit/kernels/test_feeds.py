from __future__ import annotations

from dataclasses import replace

import numpy as np

from onnxprune.calibration.data import CalibrationData
from onnxprune.kernels.feeds import extremes, typical_feeds


def tokens(*lengths: int) -> CalibrationData:
    batches = tuple({"x": np.ones((2, n)), "mask": np.ones((2, n))} for n in lengths)
    return CalibrationData(batches, 2 * len(lengths), False, "", frozenset({"x", "mask"}))


def test_typical_feeds() -> None:
    feeds = typical_feeds(tokens(4, 9, 30))
    assert [feed["x"].shape for feed in feeds] == [(1, 9), (1, 4), (1, 30)]
    assert [feed["x"].shape for feed in typical_feeds(tokens(7))] == [(1, 7)]


def test_extremes() -> None:
    assert [feed["x"].shape for feed in extremes(typical_feeds(tokens(4, 9, 30)))] == [(1, 4), (1, 30)]
    assert [feed["x"].shape for feed in extremes(typical_feeds(tokens(7)))] == [(1, 7)]


def test_the_padding_that_was_left_out_counts_and_labels_do_not() -> None:
    data = replace(tokens(3), as_given=tokens(8, 8).batches, labels=(np.arange(2),))
    assert [feed["x"].shape for feed in typical_feeds(data)] == [(1, 8)]


def test_fixed_batches_stay_whole() -> None:
    data = CalibrationData(({"x": np.ones((4, 3))},), 4, False, "", frozenset({"x"}), 4)
    assert typical_feeds(data)[0]["x"].shape == (4, 3)
    nothing = CalibrationData(({"x": np.ones((4, 3))},), 4, False, "", frozenset())
    assert typical_feeds(nothing)[0]["x"].shape == (4, 3)
