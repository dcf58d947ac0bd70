"""The library with the kernels for ONNX Runtime: where it is, how it is built, what it says of itself.

``pip install`` builds it when it finds a C++ compiler. Without one the package works all the same: a
packed model carries its ops as functions, which any ONNX Runtime runs, only not faster than dense.
``onnxprune ops build`` makes the library later, in the user's cache.

The environment variable ``ONNXPRUNE_OPS`` names a library to use instead, or is ``0`` for none.
``ONNXPRUNE_CUDA`` is ``auto`` (kernels for CUDA where their library lies beside it and a device is there),
``off``, or ``on`` (without them registration fails); ``onnxprune ops build --cuda`` makes that library.
``ONNXPRUNE_LEVEL`` (``scalar``, ``avx2``, ``avx512``, ``neon``) makes its kernels use a lower
instruction set than the processor has.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import onnxprune
from onnxprune import cudabuild, cusparselt, machine
from onnxprune.errors import ResourceError

VARIABLE = "ONNXPRUNE_OPS"
LEVEL_VARIABLE = "ONNXPRUNE_LEVEL"
CUDA_VARIABLE = "ONNXPRUNE_CUDA"
OLDEST_ORT = (1, 17)
NAME = "libonnxprune_ops" + (".dylib" if sys.platform == "darwin" else ".so")
_OFF = ("0", "off", "no", "false", "none")
_COMPILERS = ("c++", "g++", "clang++")
_NO_COMPILER = "install one (apt install g++, xcode-select --install), or name it: CXX=/path/to/g++"


@dataclass(frozen=True)
class CudaInfo:
    """The kernels for CUDA.

    Attributes:
        library: path of their library, or where it would be; empty when it is not looked for.
        problem: why they cannot be used; empty when they can.
        ops: number of kernels.
        compiler: what the library was compiled with.
        devices: name and compute capability of each GPU.
        nvcc: path of the compiler that ``ops build --cuda`` would use, empty when there is none.
        nvcc_problem: why there is none.
        onnxruntime: version of onnxruntime-gpu, empty when it is not installed.
        cusparselt: version and path of the library for 2:4 and many rows, empty when it cannot be used.
        cusparselt_problem: why it cannot be used.
    """

    library: str = ""
    problem: str = ""
    ops: int = 0
    compiler: str = ""
    devices: tuple[str, ...] = ()
    nvcc: str = ""
    nvcc_problem: str = ""
    onnxruntime: str = ""
    cusparselt: str = ""
    cusparselt_problem: str = ""


@dataclass(frozen=True)
class OpsInfo:
    """What ``onnxprune ops info`` prints.

    Attributes:
        library: path of the library in use, empty when there is none.
        problem: why there is none, or why it cannot be loaded; empty when all is well.
        level: instruction set that its kernels use.
        levels: all that this processor could use, best first.
        ops: number of ops with a kernel.
        compiler: what the library was compiled with.
        onnxruntime: version of the installed ONNX Runtime, empty when there is none.
        oldest_onnxruntime: the oldest that the library works with.
        sources: folder with its sources, empty when they are not installed.
        cuda: the kernels for CUDA.
    """

    library: str
    problem: str
    level: str
    levels: tuple[str, ...]
    ops: int
    compiler: str
    onnxruntime: str
    oldest_onnxruntime: str
    sources: str
    cuda: CudaInfo = CudaInfo()


def switched_off() -> bool:
    """Whether the user wants no library (``ONNXPRUNE_OPS=0``)."""
    return os.environ.get(VARIABLE, "").strip().lower() in _OFF


def library_path() -> Path | None:
    """Return the library to use, None when there is none.

    In this order: what ``ONNXPRUNE_OPS`` names (None if that is no file), what ``build`` made of the
    sources that are there now, what came with the package.
    """
    named = os.environ.get(VARIABLE, "").strip()
    if named:
        path = Path(named).expanduser()
        return path.absolute() if not switched_off() and path.is_file() else None
    return next((path for path in _candidates() if path.is_file()), None)


def _candidates() -> Iterator[Path]:
    if (machine.cache_dir() / "ops").is_dir():  # else no need to read the sources
        with contextlib.suppress(ResourceError):
            yield _cached()
    for folder in _package_folders():
        yield folder / "lib" / NAME


def _package_folders() -> list[Path]:
    """Folders of the package: an editable installation has its modules and its library in two places."""
    folders = [Path(entry) for entry in onnxprune.__path__]
    folders.append(Path(sysconfig.get_path("platlib")) / "onnxprune")
    return list(dict.fromkeys(folders))


def sources_path() -> Path | None:
    """Return the folder of the library's sources (``build.txt``, ``src/``), None when it is not there."""
    folders = _package_folders()
    checkouts = [folder.parent / "ort_ops" for folder in folders]  # before what an editable install copied
    for sources in (*checkouts, *(folder / "ort_ops" for folder in folders)):
        if (sources / "build.txt").is_file() and (sources / "src").is_dir():
            return sources
    return None


def _sources() -> Path:
    sources = sources_path()
    if sources is None:
        raise ResourceError("the sources of the kernels are not installed", "reinstall onnxprune")
    return sources


def _cached() -> Path:
    """Where ``build`` puts what it makes of the present sources."""
    return machine.cache_dir() / "ops" / _fingerprint(_sources()) / NAME


@functools.cache
def _fingerprint(sources: Path) -> str:
    """What the library depends on: its sources, its flags, the kind of machine."""
    digest = hashlib.sha256(f"{sys.platform} {_processor()}".encode())
    files = [
        sources / "build.txt",
        *sorted((sources / "src").rglob("*.*")),
        *sorted(sources.glob("cuda/*.*")),
    ]
    for path in files:
        digest.update(f"\n{path.relative_to(sources).as_posix()}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def build(*, force: bool = False, cuda: bool = False, targets: tuple[str, ...] = ()) -> Path:
    """Compile the library into the user's cache, unless it is there; takes under a minute.

    Args:
        force: compile even if it is there.
        cuda: also that of the CUDA kernels, which takes some minutes.
        targets: of the CUDA kernels, compute capabilities such as ``90`` instead of all.

    Returns:
        Path of the library, which :func:`library_path` finds from now on.

    Raises:
        ResourceError: when there is no compiler, when it fails, or when the result cannot be loaded.
    """
    target = _cached()
    if cuda:
        _build_cuda(target.with_name(cudabuild.NAME), force, targets)
    if target.is_file() and not force:
        return target
    compiler = _compiler()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=target.parent) as folder:
        made = _compile(compiler, _sources(), Path(folder))
        _describe(made)
        os.replace(made, target)
    return target


def _build_cuda(target: Path, force: bool, targets: tuple[str, ...]) -> None:
    if target.is_file() and not force:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=target.parent) as folder:
        made = cudabuild.compile_cuda(_sources(), Path(folder), targets=targets)
        os.replace(made.with_name(cudabuild.USAGE_NAME), target.with_name(cudabuild.USAGE_NAME))
        os.replace(made, target)


def cuda_path() -> Path | None:
    """Return the library of CUDA kernels that would be used, None when it is not there or switched off."""
    wanted = os.environ.get(CUDA_VARIABLE, "").strip()
    if wanted.lower() in _OFF:
        return None
    beside = library_path()
    path = Path(wanted) if "/" in wanted else beside.with_name(cudabuild.NAME) if beside else None
    return path if path is not None and path.is_file() else None


def _cuda_info(described: object) -> CudaInfo:
    """Return what the library says of that of the CUDA kernels."""
    found = described if isinstance(described, dict) else {}
    about = found.get("about", {})
    devices = about.get("devices", []) if isinstance(about, dict) else []
    nvcc = nvcc_problem = ""
    try:
        nvcc = str(cudabuild.find_nvcc())
    except ResourceError as error:
        nvcc_problem = f"{error}; {error.hint}"
    problem = str(found.get("problem", "the library is not there" if not found else ""))
    if problem.endswith("is not there"):
        problem += "; onnxprune ops build --cuda makes it"
    usable, lacking = _cusparselt(about.get("cusparselt") if isinstance(about, dict) else None)
    return CudaInfo(
        library=str(found.get("library", "")),
        problem=problem,
        ops=int(found.get("ops", 0)),
        compiler=str(about.get("compiler", "")) if isinstance(about, dict) else "",
        devices=tuple(f"{d.get('name')} ({d.get('capability')})" for d in devices),
        nvcc=nvcc,
        nvcc_problem=nvcc_problem,
        onnxruntime=machine.version("onnxruntime-gpu") or "",
        cusparselt=usable,
        cusparselt_problem=lacking,
    )


def _cusparselt(described: object) -> tuple[str, str]:
    """Return what the CUDA kernels found of cuSPARSELt, and why they cannot use it."""
    if not isinstance(described, dict):
        return "", "the CUDA kernels look for it, and they are not there"
    problem = str(described.get("problem", ""))
    if problem and not described.get("library") and not cusparselt.chosen():
        problem += f"; {cusparselt.WHEEL}"
    return "" if problem else f"{described.get('version')} ({described.get('library')})", problem


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
    made = folder / NAME
    _run([*compiler, "-shared", "-pthread", *map(str, objects), "-ldl", "-o", str(made)])
    return made


def _flags(sources: Path) -> dict[str, list[str] | None]:
    """Return file -> flags of ``build.txt``, ``*`` for all files; None for another processor's."""
    flags: dict[str, list[str] | None] = {}
    for line in (sources / "build.txt").read_text(encoding="utf8").splitlines():
        if line and not line.startswith("#"):
            name, processors, *words = line.split()
            flags[name] = words if processors == "*" or _processor() in processors.split(",") else None
    return flags


def _processor() -> str:
    name = platform.machine().lower()
    return {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}.get(name, name)


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


def _describe(library: Path) -> dict[str, object]:
    """Load the library and return what it says of itself.

    Raises:
        ResourceError: when it cannot be loaded, or is something else.
    """
    try:
        describe = ctypes.CDLL(str(library)).onnxprune_ops_info
    except (OSError, AttributeError) as error:
        raise ResourceError(
            f"{library} cannot be loaded: {error}", "onnxprune ops build makes it anew for this machine"
        ) from error
    describe.restype = ctypes.c_char_p
    described: dict[str, object] = json.loads(describe())
    return described


def info() -> OpsInfo:
    """Look at the library that is in use; never raises for want of one."""
    path, problem, found = library_path(), "", dict[str, object]()
    if cuda_path() is not None:
        cusparselt.load()
    if path is None:
        problem = absence()
    else:
        try:
            found = _describe(path)
        except ResourceError as error:
            problem = str(error)
    runtime = next((text for name in machine.ORT_PACKAGES if (text := machine.version(name))), "")
    if path and not problem and runtime and _numbers(runtime) < OLDEST_ORT:
        problem = f"ONNX Runtime {runtime} is older than {'.'.join(map(str, OLDEST_ORT))}"
    levels = found.get("levels", [])
    return OpsInfo(
        library=str(path or ""),
        problem=problem,
        level=str(found.get("level", "")),
        levels=tuple(map(str, levels)) if isinstance(levels, list) else (),
        ops=int(str(found.get("ops", 0))),
        compiler=str(found.get("compiler", "")),
        onnxruntime=runtime,
        oldest_onnxruntime=".".join(map(str, OLDEST_ORT)),
        sources=str(sources_path() or ""),
        cuda=_cuda_info(found.get("cuda")),
    )


def absence() -> str:
    """Say why there is no library, given that :func:`library_path` finds none."""
    if switched_off():
        return f"switched off by {VARIABLE}={os.environ[VARIABLE]}"
    named = os.environ.get(VARIABLE, "").strip()
    return f"{VARIABLE} names {named}, which is no file" if named else "the kernels are not built"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
