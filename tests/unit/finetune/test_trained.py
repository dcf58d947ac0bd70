"""Several runs as one."""

from __future__ import annotations

import math

from onnxprune.finetune.trained import Trained, merged


def test_work_adds_up_and_losses_are_means() -> None:
    first = Trained(steps=10, best=4, before=0.4, after=0.2, lr=0.1, skipped=1, seconds=2.0)
    second = Trained(steps=6, best=0, before=0.2, after=0.2, lr=0.2, seconds=1.0)
    found = merged([first, second])
    assert (found.steps, found.skipped, found.seconds) == (16, 1, 3.0)
    assert (round(found.before, 6), round(found.after, 6)) == (0.3, 0.2)
    assert found.best == 4  # not 0: it helped
    assert math.isnan(found.lr)  # each has its own
    assert merged([Trained(), Trained()]).best == 0
