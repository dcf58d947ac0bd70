"""``scripts/gpu_check``: as far as it goes without a GPU, and with one all of it but the measurements."""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune import ops, runtime
from onnxprune.kernels.cuda import CudaKernels
from onnxprune.storage.device import LAYOUTS
from onnxprune.storage.device.functions import IMAGES

ROOT = Path(__file__).resolve().parents[2]


def test_the_numbers_it_compares_with(
    gpu_check: ModuleType, host_library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``correct`` on the stand-in for the kernels: what it expects is right, and a wrong output is seen."""
    monkeypatch.setattr(gpu_check, "SHAPES", ((17, 129), (70, 40)))
    monkeypatch.setattr(gpu_check, "ROWS", (1, 9))
    monkeypatch.setattr(gpu_check, "PIXELS", ((2, 7),))
    check = gpu_check.Check(argparse.Namespace(quick=False), CudaKernels(host_library))
    gpu_check.correct(check)
    assert len(check.lines) == 2 * 6 + 2 * 5 + 1 and {state for *_, state in check.lines} == {"ok"}

    class Wrong(CudaKernels):
        def run(self, *arguments: Any, **options: Any) -> Any:
            y = super().run(*arguments, **options)
            y[0, 0] = np.nan
            return y

    check = gpu_check.Check(argparse.Namespace(quick=False), Wrong(host_library))
    with pytest.raises(Exception, match="too many failures"):
        gpu_check.correct(check)


def test_without_cusparselt(gpu_check: ModuleType, host_library: Path) -> None:
    """A line of the table says so; with it: test_cusparselt.py."""
    check = gpu_check.Check(argparse.Namespace(quick=True), CudaKernels(host_library))
    gpu_check.many(check)
    ((step, what, result, state),) = check.lines
    assert (step, what, state) == ("many", "cuSPARSELt", "missing")
    assert result == "the host has none; pip install nvidia-cusparselt-cu13"


def test_what_it_refuses_has_the_right_sizes(gpu_check: ModuleType, cuda_library: Path) -> None:
    """Without a device a broken weight gets as far as the device, so nothing but its indices is wrong."""
    kernels = CudaKernels(cuda_library)
    if not kernels.problem:
        pytest.skip("there is a device")
    check = gpu_check.Check(argparse.Namespace(quick=True), kernels)
    gpu_check.refuse(check)
    assert len(check.lines) == 9
    assert all("driver" in result or "CUDA" in result for _, _, result, _ in check.lines), check.lines


def test_dry_run(ops_library: Path, cuda_library: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "gpu_check.py"), "--dry-run"]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        ops.VARIABLE: str(ops_library),
        ops.CUDA_VARIABLE: str(cuda_library),
    }
    if not CudaKernels(cuda_library).problem:
        pytest.skip("there is a device")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 failed, 7 could not be looked at" in done.stdout and "no CUDA device" in done.stdout
    assert " 0 spill" in done.stdout


def test_the_models_it_runs(gpu_check: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before and after the switch they compute on a CPU what the check expects of a GPU."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    module = importlib.import_module("gpu_check_runtime")
    monkeypatch.setattr(
        module, "open_session", lambda model, **_: runtime.session(model.to_bytes(), kernels=False)
    )
    images = [(name, 3) for name, layout in LAYOUTS.items() if layout.prefix in IMAGES]
    for name, side in [*dict.fromkeys(LAYOUTS, 0).items(), *images]:
        layout = LAYOUTS[name]
        model = module.chain(3, 128, 192, name, 4, side)
        device = module.switched(model, name)
        op = f"{layout.prefix}{'Conv' if side else 'MatMul'}Relu"
        assert [node.op_type for node in device.graph.node] == [op] * 3
        x = np.random.default_rng(5).standard_normal((4, 128, *[side] * 2 * bool(side))).astype(np.float16)
        wanted = module.expected(model, x)
        assert wanted.max() > 0.1  # the chain does not fade
        for each, limit in ((model, module.LIMIT), (device, module.LIMIT if layout.exact else 0.05)):
            (found,) = module.open_session(each).run(None, {"x": x})
            assert module.error_of(found, wanted) < limit, name
    assert module.error_of(np.array([np.nan]), np.ones(1)) == np.inf


def test_minilm(gpu_check: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two layers of it, on a CPU: every product of a weight is switched, and the output stays."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    models, module = (importlib.import_module(f"gpu_check_{name}") for name in ("model", "runtime"))
    monkeypatch.setattr(models, "WORDS", 100)
    model = models.minilm("block-64", 0.3, 2, 5, layers=2)
    onnx.checker.check_model(model.proto)
    device = module.switched(model, "block-64")
    ops = [node.op_type for node in device.graph.node if node.domain]
    assert sorted(ops) == ["BlockSparseMatMul"] * 10 + ["BlockSparseMatMulGelu"] * 2
    x = np.random.default_rng(5).integers(0, 100, (2, 5))
    first, second = (
        runtime.session(each.to_bytes(), kernels=False).run(None, {"x": x})[0] for each in (model, device)
    )
    assert np.isfinite(first).all() and first.std() > 0.1
    assert module.error_of(second, first.astype(np.float64)) < 0.01


@pytest.mark.gpu
def test_with_a_gpu() -> None:
    command = [str(ROOT / "scripts" / "gpu_check"), "--only", "build,correct,refuse,runtime", "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
