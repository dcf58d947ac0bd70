from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from onnxprune import doctor, machine, ops, opsinfo, runtime
from onnxprune.doctor import Check, examine


def find(checks: tuple[Check, ...], name: str) -> Check:
    return next(check for check in checks if check.name == name)


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Change which package versions seem installed: ``versions(onnx="1.20.0", rich=None)``."""
    real = machine.version

    def change(**changes: str | None) -> None:
        names = {name.replace("_", "-"): found for name, found in changes.items()}
        monkeypatch.setattr(machine, "version", lambda name: names[name] if name in names else real(name))

    return change


def test_this_machine_is_healthy() -> None:
    checks = examine()
    assert [check for check in checks if check.level == "problem"] == []
    assert find(checks, "onnxruntime").level == "ok"
    assert "CPU" in find(checks, "providers").detail


def test_names_are_unique_and_details_one_line() -> None:
    checks = examine()
    assert len({check.name for check in checks}) == len(checks)
    assert all(check.detail.isprintable() and check.detail for check in checks)


def test_problems_have_a_way_out(versions: Callable[..., None]) -> None:
    versions(onnx=None, numpy=None, scipy=None, rich=None, onnx_graphsurgeon=None)
    problems = [check for check in examine() if check.level == "problem"]
    assert {check.name for check in problems} == {"onnx", "numpy", "scipy", "rich", "onnx-graphsurgeon"}
    assert all("pip install" in check.hint for check in problems)


@pytest.mark.parametrize(
    ("version", "level"),
    [("1.20.1", "problem"), ("1.21.0", "ok"), ("1.9", "problem"), ("2.0.0rc1", "ok"), ("1.22.0.dev1", "ok")],
)
def test_onnx_has_a_least_version(versions: Callable[..., None], version: str, level: str) -> None:
    versions(onnx=version)
    assert find(examine(), "onnx").level == level


def test_optional_packages_are_notes(versions: Callable[..., None]) -> None:
    versions(torch=None, tokenizers=None, pillow=None)
    checks = examine()
    assert find(checks, "tokenizers") == Check(
        "tokenizers", "note", "not installed; needed for text calibration data"
    )
    versions(torch="2.9.0")
    assert find(examine(), "torch") == Check("torch", "ok", "2.9.0")


def test_torch_is_not_loaded_for_its_version() -> None:
    code = "import sys; from onnxprune.doctor import examine; examine(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_missing_kernels_are_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXPRUNE_OPS", "0")
    check = find(examine(), "kernels")
    assert check.level == "note" and "onnxprune ops build" in check.hint
    found = opsinfo.OpsInfo("/lib.so", "", "avx2", ("avx2",), 125, "12", "1.20", "1.17", "")
    monkeypatch.setattr(opsinfo, "info", lambda: found)
    assert find(examine(), "kernels") == Check("kernels", "ok", "avx2 (/lib.so)")


def test_both_onnxruntimes_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    both = {"onnxruntime": "1.2", "onnxruntime-gpu": "1.3"}
    monkeypatch.setattr(runtime, "installed_packages", lambda: both)
    check = find(examine(), "onnxruntime")
    assert check.level == "problem"
    assert "onnxruntime-gpu 1.3" in check.detail and "exactly one" in check.hint


def test_missing_onnxruntime_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "installed_packages", dict)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # makes the import fail
    check = find(examine(), "onnxruntime")
    assert check.level == "problem"
    assert "pip install onnxruntime" in check.hint


def test_onnxruntime_that_breaks_on_use_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise AttributeError("module 'onnxruntime' has no attribute 'SessionOptions'\nmore")

    monkeypatch.setattr(runtime, "session", broken)
    check = find(examine(), "onnxruntime")
    assert check.level == "problem"
    assert "SessionOptions" in check.detail and "more" not in check.detail


def test_onnxruntime_that_computes_nonsense_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    class Session:
        def run(self, *_: object) -> list[object]:
            return [np.array([3.0, 3.0], np.float32)]

    monkeypatch.setattr(runtime, "session", lambda *_, **__: Session())
    assert "1 + 1 = 3" in find(examine(), "onnxruntime").detail


def test_package_that_cannot_be_imported_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    check = find(examine(), "scipy")
    assert check.level == "problem" and "cannot be imported" in check.detail


def test_old_python_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "MIN_PYTHON", (99, 0))
    check = find(examine(), "python")
    assert check.level == "problem" and "99.0" in check.hint


def test_container_with_fewer_processors_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "threads", lambda: 64)
    monkeypatch.setattr(machine, "cpu_quota", lambda: 1.5)
    check = find(examine(), "cpu")
    assert check.level == "note" and "--threads 2" in check.hint
    monkeypatch.setattr(machine, "cpu_quota", lambda: 64.0)
    assert find(examine(), "cpu").level == "ok"


@pytest.mark.parametrize(
    ("found", "level"), [((8 << 30, 1 << 30), "note"), ((8 << 30, 4 << 30), "ok"), ((None, None), "note")]
)
def test_memory(monkeypatch: pytest.MonkeyPatch, found: tuple[int | None, int | None], level: str) -> None:
    monkeypatch.setattr(machine, "memory", lambda: found)
    assert find(examine(), "memory").level == level


def test_disk_of_a_folder_that_is_yet_to_be_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a" / "b"))
    check = find(examine(), "disk cache")
    assert check.level in ("ok", "note") and str(tmp_path) in check.detail


def test_folder_that_cannot_be_written_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    assert "not writable" in find(examine(), "disk here").detail
    assert "--no-cache" in find(examine(), "disk cache").hint


def test_current_folder_that_is_gone_is_a_note(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert find(examine(), "disk here").level == "note"


@pytest.mark.parametrize(
    ("package", "problem", "expected"),
    [
        (None, "", []),
        ("1.31", "no device", [("CUDA kernels", "note")]),
        ("1.31", "", [("CUDA kernels", "ok")]),
    ],
)
def test_cuda_kernels(
    monkeypatch: pytest.MonkeyPatch, package: str | None, problem: str, expected: list[tuple[str, str]]
) -> None:
    info = dataclasses.replace(
        opsinfo.info(), cuda=opsinfo.CudaInfo(problem=problem, devices=("A GPU (9.0)",))
    )
    monkeypatch.setattr(opsinfo, "info", lambda: info)
    monkeypatch.setattr(ops, "cuda_path", lambda: None)
    monkeypatch.setattr(machine, "version", lambda name: package if name == "onnxruntime-gpu" else None)
    assert [(check.name, check.level) for check in doctor._cuda_kernels()] == expected
