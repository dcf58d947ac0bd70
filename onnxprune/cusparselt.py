"""cuSPARSELt, NVIDIA's library for 2:4 weights: found among PyPI's wheels, so that the CUDA kernels find it.

They look for it by themselves (``ort_ops/cuda/cusparselt.cu``) where the system's loader looks, which is not
where pip puts it. ``ONNXPRUNE_CUSPARSELT`` is a path, ``off`` or ``auto``.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import os
from pathlib import Path

VARIABLE = "ONNXPRUNE_CUSPARSELT"
NAME = "libcusparseLt.so.0"
WHEEL = "pip install nvidia-cusparselt-cu13"


def wheel_path() -> Path | None:
    """Return the library of an installed wheel (``nvidia-cusparselt-cu13``, ``-cu12``), None without one."""
    spec = importlib.util.find_spec("nvidia")  # a namespace that NVIDIA's wheels share
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(Path(folder).glob(f"*/lib/{NAME}")):  # cu13/, before 0.9 cusparselt/
            return path
    return None


def chosen() -> bool:
    """Whether the user says which library to take, or none."""
    return os.environ.get(VARIABLE, "").strip() not in ("", "auto")


@functools.cache
def load() -> None:
    """Open the wheel's library, once: the loader then knows its name. Does nothing where the user chose."""
    path = None if chosen() else wheel_path()
    if path is not None:
        with contextlib.suppress(OSError):  # the kernels say why they cannot use it
            ctypes.CDLL(str(path))
