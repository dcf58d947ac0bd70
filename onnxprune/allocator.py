"""How the C library hands memory back to the system.

Pruning makes arrays of some 10 MB over and over. glibc gives large blocks, and the end of a heap that has
become free, back to the system, and gets fresh pages for the next array, which the kernel has to clear: 2 of
MiniLM's 44 seconds of processor time.
"""

from __future__ import annotations

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
# Bytes; larger blocks go back to the system when they are freed. Before 2.35, glibc takes the second at most.
_LARGEST_REUSED = (64 * 2**20, 32 * 2**20)
_FREE = 2**28  # bytes at the end of a heap that may stay unused
_SETTINGS = ("MALLOC_", "GLIBC_TUNABLES")


def reuse_memory() -> bool:
    """Let this process keep the memory it frees for later arrays; True when the C library does as told.

    For whole programs, not for libraries: it holds for all code of the process. What the user set in the
    environment stays.
    """
    if sys.platform != "linux" or any(name.startswith(_SETTINGS) for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return False
    blocks = any(mallopt(_M_MMAP_THRESHOLD, size) for size in _LARGEST_REUSED)
    return bool(mallopt(_M_TRIM_THRESHOLD, _FREE)) and blocks
