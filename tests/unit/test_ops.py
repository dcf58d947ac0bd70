"""Finding the library with the kernels. The kernels are tested in tests/kernels."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from onnxprune import cudabuild, ops, opsbuild, opsinfo
from onnxprune.errors import ResourceError

pytestmark = pytest.mark.usefixtures("nothing_installed")
needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in opsbuild._COMPILERS), reason="no C++ compiler"
)


def test_no_library() -> None:
    assert ops.library_path() is None
    found = opsinfo.info()
    assert (found.library, found.level, found.ops) == ("", "", 0)
    assert found.problem == "the kernels are not built"
    assert found.sources.endswith("ort_ops")
    assert found.oldest_onnxruntime == "1.17"


@needs_compiler
def test_what_was_built_comes_before_what_was_installed(nothing_installed: Path) -> None:
    installed = nothing_installed / "lib" / ops.NAME
    installed.write_bytes(b"")
    assert ops.library_path() == installed
    assert ops.library_path() != opsbuild.build() == ops.library_path()


def test_the_variable_names_a_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library = tmp_path / "mine.so"
    monkeypatch.setenv(ops.VARIABLE, str(library))
    assert ops.library_path() is None
    assert opsinfo.info().problem == f"ONNXPRUNE_OPS names {library}, which is no file"
    library.write_bytes(b"")
    assert ops.library_path() == library


@pytest.mark.parametrize("value", ["0", "off", "No", " none "])
def test_the_variable_switches_off(
    monkeypatch: pytest.MonkeyPatch, nothing_installed: Path, value: str
) -> None:
    (nothing_installed / "lib" / ops.NAME).write_bytes(b"")
    assert ops.library_path() is not None
    monkeypatch.setenv(ops.VARIABLE, value)
    assert ops.library_path() is None
    assert opsinfo.info().problem.startswith("switched off by ONNXPRUNE_OPS=")


def test_no_sources(nothing_installed: Path) -> None:
    shutil.rmtree(nothing_installed / "ort_ops")
    assert ops.sources_path() is None
    with pytest.raises(ResourceError, match="sources of the kernels are not installed"):
        opsbuild.build()


def test_where_the_cuda_library_is(
    monkeypatch: pytest.MonkeyPatch, nothing_installed: Path, tmp_path: Path
) -> None:
    monkeypatch.delenv(ops.CUDA_VARIABLE, raising=False)
    assert ops.cuda_path() is None
    for name in (ops.NAME, cudabuild.NAME):
        (nothing_installed / "lib" / name).touch()
    assert ops.cuda_path() == nothing_installed / "lib" / cudabuild.NAME
    monkeypatch.setenv(ops.CUDA_VARIABLE, "off")
    assert ops.cuda_path() is None
    (tmp_path / "other.so").touch()
    monkeypatch.setenv(ops.CUDA_VARIABLE, str(tmp_path / "other.so"))
    assert ops.cuda_path() == tmp_path / "other.so"
    monkeypatch.setenv(ops.CUDA_VARIABLE, str(tmp_path / "none.so"))
    assert ops.cuda_path() is None
