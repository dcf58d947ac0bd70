"""The shape of the package: every module has its test file, and imports stay where they belong."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGE = ROOT / "onnxprune"

# Module -> the file that tests it instead of tests/unit/<same path>, and why.
TESTED_ELSEWHERE = {
    "__main__.py": ("tests/e2e/test_cli.py", "only runs as a process: python -m onnxprune"),
    **{
        f"commands/{name}.py": ("tests/unit/test_cli.py", "a command is tested through the program")
        for name in ("common", "machine", "models", "pruning")
    },
    "opening.py": ("tests/unit/test_pipeline.py", "every run begins with it"),
    "recipe/choices.py": ("tests/unit/recipe/test_recipe.py", "words that the recipe's fields take"),
    "recipe/checks.py": ("tests/unit/recipe/test_recipe.py", "run whenever a recipe is made"),
    **{
        f"finetune/{name}.py": ("tests/unit/finetune/test_view.py", "a part of the view, tested through it")
        for name in ("attributes", "compiler", "dtypes", "gaps", "parameters", "plan", "registry", "scope")
    },
}
# Operators: the official ONNX node tests and ONNX Runtime judge them, whatever module they stand in.
OPERATORS = ("tests/unit/finetune/ops/test_backend.py", "tests/unit/finetune/ops/test_against_runtime.py")

# A heavy or exclusive dependency -> the modules (or folders) that may import it.
ALLOWED_IMPORTERS = {
    "onnxruntime": ("runtime.py",),
    "torch": ("finetune/",),
}
# These take arrays and give arrays: no graph, no protobuf.
ARRAYS_ONLY = ("scoring/", "allocation/", "solvers/")


def modules() -> list[str]:
    """Paths of all modules, relative to the package, without ``__init__``."""
    found = sorted(p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("*.py"))
    return [m for m in found if not m.endswith("__init__.py")]


def imports(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and top-level package of each import, also inside functions and by importlib."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.lineno, (node.module or "").partition(".")[0]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value.partition(".")[0]


def importers(dependency: str, *folders: str) -> list[str]:
    """``file:line`` of each import of ``dependency`` in the package (or in some of its folders)."""
    return [
        f"onnxprune/{path.relative_to(PACKAGE).as_posix()}:{line}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if not folders or path.relative_to(PACKAGE).as_posix().startswith(folders)
        for line, name in imports(path.read_text(encoding="utf8"))
        if name == dependency
    ]


def test_imports_are_seen_in_every_form() -> None:
    source = (
        "import torch.nn as nn\n"
        "def f():\n    from torch import x\n"
        "from . import torch\n"
        "importlib.import_module('torch.fx')\n"
        "import torchvision\n"
    )
    assert [line for line, name in imports(source) if name == "torch"] == [1, 3, 5]


@pytest.mark.parametrize("module", modules())
def test_module_has_a_test_file(module: str) -> None:
    if module.startswith("finetune/ops/"):
        assert all((ROOT / path).is_file() for path in OPERATORS)
        return
    if module in TESTED_ELSEWHERE:
        mirror = ROOT / TESTED_ELSEWHERE[module][0]
    else:
        path = Path(module)
        mirror = ROOT / "tests" / "unit" / path.parent / f"test_{path.name.lstrip('_')}"
    assert mirror.is_file(), f"onnxprune/{module} wants a test file {mirror.relative_to(ROOT)}"


def test_exceptions_are_not_stale() -> None:
    assert set(TESTED_ELSEWHERE) <= set(modules())


@pytest.mark.parametrize(("dependency", "allowed"), ALLOWED_IMPORTERS.items())
def test_dependency_stays_in_its_place(dependency: str, allowed: tuple[str, ...]) -> None:
    strays = [
        place for place in importers(dependency) if not place.removeprefix("onnxprune/").startswith(allowed)
    ]
    assert not strays, f"{dependency} is imported outside {', '.join(allowed)}"


def test_runtime_is_what_imports_onnxruntime() -> None:
    assert importers("onnxruntime", "runtime.py")  # else the test above looks at nothing


def test_array_stages_know_no_graph() -> None:
    assert not importers("onnx", *ARRAYS_ONLY) + importers("onnx_graphsurgeon", *ARRAYS_ONLY)


@pytest.mark.parametrize("module", ["onnxprune", "onnxprune.errors", "onnxprune.recipe"])
def test_import_is_light(module: str) -> None:
    heavy = ["numpy", "onnx", "onnxruntime", "scipy", "torch", "rich", "onnx_graphsurgeon"]
    code = f"import json, sys, {module}; print(json.dumps([m for m in {heavy} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [], f"import {module} loads them; import them inside functions"
