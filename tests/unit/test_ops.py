"""Finding, building and describing the library with the kernels. The kernels are tested in tests/kernels."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from onnxprune import cudabuild, cusparselt, machine, ops
from onnxprune.errors import ResourceError

# A library that says what ours says, compiled in no time
SAYS = {"level": "LEVEL", "levels": ["LEVEL", "scalar"], "ops": 3, "compiler": "12"}
SOURCE = f'extern "C" const char* onnxprune_ops_info() {{ return {json.dumps(json.dumps(SAYS))}; }}\n'
FLAGS = """# comment
* * -fPIC -DLEVEL=plain
here.cpp any,PROCESSOR -DHERE
elsewhere.cpp vax -mvax
"""
needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in ops._COMPILERS), reason="no C++ compiler"
)


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A package without library, a cache of its own, and sources that compile at once."""
    monkeypatch.delenv(ops.VARIABLE, raising=False)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "site" / "onnxprune"
    (folder / "lib").mkdir(parents=True)
    monkeypatch.setattr(ops, "_package_folders", lambda: [folder])
    sources = folder / "ort_ops"
    (sources / "src" / "kernels").mkdir(parents=True)
    (sources / "build.txt").write_text(FLAGS.replace("PROCESSOR", ops._processor()))
    (sources / "src" / "main.cpp").write_text(SOURCE.replace("LEVEL", "avx9"))
    (sources / "src" / "here.cpp").write_text("#ifndef HERE\n#error flags of the file are missing\n#endif\n")
    (sources / "src" / "elsewhere.cpp").write_text("#error for another processor\n")
    (sources / "src" / "kernels" / "more.cpp").write_text("int more() { return 1; }\n")
    return folder


def test_no_library() -> None:
    assert ops.library_path() is None
    found = ops.info()
    assert (found.library, found.level, found.ops) == ("", "", 0)
    assert found.problem == "the kernels are not built"
    assert found.sources.endswith("ort_ops")
    assert found.oldest_onnxruntime == "1.17"


@needs_compiler
def test_build_into_the_cache(nothing_installed: Path, tmp_path: Path) -> None:
    made = ops.build()
    assert made.is_relative_to(tmp_path / "cache" / "onnxprune" / "ops")
    assert ops.library_path() == made
    found = ops.info()
    assert (found.level, found.levels, found.ops, found.problem) == ("avx9", ("avx9", "scalar"), 3, "")
    assert [path.name for path in made.parent.iterdir()] == [made.name]  # nothing is left behind


@needs_compiler
def test_build_only_once_unless_forced() -> None:
    made = ops.build()
    before = made.stat().st_ino
    assert ops.build() == made and made.stat().st_ino == before
    assert ops.build(force=True) == made and made.stat().st_ino != before


@needs_compiler
def test_other_sources_make_another_library(nothing_installed: Path) -> None:
    made = ops.build()
    (nothing_installed / "ort_ops" / "src" / "kernels" / "more.cpp").write_text("int less() { return 1; }\n")
    ops._fingerprint.cache_clear()
    assert ops.library_path() is None
    assert ops.build() != made


@needs_compiler
def test_what_was_built_comes_before_what_was_installed(nothing_installed: Path) -> None:
    installed = nothing_installed / "lib" / ops.NAME
    installed.write_bytes(b"")
    assert ops.library_path() == installed
    assert ops.library_path() != ops.build() == ops.library_path()


def test_the_variable_names_a_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library = tmp_path / "mine.so"
    monkeypatch.setenv(ops.VARIABLE, str(library))
    assert ops.library_path() is None
    assert ops.info().problem == f"ONNXPRUNE_OPS names {library}, which is no file"
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
    assert ops.info().problem.startswith("switched off by ONNXPRUNE_OPS=")


def test_a_library_that_cannot_be_loaded_is_said(nothing_installed: Path) -> None:
    (nothing_installed / "lib" / ops.NAME).write_bytes(b"no library")
    found = ops.info()
    assert "cannot be loaded" in found.problem and found.library.endswith(ops.NAME)


def test_an_old_runtime_is_said(monkeypatch: pytest.MonkeyPatch, nothing_installed: Path) -> None:
    (nothing_installed / "lib" / ops.NAME).write_bytes(b"")
    monkeypatch.setattr(ops, "_describe", lambda _: {})
    monkeypatch.setattr(machine, "version", lambda name: "1.9.2" if name == "onnxruntime" else None)
    assert ops.info().problem == "ONNX Runtime 1.9.2 is older than 1.17"
    monkeypatch.setattr(machine, "version", lambda name: "1.17.0" if name == "onnxruntime" else None)
    assert ops.info().problem == ""


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ResourceError, match=r"no C\+\+ compiler on PATH") as caught:
        ops.build()
    assert "CXX=" in caught.value.hint
    monkeypatch.setenv("CXX", "g++-99 -m64")
    with pytest.raises(ResourceError, match=r"CXX names g.*-99, which is no program"):
        ops.build()


@needs_compiler
def test_sources_that_do_not_compile(nothing_installed: Path) -> None:
    (nothing_installed / "ort_ops" / "src" / "main.cpp").write_text("int main( {\n")
    with pytest.raises(ResourceError, match=r"fails: .*main\.cpp:1.*error"):
        ops.build()
    assert ops.library_path() is None


def test_no_sources(nothing_installed: Path) -> None:
    shutil.rmtree(nothing_installed / "ort_ops")
    assert ops.sources_path() is None
    with pytest.raises(ResourceError, match="sources of the kernels are not installed"):
        ops.build()


def test_the_checkout_has_the_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    sources = ops.sources_path()
    assert sources is not None
    flags = ops._flags(sources)
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
    monkeypatch.setattr(ops.platform, "machine", lambda: machine_name)
    sources = ops.sources_path()
    assert sources is not None
    flags = ops._flags(sources)
    assert {name for name, words in flags.items() if words is not None and name != "*"} == kept


def test_the_module_is_light() -> None:
    code = (
        "import sys, onnxprune.ops; print([m for m in ('numpy', 'onnx', 'onnxruntime') if m in sys.modules])"
    )
    root = Path(ops.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


CUDA = {"library": "/x/libonnxprune_cuda.so", "problem": "no CUDA device: why", "ops": 0, "about": {}}


@needs_compiler
def test_what_it_says_of_cuda(nothing_installed: Path) -> None:
    ops.build()
    assert ops.info().cuda.problem.startswith("the library is not there")  # it says nothing of it
    about = {"compiler": "nvcc 13", "devices": [{"name": "A GPU", "capability": "9.0"}]}
    says = SAYS | {"cuda": CUDA | {"problem": "", "ops": 5, "about": about}}
    text = json.dumps(json.dumps(says))
    source = nothing_installed / "ort_ops" / "src" / "main.cpp"
    source.write_text(f'extern "C" const char* onnxprune_ops_info() {{ return {text}; }}\n')
    ops._fingerprint.cache_clear()
    ops.build()
    found = ops.info().cuda
    assert (found.problem, found.ops, found.compiler, found.devices) == ("", 5, "nvcc 13", ("A GPU (9.0)",))


def test_what_it_says_of_cusparselt(monkeypatch: pytest.MonkeyPatch) -> None:
    def of(**about: str) -> tuple[str, str]:
        found = ops._cuda_info(CUDA | {"about": {"cusparselt": about}})
        return found.cusparselt, found.cusparselt_problem

    monkeypatch.delenv(cusparselt.VARIABLE, raising=False)
    path = "/x/libcusparseLt.so.0"
    assert of(library=path, version="0.8.1", problem="") == (f"0.8.1 ({path})", "")
    assert of(library=path, version="0.6.2", problem="it is 0.6.2") == ("", "it is 0.6.2")
    assert of(library="", problem="it cannot be opened")[1].endswith(
        "opened; pip install nvidia-cusparselt-cu13"
    )
    monkeypatch.setenv(cusparselt.VARIABLE, "off")
    assert of(library="", problem="it is switched off") == ("", "it is switched off")
    assert "they are not there" in ops._cuda_info(CUDA).cusparselt_problem


def test_library_that_is_not_there_says_how_to_make_it() -> None:
    found = ops._cuda_info(CUDA | {"problem": "/x/libonnxprune_cuda.so is not there"})
    assert found.problem.endswith("is not there; onnxprune ops build --cuda makes it")
    assert ops._cuda_info(CUDA).problem == "no CUDA device: why"


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
    library = ops.build(cuda=True, targets=("90",))
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
