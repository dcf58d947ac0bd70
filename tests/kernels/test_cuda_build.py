"""What nvcc makes of the CUDA kernels: symbols, targets, registers. Compiling all of it takes minutes."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from onnxprune import cudabuild, opsbuild
from onnxprune.errors import ResourceError

SOURCES = Path(__file__).resolve().parents[2] / "ort_ops"
KERNELS = {
    "bitmap_tile": 20,  # rows of X 1, 8, 16, 32, 32 pixels; both types; values of 16 bits and of 8
    "nm_tile": 14,
    "delta": 8,
    "block_sparse_few": 6,
    "block_sparse_many": 16,
}


def test_no_kernel_spills_on_any_target(cuda_library: Path) -> None:
    uses = cudabuild.usage(cuda_library)
    if not uses:
        pytest.skip("the library was built elsewhere, without a report beside it")
    for target in {use.target for use in uses}:
        found = [use for use in uses if use.target == target]
        for name, count in KERNELS.items():
            assert sum(use.kernel.startswith(f"{name}<") for use in found) == count, (target, name)
    assert [use for use in uses if use.spill_bytes or use.stack_bytes] == []
    # 256 threads with two blocks on a processor, 512 with two for Delta: what the launch bounds ask for. The
    # 128 of many rows may have more; as much shared memory as they take leaves room for three blocks
    most = {"delta": 64, "block_sparse_many": 168}
    for use in uses:
        assert use.registers <= most.get(use.kernel.partition("<")[0], 128), use


def test_exports(cuda_library: Path) -> None:
    if shutil.which("nm") is None:
        pytest.skip("no nm")
    done = subprocess.run(
        ["nm", "--dynamic", "--defined-only", cuda_library], capture_output=True, text=True, check=True
    )
    names = {line.split()[-1] for line in done.stdout.splitlines()}
    assert names == {
        f"onnxprune_cuda_{name}"
        for name in ("abi", "op", "info", "problem", "try", "time", "time_dense", "bandwidth")
    }


def test_needs_no_cuda_to_load(cuda_library: Path) -> None:
    """cudart is inside, and libcuda is looked for when it is used."""
    ctypes.CDLL(str(cuda_library))
    if shutil.which("ldd"):
        done = subprocess.run(["ldd", cuda_library], capture_output=True, text=True, check=True)
        assert not re.search(r"libcuda|libcublas|not found", done.stdout)


def test_targets_are_those_of_the_specification() -> None:
    words = cudabuild.build_words(SOURCES)
    assert words["target"] == ["80", "89", "90"] and words["ptx"] == ["90"]


@pytest.mark.slow
def test_a_kernel_compiles(tmp_path: Path) -> None:
    """The smallest file for one target, with what stands in build.txt."""
    try:
        nvcc = cudabuild.find_nvcc()
        opsbuild._compiler()
    except ResourceError as error:
        pytest.skip(str(error))
    folder = tmp_path / "ort_ops" / "cuda"
    shutil.copytree(SOURCES / "cuda", folder)
    for path in folder.glob("*.cu"):
        if path.name != "delta.cu":
            path.unlink()
    assert cudabuild.version_of(nvcc) != "unknown"
    made = cudabuild.compile_cuda(folder.parent, tmp_path, targets=("90",))
    uses = cudabuild.usage(made)
    assert {use.target for use in uses} == {"sm_90"} and len(uses) == KERNELS["delta"] + 1
    assert not any(use.spill_bytes for use in uses)
