"""Compile the library with the kernels: ``onnxprune ops build``.

``CXX`` names a compiler to use instead of the first on PATH. Flags are those of ``ort_ops/build.txt``, which
CMake reads too.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from onnxprune import cudabuild, machine, ops
from onnxprune.errors import ResourceError
from onnxprune.opsinfo import describe

_COMPILERS = ("c++", "g++", "clang++")
_NO_COMPILER = "install one (apt install g++, xcode-select --install), or name it: CXX=/path/to/g++"


def build(*, force: bool = False, cuda: bool = False, targets: tuple[str, ...] = ()) -> Path:
    """Compile the library into the user's cache, unless it is there; takes under a minute.

    Args:
        force: compile even if it is there.
        cuda: also that of the CUDA kernels, which takes some minutes.
        targets: of the CUDA kernels, compute capabilities such as ``90`` instead of all.

    Returns:
        Path of the library, which :func:`onnxprune.ops.library_path` finds from now on.

    Raises:
        ResourceError: when there is no compiler, when it fails, or when the result cannot be loaded.
    """
    target = ops.cached_path()
    if cuda:
        _build_cuda(target.with_name(cudabuild.NAME), force, targets)
    if target.is_file() and not force:
        return target
    compiler = _compiler()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=target.parent) as folder:
        made = _compile(compiler, ops.sources(), Path(folder))
        describe(made)
        os.replace(made, target)
    return target


def _build_cuda(target: Path, force: bool, targets: tuple[str, ...]) -> None:
    if target.is_file() and not force:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=target.parent) as folder:
        made = cudabuild.compile_cuda(ops.sources(), Path(folder), targets=targets)
        os.replace(made.with_name(cudabuild.USAGE_NAME), target.with_name(cudabuild.USAGE_NAME))
        os.replace(made, target)


def _compiler() -> list[str]:
    named = shlex.split(os.environ.get("CXX", ""))
    if named:
        if shutil.which(named[0]) is None:
            raise ResourceError(f"CXX names {named[0]}, which is no program", _NO_COMPILER)
        return named
    for name in _COMPILERS:
        if shutil.which(name):
            return [name]
    raise ResourceError(f"no C++ compiler on PATH ({', '.join(_COMPILERS)})", _NO_COMPILER)


def _compile(compiler: list[str], sources: Path, folder: Path) -> Path:
    flags = _flags(sources)
    src = sources / "src"
    jobs: list[list[str]] = []
    objects: list[Path] = []
    for source in sorted([*src.glob("*.cpp"), *(src / "kernels").glob("*.cpp")]):
        special = flags.get(source.name, [])
        if special is None:
            continue  # for another processor
        objects.append(folder / f"{len(objects)}.o")
        general = flags["*"] or []
        jobs.append([*compiler, *general, *special, f"-I{src}", "-c", str(source), "-o", str(objects[-1])])
    with ThreadPoolExecutor(machine.threads()) as pool:
        list(pool.map(_run, jobs))
    made = folder / ops.NAME
    _run([*compiler, "-shared", "-pthread", *map(str, objects), "-ldl", "-o", str(made)])
    return made


def _flags(sources: Path) -> dict[str, list[str] | None]:
    """Return file -> flags of ``build.txt``, ``*`` for all files; None for another processor's."""
    flags: dict[str, list[str] | None] = {}
    for line in (sources / "build.txt").read_text(encoding="utf8").splitlines():
        if line and not line.startswith("#"):
            name, processors, *words = line.split()
            flags[name] = (
                words if processors == "*" or machine.architecture() in processors.split(",") else None
            )
    return flags


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise ResourceError(f"{command[0]} cannot be run: {error}", _NO_COMPILER) from error
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        detail = errors[0] if errors else f"status {done.returncode}"
        raise ResourceError(
            f"{shlex.join(command[:1])} fails: {detail}", "GCC 9 or Clang 10 and newer will do"
        )
