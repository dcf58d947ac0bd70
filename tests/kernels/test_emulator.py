"""The CUDA kernels themselves, on the host: see ``emulator/emulator.h`` for what that shows and what not.

Needs a C++ compiler and the headers of CUDA (which nvcc brings), no nvcc and no GPU.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import ml_dtypes
import numpy as np
import pytest

from onnxprune.errors import ModelError
from onnxprune.kernels.cuda import CudaKernels, DeviceWeight
from onnxprune.kernels.tune import random_weight
from onnxprune.storage.device import LAYOUTS
from onnxprune.storage.device.functions import IMAGES
from onnxprune.storage.reference import ACTIVATIONS
from tests.kernels.emulated import ROOT, compiled

pytestmark = pytest.mark.slow  # compiles for half a minute

LIMIT = {np.float16: 2e-3, ml_dtypes.bfloat16: 1.5e-2}
DEVICES = {"sm_90": 227 << 10, "sm_89": 99 << 10}  # shared memory of a block


@pytest.fixture
def kernels(emulator_library: Path) -> CudaKernels:
    ctypes.CDLL(str(emulator_library)).onnxprune_emulator_shared(DEVICES["sm_90"])
    return CudaKernels(emulator_library)


def error_of(
    kernels: CudaKernels, weight: DeviceWeight, m: int, activation: str, bias: bool, pixels: int = 0
) -> float:
    """With ``pixels`` of ``m`` images instead of rows."""
    rng = np.random.default_rng(m)
    dtype = np.float16 if weight.data_type == 10 else ml_dtypes.bfloat16
    x = rng.standard_normal((m, weight.cols, *[pixels] * bool(pixels))).astype(dtype)
    added = rng.standard_normal(weight.rows).astype(dtype) if bias else None
    shape = (weight.rows, weight.cols)
    dense = weight.layout.decode(weight.tensors, shape, weight.data_type, "w").astype(np.float64)
    wide = np.zeros(weight.rows) if added is None else added.astype(np.float64)
    if pixels:
        product = np.einsum("bkp,nk->bnp", x.astype(np.float64), dense) + wide[:, None]
    else:
        product = x.astype(np.float64) @ dense.T + wide
    wanted = ACTIVATIONS[activation](product) if activation else product
    found = kernels.run(weight, x, bias=added, activation=activation).astype(np.float64)
    error = np.abs(found - wanted).max() / max(float(np.abs(product).max()), 1e-3)
    return float(error) if error == error else np.inf


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_variant(emulator_library: Path, kernels: CudaKernels, name: str, device: str) -> None:
    """Rows of X for each variant, whole and ragged shapes, rows of X that are not aligned, both types."""
    ctypes.CDLL(str(emulator_library)).onnxprune_emulator_shared(DEVICES[device])
    layout = LAYOUTS[name]
    cases = [
        ((130, 333), (1, 3, 9, 17, 33, 65, 129)),
        ((16, 128), (1, 8)),
        ((5, 8), (2, 40)),
        ((70, 1100), (1, 4)),
    ]
    for number, (shape, rows) in enumerate(cases):
        weight = random_weight(layout, shape, 0.1 if name == "delta" else 0.4)
        if layout.refusal(weight):
            continue
        for dtype, limit in LIMIT.items():
            packed = DeviceWeight.of(layout, weight.astype(dtype))
            for m in rows if dtype is np.float16 and device == "sm_90" else rows[:2]:
                activation = ("", *ACTIVATIONS)[(m + number) % (len(ACTIVATIONS) + 1)]
                error = error_of(kernels, packed, m, activation, m % 2 == 1)
                assert error < limit, (shape, dtype, m, error)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", [name for name, layout in LAYOUTS.items() if layout.prefix in IMAGES])
def test_images(emulator_library: Path, kernels: CudaKernels, name: str, device: str) -> None:
    """Channels that begin at any, every fourth and every eighth element, whole and ragged tiles of pixels."""
    ctypes.CDLL(str(emulator_library)).onnxprune_emulator_shared(DEVICES[device])
    layout = LAYOUTS[name]
    cases = [((130, 333), (2, 49, 200)), ((16, 128), (64, 300)), ((5, 8), (9, 40)), ((70, 600), (33, 68))]
    for number, (shape, sizes) in enumerate(cases):
        weight = random_weight(layout, shape, 0.4)
        if layout.refusal(weight):
            continue
        for dtype, limit in LIMIT.items():
            packed = DeviceWeight.of(layout, weight.astype(dtype))
            for pixels in sizes if dtype is np.float16 and device == "sm_90" else sizes[1:2]:
                activation = ("", *ACTIVATIONS)[(pixels + number) % (len(ACTIVATIONS) + 1)]
                error = error_of(kernels, packed, 1 + pixels % 2 + number % 2, activation, True, pixels)
                assert error < limit, (shape, dtype, pixels, error)


def test_an_image_of_one_pixel_is_a_row(kernels: CudaKernels) -> None:
    weight = DeviceWeight.of(LAYOUTS["delta"], random_weight(LAYOUTS["delta"], (40, 64), 0.2))
    x = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float16)
    np.testing.assert_array_equal(kernels.run(weight, x[:, :, None])[:, :, 0], kernels.run(weight, x))
    with pytest.raises(ModelError, match="Delta multiplies no images"):
        kernels.run(weight, np.zeros((2, 64, 4), np.float16))
    assert [name for name in kernels.names if kernels.takes_images(name)] == list(IMAGES)


def test_all_rows_of_blocks_zero(kernels: CudaKernels) -> None:
    weight = np.zeros((128, 192), np.float16)
    for m in (3, 40):
        assert error_of(kernels, DeviceWeight.of(LAYOUTS["block-64"], weight), m, "", True) < 1e-3


def test_dense_weights(kernels: CudaKernels) -> None:
    """Every group full: the most values that a stage has to hold."""
    weight = np.random.default_rng(0).uniform(0.5, 1, (33, 300)).astype(np.float16)
    for name in ("bitmap-tile", "bitmap-tile-int8", "delta"):
        for m in (1, 17):
            assert error_of(kernels, DeviceWeight.of(LAYOUTS[name], weight), m, "", False) < 2e-3, name


def test_broken_indices_are_refused(kernels: CudaKernels, gpu_check: ModuleType) -> None:
    """By the small kernels that look at a weight when a plan is made."""
    check = gpu_check.Check(argparse.Namespace(quick=True), kernels)
    gpu_check.refuse(check)
    assert len(check.lines) == 9 and {state for *_, state in check.lines} == {"ok"}, check.lines
    assert not any("memory" in result for _, _, result, _ in check.lines)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("small_m.cuh", "    wait_copies<1>();", "    wait_copies<2>();"),
        ("block_sparse.cu", "wait_copies<kManyStages - 2>();", "wait_copies<kManyStages - 1>();"),
        ("layout.h", "return lane / 4 + 8 * (i >> 1); }", "return lane / 4 + 8 * (i & 1); }"),
        ("layout.h", "pixel_tile16(int lane) { return lane / 16; }", "pixel_tile16(int lane) { return 0; }"),
        ("common.cuh", "copy_async8(shared + 4, channel + p + 4);", "copy_async8(shared + 4, channel + p);"),
    ],
    ids=["a wait too few", "a wait too few in blocks", "an index", "an index of pixels", "a copy of pixels"],
)
def test_the_emulator_sees_mistakes(tmp_path: Path, file: str, old: str, new: str) -> None:
    """Otherwise the tests above would say nothing."""

    def change(folder: Path) -> None:
        text = (folder / file).read_text(encoding="utf8")
        assert text.count(old) == 1
        (folder / file).write_text(text.replace(old, new), encoding="utf8")

    library = compiled(tmp_path, change)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, __file__, str(library)], env=environment, capture_output=True, text=True, check=False
    )
    # The emulator ends the process where it sees what must not be; else the numbers are wrong
    assert done.returncode != 0 or float(done.stdout) > 0.01, done.stdout + done.stderr
    assert done.returncode == 0 or "emulator:" in done.stderr, done.stderr


def worst_of(library: Path) -> float:
    """Largest error of some products, infinite for what is not a number."""
    worst = 0.0
    for name, m, pixels in (
        ("bitmap-tile", 3, 0),
        ("block-64", 40, 0),
        ("nm-tile", 1, 20),
        ("block-64", 1, 60),
    ):
        weight = random_weight(LAYOUTS[name], (70, 1100), 0.4)
        packed = DeviceWeight.of(LAYOUTS[name], weight)
        worst = max(worst, error_of(CudaKernels(library), packed, m, "", False, pixels))
    return worst


if __name__ == "__main__":
    print(worst_of(Path(sys.argv[1])))
