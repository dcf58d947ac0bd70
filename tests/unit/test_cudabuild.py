"""Finding nvcc and reading its reports; what it compiles is tested in tests/kernels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onnxprune import cudabuild
from onnxprune.errors import ResourceError

REPORT = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN9onnxprune47_GLOBAL__N__32379eb5_14_bitmap_tile_cu_a2f64052\
11bitmap_tileILi4E6__halfhEEvNS0_4ArgsIT0_T1_EE' for 'sm_90'
ptxas info    : Function properties for _ZN9onnxprune
    16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 85 registers, used 1 barriers, 16 bytes smem
ptxas info    : Compiling entry function '_ZN9onnxprune47_GLOBAL__N__1_7_delta_cu_2\
11check_deltaEPKiPKjlllPi' for 'sm_80'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 30 registers, used 0 barriers, 400 bytes cmem[0]
"""


def fake_nvcc(path: Path, release: str = "13.0", status: int = 0) -> Path:
    """A program that says its release, and makes the files that it is asked for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "#!/bin/sh\n"
        f'[ "$1" = --version ] && echo "Cuda compilation tools, release {release}, V1" && exit 0\n'
        f"[ {status} = 0 ] || {{ echo 'x.cu(3): error: no such thing' >&2; exit {status}; }}\n"
        'while [ $# -gt 0 ]; do [ "$1" = -o ] && echo "$0 made this" > "$2"; shift; done\n'
        "echo 'ptxas info' >&2\n"
    )
    path.chmod(0o755)
    return path


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    folder = tmp_path / "ort_ops" / "cuda"
    folder.mkdir(parents=True)
    (folder / "build.txt").write_text("# text\noldest 12.5\nflags -O3 -x\ntarget 80\ntarget 90\nptx 90\n")
    (folder / "one.cu").write_text("")
    (folder / "exports.map").write_text("")
    return tmp_path / "ort_ops"


def test_nvcc_that_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fake_nvcc(tmp_path / "nvcc")
    monkeypatch.setenv("NVCC", str(path))
    assert cudabuild.find_nvcc() == path
    assert cudabuild.version_of(path) == "13.0"
    monkeypatch.setenv("NVCC", str(tmp_path / "other"))
    with pytest.raises(ResourceError, match="which is no program"):
        cudabuild.find_nvcc()


def test_no_nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NVCC", raising=False)
    monkeypatch.setattr(cudabuild, "_candidates", lambda: iter([tmp_path / "nvcc"]))
    with pytest.raises(ResourceError, match="is not there") as caught:
        cudabuild.find_nvcc()
    assert "onnxprune[cuda-build]" in caught.value.hint


def test_nvcc_of_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fake_nvcc(tmp_path / "site" / "nvidia" / "cu13" / "bin" / "nvcc")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    for variable in ("NVCC", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", "")
    assert path in list(cudabuild._candidates())


def test_compiles_every_file_for_every_target(
    tmp_path: Path, sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NVCC", str(fake_nvcc(tmp_path / "nvcc")))
    commands: list[list[str]] = []
    real = cudabuild._run
    monkeypatch.setattr(cudabuild, "_run", lambda command: commands.append(command) or real(command))
    made = cudabuild.compile_cuda(sources, tmp_path)
    assert made.name == cudabuild.NAME and made.is_file()
    assert json.loads(made.with_name(cudabuild.USAGE_NAME).read_text()) == []
    compiling = next(command for command in commands if "-c" in command)
    assert [word for word in compiling if word.startswith("-gencode")] == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_90,code=compute_90",
    ]
    assert {"-O3", "-x"} <= set(compiling)
    cudabuild.compile_cuda(sources, tmp_path, targets=("89",))
    assert "-gencode=arch=compute_89,code=compute_89" in commands[-2]


@pytest.mark.parametrize(
    ("release", "status", "message"), [("12.1", 0, "wanted 12.5 or newer"), ("13.0", 2, "no such thing")]
)
def test_what_can_go_wrong(
    tmp_path: Path, sources: Path, monkeypatch: pytest.MonkeyPatch, release: str, status: int, message: str
) -> None:
    monkeypatch.setenv("NVCC", str(fake_nvcc(tmp_path / "nvcc", release, status)))
    with pytest.raises(ResourceError, match=message):
        cudabuild.compile_cuda(sources, tmp_path)


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="sources of the CUDA kernels are not installed"):
        cudabuild.build_words(tmp_path)


def test_usage_of_kernels() -> None:
    first, second = cudabuild.read_usage(REPORT)
    assert first == cudabuild.KernelUse("bitmap_tile<4, fp16, int8>", "sm_90", 85, 16, 12, 16)
    assert second == cudabuild.KernelUse("check_delta", "sm_80", 30, 0, 0, 0)
    assert cudabuild.kernel_name("_Z7unknownv") == "_Z7unknownv"
    mangled = "_ZN9onnxprune12_GLOBAL__N_17nm_tileILi8ELb1E6__halfEEvNS0_4ArgsIT1_EE"
    assert cudabuild.kernel_name(mangled) == "nm_tile<8, images, fp16>"
    assert cudabuild.kernel_name(mangled.replace("Lb1E", "Lb0E")) == "nm_tile<8, fp16>"


def test_usage_that_was_not_kept(tmp_path: Path) -> None:
    assert cudabuild.usage(tmp_path / cudabuild.NAME) == ()
    (tmp_path / cudabuild.USAGE_NAME).write_text('[{"kernel": 1}]')
    assert cudabuild.usage(tmp_path / cudabuild.NAME) == ()
