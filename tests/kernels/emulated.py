"""Compile the CUDA kernels for the host: see ``emulator/emulator.h``."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from onnxprune import cudabuild, opsbuild

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def compiler() -> str:
    """A C++ compiler; skips the test where there is none."""
    found = next((name for name in opsbuild._COMPILERS if shutil.which(name)), None)
    if found is None:
        pytest.skip("no C++ compiler")
    return found


def headers() -> Path:
    """Folder of CUDA's headers: beside some nvcc."""
    for nvcc in cudabuild._candidates():
        folder = nvcc.parents[1]
        for path in (folder / "include", *folder.glob("targets/*/include")):
            if (path / "cuda_fp16.h").is_file():
                return path
    pytest.skip("no headers of CUDA")


def compiled(folder: Path, change: Callable[[Path], None] | None = None) -> Path:
    """The kernels, the table of ops and the emulator as one library; ``change`` edits the sources before."""
    command = compiler()
    shutil.copytree(ROOT / "ort_ops" / "cuda", folder / "cuda")
    if change is not None:
        change(folder / "cuda")
    flags = ["-std=c++17", "-O1", "-fPIC", "-w", "-DONNXPRUNE_EMULATOR"]
    flags += [f"-D__CUDACC_VER_{part}__=0" for part in ("MAJOR", "MINOR", "BUILD")]
    flags += [f"-I{path}" for path in (HERE / "emulator", folder, headers())]
    files = [path for path in (folder / "cuda").glob("*.cu") if path.name != "measure.cu"]

    def make(source: Path) -> str:
        made = str(folder / f"{source.stem}.o")
        subprocess.run([command, *flags, "-x", "c++", "-c", str(source), "-o", made], check=True)
        return made

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(make, [*files, HERE / "emulator" / "emulator.cpp"]))
    library = folder / cudabuild.NAME
    subprocess.run([command, "-shared", *objects, "-ldl", "-o", str(library)], check=True)
    return library
