"""Arrays by key, in memory up to a budget and in files beyond it."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Hashable
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import ResourceError


class ArrayStore:
    """A dictionary of arrays that spills to a temporary folder. Use it as a context manager.

    Several threads may use it, as long as each has keys of its own.

    Args:
        budget: bytes to hold in memory; arrays that would exceed it are written to files.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.held = 0
        self.spilled = 0
        self._arrays: dict[Hashable, NDArray[np.generic] | Path] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._count = 0
        self._lock = threading.Lock()

    def __enter__(self) -> ArrayStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._arrays.clear()
        if self._folder is not None:
            self._folder.cleanup()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._arrays

    def put(self, key: Hashable, array: NDArray[np.generic]) -> None:
        """Store ``array`` under ``key``, replacing what was there; strings always stay in memory.

        Raises:
            ResourceError: when the temporary folder cannot be written.
        """
        self.drop(key)
        with self._lock:
            if self.held + array.nbytes <= self.budget or array.dtype.hasobject:
                self.held += array.nbytes
                self._arrays[key] = array
                return
            self.spilled += array.nbytes
        try:
            path = self._file()
            np.save(path, array, allow_pickle=False)
        except OSError as error:
            raise ResourceError(
                f"activations cannot be written to the temporary folder: {error}",
                "hold more in memory with --max-memory, or set TMPDIR to a folder with more room",
            ) from error
        self._arrays[key] = path

    def _file(self) -> Path:
        """Return the name of a new file."""
        with self._lock:
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="onnxprune-")
            self._count += 1
            return Path(self._folder.name) / f"{self._count}.npy"

    def get(self, key: Hashable) -> NDArray[np.generic]:
        """Return the array under ``key``; KeyError when there is none."""
        found = self._arrays[key]
        array: NDArray[np.generic] = np.load(found, allow_pickle=False) if isinstance(found, Path) else found
        return array

    def drop(self, key: Hashable) -> None:
        """Forget ``key`` and free its memory or file; nothing happens when there is none."""
        found = self._arrays.pop(key, None)
        if isinstance(found, Path):
            found.unlink()
        elif found is not None:
            with self._lock:
                self.held -= found.nbytes
