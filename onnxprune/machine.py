"""What machine this is and which packages it has, for reports and for the doctor; imports none of them."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnxprune

ORT_PACKAGES = ("onnxruntime", "onnxruntime-gpu")
# The sets that matter to matrix kernels, as /proc/cpuinfo spells them.
_ISA = (
    *("sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni"),
    *("avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme"),
)


def version(package: str) -> str | None:
    """Return the version of an installed distribution without importing it, else None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def environment() -> dict[str, Any]:
    """Describe the machine and the versions for a report; quick, imports nothing."""
    packages = ("numpy", "scipy", "onnx", *ORT_PACKAGES, "onnx-graphsurgeon", "torch")
    versions = {package: found for package in packages if (found := version(package))}
    return {
        "onnxprune": onnxprune.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "instruction_sets": list(instruction_sets()),
        "threads": threads(),
        "memory_bytes": memory()[0],
        "versions": versions,
    }


def cache_dir() -> Path:
    """Folder of the user's cache (XDG rules)."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "onnxprune"


def threads() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def cpu_name() -> str:
    """Marketing name of the processor, else its architecture."""
    for line in _read("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "Hardware") and value.strip():
            return " ".join(value.split())
    if sys.platform == "darwin":
        return _sysctl("machdep.cpu.brand_string") or platform.machine()
    return platform.processor() or platform.machine() or "unknown"


def architecture() -> str:
    """Architecture of the processor, by one name for each: ``x86_64``, ``aarch64``."""
    name = platform.machine().lower()
    return {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}.get(name, name)


def instruction_sets() -> tuple[str, ...]:
    """Vector instruction sets of the processor, as far as the system tells."""
    found = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", _read("/proc/cpuinfo"), re.MULTILINE)
    words = found.group(1) if found else ""
    if sys.platform == "darwin":
        words = _sysctl("machdep.cpu.features", "machdep.cpu.leaf7_features").lower()
        words = words.replace("avx1.0", "avx").replace(".", "_") + (
            " asimd" if platform.machine() == "arm64" else ""
        )
    return tuple(name for name in _ISA if name in words.split())


def memory() -> tuple[int | None, int | None]:
    """Total and available bytes of memory, within the limit of the container; None where unknown."""
    table = dict(re.findall(r"^(\w+):\s+(\d+) kB", _read("/proc/meminfo"), re.MULTILINE))
    total = int(table["MemTotal"]) * 1024 if "MemTotal" in table else _physical_memory()
    free = int(table["MemAvailable"]) * 1024 if "MemAvailable" in table else None
    limit, used = _read("/sys/fs/cgroup/memory.max").strip(), _read("/sys/fs/cgroup/memory.current").strip()
    if limit.isdigit() and used.isdigit() and total is not None and int(limit) < total:
        total, left = int(limit), max(0, int(limit) - int(used))
        free = left if free is None else min(free, left)
    return total, free


def cpu_quota() -> float | None:
    """Processors that the container grants (cgroup v2), None when it does not limit them."""
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").strip().partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf8", errors="replace")
    except OSError:
        return ""


def _sysctl(*names: str) -> str:
    try:
        result = subprocess.run(
            ["sysctl", "-n", *names], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return " ".join(result.stdout.split())


def _physical_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
