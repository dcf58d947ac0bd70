"""Reading and writing models: nothing unsafe comes in, nothing half-written goes out.

:func:`load` checks sizes, containment and structure before it allocates, so that every later stage
may trust the model. :func:`save` writes one file, or a model and ``NAME.data`` beside it, atomically.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import onnx
from google.protobuf.message import DecodeError

from onnxprune.errors import ModelError, OnnxPruneError, ResourceError, UsageError
from onnxprune.files import external as external_data
from onnxprune.files.atomic import atomic_write_bytes, atomic_write_text, staged
from onnxprune.files.externalize import Splitter
from onnxprune.files.order import sort_nodes
from onnxprune.files.tensors import (
    LAYOUT,
    Found,
    FoundSparse,
    byte_size,
    check_inline,
    check_sparse,
    elements,
    estimated_bytes,
    walk,
)
from onnxprune.files.validate import check_structure
from onnxprune.files.wrongfile import not_a_model
from onnxprune.model import MAX_PROTO_BYTES, Model

__all__ = ["atomic_write_bytes", "atomic_write_text", "file_digest", "load", "save", "total_bytes"]

PathLike = str | os.PathLike[str]

# Above this, weights go to a data file: protobuf stops at 2 GiB, and readers need headroom to edit.
MAX_INLINE_BYTES = 3 * 2**29  # 1.5 GiB
DATA_SUFFIX = ".data"


def load(path: PathLike | onnx.ModelProto, *, allow_external: bool = False) -> Model:
    """Read and check a model; the result holds all tensor data inline.

    Before anything is allocated, each tensor's shape and type are compared with the bytes that are
    there, in graphs, subgraphs, attributes, functions and sparse tensors. External data must lie in
    the model's folder (or in the repository of a Hugging Face cache). Values are not looked at. Nodes that
    are out of topological order, as ONNX Runtime's converter to float16 leaves them, are sorted.

    Args:
        path: the ``.onnx`` file, or a model in memory (which is copied).
        allow_external: accept external data anywhere on this machine.

    Raises:
        UsageError: when there is no such file or it cannot be read.
        ModelError: when it is no model, damaged, unsafe or malformed; the message says where.
        ResourceError: when it does not fit into memory.
    """
    if isinstance(path, onnx.ModelProto):
        return _in_memory(path)
    if not isinstance(path, str | os.PathLike):
        raise UsageError(
            f"the model is given as {type(path).__name__}, wanted a path or an onnx.ModelProto",
            "onnx.load_model_from_string makes one of bytes",
        )
    path = _existing(path)
    with _about(path):
        proto = _read_proto(path)
        sort_nodes(proto)
        check_structure(proto)
        sparse = _check_inline_tensors(proto)
        locations = external_data.attach(proto, path, allow_external=allow_external)
        for found in sparse:
            check_sparse(found.tensor, found.where)
    return Model(proto, path, locations)


def _in_memory(given: onnx.ModelProto) -> Model:
    proto = onnx.ModelProto()
    proto.CopyFrom(given)
    sort_nodes(proto)
    check_structure(proto)
    for found in _check_inline_tensors(proto):
        check_sparse(found.tensor, found.where)
    for item in walk(proto):
        if not isinstance(item, FoundSparse) and external_data.is_external(item.tensor):
            raise ModelError(
                f"{item.where} has its values in a file",
                "give the path of the model, or load its external data",
            )
    return Model(proto)


def _check_inline_tensors(proto: onnx.ModelProto) -> list[FoundSparse]:
    """Check all inline tensors; return the sparse ones, which also need their external parts."""
    sparse = []
    for found in walk(proto):
        if isinstance(found, FoundSparse):
            bits = LAYOUT.get(found.tensor.values.data_type, (128, ""))[0]
            size = elements(found.tensor.dims, found.where) * bits // 8
            external_data.check_memory(size, found.where)  # runtimes expand it
            sparse.append(found)
        elif not external_data.is_external(found.tensor):
            check_inline(found.tensor, found.where)
    return sparse


def _existing(path: PathLike) -> Path:
    """Return the absolute path of an existing regular file; links stay as they are."""
    text = os.fspath(path)
    if not text or "\0" in text:
        raise UsageError(f"{text!r} is not a file name")
    full = Path(text).absolute()
    try:
        mode = os.stat(full).st_mode
    except FileNotFoundError:
        hint = "the link points to nothing" if full.is_symlink() else "check the path"
        raise UsageError(f"there is no file {text}", hint) from None
    except OSError as error:
        raise UsageError(f"cannot read {text}: {error.strerror}") from error
    if stat.S_ISDIR(mode):
        models = sorted(full.glob("*.onnx"))[:3]
        hint = f"it holds {', '.join(m.name for m in models)}" if models else "name an .onnx file"
        raise UsageError(f"{text} is a folder, wanted a model file", hint)
    if not stat.S_ISREG(mode):
        raise UsageError(f"{text} is not a regular file", "name an .onnx file")
    return full


@contextlib.contextmanager
def _about(path: Path) -> Iterator[None]:
    """Put the file's name in front of every message."""
    try:
        yield
    except OnnxPruneError as error:
        raise type(error)(f"{path.name}: {error}", error.hint) from error
    except MemoryError as error:
        raise ResourceError(f"{path.name}: not enough memory to load it") from error


def _read_proto(path: Path) -> onnx.ModelProto:
    """Read the protobuf alone; external data is not touched."""
    size = path.stat().st_size
    if size == 0:
        raise ModelError("the file is empty")
    if size > MAX_PROTO_BYTES:
        raise ModelError(
            f"the file has {size / 2**30:.1f} GiB, protobuf stops at 2",
            "not an ONNX model; larger ones keep their weights in external data",
        )
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}") from error
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise not_a_model(data, str(error)) from error
    if not proto.HasField("graph"):
        raise not_a_model(data, "it holds no graph")
    return proto


def save(
    model: Model | onnx.ModelProto,
    path: PathLike,
    *,
    force: bool = False,
    external: bool | Literal["auto"] = "auto",
    source: PathLike | None = None,
    check: Callable[[Path], None] | None = None,
) -> tuple[Path, ...]:
    """Write a model completely or not at all. The model in memory stays as it is.

    External data goes to one file, ``NAME.data`` beside the model: initializers of 1 KiB or more in
    graph order, those of 1 MiB or more at multiples of 4096 bytes, the others at multiples of 64.
    Tensors in node attributes only join them when the model would not fit otherwise.

    Args:
        model: all data inline, as :func:`load` returns it.
        path: the file to write. A symbolic link is replaced, not followed.
        force: replace existing files.
        external: True and False decide; "auto" makes data external above 1.5 GiB, and when it was external.
        source: the file that ``model`` came from, when it is a proto; never overwritten.
        check: called with the path of the finished file, its external data beside it, before it is
            published; when it raises, nothing is.

    Returns:
        The files written: the model, and its data file if there is one.

    Raises:
        UsageError: the file exists (without ``force``), is the input or one of its data files, its folder
            is missing, or the model is too large for ``external=False``.
        ModelError: when a tensor's data is not inline.
        ResourceError: when the disk is full or not writable; no file is left behind.
    """
    proto = model.proto if isinstance(model, Model) else model
    target = Path(os.fspath(path)).absolute()
    _check_is_inline(proto)
    size = estimated_bytes(proto)
    if external not in (True, False, "auto"):
        raise UsageError(f"external is {external!r}, wanted True, False or 'auto'")
    if external == "auto":
        external = size > MAX_INLINE_BYTES or (isinstance(model, Model) and bool(model.external))
    if not external and size > MAX_PROTO_BYTES:
        raise UsageError(
            f"the model has {size / 2**30:.1f} GiB, one file holds at most 2", "allow external data"
        )
    data_name = target.name + DATA_SUFFIX
    outputs = [target, target.parent / data_name] if external else [target]
    _refuse_inputs(outputs, _input_files(model, source))
    with staged(target, force=force, companions=[data_name] if external else ()) as stage:
        companions = []
        if external:
            _check_location(data_name)
            with stage.create(data_name) as sink:
                splitter = Splitter(sink, data_name, attributes=_attributes_too_large(proto))
                proto = splitter.split(proto)
            if splitter.position:
                companions.append(data_name)
            else:
                stage.path(data_name).unlink()
        data = _serialise(proto)
        with stage.create(target.name) as file:
            file.write(data)
        del data
        if check is not None:
            check(stage.path(target.name))
        return stage.publish(companions)


def _check_is_inline(proto: onnx.ModelProto) -> None:
    for found in walk(proto):
        if isinstance(found, Found):
            byte_size(found.tensor, found.where)
            if external_data.is_external(found.tensor):
                raise ModelError(
                    f"{found.where} has its data in another file", "read the model with onnxprune.load"
                )


def _attributes_too_large(proto: onnx.ModelProto) -> bool:
    return estimated_bytes(proto, initializers=False) > MAX_INLINE_BYTES


def _check_location(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UsageError(
            f"{name!r} is not valid UTF-8, which external data needs", "choose another name"
        ) from None


def _serialise(proto: onnx.ModelProto) -> bytes:
    try:
        data: bytes = proto.SerializeToString()
    except MemoryError as error:
        raise ResourceError("not enough memory to write the model") from error
    if len(data) > MAX_PROTO_BYTES:
        raise UsageError(
            f"the model has {len(data) / 2**30:.1f} GiB without external data, one file holds at most 2"
        )
    return data


def _input_files(model: Model | onnx.ModelProto, source: PathLike | None) -> list[Path]:
    """Files that the model was read from, as far as they still exist."""
    paths = [Path(source)] if source is not None else []
    if isinstance(model, Model) and model.path is not None:
        folders = (model.path.parent, Path(os.path.realpath(model.path)).parent)
        paths += [model.path, *(folder / name for folder in folders for name in model.external)]
    return [path for path in paths if os.path.exists(path)]


def _refuse_inputs(outputs: list[Path], inputs: list[Path]) -> None:
    for output in outputs:
        for path in inputs:
            if os.path.exists(output) and os.path.samefile(output, path):
                raise UsageError(
                    f"{output} is the input ({path.name}), which is never changed", "choose another -o"
                )


def file_digest(path: PathLike, *, allow_external: bool = False) -> str:
    """Return the SHA-256 of a model file followed by its external files in order of their names.

    Without external data it is what ``sha256sum`` prints.

    Raises:
        UsageError, ModelError: as :func:`load`, when the files cannot be found.
    """
    digest = hashlib.sha256()
    for file in _files(path, allow_external):
        try:
            with open(file, "rb") as stream:
                while block := stream.read(2**20):
                    digest.update(block)
        except OSError as error:
            raise UsageError(f"cannot read {file}: {error.strerror}") from error
    return digest.hexdigest()


def total_bytes(path: PathLike, *, allow_external: bool = False) -> int:
    """Return the size of a model file plus all external files that it refers to, each counted once."""
    return sum(file.stat().st_size for file in _files(path, allow_external))


def _files(path: PathLike, allow_external: bool) -> list[Path]:
    """Return the model file and the resolved external files, sorted by location, each once."""
    path = _existing(path)
    files = {}
    with _about(path):
        for found in walk(_read_proto(path)):
            if isinstance(found, Found) and external_data.is_external(found.tensor):
                location = external_data.region(found.tensor, found.where).location
                if location not in files:
                    real = external_data.resolve(path, location, found.where, allow_external=allow_external)
                    external_data.file_size(real, found.where)
                    files[location] = real
    return [path, *dict.fromkeys(files[location] for location in sorted(files))]
