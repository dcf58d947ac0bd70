"""Large arrays in the user's cache: all files together stay below a limit, the longest unused go first.

A cache that cannot be read or written costs time in the next run, nothing else: nothing here raises.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import OnnxPruneError
from onnxprune.files.atomic import atomic_write_bytes
from onnxprune.machine import cache_dir

LIMIT = 2**30  # bytes of all files together

Arrays = Mapping[str, NDArray[Any]]


def save(name: str, arrays: Arrays, limit: int = LIMIT) -> str:
    """Keep arrays under a name; make room for them.

    Args:
        name: of the file, without suffix.
        arrays: of types that numpy itself has.
        limit: bytes that all files may have together; what is larger by itself is not kept.

    Returns:
        The SHA-256 of the file, "" when it was not kept.
    """
    if sum(array.nbytes for array in arrays.values()) > limit:
        return ""
    buffer = io.BytesIO()
    numbered: dict[str, Any] = {f"a{k}": array for k, array in enumerate(arrays.values())}
    np.savez(buffer, names=_names(arrays), **numbered)
    data, path = buffer.getvalue(), _path(name)
    with contextlib.suppress(OSError, OnnxPruneError):
        path.parent.mkdir(parents=True, exist_ok=True)
        _make_room(path, limit - len(data))
        atomic_write_bytes(path, data, force=True)
        return hashlib.sha256(data).hexdigest()
    return ""


def load(name: str, digest: str | None = None) -> dict[str, NDArray[Any]] | None:
    """Return what was kept under a name; None when it is gone or damaged.

    Args:
        name: as in :func:`save`.
        digest: that the file must have; None: any.
    """
    path = _path(name)
    try:
        data = path.read_bytes()
        if digest is not None and hashlib.sha256(data).hexdigest() != digest:
            return None
        with np.load(io.BytesIO(data), allow_pickle=False) as found:
            names = [str(item) for item in found["names"]]
            arrays = {own: found[f"a{k}"] for k, own in enumerate(names)}
        os.utime(path)  # used now: others go first
    except Exception:  # absent, or damaged in one of the many ways of a zip file
        return None
    return arrays


def remove(name: str) -> None:
    """Forget what was kept under a name, if anything was."""
    with contextlib.suppress(OSError):
        _path(name).unlink()


def _names(arrays: Arrays) -> NDArray[np.str_]:
    return np.array(list(arrays), dtype=np.str_)


def _path(name: str) -> Path:
    return cache_dir() / "arrays" / f"{name}.npz"


def _make_room(path: Path, limit: int) -> None:
    """Remove the longest unused files until the rest fits ``limit``; ``path`` itself will be replaced."""
    files = [(file, file.stat()) for file in path.parent.glob("*.npz") if file != path]
    total = sum(stat.st_size for _, stat in files)
    for file, stat in sorted(files, key=lambda item: item[1].st_mtime):
        if total <= limit:
            return
        file.unlink(missing_ok=True)
        total -= stat.st_size
