"""The library with the kernels for ONNX Runtime: where it is, and why there is none.

``pip install`` builds it when it finds a C++ compiler. Without one the package works all the same: a
packed model carries its ops as functions, which any ONNX Runtime runs, only not faster than dense.
``onnxprune ops build`` (:mod:`onnxprune.opsbuild`) makes the library later, in the user's cache;
:mod:`onnxprune.opsinfo` asks it what it is.

The environment variable ``ONNXPRUNE_OPS`` names a library to use instead, or is ``0`` for none.
``ONNXPRUNE_CUDA`` is ``auto`` (kernels for CUDA where their library lies beside it and a device is there),
``off``, or ``on`` (without them registration fails); ``onnxprune ops build --cuda`` makes that library.
``ONNXPRUNE_LEVEL`` (``scalar``, ``avx2``, ``avx512``, ``neon``) makes its kernels use a lower
instruction set than the processor has.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import onnxprune
from onnxprune import cudabuild, machine
from onnxprune.errors import ResourceError

VARIABLE = "ONNXPRUNE_OPS"
LEVEL_VARIABLE = "ONNXPRUNE_LEVEL"
CUDA_VARIABLE = "ONNXPRUNE_CUDA"
NAME = "libonnxprune_ops" + (".dylib" if sys.platform == "darwin" else ".so")
_OFF = ("0", "off", "no", "false", "none")


def switched_off() -> bool:
    """Whether the user wants no library (``ONNXPRUNE_OPS=0``)."""
    return os.environ.get(VARIABLE, "").strip().lower() in _OFF


def library_path() -> Path | None:
    """Return the library to use, None when there is none.

    In this order: what ``ONNXPRUNE_OPS`` names (None if that is no file), what was built of the
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
            yield cached_path()
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


def sources() -> Path:
    """Return the folder of the library's sources.

    Raises:
        ResourceError: when they are not installed.
    """
    found = sources_path()
    if found is None:
        raise ResourceError("the sources of the kernels are not installed", "reinstall onnxprune")
    return found


def cached_path() -> Path:
    """Return where :mod:`onnxprune.opsbuild` puts what it makes of the present sources."""
    return machine.cache_dir() / "ops" / _fingerprint(sources()) / NAME


@functools.cache
def _fingerprint(sources: Path) -> str:
    """What the library depends on: its sources, its flags, the kind of machine."""
    digest = hashlib.sha256(f"{sys.platform} {machine.architecture()}".encode())
    files = [
        sources / "build.txt",
        *sorted((sources / "src").rglob("*.*")),
        *sorted(sources.glob("cuda/*.*")),
    ]
    for path in files:
        digest.update(f"\n{path.relative_to(sources).as_posix()}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def cuda_path() -> Path | None:
    """Return the library of CUDA kernels that would be used, None when it is not there or switched off."""
    wanted = os.environ.get(CUDA_VARIABLE, "").strip()
    if wanted.lower() in _OFF:
        return None
    beside = library_path()
    path = Path(wanted) if "/" in wanted else beside.with_name(cudabuild.NAME) if beside else None
    return path if path is not None and path.is_file() else None


def absence() -> str:
    """Say why there is no library, given that :func:`library_path` finds none."""
    if switched_off():
        return f"switched off by {VARIABLE}={os.environ[VARIABLE]}"
    named = os.environ.get(VARIABLE, "").strip()
    return f"{VARIABLE} names {named}, which is no file" if named else "the kernels are not built"
