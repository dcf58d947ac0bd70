"""LAPACK routines for symmetric positive definite matrices that let other threads run meanwhile.

``scipy.linalg.lapack`` holds the interpreter lock, so two threads factor two matrices one after the other.
The same routines are reached here through the C functions that SciPy exports to Cython; ctypes lets go of
the lock. Source: SciPy's documentation of ``scipy.linalg.cython_lapack``.

Arrays are C-contiguous and written in place. What LAPACK, which counts in columns, calls the upper triangle
is the lower one of such an array.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np
import scipy.linalg.cython_lapack as exported
from numpy.typing import NDArray

_UPPER = b"U"
_PREFIX = {"f": "s", "d": "d"}  # numpy's letter of a dtype -> LAPACK's

ctypes.pythonapi.PyCapsule_GetName.restype = ctypes.c_char_p
ctypes.pythonapi.PyCapsule_GetName.argtypes = [ctypes.py_object]
ctypes.pythonapi.PyCapsule_GetPointer.restype = ctypes.c_void_p
ctypes.pythonapi.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]


@cache
def _routine(name: str) -> tuple[Any, type[ctypes.c_int32] | type[ctypes.c_int64]]:
    """Return a routine of LAPACK and the type of its integers."""
    capsule = exported.__pyx_capi__[name]
    signature: bytes = ctypes.pythonapi.PyCapsule_GetName(capsule)
    address: int = ctypes.pythonapi.PyCapsule_GetPointer(capsule, signature)
    arguments = signature.count(b",") + 1
    integer = ctypes.c_int32 if b"int *" in signature.replace(b"blas_int", b"") else ctypes.c_int64
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * arguments)(address), integer


def _call(name: str, first: NDArray[Any], *arguments: int | NDArray[Any]) -> int:
    """Call a routine for the lower triangles of C-contiguous arrays; return its ``info``."""
    for array in (first, *arguments):
        if isinstance(array, np.ndarray) and not (array.flags.c_contiguous and array.dtype == first.dtype):
            raise ValueError(f"{name} wants C-contiguous arrays of one dtype")  # it would write elsewhere
    function, integer = _routine(_PREFIX[first.dtype.char] + name)
    held = [
        a.ctypes.data_as(ctypes.c_void_p) if isinstance(a, np.ndarray) else ctypes.byref(integer(a))
        for a in arguments
    ]
    info = integer(0)
    function(_UPPER, *held, ctypes.byref(info))
    return int(info.value)


def factor(A: NDArray[Any]) -> int:
    """Replace the lower triangle of ``A`` (n, n) by L with ``A = L L^T`` (potrf); the rest is left as it was.

    Returns:
        0, or the order of the leading minor that is not positive definite.
    """
    n = len(A)
    return _call("potrf", A, n, A, n)


def invert(L: NDArray[Any]) -> int:
    """Replace the lower triangle L of (n, n) by that of ``(L L^T)^-1`` (potri).

    Returns:
        0, or the place of a zero on the diagonal.
    """
    n = len(L)
    return _call("potri", L, n, L, n)


def solve(L: NDArray[Any], X: NDArray[Any]) -> int:
    """Replace ``X`` (rows, n) by ``X (L L^T)^-1`` (potrs); L is the lower triangle of (n, n).

    Returns:
        0.
    """
    n = len(L)
    return _call("potrs", L, n, len(X), L, n, X, n)
