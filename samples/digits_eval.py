"""Accuracy of the two sample models: ``--eval samples/digits_eval.py:accuracy``.

The function sees a session as ONNX Runtime gives it (``run``, ``get_inputs``) and returns one number.
Write the same for your own task: load labelled data that the pruning never sees, run, count.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

TEST_SET = Path(__file__).with_name("digits_test.npz")
LEVELS = 4  # grey levels of a pixel in a token
PATCH = 2  # a token is a square of so many pixels a side
VOCABULARY = LEVELS ** (PATCH * PATCH)
BATCH = 128


def tokens(image: NDArray[np.float32]) -> NDArray[np.int64]:
    """Turn images into visual words: each 2x2 patch, at four grey levels, is one of 256.

    Args:
        image: ``(N, 1, 8, 8)`` float32, grey values 0..1.

    Returns:
        ``(N, 16)`` int64, ids 0..255, patches in reading order.
    """
    level = np.minimum((image * LEVELS).astype(np.int64), LEVELS - 1)
    side = image.shape[-1] // PATCH
    patch = (
        level.reshape(-1, side, PATCH, side, PATCH)
        .transpose(0, 1, 3, 2, 4)
        .reshape(-1, side * side, PATCH**2)
    )
    return patch @ LEVELS ** np.arange(PATCH**2)[::-1]


def accuracy(session: Any) -> float:
    """Return top-1 accuracy in percent on the 597 labelled test images."""
    with np.load(TEST_SET) as data:
        image, label = data["image"], data["label"]
    name = session.get_inputs()[0].name
    feed = tokens(image) if name == "tokens" else image
    hits = 0
    for start in range(0, len(feed), BATCH):
        logits = session.run(None, {name: feed[start : start + BATCH]})[0]
        hits += int((logits.argmax(axis=1) == label[start : start + BATCH]).sum())
    return 100.0 * hits / len(feed)
