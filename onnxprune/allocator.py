"""How the C library hands memory back to the system.

Pruning makes arrays of some 10 MB over and over. glibc returns each of them to the system at once and gets
fresh pages for the next, which the kernel has to clear: 4 of MiniLM's 44 seconds of processor time.
"""

from __future__ import annotations

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
_LARGEST_REUSED = 64 * 2**20  # bytes; larger blocks go back to the system when they are freed
_FREE = 2**28  # bytes at the end of the heap that may stay unused


def reuse_memory() -> bool:
    """Let this process keep the memory it frees for later arrays; True when the C library does as told.

    For whole programs, not for libraries: it holds for all code of the process. Settings that the user made
    in the environment stay.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_REUSED) and mallopt(_M_TRIM_THRESHOLD, _FREE))
