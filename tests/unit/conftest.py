"""A package without a library of kernels, for the tests of what finds, builds and describes it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onnxprune import machine, ops

# A library that says what ours says, compiled in no time
SAYS = {"level": "LEVEL", "levels": ["LEVEL", "scalar"], "ops": 3, "compiler": "12"}
SOURCE = f'extern "C" const char* onnxprune_ops_info() {{ return {json.dumps(json.dumps(SAYS))}; }}\n'
FLAGS = """# comment
* * -fPIC -DLEVEL=plain
here.cpp any,PROCESSOR -DHERE
elsewhere.cpp vax -mvax
"""


@pytest.fixture
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
    (sources / "build.txt").write_text(FLAGS.replace("PROCESSOR", machine.architecture()))
    (sources / "src" / "main.cpp").write_text(SOURCE.replace("LEVEL", "avx9"))
    (sources / "src" / "here.cpp").write_text("#ifndef HERE\n#error flags of the file are missing\n#endif\n")
    (sources / "src" / "elsewhere.cpp").write_text("#error for another processor\n")
    (sources / "src" / "kernels" / "more.cpp").write_text("int more() { return 1; }\n")
    return folder
