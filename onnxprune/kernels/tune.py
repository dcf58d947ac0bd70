"""Measure the CUDA kernels against cuBLAS on this machine's GPU: ``onnxprune ops tune``.

1x1 convolutions are compared with cuBLAS multiplying the weight with each image, the least that cuDNN has to
do. Each product is timed inside a CUDA graph that takes weights in turns from several times the L2 cache, so
it reads them from memory, as in a model of many layers. Zeros are random: in whole blocks for the block
layouts, two of four for 2:4.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import TensorProto

from onnxprune import ops
from onnxprune.errors import ModelError, ResourceError, UsageError
from onnxprune.kernels.cuda import CudaKernels, DeviceWeight
from onnxprune.kernels.devicetable import CUSPARSELT, DeviceTable, Measured
from onnxprune.progress import NullProgress, Progress
from onnxprune.storage.device import LAYOUTS
from onnxprune.storage.device.layout import Layout
from onnxprune.storage.form import Array

SHAPES = ((768, 768), (3072, 768), (768, 3072), (4096, 4096), (11008, 4096), (4096, 11008))
CONV_SHAPES = ((256, 1024), (1024, 256), (512, 2048))
FEW, MANY = (1, 4, 8, 16, 32), (64, 512, 2048)  # rows of X
LARGE = (512, 1024, 2048, 4096, 8192)
NOT_MEASURED = "cuSPARSELt not measured with "  # in a table's ``about``, before weights and reasons
_TOOLKIT = Path("/usr/local/cuda/lib64")
_CACHES = 8  # how many L2 caches the copies of a weight fill


@dataclass(frozen=True)
class Case:
    """What is measured of a layout: densities, and numbers of rows of X; by cuSPARSELt or our own kernel.

    With ``pixels`` a 1x1 convolution: ``rows`` are images then.
    """

    layout: str
    densities: tuple[float, ...]
    rows: tuple[int, ...]
    cusparselt: bool = False
    pixels: int = 1

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """Weights (N, K) on which it is measured by default."""
        return SHAPES if self.pixels == 1 else CONV_SHAPES

    @property
    def name(self) -> str:
        """How a table calls it."""
        return CUSPARSELT if self.cusparselt else self.layout


CASES: tuple[Case, ...] = (
    Case("bitmap-tile", (0.6, 0.5, 0.3, 0.2), FEW),
    Case("delta", (0.3, 0.2, 0.1, 0.05), (1, 4, 8)),
    Case("nm-tile", (0.5,), (*FEW, 64, *LARGE)),
    Case("nm-tile", (0.5,), LARGE, cusparselt=True),
    Case("block-64", (0.5, 0.25, 0.1), (*FEW, *MANY)),
    Case("block-32", (0.5, 0.25, 0.1), (*FEW, *MANY)),
)


# Images of 7x7, 14x14 and 28x28: channels that begin at any, at every fourth and at every eighth element
CASES += tuple(
    Case(layout, densities, (1, 8, 32), pixels=pixels)
    for pixels in (49, 196, 784)
    for layout, densities in (
        ("bitmap-tile", (0.5, 0.2)),
        ("nm-tile", (0.5,)),
        ("block-64", (0.5, 0.25)),
        ("block-32", (0.5, 0.25)),
    )
)


def open_kernels() -> CudaKernels:
    """Open the library of CUDA kernels.

    Raises:
        ResourceError: when it is not there, or there is no GPU.
    """
    path = ops.cuda_path()
    if path is None:
        raise ResourceError("the CUDA kernels are not built", "onnxprune ops build --cuda")
    kernels = CudaKernels(path)
    if kernels.problem:
        raise ResourceError(f"the CUDA kernels cannot run here: {kernels.problem}", "onnxprune ops info")
    return kernels


def random_weight(layout: Layout, shape: tuple[int, int], density: float, seed: int = 0) -> Array:
    """Return a float16 weight (N, K) with zeros where the layout can leave them out."""
    rng = np.random.default_rng(seed)
    rows, cols = shape
    weight = rng.uniform(-1, 1, shape).astype(np.float16)
    if layout.block_rows:
        grid = (-(-rows // layout.block_rows), -(-cols // 64))
        order = rng.permutation(grid[0] * grid[1])
        gone = (order >= max(1, round(density * order.size))).reshape(grid)
        weight[np.repeat(np.repeat(gone, layout.block_rows, 0), 64, 1)[:rows, :cols]] = 0
    elif layout.name == "nm-tile":
        order = np.argsort(rng.random((rows, -(-cols // 4), 4), dtype=np.float32), axis=-1)
        weight[(order >= 2).reshape(rows, -1)[:, :cols]] = 0
    else:
        weight[rng.random(shape, dtype=np.float32) >= density] = 0
    return weight


def tune(
    kernels: CudaKernels,
    *,
    shapes: Sequence[tuple[int, int]] = (),
    cases: Sequence[Case] = CASES,
    rows: Sequence[int] | None = None,
    cublas: str = "",
    progress: Progress | None = None,
) -> DeviceTable:
    """Measure every case on every shape.

    Args:
        kernels: of a machine with a GPU.
        shapes: (N, K) of the weights; default: those of each case.
        cases: layouts, densities and numbers of rows.
        rows: only these numbers of rows (or of images), where given.
        cublas: path of cuBLAS; default what the system finds.
        progress: told about each weight.

    Returns:
        The table; where cuSPARSELt fails, its ``about`` says why.

    Raises:
        ModelError: when a kernel of ours fails.
    """
    progress = progress or NullProgress()
    device, missing = kernels.info["devices"][0], kernels.cusparselt["problem"]
    cases = [case for case in cases if not (case.cusparselt and missing)]
    total = _CACHES * int(device["l2_bytes"])
    kinds = list(dict.fromkeys((case.pixels, tuple(shapes) or case.shapes) for case in cases))
    jobs = [(pixels, shape) for pixels, each in kinds for shape in each]
    progress.stage(
        "measuring CUDA kernels",
        sum(len(case.densities) for pixels, _ in jobs for case in cases if case.pixels == pixels),
    )
    entries, failures = [], list[str]()
    for pixels, shape in jobs:
        own = [case for case in cases if case.pixels == pixels]
        wanted = sorted({m * pixels for case in own for m in case.rows if rows is None or m in rows})
        dense = dict(zip(wanted, _dense(kernels, shape, wanted, total, cublas, pixels), strict=True))
        for case in own:
            counts = [m * pixels for m in case.rows if m * pixels in dense]
            for density in case.densities:
                try:
                    entries += _measured(kernels, case, shape, density, counts, dense, total)
                except ModelError as error:
                    if not case.cusparselt:
                        raise
                    failures.append(f"{shape[0]}x{shape[1]}: {error}")  # another's library, which may refuse
                progress.advance()
    about = f"driver {kernels.info['driver']}, {kernels.info['compiler']}, "
    about += f"cuSPARSELt {kernels.cusparselt['version']}" if not missing else f"no cuSPARSELt: {missing}"
    if failures:
        about += f"; {NOT_MEASURED}{'; '.join(failures)}"
    return DeviceTable(str(device["name"]), about, kernels.bandwidth(), tuple(entries))


def _dense(
    kernels: CudaKernels, shape: tuple[int, int], rows: Sequence[int], total: int, cublas: str, pixels: int
) -> list[float]:
    """Times of the dense product; the weight lies as it suits cuBLAS better, where there is a choice."""
    both = [
        kernels.time_dense(
            shape,
            rows,
            data_type=TensorProto.FLOAT16,
            total_bytes=total,
            pixels=pixels,
            transposed=way,
            cublas=cublas,
        )
        for way in ((True, False) if pixels == 1 else (False,))
    ]
    return [min(pair) for pair in zip(*both, strict=True)]


def _measured(
    kernels: CudaKernels,
    case: Case,
    shape: tuple[int, int],
    density: float,
    rows: Sequence[int],
    dense: dict[int, float],
    total: int,
) -> list[Measured]:
    layout = LAYOUTS[case.layout]
    weight = random_weight(layout, shape, density)
    if not rows or layout.refusal(weight):
        return []
    packed = DeviceWeight.of(layout, weight, int(case.cusparselt))
    found = float(np.count_nonzero(weight)) / weight.size
    times = kernels.time(packed, rows, total_bytes=total, pixels=case.pixels)
    return [
        Measured(case.name, *shape, round(found, 4), m, ms, dense[m], packed.nbytes, case.pixels)
        for m, ms in zip(rows, times, strict=True)
    ]


def parse_shape(text: str) -> tuple[int, int]:
    """Read ``NxK``.

    Raises:
        UsageError: for anything else.
    """
    match = re.fullmatch(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})", text)
    if match is None:
        raise UsageError(f"--shape is {text!r}, wanted outputs x inputs", "such as 4096x11008")
    return int(match[1]), int(match[2])


def default_cublas() -> str:
    """Path of the cuBLAS that some wheel of NVIDIA's or the toolkit brought, empty to let the system look."""
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(Path(folder).glob("*/lib/libcublas.so.*"), reverse=True):
            return str(path)
    found = next(iter(sorted(_TOOLKIT.glob("libcublas.so*"))), None)
    return str(found) if found is not None else ""
