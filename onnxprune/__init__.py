"""Prune ONNX models: smaller on disk, as accurate as pruning can be without retraining.

>>> import onnxprune
>>> report = onnxprune.prune("model.onnx", sparsity=0.7, data="samples.npz")  # doctest: +SKIP

The names below are loaded on first use, so that ``import onnxprune`` costs next to nothing.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxprune import errors as errors
    from onnxprune.bench import bench as bench
    from onnxprune.compare import compare as compare
    from onnxprune.export import export as export
    from onnxprune.finetuning import distill as distill
    from onnxprune.inspection import inspect as inspect
    from onnxprune.io import load as load
    from onnxprune.io import save as save
    from onnxprune.model import Model as Model
    from onnxprune.online import Pruner as Pruner
    from onnxprune.pipeline import prune as prune
    from onnxprune.recipe import Recipe as Recipe
    from onnxprune.report.report import Report as Report
    from onnxprune.runtime import register as register
    from onnxprune.runtime import session as session
    from onnxprune.sensitivity import SensitivityReport as SensitivityReport
    from onnxprune.sensitivity import sensitivity as sensitivity

__version__ = "0.1.0"

_HOMES = {
    "Model": "onnxprune.model",
    "Pruner": "onnxprune.online",
    "Recipe": "onnxprune.recipe",
    "Report": "onnxprune.report.report",
    "SensitivityReport": "onnxprune.sensitivity",
    "bench": "onnxprune.bench",
    "compare": "onnxprune.compare",
    "export": "onnxprune.export",
    "distill": "onnxprune.finetuning",
    "inspect": "onnxprune.inspection",
    "load": "onnxprune.io",
    "prune": "onnxprune.pipeline",
    "register": "onnxprune.runtime",
    "save": "onnxprune.io",
    "sensitivity": "onnxprune.sensitivity",
    "session": "onnxprune.runtime",
}

__all__ = [
    "Model",
    "Pruner",
    "Recipe",
    "Report",
    "SensitivityReport",
    "__version__",
    "bench",
    "compare",
    "distill",
    "errors",
    "export",
    "inspect",
    "load",
    "prune",
    "register",
    "save",
    "sensitivity",
    "session",
]


def __getattr__(name: str) -> Any:
    if name == "errors":
        return importlib.import_module("onnxprune.errors")
    if name not in _HOMES:
        raise AttributeError(f"module 'onnxprune' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps ``onnxprune.bench`` the function after someone imported the module of the same name."""

    def __setattr__(self, name: str, value: object) -> None:
        if name in _HOMES and isinstance(value, ModuleType):
            return  # the import system binds each submodule to its package; sys.modules still has it
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
