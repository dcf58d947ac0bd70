"""Compile the CUDA kernels of ``ort_ops/cuda``: find nvcc, run it, and read what it says of each kernel.

nvcc comes with NVIDIA's toolkit or from PyPI (``pip install "onnxprune[cuda-build]"``), whose wheels lie in
the package ``nvidia``. No GPU and no driver are needed to compile.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from onnxprune import machine
from onnxprune.errors import ResourceError

NAME = "libonnxprune_cuda.so"
USAGE_NAME = "libonnxprune_cuda.json"  # beside it: what the compiler says of its kernels
_NO_NVCC = 'pip install "onnxprune[cuda-build]", install the CUDA toolkit, or name it: NVCC=/path/to/nvcc'
_KERNEL = re.compile(
    r"\d(?P<name>(?:check_|unpack_)?(?:bitmap_tile|nm_tile|delta|block_sparse(?:_few|_many)?)"
    r"|end_in_place|fill)"
    r"(?:I(?P<arguments>(?:L[ib]\d+E|6__half|13__nv_bfloat16|[ht]|S\d*_)+)E)?[Ev]"
)
_ARGUMENT = re.compile(r"Li(\d+)E|L(b\d)E|6(__half)|13(__nv_bfloat16)|([ht])")
_WORDS = {"__half": "fp16", "__nv_bfloat16": "bf16", "h": "int8", "t": "", "b0": "", "b1": "images"}


@dataclass(frozen=True)
class KernelUse:
    """What one kernel takes on one target, as ptxas reports it.

    Attributes:
        kernel: name and template arguments.
        target: such as ``sm_90``.
        registers: of a thread.
        stack_bytes: of a thread, in local memory.
        spill_bytes: stored and loaded for want of registers.
        shared_bytes: static shared memory of a block; the rest is asked for at launch.
    """

    kernel: str
    target: str
    registers: int
    stack_bytes: int
    spill_bytes: int
    shared_bytes: int


def find_nvcc() -> Path:
    """Return the compiler: ``NVCC``, then PATH, ``CUDA_HOME``, the usual folder, PyPI's wheels.

    Raises:
        ResourceError: when there is none.
    """
    named = os.environ.get("NVCC", "").strip()
    if named:
        found = shutil.which(named)
        if found is None:
            raise ResourceError(f"NVCC names {named}, which is no program", _NO_NVCC)
        return Path(found)
    for path in _candidates():
        if path.is_file() and os.access(path, os.X_OK):
            return path
    raise ResourceError("nvcc, the CUDA compiler, is not there", _NO_NVCC)


def _candidates() -> Iterator[Path]:
    on_path = shutil.which("nvcc")
    if on_path:
        yield Path(on_path)
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(variable):
            yield Path(os.environ[variable]) / "bin" / "nvcc"
    yield Path("/usr/local/cuda/bin/nvcc")
    spec = importlib.util.find_spec("nvidia")  # a namespace that NVIDIA's wheels share
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        yield from sorted(Path(folder).glob("*/bin/nvcc"), reverse=True)  # cu13/, cuda_nvcc/


def version_of(nvcc: Path) -> str:
    """Return the release of a compiler, such as ``13.0``.

    Raises:
        ResourceError: when it cannot be run.
    """
    match = re.search(r"release (\d+\.\d+)", _run([str(nvcc), "--version"]))
    return match[1] if match else "unknown"


def build_words(sources: Path) -> dict[str, list[str]]:
    """Return the lines of ``cuda/build.txt``: word -> its values.

    Raises:
        ResourceError: when the file is not there.
    """
    try:
        text = (sources / "cuda" / "build.txt").read_text(encoding="utf8")
    except OSError as error:
        raise ResourceError(
            "the sources of the CUDA kernels are not installed", "reinstall onnxprune"
        ) from error
    words: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            word, _, value = line.partition(" ")
            words.setdefault(word, []).append(value.strip())
    return words


def compile_cuda(sources: Path, folder: Path, *, targets: tuple[str, ...] = ()) -> Path:
    """Compile all of ``sources / "cuda"`` into ``folder``, with the report of the kernels beside the library.

    Args:
        sources: folder that holds ``cuda/``.
        folder: where objects and results go.
        targets: compute capabilities such as ``90`` instead of those of ``build.txt``; the last also as PTX.

    Raises:
        ResourceError: when there is no compiler, it is too old, or it fails.
    """
    nvcc, words = find_nvcc(), build_words(sources)
    release, oldest = version_of(nvcc), words["oldest"][0]
    if release != "unknown" and _numbers(release) < _numbers(oldest):
        raise ResourceError(f"{nvcc} is of CUDA {release}, wanted {oldest} or newer", _NO_NVCC)
    real = list(targets) or words["target"]
    codes = [f"-gencode=arch=compute_{t},code=sm_{t}" for t in real]
    codes += [f"-gencode=arch=compute_{t},code=compute_{t}" for t in (real[-1:] if targets else words["ptx"])]
    flags = [word for line in words["flags"] for word in line.split()]
    files = sorted((sources / "cuda").glob("*.cu"))

    def compiled(source: Path) -> tuple[Path, str]:
        made = folder / f"{source.stem}.o"
        options = [*flags, *codes, "-Xptxas", "-v", "-c", str(source), "-o", str(made)]
        return made, _run([str(nvcc), *options])

    with ThreadPoolExecutor(machine.threads()) as pool:
        results = list(pool.map(compiled, files))
    made = folder / NAME
    link = ["-shared", "-cudart", "static", f"-L{nvcc.parent.parent / 'lib'}", "-ldl", "-o", str(made)]
    exports = f"--version-script={sources / 'cuda' / 'exports.map'}"
    _run([str(nvcc), *(str(path) for path, _ in results), *link, "-Xlinker", exports])
    uses = [asdict(use) for _, text in results for use in read_usage(text)]
    (folder / USAGE_NAME).write_text(json.dumps(uses, indent=0) + "\n", encoding="utf8")
    return made


def read_usage(text: str) -> list[KernelUse]:
    """Return what ``ptxas -v`` wrote of each kernel."""
    found, kernel, target, stack, spills = [], "", "", 0, 0
    for line in text.splitlines():
        if match := re.search(r"Compiling entry function '(\S+)' for '(\S+)'", line):
            kernel, target = kernel_name(match[1]), match[2]
        elif match := re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill", line
        ):
            stack, spills = int(match[1]), int(match[2]) + int(match[3])
        elif kernel and (match := re.search(r"Used (\d+) registers", line)):
            shared = re.search(r"(\d+) bytes smem", line)
            use = KernelUse(kernel, target, int(match[1]), stack, spills, int(shared[1]) if shared else 0)
            found.append(use)
            kernel = ""
    return found


def kernel_name(mangled: str) -> str:
    """Return a short name for a kernel of ours, such as ``bitmap_tile<4, fp16, int8>``."""
    match = _KERNEL.search(mangled)
    if match is None:
        return mangled
    words = ["".join(groups) for groups in _ARGUMENT.findall(match["arguments"] or "")]
    words = [word for word in (_WORDS.get(word, word) for word in words) if word]
    return f"{match['name']}<{', '.join(words)}>" if words else str(match["name"])


def usage(library: Path) -> tuple[KernelUse, ...]:
    """Return what the compiler said when it made ``library``; empty when that was not kept."""
    try:
        document = json.loads(library.with_name(USAGE_NAME).read_text(encoding="utf8"))
        return tuple(KernelUse(**item) for item in document)
    except (OSError, ValueError, TypeError):
        return ()


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise ResourceError(f"{command[0]} cannot be run: {error}", _NO_NVCC) from error
    text = done.stdout + done.stderr
    if done.returncode:
        errors = [
            line for line in text.splitlines() if "error" in line or "fatal" in line
        ] or text.splitlines()
        detail = errors[0] if errors else f"status {done.returncode}"
        raise ResourceError(f"{command[0]} fails: {detail}", "it needs a host compiler too: apt install g++")
    return text


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])
