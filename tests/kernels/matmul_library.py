"""The MatMul kernels of the library, called without ONNX Runtime (ort_ops/src/testing.cpp)."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_float, c_int64, c_uint32, c_void_p
from math import erf, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
_FLOATS, _UINTS = POINTER(c_float), POINTER(c_uint32)
# In the order of `enum class Activation`
ACTIVATIONS = ("none", "relu", "clip", "gelu", "gelu_tanh", "silu", "hardswish")


def _pointer(array: NDArray[Any] | None, kind: Any) -> Any:
    return None if array is None else array.ctypes.data_as(kind)


class Kernels:
    """The library's table of kernels and levels."""

    def __init__(self, path: Path) -> None:
        self.c = ctypes.CDLL(str(path))
        create = [c_char_p, c_char_p, c_int64, c_int64, _UINTS, _UINTS, _FLOATS, c_int64]
        run = [c_void_p, _FLOATS, _FLOATS, c_int64, _FLOATS, _FLOATS, c_int64, c_float, c_float]
        self._declare("level", c_char_p, [c_int64])
        self._declare("matmul_kernel", c_char_p, [c_int64])
        self._declare("matmul_create", c_void_p, create)
        self._declare("matmul_choice", c_char_p, create[1:])
        self._declare("matmul_run", None, [*run, _FLOATS, _FLOATS, c_float, c_int64])
        self._declare("matmul_bytes", c_int64, [c_void_p])
        self._declare("matmul_destroy", None, [c_void_p])

    def _declare(self, name: str, result: Any, arguments: list[Any]) -> None:
        function = getattr(self.c, f"onnxprune_test_{name}")
        function.restype, function.argtypes = result, arguments
        setattr(self, f"c_{name}", function)

    def _names(self, function: Any) -> list[str]:
        names = []
        while name := function(len(names)):
            names.append(name.decode())
        return names

    @property
    def levels(self) -> list[str]:
        return self._names(self.c_level)

    @property
    def kernels(self) -> list[str]:
        return self._names(self.c_matmul_kernel)

    def choice(self, weight: Array, rows: int, level: str) -> str:
        """Name of the kernel that would be chosen for `rows` rows of X."""
        return str(self.c_matmul_choice(level.encode(), *_csr(weight), rows).decode())


def _csr(weight: Array) -> tuple[Any, ...]:
    rows, columns = np.nonzero(weight)
    start = np.zeros(len(weight) + 1, np.uint32)
    start[1:] = np.cumsum(np.bincount(rows, minlength=len(weight)))
    values = np.ascontiguousarray(weight[rows, columns])
    arrays = (start, columns.astype(np.uint32), values)
    pointers = [_pointer(a, kind) for a, kind in zip(arrays, (_UINTS, _UINTS, _FLOATS), strict=True)]
    return (*weight.shape, *pointers)


class MatMul:
    """One kernel of one weight (out features, in features)."""

    def __init__(
        self, library: Kernels, kernel: str | None, level: str, weight: Array, tokens: int = 0
    ) -> None:
        self.library, self.rows = library, len(weight)
        name = kernel.encode() if kernel else None
        self.handle = library.c_matmul_create(name, level.encode(), *_csr(weight), tokens)

    def __del__(self) -> None:
        if self.handle:
            self.library.c_matmul_destroy(self.handle)

    @property
    def bytes(self) -> int:
        return int(self.library.c_matmul_bytes(self.handle))

    def __call__(
        self,
        x: Array,
        *,
        bias: Array | None = None,
        residual: Array | None = None,
        activation: str = "none",
        low: float = 0.0,
        high: float = 0.0,
        gamma: Array | None = None,
        beta: Array | None = None,
        epsilon: float = 1e-5,
        threads: int = 1,
        in_place: bool = False,  # the residual lies where the output goes
    ) -> Array:
        # Floats around Y show a write outside of it
        guard = 64
        buffer = np.full(len(x) * self.rows + 2 * guard, np.nan, np.float32)
        y = buffer[guard:-guard]
        if in_place and residual is not None:
            y[:] = residual.ravel()
            residual = y
        floats = [_pointer(a, _FLOATS) for a in (x, y, bias, residual, gamma, beta)]
        self.library.c_matmul_run(
            self.handle,
            *floats[:2],
            len(x),
            *floats[2:4],
            ACTIVATIONS.index(activation),
            low,
            high,
            *floats[4:],
            epsilon,
            threads,
        )
        assert np.isnan(buffer[:guard]).all() and np.isnan(buffer[-guard:]).all(), "wrote outside of Y"
        return y.reshape(len(x), self.rows)


def reference(
    x: Array,
    weight: Array,
    *,
    bias: Array | None = None,
    residual: Array | None = None,
    activation: str = "none",
    low: float = 0.0,
    high: float = 0.0,
    gamma: Array | None = None,
    beta: Array | None = None,
    epsilon: float = 1e-5,
    threads: int = 1,
) -> NDArray[np.float64]:
    """The same in numpy, in float64."""
    y = x.astype(np.float64) @ weight.T.astype(np.float64)
    y = y + (0 if bias is None else bias) + (0 if residual is None else residual)
    y = activate(y, activation, low, high)
    if gamma is not None:
        y = (y - y.mean(1, keepdims=True)) / np.sqrt(y.var(1, keepdims=True) + epsilon)
        y = y * gamma + (0 if beta is None else beta)
    return y


def activate(
    y: NDArray[np.float64], activation: str, low: float = 0.0, high: float = 0.0
) -> NDArray[np.float64]:
    """The activations of ONNX, exactly."""
    match activation:
        case "relu":
            return np.maximum(y, 0)
        case "clip":
            return np.clip(y, low, high)
        case "gelu":
            return 0.5 * y * (1 + np.vectorize(erf, otypes=[float])(y / sqrt(2)))
        case "gelu_tanh":
            return 0.5 * y * (1 + np.tanh(sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
        case "silu":
            return y / (1 + np.exp(-y))
        case "hardswish":
            return y * np.clip(y / 6 + 0.5, 0, 1)
    return y
