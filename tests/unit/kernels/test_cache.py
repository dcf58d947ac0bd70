from __future__ import annotations

from pathlib import Path

import pytest

from onnxprune.kernels.cache import Cache


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "onnxprune" / "kernels"


def test_what_was_saved_is_read_again() -> None:
    cache = Cache("this machine")
    assert cache.get("a") is None
    assert cache.put("a", [1.23456, 2]) == [1.235, 2]
    assert cache.get("a") == [1.235, 2]
    cache.save()
    assert Cache("this machine").get("a") == [1.235, 2]
    assert Cache("another machine").get("a") is None


def test_nothing_new_writes_nothing(folder: Path) -> None:
    Cache("m").save()
    assert not folder.exists()


def test_without_a_cache(folder: Path) -> None:
    cache = Cache("m", enabled=False)
    cache.put("a", [1.0])
    assert cache.get("a") == [1.0]  # within the run
    cache.save()
    assert not folder.exists()


def test_two_processes_at_once() -> None:
    one, two = Cache("m"), Cache("m")
    one.put("a", [1.0])
    two.put("b", [2.0])
    one.save()
    two.save()
    both = Cache("m")
    assert both.get("a") == [1.0] and both.get("b") == [2.0]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"ratios": 3}', '{"ratios": {"a": "b"}}', '{"ratios": {"a": ["b"]}}', "{"]
)
def test_a_broken_file_is_no_file(folder: Path, text: str) -> None:
    cache = Cache("m")
    cache.put("b", [1.0])
    cache.save()
    (file,) = folder.iterdir()
    file.write_text(text)
    assert Cache("m").get("a") is None


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "onnxprune").write_text("a file where the folder should be")
    cache = Cache("m")
    cache.put("a", [1.0])
    cache.save()
    assert cache.get("a") == [1.0] and Cache("m").get("a") is None
