"""Where a killed run goes on: the state of the training, in the user's cache until the run has ended."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from typing import Any

import torch

from onnxprune.atomic import atomic_write_bytes
from onnxprune.errors import ResourceError
from onnxprune.machine import cache_dir

EVERY = 30.0  # seconds between two saves


class Checkpoint:
    """One file; the key names everything that the training depends on.

    Args:
        key: digest of the models, the data and the recipe.
    """

    def __init__(self, key: str) -> None:
        self.path = cache_dir() / "finetune" / f"{key}.pt"
        self._saved = time.monotonic()

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
        buffer = io.BytesIO()
        torch.save(state(), buffer)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write_bytes(self.path, buffer.getvalue(), force=True)
        except (OSError, ResourceError):
            return
        self._saved = time.monotonic()

    def remove(self) -> None:
        """Forget the state: the run has ended."""
        self.path.unlink(missing_ok=True)
