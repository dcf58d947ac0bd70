"""2:4 with many rows of X where cuSPARSELt is not there: dense, by cuBLAS, with the emulator and a stand-in.

``cublas_on_host.cpp`` is that stand-in.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.kernels.emulated import compiler
from tests.kernels.test_cusparselt import COLS, MANY, ROWS, VARIABLE, Op, on_host

pytestmark = pytest.mark.slow  # the emulator compiles for half a minute

HERE = Path(__file__).parent
NAME = "libcublas.so.13"


class Dense(Op):
    """NMTile of the emulator where cuSPARSELt is switched off, and cuBLAS is the stand-in."""

    def __init__(self, library: Path, cusparselt: Path, blas: Any) -> None:
        super().__init__(library, cusparselt)
        self.blas = blas
        blas.on_host_blas_reset()

    def products(self) -> int:
        return int(self.blas.on_host_blas_calls(b"GemmEx"))


@pytest.fixture(scope="module")
def blas(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Loaded under cuBLAS's name, as ONNX Runtime's CUDA provider loads the real one."""
    made = tmp_path_factory.mktemp("cublas") / NAME
    command = [compiler(), "-std=c++17", "-O1", "-fPIC", "-shared", f"-Wl,-soname,{NAME}"]
    subprocess.run([*command, str(HERE / "cublas_on_host.cpp"), "-o", str(made)], check=True)
    return ctypes.CDLL(str(made))


@pytest.fixture(scope="module")
def cusparselt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For its counters; nobody opens it."""
    return on_host(tmp_path_factory.mktemp("cusparselt"))


@pytest.fixture
def op(
    emulator_library: Path, cusparselt: Path, blas: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Dense]:
    monkeypatch.setenv(VARIABLE, "off")
    made = Dense(shutil.copy(emulator_library, tmp_path / "emulator.so"), cusparselt, blas)
    before = made.emulator.onnxprune_emulator_allocated()
    yield made
    made.emulator.onnxprune_emulator_capture(0)
    assert made.emulator.onnxprune_emulator_allocated() == before, "device memory was not given back"
    assert blas.on_host_blas_alive() == 0, "a handle of cuBLAS was not destroyed"


OFF = "cuSPARSELt is switched off by ONNXPRUNE_CUSPARSELT=off"


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_products(op: Dense, dtype: Any) -> None:
    """Also shapes that cuSPARSELt does not take, with bias and activation and without; few rows are ours."""
    for number, shape in enumerate(((ROWS, COLS), (40, COLS), (37, 131), (16, 130))):
        plan = op.plan(dtype, shape)
        for i, activation in enumerate(("", "Relu", "Gelu", "Clip")):
            assert OFF in plan.run(MANY + i, activation, bias=(i + number) % 2 == 0) or shape != (ROWS, COLS)
        assert op.products() == 4 * (number + 1)
        plan.run(MANY - 1)
        assert op.products() == 4 * (number + 1)
        plan.close()


def test_weights_share_a_handle_and_streams_do_not(op: Dense) -> None:
    one, two = op.plan(), op.plan(shape=(64, COLS))
    for plan in (one, two):
        for stream in (1, 2):
            plan.run(MANY, stream=stream)
    assert op.products() == 4 and op.blas.on_host_blas_alive() == 2
    one.close()
    two.run(MANY)
    assert op.products() == 5
    two.close()


def test_capture(op: Dense) -> None:
    """Nothing is allocated while a stream is captured; what is ready by then takes any number of rows."""
    plan = op.plan()
    op.emulator.onnxprune_emulator_capture(1)
    plan.run(MANY)
    assert op.products() == 0
    op.emulator.onnxprune_emulator_capture(0)
    plan.run(MANY)
    op.emulator.onnxprune_emulator_capture(1)
    plan.run(MANY), plan.run(MANY + 9)
    assert op.products() == 3
    plan.run(MANY, stream=2)  # has no handle yet
    assert op.products() == 3
    op.emulator.onnxprune_emulator_capture(0)
    plan.close()


@pytest.mark.parametrize("function", ["Create", "SetStream", "SetWorkspace", "GemmEx"])
def test_what_fails_is_left_to_the_own_kernel(op: Dense, function: str) -> None:
    """The output is right, and what failed is not tried at every run."""
    plan = op.plan()
    op.blas.on_host_blas_fail(function.encode(), 3)
    plan.run(MANY, "Relu"), plan.run(MANY)
    assert op.blas.on_host_blas_calls(function.encode()) == 1
    plan.close()


@pytest.mark.parametrize("allocation", range(2))
def test_no_memory(op: Dense, allocation: int) -> None:
    """For the workspace, for the dense weight."""
    plan = op.plan()
    op.emulator.onnxprune_emulator_fail_after(allocation)
    plan.run(MANY), plan.run(MANY)
    assert op.products() == 0
    plan.close()
