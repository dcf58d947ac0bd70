"""What the compiled files define: nothing that the linker could take for code of every processor."""

from __future__ import annotations

import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from onnxprune import machine, ops, opsbuild
from onnxprune.errors import ResourceError


def nm(path: Path, *options: str) -> list[tuple[str, str]]:
    """Kind and demangled name of each symbol that ``path`` defines."""
    done = subprocess.run(
        ["nm", "--demangle", "--defined-only", *options, path], capture_output=True, text=True, check=True
    )
    lines = (re.fullmatch(r"(?:[0-9a-f]*) +(\S) (.*)", line) for line in done.stdout.splitlines())
    return [(match[1], match[2]) for match in lines if match]


@pytest.fixture(autouse=True)
def needs_nm() -> None:
    if shutil.which("nm") is None:
        pytest.skip("no nm")


@pytest.mark.slow
def test_files_of_an_instruction_set_define_no_shared_code(tmp_path: Path) -> None:
    """One copy of an inline function is kept for everybody: it must not be the one with AVX-512."""
    sources = ops.sources_path()
    assert sources is not None
    try:
        compiler = opsbuild._compiler()
    except ResourceError as error:
        pytest.skip(str(error))
    flags = opsbuild._flags(sources)
    files = [
        path for path in sorted((sources / "src").glob("level_*.cpp")) if flags.get(path.name, []) is not None
    ]
    assert len(files) >= 2 or machine.architecture() not in ("x86_64", "aarch64")

    def compiled(source: Path) -> Path:
        made = tmp_path / f"{source.stem}.o"
        words = [*(flags["*"] or []), *(flags.get(source.name) or [])]
        opsbuild._run([*compiler, *words, f"-I{source.parent}", "-c", str(source), "-o", str(made)])
        return made

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, files))
    for path in objects:
        symbols = nm(path)
        own = f"onnxprune::{path.stem.removeprefix('level_')}::"  # no other file has this namespace
        assert [name for kind, name in symbols if kind in "WwVuv" and own not in name] == [], path.name
        # and one name that others can see: its table
        visible = [name for kind, name in symbols if kind in "TDBR"]
        assert visible == [f"onnxprune::{path.stem}"], path.name


def test_the_library_exports_only_what_it_should(ops_library: Path) -> None:
    exported = {name for kind, name in nm(ops_library, "--dynamic") if kind in "TDBR"}
    assert {"RegisterCustomOps", "onnxprune_ops_info"} <= exported
    strangers = {name for name in exported if not name.startswith("onnxprune_")} - {
        "RegisterCustomOps",
        "_init",
        "_fini",
    }
    assert strangers == set()
