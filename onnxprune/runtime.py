"""The only module that creates ONNX Runtime sessions."""

from __future__ import annotations

import importlib.metadata
import io
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import onnx
from numpy.typing import NDArray

from onnxprune import ops, opsinfo
from onnxprune.errors import ModelError, ResourceError

_PACKAGES = ("onnxruntime", "onnxruntime-gpu")
_CPU = "CPUExecutionProvider"
_CUDA = "CUDAExecutionProvider"
_CUDA_ENTRY = "onnxprune.cuda"  # cuda_key of ort_ops/src/library.cpp
_DOMAIN = b"onnxprune"
_OPSET_IMPORT = 8  # field of ModelProto
_FIXED = {1: 8, 5: 4}  # wire type -> bytes
_told: set[str] = set()  # warnings that were given


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
            f"ONNX Runtime cannot be imported ({error})", "pip install onnxruntime, or onnxruntime-gpu"
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
    providers: tuple[str | tuple[str, dict[str, str]], ...] = (_CPU,),
    config: Mapping[str, str] | None = None,
    kernels: bool | None = None,
    weights: Mapping[str, NDArray[Any]] | None = None,
    profile: str | None = None,
    name: str = "",
) -> Any:
    """Create an ``onnxruntime.InferenceSession``, with the kernels of onnxprune if it can use them.

    Args:
        model: a path, serialised bytes or a proto below 2 GiB.
        threads: intra-op threads (default: all processors of this process).
        optimize: False switches off every graph optimisation.
        optimized_path: where ORT writes the optimised graph, for inspection.
        providers: execution providers, in order of preference, alone or with their options.
        config: session configuration entries of ONNX Runtime, such as ``session.intra_op.allow_spinning``.
        kernels: whether sparse ops run on the kernels of ``ort_ops/``. None: if the library is there, the
            model has ops of domain ``onnxprune`` and the session is for CUDA or for the CPU alone; True: or
            else raise.
        weights: values of initializers that the model says are external; not to be changed afterwards.
        profile: beginning of the path of the file that ``end_profiling`` of the session writes.
        name: what error messages call the model; default its path.

    Raises:
        ModelError: when ONNX Runtime refuses the model.
        ResourceError: when ONNX Runtime is missing, or the kernels that were asked for.
    """
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or cpu_count()
    options.log_severity_level = 4
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if optimized_path is not None:
        options.optimized_model_filepath = str(optimized_path)
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, profile
    for key, value in (config or {}).items():
        options.add_session_config_entry(key, value)
    # A kernel on the CPU keeps its node from the functions that other providers could run
    cuda = any(name == _CUDA for name, *_ in ((p,) if isinstance(p, str) else p for p in providers))
    if kernels or (kernels is None and (cuda or tuple(providers) == (_CPU,)) and _has_our_ops(model)):
        register(options, required=bool(kernels), cuda=cuda)
    if isinstance(model, onnx.ModelProto):
        model = model.SerializeToString()
    source = model if isinstance(model, bytes) else str(model)
    name = name or (source if isinstance(source, str) else "model")
    values = [ort.OrtValue.ortvalue_from_numpy(array) for array in (weights or {}).values()]
    if values:
        options.add_external_initializers(list(weights or {}), values)
    try:
        made = ort.InferenceSession(source, options, providers=list(providers))
    except Exception as error:  # ORT raises many classes, all private; each one means "refused"
        raise ModelError(f"{name}: ONNX Runtime refuses it: {error}") from error
    made.onnxprune_weights = values  # ONNX Runtime reads the arrays where they are
    return made


def register(session_options: Any, *, required: bool = False, cuda: bool = False) -> bool:
    """Register the kernels of onnxprune with an ``onnxruntime.SessionOptions``; twice does no harm.

    >>> options = onnxruntime.SessionOptions()  # doctest: +SKIP
    >>> onnxprune.register(options)  # doctest: +SKIP
    True

    Without them packed models run too, on the functions in the file, at dense speed. A session gets those for
    the CPU, which would keep their nodes from any other provider, or those for CUDA, never both.

    Args:
        session_options: what the session will be created with.
        required: raise where False would be returned.
        cuda: the session will have the CUDA provider.

    Returns:
        Whether they are registered: False when there is no library (``onnxprune ops build`` makes it),
        or when it cannot be loaded, of which a warning tells once.

    Raises:
        ResourceError: when they are required, but missing or not loadable.
    """
    if cuda:
        problem = opsinfo.info().cuda.problem
        if problem:
            if required:
                raise ResourceError(f"no CUDA kernels: {problem}", "onnxprune ops info")
            return False
        session_options.add_session_config_entry(_CUDA_ENTRY, "1")
    path = ops.library_path()
    if path is None:
        if required:
            raise ResourceError(f"no kernels: {ops.absence()}", "onnxprune ops build")
        return False
    try:
        session_options.register_custom_ops_library(str(path))
    except Exception as error:  # ORT raises many classes, all private
        message = f"the kernels in {path} cannot be used, packed models run at dense speed: {error}"
        if required:
            raise ResourceError(message, "onnxprune ops build --force") from error
        if message not in _told:
            _told.add(message)
            warnings.warn(" ".join(message.split()), RuntimeWarning, stacklevel=2)
        return False
    return True


def _has_our_ops(model: str | Path | bytes | onnx.ModelProto) -> bool:
    """Whether the model imports our domain. Of a file only a few bytes are read, not the weights."""
    if isinstance(model, onnx.ModelProto):
        return any(entry.domain.encode() == _DOMAIN for entry in model.opset_import)
    try:
        if isinstance(model, bytes):
            return any(_DOMAIN in entry for entry in _fields(io.BytesIO(model), _OPSET_IMPORT))
        with open(model, "rb") as file:
            return any(_DOMAIN in entry for entry in _fields(file, _OPSET_IMPORT))
    except (OSError, ValueError):
        return False  # ONNX Runtime says what is wrong with it


def _fields(file: BinaryIO, wanted: int) -> Iterator[bytes]:
    """Yield the bytes of each field ``wanted`` of the protobuf message in ``file``.

    Raises:
        ValueError: when it is no protobuf message.
    """
    while (key := _varint(file)) is not None:
        number, kind = key >> 3, key & 7
        if kind == 0:
            _varint(file)
        elif kind in _FIXED:
            file.seek(_FIXED[kind], os.SEEK_CUR)
        elif kind == 2:
            size = _varint(file) or 0
            if number == wanted:
                yield file.read(size)
            else:
                file.seek(size, os.SEEK_CUR)
        else:
            raise ValueError(f"wire type {kind}")


def _varint(file: BinaryIO) -> int | None:
    """Read a number, None at the end of the file."""
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            if shift:
                raise ValueError("it ends within a number")
            return None
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
    raise ValueError("a number of more than 64 bits")
