"""A clock for tests of limits of time: it goes on by the work that is done, the same on every machine."""

from __future__ import annotations

from typing import Any

import pytest


class WorkClock:
    """Seconds that pass while counted functions work, and only then."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.value, self._patch = 0.0, patch

    def __call__(self) -> float:
        """Return what :func:`onnxprune.clock.now` would."""
        return self.value

    def counts(self, owner: Any, name: str, seconds: float) -> None:
        """Let each call of ``owner.name`` take so many seconds."""
        real = getattr(owner, name)

        def counted(*args: Any, **options: Any) -> Any:
            self.value += seconds
            return real(*args, **options)

        self._patch.setattr(owner, name, counted)


@pytest.fixture
def work_clock(monkeypatch: pytest.MonkeyPatch) -> WorkClock:
    """A step of the training takes a second, an evaluation two."""
    from onnxprune.finetune import blocks, distill, judge, train

    clock = WorkClock(monkeypatch)
    for module in (blocks, distill, train):
        monkeypatch.setattr(module, "now", clock)
    clock.counts(train.Trainer, "_step", 1.0)
    clock.counts(judge.Judge, "losses", 2.0)
    return clock
