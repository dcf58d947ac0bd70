"""What the library with the kernels says of itself."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from onnxprune import cusparselt, machine, ops, opsbuild, opsinfo

pytestmark = pytest.mark.usefixtures("nothing_installed")
needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in opsbuild._COMPILERS), reason="no C++ compiler"
)


def test_a_library_that_cannot_be_loaded_is_said(nothing_installed: Path) -> None:
    (nothing_installed / "lib" / ops.NAME).write_bytes(b"no library")
    found = opsinfo.info()
    assert "cannot be loaded" in found.problem and found.library.endswith(ops.NAME)


def test_an_old_runtime_is_said(monkeypatch: pytest.MonkeyPatch, nothing_installed: Path) -> None:
    (nothing_installed / "lib" / ops.NAME).write_bytes(b"")
    monkeypatch.setattr(opsinfo, "describe", lambda _: {})
    monkeypatch.setattr(machine, "version", lambda name: "1.9.2" if name == "onnxruntime" else None)
    assert opsinfo.info().problem == "ONNX Runtime 1.9.2 is older than 1.17"
    monkeypatch.setattr(machine, "version", lambda name: "1.17.0" if name == "onnxruntime" else None)
    assert opsinfo.info().problem == ""


CUDA = {"library": "/x/libonnxprune_cuda.so", "problem": "no CUDA device: why", "ops": 0, "about": {}}


@needs_compiler
def test_what_it_says_of_cuda(nothing_installed: Path) -> None:
    opsbuild.build()
    assert opsinfo.info().cuda.problem.startswith("the library is not there")  # it says nothing of it
    about = {"compiler": "nvcc 13", "devices": [{"name": "A GPU", "capability": "9.0"}]}
    says = {"cuda": CUDA | {"problem": "", "ops": 5, "about": about}}
    text = json.dumps(json.dumps(says))
    source = nothing_installed / "ort_ops" / "src" / "main.cpp"
    source.write_text(f'extern "C" const char* onnxprune_ops_info() {{ return {text}; }}\n')
    ops._fingerprint.cache_clear()
    opsbuild.build()
    found = opsinfo.info().cuda
    assert (found.problem, found.ops, found.compiler, found.devices) == ("", 5, "nvcc 13", ("A GPU (9.0)",))


def test_what_it_says_of_cusparselt(monkeypatch: pytest.MonkeyPatch) -> None:
    def of(**about: str) -> tuple[str, str]:
        found = opsinfo._cuda_info(CUDA | {"about": {"cusparselt": about}})
        return found.cusparselt, found.cusparselt_problem

    monkeypatch.delenv(cusparselt.VARIABLE, raising=False)
    path = "/x/libcusparseLt.so.0"
    assert of(library=path, version="0.8.1", problem="") == (f"0.8.1 ({path})", "")
    assert of(library=path, version="0.6.2", problem="it is 0.6.2") == ("", "it is 0.6.2")
    assert of(library="", problem="it cannot be opened")[1].endswith(
        "opened; pip install nvidia-cusparselt-cu13"
    )
    monkeypatch.setenv(cusparselt.VARIABLE, "off")
    assert of(library="", problem="it is switched off") == ("", "it is switched off")
    assert "they are not there" in opsinfo._cuda_info(CUDA).cusparselt_problem


def test_library_that_is_not_there_says_how_to_make_it() -> None:
    found = opsinfo._cuda_info(CUDA | {"problem": "/x/libonnxprune_cuda.so is not there"})
    assert found.problem.endswith("is not there; onnxprune ops build --cuda makes it")
    assert opsinfo._cuda_info(CUDA).problem == "no CUDA device: why"


def test_the_module_is_light() -> None:
    code = (
        "import sys, onnxprune.ops; print([m for m in ('numpy', 'onnx', 'onnxruntime') if m in sys.modules])"
    )
    root = Path(ops.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
