from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import onnxprune
from onnxprune import machine

X86 = """processor\t: 0
model name\t: Fake(R)   CPU @ 2.0GHz
flags\t\t: fpu sse4_2 avx avx2 fma f16c avx512f avx512_vnni xsave
processor\t: 1
model name\t: Fake(R)   CPU @ 2.0GHz
"""
ARM = """processor\t: 0
Features\t: fp asimd evtstrm aes asimdhp asimddp i8mm bf16
CPU implementer\t: 0x41
"""


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What the system's files hold; a path that is not listed does not exist."""
    contents: dict[str, str] = {}
    monkeypatch.setattr(machine, "_read", lambda path: contents.get(path, ""))
    monkeypatch.setattr(machine.sys, "platform", "linux")
    return contents


def test_x86(files: dict[str, str]) -> None:
    files["/proc/cpuinfo"] = X86
    assert machine.cpu_name() == "Fake(R) CPU @ 2.0GHz"
    assert machine.instruction_sets() == ("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512_vnni")


def test_arm_has_no_name_but_features(files: dict[str, str]) -> None:
    files["/proc/cpuinfo"] = ARM
    assert machine.cpu_name()
    assert machine.instruction_sets() == ("asimd", "asimdhp", "asimddp", "i8mm", "bf16")


def test_unknown_system(files: dict[str, str]) -> None:
    assert machine.cpu_name()
    assert machine.instruction_sets() == ()
    assert machine.cpu_quota() is None


def test_memory(files: dict[str, str]) -> None:
    files["/proc/meminfo"] = "MemTotal:       1000 kB\nMemFree:  3 kB\nMemAvailable:    600 kB\n"
    assert machine.memory() == (1_024_000, 614_400)


def test_memory_limit_of_a_container(files: dict[str, str]) -> None:
    files["/proc/meminfo"] = "MemTotal:       1000 kB\nMemAvailable:    600 kB\n"
    files["/sys/fs/cgroup/memory.max"] = "500000\n"
    files["/sys/fs/cgroup/memory.current"] = "450000\n"
    assert machine.memory() == (500_000, 50_000)
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    assert machine.memory() == (1_024_000, 614_400)


@pytest.mark.parametrize(
    ("content", "quota"), [("150000 100000\n", 1.5), ("max 100000\n", None), ("", None), ("1 0", None)]
)
def test_cpu_quota(files: dict[str, str], content: str, quota: float | None) -> None:
    files["/sys/fs/cgroup/cpu.max"] = content
    assert machine.cpu_quota() == quota


def test_mac(monkeypatch: pytest.MonkeyPatch, files: dict[str, str]) -> None:
    monkeypatch.setattr(machine.sys, "platform", "darwin")
    answers = {"machdep.cpu.brand_string": "Apple M9", "machdep.cpu.features": "SSE4.2 AVX1.0 FMA"}
    monkeypatch.setattr(machine, "_sysctl", lambda *names: " ".join(answers.get(n, "") for n in names))
    monkeypatch.setattr(machine.platform, "machine", lambda: "x86_64")
    assert machine.cpu_name() == "Apple M9"
    assert machine.instruction_sets() == ("sse4_2", "avx", "fma")


def test_cache_follows_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    assert machine.cache_dir() == Path("/c/onnxprune")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert machine.cache_dir() == Path.home() / ".cache" / "onnxprune"


def test_version_of_what_is_and_is_not_there() -> None:
    assert machine.version("onnx")
    assert machine.version("no-such-package-at-all") is None


def test_environment_is_json_and_names_what_matters() -> None:
    found = machine.environment()
    assert json.loads(json.dumps(found)) == found
    assert found["onnxprune"] == onnxprune.__version__
    assert found["threads"] == len(os.sched_getaffinity(0))
    assert {"numpy", "onnx"} <= set(found["versions"])


def test_environment_imports_no_package() -> None:
    code = (
        "import sys; from onnxprune.machine import environment; environment();"
        "print([m for m in ('numpy', 'onnx', 'onnxruntime', 'torch', 'rich') if m in sys.modules])"
    )
    root = Path(onnxprune.__file__ or "").parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "wanted"), [("x86_64", "x86_64"), ("AMD64", "x86_64"), ("arm64", "aarch64"), ("vax", "vax")]
)
def test_architecture_has_one_name(monkeypatch: pytest.MonkeyPatch, name: str, wanted: str) -> None:
    monkeypatch.setattr(machine.platform, "machine", lambda: name)
    assert machine.architecture() == wanted
