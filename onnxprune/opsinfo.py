"""What the library with the kernels says of itself: ``onnxprune ops info``."""

from __future__ import annotations

import ctypes
import json
from dataclasses import dataclass
from pathlib import Path

from onnxprune import cudabuild, cusparselt, machine, ops
from onnxprune.errors import ResourceError

OLDEST_ORT = (1, 17)


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


def info() -> OpsInfo:
    """Look at the library that is in use; never raises for want of one."""
    path, problem, found = ops.library_path(), "", dict[str, object]()
    if ops.cuda_path() is not None:
        cusparselt.load()
    if path is None:
        problem = ops.absence()
    else:
        try:
            found = describe(path)
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
        sources=str(ops.sources_path() or ""),
        cuda=_cuda_info(found.get("cuda")),
    )


def describe(library: Path) -> dict[str, object]:
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


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
