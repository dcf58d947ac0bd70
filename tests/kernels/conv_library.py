"""The convolution kernels of the library, called without ONNX Runtime (ort_ops/src/testing_conv.cpp)."""

from __future__ import annotations

import ctypes
import mmap
from ctypes import c_char_p, c_float, c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.kernels.matmul_library import ACTIVATIONS, Array, activate

Pair = tuple[int, int]


@dataclass(frozen=True)
class Conv:
    """The shape of a convolution; pads as ONNX: top, left, bottom, right."""

    channels: int
    height: int
    width: int
    out_channels: int
    kernel: Pair = (3, 3)
    stride: Pair = (1, 1)
    dilation: Pair = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    group: int = 1
    batch: int = 1

    def _out(self, axis: int) -> int:
        size = (self.height, self.width)[axis] + self.pads[axis] + self.pads[axis + 2]
        return (size - self.dilation[axis] * (self.kernel[axis] - 1) - 1) // self.stride[axis] + 1

    @property
    def out(self) -> Pair:
        return self._out(0), self._out(1)

    @property
    def x_shape(self) -> tuple[int, ...]:
        return self.batch, self.channels, self.height, self.width

    @property
    def y_shape(self) -> tuple[int, ...]:
        return self.batch, self.out_channels, *self.out

    @property
    def weight_shape(self) -> Pair:
        return self.out_channels, self.channels // self.group * self.kernel[0] * self.kernel[1]

    def fields(self) -> NDArray[np.int64]:
        """Fields of struct ConvShape in order."""
        head = [*self.x_shape, self.out_channels, *self.out, self.group]
        return np.array([*head, *self.kernel, *self.stride, *self.dilation, *self.pads], np.int64)


class ConvLibrary:
    """The library's table of convolution kernels."""

    def __init__(self, path: Path) -> None:
        self.c = ctypes.CDLL(str(path))
        pointer = c_void_p
        self._declare("level", c_char_p, [c_int64])
        self._declare("conv_kernel", c_char_p, [c_int64])
        self._declare("conv_create", pointer, [c_char_p, c_char_p, *[pointer] * 4])
        run = [*[pointer] * 6, c_int64, c_float, c_float, c_int64]
        self._declare("conv_run", None, run)
        self._declare("conv_bytes", c_int64, [pointer])
        self._declare("conv_destroy", None, [pointer])

    def _declare(self, name: str, result: Any, arguments: list[Any]) -> None:
        function = getattr(self.c, f"onnxprune_test_{name}")
        function.restype, function.argtypes = result, arguments
        setattr(self, f"c_{name}", function)

    def _names(self, function: Any) -> list[str]:
        names: list[str] = []
        while name := function(len(names)):
            names.append(name.decode())
        return names

    @property
    def levels(self) -> list[str]:
        return self._names(self.c_level)

    @property
    def kernels(self) -> list[str]:
        return self._names(self.c_conv_kernel)


class ConvKernel:
    """One kernel of one weight (out channels, channels / group * kernel height * kernel width)."""

    def __init__(self, library: ConvLibrary, name: str | None, level: str, weight: Array, conv: Conv) -> None:
        self.library, self.conv = library, conv
        rows, columns = np.nonzero(weight)
        start = np.zeros(len(weight) + 1, np.uint32)
        start[1:] = np.cumsum(np.bincount(rows, minlength=len(weight)))
        arrays = (
            conv.fields(),
            start,
            columns.astype(np.uint32),
            np.ascontiguousarray(weight[rows, columns]),
        )
        pointers = [a.ctypes.data for a in arrays]
        self.handle = library.c_conv_create(name.encode() if name else None, level.encode(), *pointers)

    def __del__(self) -> None:
        if self.handle:
            self.library.c_conv_destroy(self.handle)

    @property
    def bytes(self) -> int:
        return int(self.library.c_conv_bytes(self.handle))

    def __call__(
        self,
        x: Array,
        *,
        bias: Array | None = None,
        residual: Array | None = None,
        activation: str = "none",
        low: float = 0.0,
        high: float = 0.0,
        threads: int = 1,
        conv: Conv | None = None,
        in_place: bool = False,  # the residual lies where the output goes
    ) -> Array:
        conv = conv or self.conv
        y = residual if in_place and residual is not None else np.full(conv.y_shape, np.nan, np.float32)
        # A read or write behind X or Y ends the process
        guarded = [None if a is None else Guarded(a) for a in (x, y, bias, residual)]
        fields = conv.fields()
        x_, y_, bias_, residual_ = (g.address if g else None for g in guarded)
        residual_ = y_ if in_place else residual_
        act = ACTIVATIONS.index(activation)
        self.library.c_conv_run(
            self.handle, x_, y_, fields.ctypes.data, bias_, residual_, act, low, high, threads
        )
        assert guarded[1] is not None
        return guarded[1].read()


class Guarded:
    """A copy of an array that ends where its pages end; the page behind them cannot be touched."""

    def __init__(self, array: Array) -> None:
        page = mmap.PAGESIZE
        size = -(-array.nbytes // page) * page
        self.memory = mmap.mmap(-1, size + page)
        self.shape, self.begin = array.shape, size - array.nbytes
        self.memory[self.begin : size] = array.tobytes()
        self.view = ctypes.c_char.from_buffer(self.memory)
        base = ctypes.addressof(self.view)
        self.address = base + self.begin
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mprotect(c_void_p(base + size), ctypes.c_size_t(page), 0) == 0
        self.size = size

    def read(self) -> Array:
        return np.frombuffer(self.memory[self.begin : self.size], np.float32).reshape(self.shape)

    def __del__(self) -> None:
        del self.view
        self.memory.close()


def reference(
    conv: Conv,
    x: Array,
    weight: Array,
    *,
    bias: Array | None = None,
    residual: Array | None = None,
    activation: str = "none",
    low: float = 0.0,
    high: float = 0.0,
    threads: int = 1,
) -> NDArray[np.float64]:
    """The same in numpy, in float64."""
    kh, kw = conv.kernel
    oh, ow = conv.out
    top, left, bottom, right = conv.pads
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (top, bottom), (left, right)))
    w = weight.astype(np.float64).reshape(conv.group, conv.out_channels // conv.group, -1, kh, kw)
    per_group = padded.reshape(conv.batch, conv.group, -1, *padded.shape[2:])
    y = np.zeros((conv.batch, conv.group, conv.out_channels // conv.group, oh, ow))
    for i in range(kh):
        for j in range(kw):
            h, v = i * conv.dilation[0], j * conv.dilation[1]
            seen = per_group[..., h : h + conv.stride[0] * (oh - 1) + 1 : conv.stride[0], :]
            seen = seen[..., v : v + conv.stride[1] * (ow - 1) + 1 : conv.stride[1]]
            y += np.einsum("goc,ngchw->ngohw", w[..., i, j], seen)
    out = y.reshape(conv.y_shape)
    out = out + (0 if bias is None else bias[:, None, None]) + (0 if residual is None else residual)
    return activate(out, activation, low, high)
