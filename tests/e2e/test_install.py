"""The wheel: built and installed without and with a compiler, usable without and with ONNX Runtime."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # minutes, and packages from the network

ROOT = Path(__file__).resolve().parent.parent.parent
# All that is passed on: where packages come from. Not passed: CC, CXX, PYTHONPATH, SKBUILD_..., secrets.
KEPT = re.compile(r"HOME|LANG|TMPDIR|PIP_\w+|SSL_\w+|\w+_CA_BUNDLE|(https?|all|no)_proxy", re.IGNORECASE)


def run(*command: str | Path, env: dict[str, str], fails: bool = False) -> subprocess.CompletedProcess[str]:
    """Run in an empty folder, so that the checkout is not importable by chance."""
    done = subprocess.run(
        [str(c) for c in command], env=env, cwd=env["HERE"], capture_output=True, text=True, check=False
    )
    assert fails or done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment whose PATH is an empty folder: no compiler, no cmake, no ninja, no make."""
    env = {name: value for name, value in os.environ.items() if KEPT.fullmatch(name)}
    empty = str(tmp_path_factory.mktemp("bin"))
    return {**env, "PATH": empty, "HERE": empty}


@pytest.fixture(scope="module")
def wheel(bare: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, ROOT, env=bare)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def venv(bare: dict[str, str], wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` folder of an environment with the wheel and what it depends on, no extra."""
    folder = tmp_path_factory.mktemp("venv")
    run(sys.executable, "-m", "venv", folder, env=bare)
    run(folder / "bin" / "python", "-m", "pip", "install", "--quiet", wheel, env=bare)
    return folder / "bin"


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (n for n in names if n.endswith(".dist-info/METADATA"))
        headers = HeaderParser().parsestr(archive.read(metadata).decode())
    sources = {p.relative_to(ROOT).as_posix() for p in (ROOT / "onnxprune").rglob("*.py")}
    packaged = {n for n in names if ".dist-info/" not in n}
    assert re.search(r"-py3-none-\w+\.whl$", wheel.name)  # every Python, one platform
    assert sources | {"onnxprune/py.typed"} <= packaged
    native = {p.relative_to(ROOT).as_posix() for p in (ROOT / "ort_ops" / "src").rglob("*.*")}
    assert {f"onnxprune/{name}" for name in (*native, "ort_ops/build.txt")} <= packaged
    assert not any(n.startswith("onnxprune/lib/") for n in packaged)
    assert {n.partition("/")[0] for n in packaged} == {"onnxprune"}
    assert any(n.endswith("licenses/LICENSE") for n in names)
    assert headers["License-Expression"] == "Apache-2.0"
    assert {"cpu", "gpu", "torch", "dev"} <= set(headers.get_all("Provides-Extra", []))


def test_kernels_without_a_compiler_are_one_clear_message(venv: Path, bare: dict[str, str]) -> None:
    done = run(venv / "onnxprune", "ops", "build", env=bare, fails=True)
    assert done.returncode == 4
    assert "no C++ compiler" in done.stderr and "CXX=" in done.stderr
    done = run(venv / "onnxprune", "ops", "info", env=bare)
    assert "no kernels: the kernels are not built" in done.stdout


def test_version_is_that_of_the_wheel(venv: Path, wheel: Path, bare: dict[str, str]) -> None:
    done = run(venv / "onnxprune", "--version", env=bare)
    assert wheel.name.split("-")[1] in done.stdout


def test_missing_onnxruntime_is_one_clear_message(
    venv: Path, bare: dict[str, str], digits_cnn: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.onnx"
    done = run(venv / "onnxprune", digits_cnn, "--sparsity", "0.5", "-o", out, env=bare, fails=True)
    assert done.returncode == 4, done.stderr
    assert "pip install onnxruntime, or onnxruntime-gpu" in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()


def test_prunes_with_the_cpu_extra(
    venv: Path, wheel: Path, bare: dict[str, str], digits_cnn: Path, calibration_npz: Path, tmp_path: Path
) -> None:
    """It adds ONNX Runtime to the environment of the tests above."""
    run(venv / "python", "-m", "pip", "install", "--quiet", f"{wheel}[cpu]", env=bare)
    out = tmp_path / "out.onnx"
    env = {**bare, "XDG_CACHE_HOME": str(tmp_path)}
    run(venv / "onnxprune", digits_cnn, "--sparsity", "0.7", "--data", calibration_npz, "-o", out, env=env)
    assert out.stat().st_size < digits_cnn.stat().st_size


@pytest.mark.skipif(not any(shutil.which(c) for c in ("c++", "g++", "clang++")), reason="no C++ compiler")
@pytest.mark.parametrize("how", ["wheel", "editable", "later"])
def test_kernels_are_built_where_a_compiler_is(
    venv: Path, wheel: Path, bare: dict[str, str], tmp_path: Path, how: str
) -> None:
    """By pip into the package, or by the command into the cache."""
    env = {**bare, "PATH": os.environ["PATH"], "XDG_CACHE_HOME": str(tmp_path)}
    pip = [venv / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall"]
    if how == "later":
        run(*pip, wheel, env=bare)
        run(venv / "onnxprune", "ops", "build", env=env)
    else:
        run(*pip, *(["-e"] if how == "editable" else []), ROOT, env=env)
    info = json.loads(run(venv / "onnxprune", "ops", "info", "--json", env=env).stdout)
    assert info["problem"] == "" and info["level"] in info["levels"], info
    assert Path(info["library"]).is_relative_to(tmp_path if how == "later" else venv.parent)
