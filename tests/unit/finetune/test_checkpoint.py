"""A checkpoint survives a process, and anything else in its place is the same as none."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from onnxprune.finetune import train  # noqa: F401 - what a run loads
from onnxprune.finetune.checkpoint import OLD, Checkpoint, key_of
from onnxprune.finetune.trained import Settings
from onnxprune.userfunction import load_function
from tests.unit.finetune.networks import calibration, residual_net


@pytest.fixture
def checkpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Checkpoint:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(Checkpoint.save.__globals__["time"], "monotonic", _Clock())
    return Checkpoint("k")


class _Clock:
    """Every look at it is a minute later."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 60.0
        return self.now


def test_saved_state_is_read_back(checkpoint: Checkpoint) -> None:
    assert checkpoint.load() is None
    checkpoint.save(lambda: {"w": torch.ones(3), "step": 4, "units": [[(0, 1)]]})
    found = checkpoint.load()
    assert found is not None
    assert torch.equal(found["w"], torch.ones(3))
    assert found["step"] == 4
    checkpoint.save(lambda: {"step": 5})  # a later one takes its place
    assert checkpoint.load() == {"step": 5}
    checkpoint.remove()
    assert checkpoint.load() is None
    checkpoint.remove()


def test_not_at_every_step(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Checkpoint.save.__globals__["time"], "monotonic", lambda: 60.5)
    checkpoint.save(lambda: pytest.fail("the last save was half a second ago"))
    assert not checkpoint.path.exists()


def test_a_damaged_file_is_ignored(checkpoint: Checkpoint) -> None:
    checkpoint.path.parent.mkdir(parents=True)
    checkpoint.path.write_bytes(b"no zip file")
    assert checkpoint.load() is None


def test_code_in_a_checkpoint_is_not_run(checkpoint: Checkpoint, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (open, (str(tmp_path / "made"),))

    checkpoint.path.parent.mkdir(parents=True)
    torch.save({"x": Evil()}, checkpoint.path)
    assert checkpoint.load() is None


def test_a_cache_that_cannot_be_written_is_no_error(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "onnxprune").write_text("a file where the folder should be")
    checkpoint.save(lambda: {"step": 1})
    assert checkpoint.load() is None


def test_a_cache_that_cannot_be_written_is_not_tried_at_every_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "folder"))
    (tmp_path / "file").write_text("")
    checkpoint = Checkpoint("k")
    now, states = [1e6], []
    monkeypatch.setattr(Checkpoint.save.__globals__["time"], "monotonic", lambda: now[0])
    for _ in range(5):
        checkpoint.save(lambda: states.append(1) or {"step": 1})  # type: ignore[func-returns-value]
        now[0] += 1
    assert len(states) == 1


def test_what_killed_runs_left_is_removed_after_two_weeks(checkpoint: Checkpoint) -> None:
    checkpoint.save(lambda: {"step": 1})
    old = checkpoint.path.with_name("old.pt")
    old.write_bytes(b"")
    os.utime(old, (time.time() - OLD - 60,) * 2)
    Checkpoint("other")
    assert not old.exists()
    assert checkpoint.path.exists()


def key(**changed: Any) -> str:
    dense = residual_net()
    data = calibration(dense, 16)
    mask = np.ones((2, 4), np.bool_)
    values = {"model": dense, "held": None, "mask": mask, "custom": None, "steps": 3} | changed
    return key_of(
        (dense, values["model"]), (data, values["held"]), {"w": values["mask"]}, values["custom"],
        Settings(values["steps"]),
    )  # fmt: skip


def test_the_key_names_what_the_training_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = residual_net()
    mask = np.ones((2, 4), np.bool_)
    mask[1, 2] = False
    other = calibration(dense, 8)
    found = [key(), key(model=residual_net(1)), key(held=other), key(mask=mask), key(steps=4)]
    monkeypatch.setattr("onnxprune.__version__", "9.9")
    assert len({*found, key()}) == 6
    assert key() == key()


def test_a_loss_in_a_file_counts_by_its_text(tmp_path: Path) -> None:
    path = tmp_path / "task.py"
    path.write_text("def loss(a, b, c):\n    return 1\n")

    def loaded() -> Callable[..., Any]:
        return load_function(f"{path}:loss", "--loss")

    first = key(custom=loaded())
    path.write_text("def loss(a, b, c):\n    return 1\n\n")
    os.utime(path, (1, 1))  # loaded anew: another function object
    second = key(custom=loaded())
    path.write_text("def loss(a, b, c):\n    return 1\n")
    os.utime(path, (2, 2))
    assert key(custom=loaded()) == first != second
    assert first != key()
