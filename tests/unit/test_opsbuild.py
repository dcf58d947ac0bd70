"""Building the library with the kernels. The kernels are tested in tests/kernels."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from onnxprune import cudabuild, machine, ops, opsbuild, opsinfo
from onnxprune.errors import ResourceError

pytestmark = pytest.mark.usefixtures("nothing_installed")
needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in opsbuild._COMPILERS), reason="no C++ compiler"
)


@needs_compiler
def test_build_into_the_cache(nothing_installed: Path, tmp_path: Path) -> None:
    made = opsbuild.build()
    assert made.is_relative_to(tmp_path / "cache" / "onnxprune" / "ops")
    assert ops.library_path() == made
    found = opsinfo.info()
    assert (found.level, found.levels, found.ops, found.problem) == ("avx9", ("avx9", "scalar"), 3, "")
    assert [path.name for path in made.parent.iterdir()] == [made.name]  # nothing is left behind


@needs_compiler
def test_build_only_once_unless_forced() -> None:
    made = opsbuild.build()
    before = made.stat().st_ino
    assert opsbuild.build() == made and made.stat().st_ino == before
    assert opsbuild.build(force=True) == made and made.stat().st_ino != before


@needs_compiler
def test_other_sources_make_another_library(nothing_installed: Path) -> None:
    made = opsbuild.build()
    (nothing_installed / "ort_ops" / "src" / "kernels" / "more.cpp").write_text("int less() { return 1; }\n")
    ops._fingerprint.cache_clear()
    assert ops.library_path() is None
    assert opsbuild.build() != made


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ResourceError, match=r"no C\+\+ compiler on PATH") as caught:
        opsbuild.build()
    assert "CXX=" in caught.value.hint
    monkeypatch.setenv("CXX", "g++-99 -m64")
    with pytest.raises(ResourceError, match=r"CXX names g.*-99, which is no program"):
        opsbuild.build()


@needs_compiler
def test_sources_that_do_not_compile(nothing_installed: Path) -> None:
    (nothing_installed / "ort_ops" / "src" / "main.cpp").write_text("int main( {\n")
    with pytest.raises(ResourceError, match=r"fails: .*main\.cpp:1.*error"):
        opsbuild.build()
    assert ops.library_path() is None


def test_the_checkout_has_the_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    sources = ops.sources_path()
    assert sources is not None
    flags = opsbuild._flags(sources)
    assert "-fvisibility=hidden" in (flags["*"] or [])
    named = {name for name in flags if name != "*"}
    assert named <= {path.name for path in (sources / "src").rglob("*.cpp")}


@pytest.mark.parametrize(
    ("machine_name", "kept"),
    [("x86_64", {"level_avx2.cpp", "level_avx512.cpp"}), ("AMD64", {"level_avx2.cpp", "level_avx512.cpp"}),
     ("aarch64", {"level_neon.cpp"}), ("arm64", {"level_neon.cpp"}), ("riscv64", set())],
)  # fmt: skip
def test_every_processor_gets_its_levels(
    monkeypatch: pytest.MonkeyPatch, machine_name: str, kept: set[str]
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(machine.platform, "machine", lambda: machine_name)
    sources = ops.sources_path()
    assert sources is not None
    flags = opsbuild._flags(sources)
    assert {name for name, words in flags.items() if words is not None and name != "*"} == kept


@needs_compiler
def test_both_libraries_are_built_side_by_side(
    nothing_installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = nothing_installed / "ort_ops" / "cuda"
    folder.mkdir()

    def compiled(sources: Path, where: Path, *, targets: tuple[str, ...]) -> Path:
        assert sources == folder.parent and targets == ("90",)
        (where / cudabuild.USAGE_NAME).write_text("[]")
        made = where / cudabuild.NAME
        made.write_text("made")
        return made

    monkeypatch.setattr(cudabuild, "compile_cuda", compiled)
    library = opsbuild.build(cuda=True, targets=("90",))
    assert {path.name for path in library.parent.iterdir()} == {
        ops.NAME,
        cudabuild.NAME,
        cudabuild.USAGE_NAME,
    }
    assert ops.cuda_path() == library.with_name(cudabuild.NAME)
    before = ops._fingerprint(folder.parent)
    (folder / "new.cu").write_text("")
    ops._fingerprint.cache_clear()
    assert ops._fingerprint(folder.parent) != before
