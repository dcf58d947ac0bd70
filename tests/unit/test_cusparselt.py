from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import pytest

from onnxprune import cusparselt


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Paths that would have been opened."""
    found: list[str] = []
    monkeypatch.setattr(ctypes, "CDLL", lambda path: found.append(path))
    monkeypatch.delenv(cusparselt.VARIABLE, raising=False)
    cusparselt.load.cache_clear()
    yield found
    cusparselt.load.cache_clear()


@pytest.fixture(params=["cu13", "cusparselt"])
def wheel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where wheels have put it: of 0.10, and before."""
    path = tmp_path / "nvidia" / request.param / "lib" / cusparselt.NAME
    path.parent.mkdir(parents=True)
    path.touch()

    class Spec:
        submodule_search_locations = (str(tmp_path / "nvidia"),)

    monkeypatch.setattr(cusparselt.importlib.util, "find_spec", lambda name: Spec)
    return path


def test_the_wheel_is_opened_once(wheel: Path, opened: list[str]) -> None:
    assert cusparselt.wheel_path() == wheel
    cusparselt.load()
    cusparselt.load()
    assert opened == [str(wheel)]


@pytest.mark.parametrize(("value", "count"), [("off", 0), ("/my/lib.so", 0), ("auto", 1), (" ", 1)])
def test_what_the_user_chose_counts(
    wheel: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch, value: str, count: int
) -> None:
    monkeypatch.setenv(cusparselt.VARIABLE, value)
    cusparselt.load()
    assert len(opened) == count


def test_without_a_wheel(opened: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cusparselt.importlib.util, "find_spec", lambda name: None)
    assert cusparselt.wheel_path() is None
    cusparselt.load()
    assert opened == []


def test_a_broken_wheel_is_for_the_kernels_to_report(wheel: Path) -> None:
    cusparselt.load.cache_clear()
    assert cusparselt.wheel_path() == wheel  # so it is tried
    cusparselt.load()  # an empty file is no library
    with pytest.raises(OSError, match=r"file too short|invalid ELF"):
        ctypes.CDLL(str(wheel))
    cusparselt.load.cache_clear()
