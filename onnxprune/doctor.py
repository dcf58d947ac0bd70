"""What this machine has and whether onnxprune can work on it: ``onnxprune doctor``.

Nothing here may fail: a broken package is what the doctor is asked about.
"""

from __future__ import annotations

import importlib
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnxprune
from onnxprune import machine, ops, opsinfo
from onnxprune.errors import OnnxPruneError, ResourceError
from onnxprune.report import units

Level = Literal["ok", "note", "problem"]

MIN_PYTHON = (3, 11)
MIN_ONNX = (1, 21)  # older readers follow links and ".." out of the model's folder (CVE-2026-27489, -34446)
LOW_DISK = 1e9  # bytes
LOW_MEMORY = 2e9  # bytes; a small transformer with 256 samples takes about one
_TINY_MODEL = '<ir_version: 8, opset_import: ["": 17]> g (float[2] x) => (float[2] y) { y = Add(x, x) }'
_REQUIRED = ("numpy", "scipy", "click", "rich", "onnx-graphsurgeon")
_OPTIONAL = {
    "pillow": "needed for image calibration data",
    "tokenizers": "needed for text calibration data",
    "torch": "needed for --finetune",
}


@dataclass(frozen=True)
class Check:
    """One line of the doctor: what was looked at, how it is, and the way out of a problem."""

    name: str
    level: Level
    detail: str
    hint: str = ""


def examine() -> tuple[Check, ...]:
    """Look at everything that a pruning run needs."""
    ours = Check("onnxprune", "ok", f"{onnxprune.__version__} ({Path(onnxprune.__file__ or '').parent})")
    checks: list[Check] = [ours, _python(), _onnx(), *_onnxruntime(), _kernels(), *_cuda_kernels()]
    checks += [_required(package) for package in _REQUIRED]
    checks += [_optional(package, purpose) for package, purpose in _OPTIONAL.items()]
    checks += [_cpu(), _memory()]
    folders = {"disk here": Path.cwd, "disk temp": _temp_dir, "disk cache": machine.cache_dir}
    checks += [_disk(name, folder) for name, folder in folders.items()]
    return tuple(checks)


def _python() -> Check:
    text = f"{platform.python_version()} ({sys.executable})"
    if sys.version_info[:2] < MIN_PYTHON:
        return Check(
            "python", "problem", text, f"onnxprune needs Python {'.'.join(map(str, MIN_PYTHON))} or newer"
        )
    return Check("python", "ok", text)


def _onnx() -> Check:
    found = machine.version("onnx")
    hint = f'pip install "onnx>={MIN_ONNX[0]}.{MIN_ONNX[1]}"'
    if found is None:
        return Check("onnx", "problem", "not installed", hint)
    numbers = tuple(int(part) for part in re.findall(r"\d+", found)[:2])
    if numbers < MIN_ONNX:
        return Check("onnx", "problem", f"{found}, wanted {MIN_ONNX[0]}.{MIN_ONNX[1]} or newer", hint)
    return _importable("onnx", found, hint)


def _onnxruntime() -> list[Check]:
    """Import ONNX Runtime and run a model of one node, which finds most broken installations."""
    found = {package: text for package in machine.ORT_PACKAGES if (text := machine.version(package))}
    names = ", ".join(f"{package} {text}" for package, text in found.items())
    try:
        import numpy as np
        from onnx import parser

        from onnxprune.runtime import onnxruntime, session

        providers = [
            name.removesuffix("ExecutionProvider") for name in onnxruntime().get_available_providers()
        ]
        model = parser.parse_model(_TINY_MODEL)
        (result,) = session(model, threads=1).run(None, {"x": np.ones(2, np.float32)})
        if result.tolist() != [2.0, 2.0]:
            raise ResourceError(f"it computes 1 + 1 = {result.tolist()[0]:g}", "reinstall ONNX Runtime")
    except OnnxPruneError as error:
        return [Check("onnxruntime", "problem", units.clean(error), error.hint)]
    except Exception as error:  # a broken binary raises anything
        detail = f"{names or 'it'} cannot run a model: {_one_line(error)}"
        return [Check("onnxruntime", "problem", detail, "reinstall numpy, onnx and ONNX Runtime")]
    return [
        Check("onnxruntime", "ok", names or "built from source"),
        Check("providers", "ok", ", ".join(providers)),
    ]


def _kernels() -> Check:
    found = opsinfo.info()
    if found.problem:
        return Check("kernels", "note", found.problem, "onnxprune ops build, for models faster than dense")
    return Check("kernels", "ok", f"{found.level} ({found.library})")


def _cuda_kernels() -> list[Check]:
    """Look at the kernels for CUDA where ONNX Runtime is the one for GPUs, or the library is there."""
    found = opsinfo.info().cuda
    if machine.version("onnxruntime-gpu") is None and ops.cuda_path() is None:
        return []
    if found.problem:
        return [Check("CUDA kernels", "note", found.problem, "onnxprune ops info says more")]
    return [Check("CUDA kernels", "ok", f"{', '.join(found.devices)} ({found.library})")]


def _importable(package: str, text: str, hint: str) -> Check:
    try:
        importlib.import_module(package.replace("-", "_"))
    except Exception as error:  # a broken binary raises anything from ImportError to AttributeError
        return Check(package, "problem", f"{text} cannot be imported: {_one_line(error)}", hint)
    return Check(package, "ok", text)


def _required(package: str) -> Check:
    found, hint = machine.version(package), f"pip install {package}"
    if found is None:
        return Check(package, "problem", "not installed", hint)
    return _importable(package, found, hint)


def _optional(package: str, purpose: str) -> Check:
    found = machine.version(package)
    return Check(package, "ok", found) if found else Check(package, "note", f"not installed; {purpose}")


def _cpu() -> Check:
    quota, available = machine.cpu_quota(), machine.threads()
    isa = " ".join(machine.instruction_sets()) or "instruction sets unknown"
    text = f"{machine.cpu_name()}, {units.plural(available, 'thread')}, {isa}"
    if quota is not None and quota < available:
        hint = f"--threads {max(1, round(quota))} does not wait for what the container does not grant"
        return Check("cpu", "note", f"{text}; the container grants {units.digits(quota)}", hint)
    return Check("cpu", "ok", text)


def _memory() -> Check:
    total, free = machine.memory()
    if total is None:
        return Check("memory", "note", "unknown")
    text = f"{units.size(total)}" + (f", {units.size(free)} available" if free is not None else "")
    if free is not None and free < LOW_MEMORY:
        return Check("memory", "note", text, "lower --samples and --max-memory when a run is killed")
    return Check("memory", "ok", text)


def _disk(name: str, find: Callable[[], Path]) -> Check:
    try:
        folder = find()
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(existing).free
    except OSError as error:
        return Check(name, "note", f"unknown: {_one_line(error)}")
    text = f"{units.size(free)} free in {folder}"
    if not os.access(existing, os.W_OK):
        hint = (
            "set XDG_CACHE_HOME, or use --no-cache"
            if name == "disk cache"
            else "use -o to write somewhere else"
        )
        return Check(name, "note", f"{text}, which is not writable", hint)
    return Check(name, "note" if free < LOW_DISK else "ok", text)


def _temp_dir() -> Path:
    return Path(tempfile.gettempdir())


def _one_line(error: BaseException) -> str:
    return units.clean(f"{type(error).__name__}: {error}".strip().splitlines()[0])
