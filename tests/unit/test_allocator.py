"""Freed memory is reused by the program, and only where nobody said otherwise."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from onnxprune import allocator


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_TUNABLES"))]:
        monkeypatch.delenv(name)


FAULTS = """
import resource, sys
import numpy as np
from onnxprune.allocator import reuse_memory
if sys.argv[1] == "reuse":
    assert reuse_memory()
def faults():
    for _ in range(20):
        np.ones(12_000_000, np.float32)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
faults()
before = faults()
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="sets glibc's malloc")
def test_large_arrays_get_the_same_pages_again() -> None:
    found = {}
    for mode in ("default", "reuse"):
        done = subprocess.run(
            [sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=True
        )
        found[mode] = int(done.stdout)
    # Transparent huge pages make few faults of many; the order of magnitude stays
    assert found["reuse"] * 5 < found["default"]


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_what_the_user_set_stays(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1000")
    assert not allocator.reuse_memory()


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not allocator.reuse_memory()


def test_a_c_library_without_mallopt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: object())
    assert not allocator.reuse_memory()


def test_an_older_c_library_takes_smaller_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[int, int]] = []

    class Old:
        @staticmethod
        def mallopt(parameter: int, value: int) -> int:
            given.append((parameter, value))
            return int(parameter != -3 or value <= 2**25)

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: Old)
    assert allocator.reuse_memory()
    assert given == [(-3, 2**26), (-3, 2**25), (-1, 2**28)]
