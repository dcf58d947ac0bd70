"""External data: weights that the model keeps in files beside it.

Reading treats the model as hostile. A location is resolved with ``realpath`` and must end inside the
model's own folder, or inside the ``models--*`` folder of a Hugging Face cache, where the files of a
snapshot are symbolic links into ``blobs/``. Offsets and lengths are compared with the size of the
opened file and with the tensor's shape before a byte is allocated. Writing is in
:mod:`onnxprune.files.externalize`.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto

from onnxprune.errors import ModelError, ResourceError
from onnxprune.files.tensors import TYPED_FIELDS, Found, byte_size, show, walk

_MAX_DIGITS = 19  # of an int64
_HINT_OUTSIDE = "pass --allow-external if you trust the model and that file"


@dataclass(frozen=True)
class Region:
    """Where the model says a tensor's data is: bytes ``offset`` to ``offset + length`` of ``location``."""

    location: str
    offset: int
    length: int | None


def is_external(tensor: TensorProto) -> bool:
    """Whether the data of ``tensor`` is in another file."""
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def region(tensor: TensorProto, where: str) -> Region:
    """Read the ``external_data`` entries of ``tensor``; unknown keys, checksum and basepath do nothing.

    Raises:
        ModelError: when an entry is missing, doubled or not a plain number.
    """
    entries: dict[str, str] = {}
    for entry in tensor.external_data:
        if entry.key not in ("location", "offset", "length"):
            continue
        if entry.key in entries:
            raise ModelError(f"{where} states the {entry.key} of its external data twice")
        if not isinstance(entry.value, str):
            raise ModelError(f"{where} has an external data {entry.key} that is not valid UTF-8")
        entries[entry.key] = entry.value
    location = entries.get("location", "")
    if not location:
        raise ModelError(f"{where} is external but names no file")
    length = _number(entries["length"], "length", where) if "length" in entries else None
    return Region(location, _number(entries.get("offset", "0"), "offset", where), length)


def _number(text: str, key: str, where: str) -> int:
    # int() alone would take "1_000", " 7" and the digits of other scripts
    if not (text.isascii() and text.isdigit()) or len(text) > _MAX_DIGITS:
        raise ModelError(f"{where} has external data {key} {show(text)}, wanted a non-negative integer")
    return int(text)


def resolve(model: Path, location: str, where: str, *, allow_external: bool = False) -> Path:
    """Return the real path of a data file of ``model``, with every symbolic link followed.

    Args:
        model: absolute path of the model file.
        location: what the model says.
        where: the tensor, for messages.
        allow_external: take any path, also absolute ones and those outside the model's folder.

    Raises:
        ModelError: when the file is missing, not a regular file or outside the model's folder.
    """
    if "\0" in location:
        raise ModelError(f"{where} has its data in {show(location)}, which is no file name")
    inside = os.path.normpath(location)
    leaves = os.path.isabs(location) or inside == ".." or inside.startswith(f"..{os.sep}")
    if leaves and not allow_external:
        raise ModelError(
            f"{where} has its data in {show(location)}, outside the model's folder", _HINT_OUTSIDE
        )
    # The folder of the path as given, as runtimes do; for a link to a model elsewhere also its real folder
    folders = [Path(os.path.realpath(model.parent))]
    if model.is_symlink():
        folders.append(Path(os.path.realpath(model)).parent)
    for folder in folders:
        path = folder / location
        if not os.path.lexists(path):
            continue
        real = Path(os.path.realpath(path))
        if not allow_external and not any(real.is_relative_to(root) for root in _roots(folder)):
            raise ModelError(
                f"{where} has its data in {show(location)}, a link to {show(str(real))} "
                "outside the model's folder",
                _HINT_OUTSIDE,
            )
        return real
    raise ModelError(
        f"{where} has its data in {show(location)}, which is not in {show(str(model.parent))}",
        "put the data file beside the model, under the name it was exported with",
    )


def _roots(folder: Path) -> list[Path]:
    """Folders that data may lie in: the model's own, and the repository around it in a hub cache."""
    roots = [folder]
    for parent in folder.parents:
        inner = folder.relative_to(parent).parts
        if parent.name.startswith("models--") and inner[0] == "snapshots" and len(inner) > 1:
            roots.append(parent)
    return roots


def _open(path: Path, where: str) -> int:
    # NOFOLLOW: the path is resolved, a link now means that somebody swapped it; NONBLOCK: for FIFOs
    flags = (
        os.O_RDONLY
        | getattr(os, "O_CLOEXEC", 0)
        | getattr(os, "O_NOFOLLOW", 0)
        | getattr(os, "O_NONBLOCK", 0)
    )
    try:
        handle = os.open(path, flags | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise ModelError(f"{where} has its data in {show(str(path))}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ModelError(f"{where} has its data in {show(str(path))}, which is not a regular file")
    return handle


def file_size(path: Path, where: str) -> int:
    """Return the size in bytes of a resolved data file, after checking that it is a regular file."""
    handle = _open(path, where)
    try:
        return os.fstat(handle).st_size
    finally:
        os.close(handle)


def check_region(part: Region, needed: int, available: int, where: str) -> None:
    """Check that a tensor of ``needed`` bytes lies inside a file of ``available`` bytes.

    Raises:
        ModelError: when it does not, or when the stated length is not the needed one.
    """
    if part.length is not None and part.length != needed:
        raise ModelError(f"{where} needs {needed} bytes, its external data has length {part.length}")
    if part.offset + needed > available:
        raise ModelError(
            f"{where} needs bytes {part.offset} to {part.offset + needed} of {show(part.location)}, "
            f"which has {available}",
            "the data file is incomplete or belongs to another model",
        )


def read(path: Path, offset: int, size: int, where: str) -> bytes:
    """Read ``size`` bytes of a resolved data file.

    Raises:
        ModelError: when the file changed or shrank since it was checked.
    """
    try:
        with open(_open(path, where), "rb") as file:
            file.seek(offset)
            data = file.read(size)
    except OSError as error:
        raise ResourceError(f"{where}: cannot read {show(str(path))}: {error.strerror}") from error
    if len(data) != size:
        raise ModelError(f"{where}: {show(path.name)} ended early, {len(data)} of {size} bytes at {offset}")
    return data


def attach(proto: onnx.ModelProto, model: Path, *, allow_external: bool = False) -> tuple[str, ...]:
    """Bring all external data of ``proto`` inline, in place; return the locations in order of use.

    Every location, offset and length is checked before the first byte is read.

    Raises:
        ModelError: see :func:`resolve` and :func:`check_region`.
        ResourceError: when the machine has less memory than the data needs.
    """
    files: dict[str, tuple[Path, int]] = {}  # location -> real path, size
    parts: list[tuple[Found, Region, int]] = []
    for found in walk(proto):
        if not isinstance(found, Found):
            continue
        if not is_external(found.tensor):
            del found.tensor.external_data[:]  # without meaning here, and never to reach our output
            continue
        where = found.where
        needed = byte_size(found.tensor, where)
        if found.tensor.data_type == TensorProto.STRING:
            raise ModelError(f"{where} is external but holds strings, which only fit inside the model")
        part = region(found.tensor, where)
        if part.location not in files:
            path = resolve(model, part.location, where, allow_external=allow_external)
            files[part.location] = path, file_size(path, where)
        check_region(part, needed, files[part.location][1], where)
        parts.append((found, part, needed))
    check_memory(sum(needed for _, _, needed in parts), "the external data")
    for found, part, needed in parts:
        _attach(found.tensor, read(files[part.location][0], part.offset, needed, found.where))
    return tuple(files)


def _attach(tensor: TensorProto, data: bytes) -> None:
    for field in TYPED_FIELDS:
        tensor.ClearField(field)
    tensor.raw_data = data
    tensor.ClearField("data_location")
    del tensor.external_data[:]


def check_memory(size: int, what: str) -> None:
    """Refuse data that this machine cannot hold, instead of being killed half-way.

    Raises:
        ResourceError: when ``size`` bytes are more than the physical memory.
    """
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not every system tells
        return
    if size > memory > 0:
        raise ResourceError(
            f"{what} needs {size / 2**30:.1f} GiB, this machine has {memory / 2**30:.1f} GiB of memory"
        )
