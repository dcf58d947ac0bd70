"""The library of kernels as the selection sees it: is it there, which one, and a session with or without."""

from __future__ import annotations

import hashlib
from typing import Any

from onnxprune import opsinfo, runtime
from onnxprune.kernels.stopwatch import QUIET
from onnxprune.model import Model


def identity() -> str | None:
    """Return what tells the library and its instruction set from others, None when none can be used."""
    found = opsinfo.info()
    if found.problem or not found.library:
        return None
    with open(found.library, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    return f"{digest} {found.level}"


def open_session(model: Model, threads: int, with_library: bool) -> Any:
    """Create a session; without the library the ops run as their functions, as the dense model would.

    Raises:
        ModelError: when ONNX Runtime refuses the model.
    """
    return runtime.session(
        model.to_bytes(), threads=threads, config=QUIET, kernels=with_library, name=model.name
    )
