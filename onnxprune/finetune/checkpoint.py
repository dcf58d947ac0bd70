"""Where a killed run goes on: the state of the training, in the user's cache until the run has ended."""

from __future__ import annotations

import contextlib
import hashlib
import io
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import onnxprune
from onnxprune import digest
from onnxprune.calibration.data import CalibrationData
from onnxprune.errors import ResourceError
from onnxprune.files.atomic import atomic_write_bytes
from onnxprune.machine import cache_dir
from onnxprune.model import Model
from onnxprune.userfunction import wrap

EVERY = 30.0  # seconds between two saves
FORMAT = 7  # of the state: raise it when that changes
OLD = 14 * 24 * 3600.0  # seconds after which nobody comes back for a killed run


def key_of(
    models: Iterable[Model],
    data: Iterable[CalibrationData | None],
    masks: Mapping[str, NDArray[np.bool_]],
    custom: Any,
    *others: object,
) -> str:
    """Return the digest of everything that a training depends on, the same in every process.

    Args:
        models: the teacher and the student.
        data: to learn from, and held out.
        masks: of the weights.
        custom: the user's loss, or None; its file counts, not where it lies in memory.
        others: settings, names: anything with a ``repr`` that says all.
    """
    state = hashlib.sha256(f"{onnxprune.__version__} {FORMAT}".encode())
    for model in models:
        state.update(digest.of_model(model).encode())
    for item in data:
        state.update(item.digest().encode() if item is not None else b"none")
    for name in sorted(masks):
        state.update(f"{name}\0".encode() + np.packbits(masks[name]).tobytes())
    if custom is not None:
        state.update(digest.of_function(wrap(custom)).encode())
    state.update(repr(others).encode())
    return state.hexdigest()[:32]


class Checkpoint:
    """One file; the key names everything that the training depends on.

    Args:
        key: digest of the models, the data and the recipe.
    """

    def __init__(self, key: str) -> None:
        self.path = cache_dir() / "finetune" / f"{key}.pt"
        self._saved = time.monotonic()
        _forget_old(self.path.parent)

    def load(self) -> dict[str, Any] | None:
        """Return the last state, or None when there is none that can be read."""
        try:
            state: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception:  # absent, or damaged in one of torch's many ways: begin anew
            return None
        return state

    def save(self, state: Callable[[], dict[str, Any]]) -> None:
        """Write ``state()`` when the last time was long ago; a cache that cannot be written is no error."""
        if time.monotonic() - self._saved < EVERY:
            return
        self._saved = time.monotonic()  # also when it fails: not a try for every step
        buffer = io.BytesIO()
        torch.save(state(), buffer)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write_bytes(self.path, buffer.getvalue(), force=True)
        except (OSError, ResourceError):
            return

    def remove(self) -> None:
        """Forget the state: the run has ended."""
        self.path.unlink(missing_ok=True)


def _forget_old(folder: Path) -> None:
    """Remove what killed runs left behind long ago: each file is three times the model."""
    for path in folder.glob("*.pt"):
        with contextlib.suppress(OSError):  # another process removes it too, or it is not ours to remove
            if time.time() - path.stat().st_mtime > OLD:
                path.unlink()
