"""A checkpoint survives a process, and anything else in its place is the same as none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from onnxprune.finetune import train  # noqa: F401 - what a run loads
from onnxprune.finetune.checkpoint import Checkpoint


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
