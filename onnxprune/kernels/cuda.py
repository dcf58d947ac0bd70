"""The library of CUDA kernels, called directly: to test and to time its kernels without ONNX Runtime.

The C interface is ``ort_ops/cuda/api.h``; the calls that take host memory are those of
``ort_ops/cuda/measure.cu``.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune import cusparselt
from onnxprune.errors import ModelError, ResourceError
from onnxprune.storage.device.layout import Layout
from onnxprune.storage.form import Array, onnx_type
from onnxprune.storage.sparse_functions import ACTIVATIONS

ABI = 3  # ONNXPRUNE_CUDA_ABI
_MAX_TENSORS = 4
# As the kernels number them: 0 is none
_ACTIVATION = {"": 0, "Relu": 1, "Clip": 2, "Gelu": 3, "GeluTanh": 4, "Silu": 5, "HardSwish": 6}
assert _ACTIVATION.keys() == {"", *ACTIVATIONS}


class _Tensor(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("count", ctypes.c_int64), ("type", ctypes.c_int32))


class _Weight(ctypes.Structure):
    _fields_ = (
        ("rows", ctypes.c_int64),
        ("cols", ctypes.c_int64),
        ("block_rows", ctypes.c_int64),
        ("many_rows", ctypes.c_int64),
        ("type", ctypes.c_int32),
        ("tensors", _Tensor * _MAX_TENSORS),
    )


class _Run(ctypes.Structure):
    _fields_ = (
        ("x", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("m", ctypes.c_int64),
        ("pixels", ctypes.c_int64),
        ("activation", ctypes.c_int32),
        ("low", ctypes.c_float),
        ("high", ctypes.c_float),
        ("stream", ctypes.c_void_p),
    )


class _Op(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("tensor_count", ctypes.c_int32),
        ("tensor_types", ctypes.c_int32 * _MAX_TENSORS),
        ("images", ctypes.c_int32),
        ("sizes", ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.POINTER(_Weight))),
        ("create", ctypes.c_void_p),
        ("run", ctypes.c_void_p),
        ("destroy", ctypes.c_void_p),
        ("many_problem", ctypes.c_void_p),
        ("many_missing", ctypes.c_void_p),
    )


@dataclass(frozen=True)
class DeviceWeight:
    """A weight ``W (rows, cols)`` in a layout: what :meth:`Layout.encode` made of it.

    Attributes:
        layout: how it is stored.
        tensors: in the order of the layout's ``inputs``.
        rows: N.
        cols: K.
        data_type: ``onnx.TensorProto.FLOAT16`` or ``BFLOAT16``.
        many_rows: from so many rows of X on cuSPARSELt multiplies, or :class:`CudaKernels` says why it does
            not; 0 for never.
    """

    layout: Layout
    tensors: tuple[Array, ...]
    rows: int
    cols: int
    data_type: int
    many_rows: int = 0

    @classmethod
    def of(cls, layout: Layout, weight: Array, many_rows: int = 0) -> DeviceWeight:
        """Encode ``weight`` (N, K), float16 or bfloat16."""
        rows, cols = weight.shape
        return cls(layout, layout.encode(weight), rows, cols, onnx_type(weight.dtype), many_rows)

    @property
    def nbytes(self) -> int:
        """Bytes of all stored tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)


class CudaKernels:
    """An open library.

    Args:
        path: of ``libonnxprune_cuda.so``.

    Raises:
        ResourceError: when it cannot be opened or is something else.
    """

    def __init__(self, path: Path) -> None:
        cusparselt.load()
        try:
            self._library = ctypes.CDLL(str(path))
            found = self._library.onnxprune_cuda_abi()
        except (OSError, AttributeError) as error:
            raise ResourceError(f"{path} cannot be loaded: {error}", "onnxprune ops build --cuda") from error
        if found != ABI:
            raise ResourceError(
                f"{path} has interface {found}, wanted {ABI}", "onnxprune ops build --cuda --force"
            )
        self._library.onnxprune_cuda_op.restype = ctypes.POINTER(_Op)
        for name in ("info", "problem", "try", "time", "time_dense", "bandwidth"):
            if hasattr(self._library, f"onnxprune_cuda_{name}"):
                getattr(self._library, f"onnxprune_cuda_{name}").restype = ctypes.c_char_p
        self._ops: dict[str, Any] = {}
        while op := self._library.onnxprune_cuda_op(len(self._ops)):
            self._ops[op.contents.name.decode()] = op

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the kernels: prefixes of layouts."""
        return tuple(self._ops)

    def takes_images(self, name: str) -> bool:
        """Whether the kernel of this name multiplies images too: 1x1 convolutions."""
        return bool(self._ops[name].contents.images)

    @property
    def info(self) -> dict[str, Any]:
        """What the library says of itself and of the devices."""
        found: dict[str, Any] = json.loads(self._library.onnxprune_cuda_info())
        return found

    @property
    def cusparselt(self) -> dict[str, str]:
        """What the library found of cuSPARSELt: ``library``, ``version``, and ``problem`` if it is no use."""
        found: dict[str, str] = self.info["cusparselt"]
        return found

    @property
    def problem(self) -> str:
        """Why no kernel can run here; empty when they can."""
        text = self._library.onnxprune_cuda_problem()
        return text.decode() if text else ""

    def refusal(self, weight: DeviceWeight) -> str:
        """Return why the kernel cannot take tensors of these sizes, or an empty string; needs no device."""
        op = self._ops[weight.layout.prefix].contents
        text = op.sizes(ctypes.byref(_pack(weight)))
        return text.decode() if text else ""

    def run(
        self,
        weight: DeviceWeight,
        x: Array,
        *,
        bias: Array | None = None,
        activation: str = "",
        limits: tuple[float, float] = (0.0, 0.0),
        graph: bool = False,
        guard: int = 64,
    ) -> Array:
        """Return ``activation(x W^T + bias)`` of shape (M, N) as the kernel computes it.

        Args:
            weight: of N rows and K columns.
            x: (M, K), of the weight's type; or images (B, K, pixels), and Y is (B, N, pixels).
            bias: (N,), of the weight's type.
            activation: one of ``ACTIVATIONS``, or empty.
            limits: of ``Clip``.
            graph: as a CUDA graph.
            guard: elements behind the output that must stay untouched.

        Raises:
            ModelError: when the library refuses, or the kernel wrote behind its output.
        """
        x = np.ascontiguousarray(x)
        images, pixels = len(x), x.shape[2] if x.ndim > 2 else 1
        y = np.empty(images * weight.rows * pixels + guard, x.dtype)
        run = _Run(
            x.ctypes.data, y.ctypes.data, None if bias is None else bias.ctypes.data, images * pixels, pixels,
            _ACTIVATION[activation], *limits, None,
        )  # fmt: skip
        packed = _pack(weight)
        self._must(
            self._library.onnxprune_cuda_try(
                self._ops[weight.layout.prefix],
                ctypes.byref(packed),
                ctypes.byref(run),
                ctypes.c_int64(guard),
                int(graph),
            )
        )
        if (y[y.size - guard :].view(np.uint16) != 0xFFFF).any():
            raise ModelError(f"{weight.layout.prefix} writes behind its output")
        return y[: y.size - guard].reshape(images, weight.rows, *x.shape[2:])

    def time(
        self,
        weight: DeviceWeight,
        rows: Sequence[int],
        *,
        total_bytes: int,
        pixels: int = 1,
        graph: bool = True,
    ) -> list[float]:
        """Return milliseconds of a product, for each number of rows of X.

        The weight is taken in turns from so many copies that they have ``total_bytes``. With several
        ``pixels`` it is a 1x1 convolution of images, and rows are multiples of it.
        """
        found, packed = (ctypes.c_float * len(rows))(), _pack(weight)
        self._must(
            self._library.onnxprune_cuda_time(
                self._ops[weight.layout.prefix], ctypes.byref(packed), (ctypes.c_int64 * len(rows))(*rows),
                len(rows), ctypes.c_int64(pixels), ctypes.c_int64(total_bytes), int(graph), found,
            )
        )  # fmt: skip
        return list(found)

    def time_dense(
        self,
        shape: tuple[int, int],
        rows: Sequence[int],
        *,
        data_type: int,
        total_bytes: int,
        pixels: int = 1,
        transposed: bool = True,
        graph: bool = True,
        cublas: str = "",
    ) -> list[float]:
        """Return milliseconds of the same with a dense weight ``shape`` (N, K) and cuBLAS.

        ``transposed``: the weight is stored (K, N), as MatMul of ONNX has it; of images it always is (N, K).
        ``cublas``: path of cuBLAS.
        """
        for needed in sorted(Path(cublas).parent.glob("libcublasLt.so.*")) if cublas else ():
            with contextlib.suppress(OSError):  # it lies beside cuBLAS, where the loader may not look
                ctypes.CDLL(str(needed), mode=ctypes.RTLD_GLOBAL)
        found = (ctypes.c_float * len(rows))()
        self._must(
            self._library.onnxprune_cuda_time_dense(
                cublas.encode(), data_type, ctypes.c_int64(shape[0]), ctypes.c_int64(shape[1]),
                (ctypes.c_int64 * len(rows))(*rows), len(rows), ctypes.c_int64(pixels),
                ctypes.c_int64(total_bytes), int(transposed), int(graph), found,
            )
        )  # fmt: skip
        return list(found)

    def bandwidth(self) -> float:
        """Return GB/s of a copy within the device's memory, bytes read plus bytes written."""
        found = ctypes.c_double()
        self._must(self._library.onnxprune_cuda_bandwidth(ctypes.byref(found)))
        return found.value

    def _must(self, error: bytes | None) -> None:
        if error:
            raise ModelError(error.decode(errors="replace"))


def _pack(weight: DeviceWeight) -> _Weight:
    """Return the weight as the library wants it; it points at the arrays of ``weight``."""
    found = _Weight(weight.rows, weight.cols, weight.layout.block_rows, weight.many_rows, weight.data_type)
    for slot, array in zip(found.tensors, _in_order(weight.tensors), strict=False):
        slot.data, slot.count, slot.type = array.ctypes.data, array.size, onnx_type(array.dtype)
    return found


def _in_order(tensors: Sequence[Array]) -> Sequence[Array]:
    assert all(array.flags.c_contiguous for array in tensors)
    return tensors
