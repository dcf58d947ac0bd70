"""The only module that creates ONNX Runtime sessions."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx

from onnxprune.errors import ModelError, ResourceError

_PACKAGES = ("onnxruntime", "onnxruntime-gpu")


def installed_packages() -> dict[str, str]:
    """Return name -> version of the installed ONNX Runtime distributions."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def onnxruntime() -> ModuleType:
    """Import onnxruntime.

    Raises:
        ResourceError: when it is missing, or when both packages are there and overwrite each other.
    """
    found = installed_packages()
    if len(found) > 1:
        raise ResourceError(
            f"{' and '.join(' '.join(item) for item in found.items())} are both installed: they clash",
            "pip uninstall -y onnxruntime onnxruntime-gpu, then install exactly one of them",
        )
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise ResourceError(
            f"ONNX Runtime cannot be imported ({error})", 'pip install "onnxprune[cpu]" or "onnxprune[gpu]"'
        ) from error
    module: ModuleType = ort
    module.set_default_logger_severity(3)
    return module


def cpu_count() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def session(
    model: str | Path | bytes | onnx.ModelProto,
    *,
    threads: int | None = None,
    optimize: bool = True,
    optimized_path: str | Path | None = None,
    providers: tuple[str, ...] = ("CPUExecutionProvider",),
    config: Mapping[str, str] | None = None,
    name: str = "model",
) -> Any:
    """Create an ``onnxruntime.InferenceSession``.

    Args:
        model: a path, serialised bytes or a proto below 2 GiB.
        threads: intra-op threads (default: all processors of this process).
        optimize: False switches off every graph optimisation.
        optimized_path: where ORT writes the optimised graph, for inspection.
        providers: execution providers, in order of preference.
        config: session configuration entries of ONNX Runtime, such as ``session.intra_op.allow_spinning``.
        name: what error messages call the model.

    Raises:
        ModelError: when ONNX Runtime refuses the model.
        ResourceError: when ONNX Runtime is missing.
    """
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or cpu_count()
    options.log_severity_level = 4
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if optimized_path is not None:
        options.optimized_model_filepath = str(optimized_path)
    for key, value in (config or {}).items():
        options.add_session_config_entry(key, value)
    if isinstance(model, onnx.ModelProto):
        model = model.SerializeToString()
    source = model if isinstance(model, bytes) else str(model)
    try:
        return ort.InferenceSession(source, options, providers=list(providers))
    except Exception as error:  # ORT raises many classes, all private; each one means "refused"
        raise ModelError(f"{name}: ONNX Runtime refuses it: {error}") from error
