from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import onnxprune

ROOT = Path(onnxprune.__file__ or "").parent.parent


def python(code: str) -> str:
    """Run ``code`` in a fresh interpreter and return what it prints."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_all_names_are_there() -> None:
    assert python("from onnxprune import *; print(prune, Recipe)")
    for name in onnxprune.__all__:
        assert getattr(onnxprune, name) is not None


def test_all_is_sorted_and_what_we_promise() -> None:
    promised = ["bench", "compare", "export", "inspect", "load", "prune", "register", "save", "session"]
    promised += ["Model", "Pruner", "Recipe", "Report", "SensitivityReport", "distill", "sensitivity"]
    assert sorted(onnxprune.__all__) == sorted([*promised, "errors", "__version__"])
    assert len(set(onnxprune.__all__)) == len(onnxprune.__all__)


def test_functions_are_functions_and_classes_are_classes() -> None:
    for name in onnxprune.__all__:
        value = getattr(onnxprune, name)
        if name[0].isupper():
            assert isinstance(value, type), name
        elif name not in ("errors", "__version__"):
            assert callable(value) and value.__name__ == name, name


@pytest.mark.parametrize("name", ["bench", "compare", "export", "sensitivity"])
def test_importing_the_module_does_not_hide_the_function(name: str) -> None:
    home = f"onnxprune.{name}"
    load = f"import importlib, onnxprune; importlib.import_module('{home}')"
    used = f"first = {home}; from {home} import {name}; print(first.__name__, {home} is {name} is first)"
    assert python(f"{load}; {used}") == f"{name} True"


def test_submodules_that_share_no_name_are_attributes() -> None:
    assert (
        python("import onnxprune, onnxprune.recipe.recipe; print(onnxprune.recipe.recipe.__name__)")
        == "onnxprune.recipe.recipe"
    )


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'prunes'"):
        _ = onnxprune.prunes  # type: ignore[attr-defined]
    assert not hasattr(onnxprune, "__wrapped__")


def test_dir_lists_the_api() -> None:
    assert set(onnxprune.__all__) <= set(dir(onnxprune))


def test_import_is_light() -> None:
    heavy = "('numpy', 'onnx', 'onnxruntime', 'rich', 'click', 'torch', 'scipy')"
    assert python(f"import sys, onnxprune; print([m for m in {heavy} if m in sys.modules])") == "[]"


def test_type_checkers_see_the_same_names() -> None:
    """The lazy table and the imports under TYPE_CHECKING name the same homes."""
    import ast

    tree = ast.parse((ROOT / "onnxprune" / "__init__.py").read_text())
    seen = {
        alias.asname: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname and node.module != "onnxprune"
    }
    assert seen == onnxprune._HOMES


def test_package_is_marked_as_typed() -> None:
    spec = importlib.util.find_spec("onnxprune")
    assert spec is not None and spec.origin
    assert (Path(spec.origin).parent / "py.typed").is_file()
