"""Rows of ``.npy`` files and of the members of ``.npz`` files, read without loading the whole array.

``np.load`` takes an npz member into memory at once and believes its header. Here the header is
compared with the real size first, then rows are streamed, so memory is what was chosen.
"""

from __future__ import annotations

import contextlib
import io
import math
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.batching import check_memory
from onnxprune.calibration.inputs import Array
from onnxprune.errors import DataError

Opener = Callable[[], contextlib.AbstractContextManager[IO[bytes]]]
_CHUNK = 2**20
_READ_HEADER = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
# What zipfile, zlib and numpy raise for a file that is cut off, encrypted, or not what its name says.
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    ValueError,
    OSError,
    RuntimeError,
    NotImplementedError,
    TypeError,
    IndexError,
    KeyError,
    OverflowError,
    SyntaxError,
    struct.error,
    tokenize.TokenError,
)


@dataclass(frozen=True)
class StoredArray:
    """An array in a file: its header, checked against the file, and a way to read rows of it."""

    where: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    stored: tuple[int, ...]  # shape in the file; ``shape`` may be another view of the same items
    open: Opener

    def reshaped(self, *shape: int) -> StoredArray:
        """Return the same array with another shape of the same size."""
        assert math.prod(shape) == math.prod(self.shape)
        return replace(self, shape=shape)

    def read(self) -> Array:
        """Return the whole array.

        Raises:
            DataError: when the file is broken.
            ResourceError: when it is too large.
        """
        whole: Array = self.reshaped(1, *self.shape).rows(np.zeros(1, np.int64))[0, ...]  # no numpy scalar
        return whole

    def rows(self, indices: NDArray[np.int64]) -> Array:
        """Return the rows ``indices`` (ascending) of axis 0.

        Raises:
            DataError: when the file is broken.
            ResourceError: when they are too large.
        """
        size = math.prod(self.shape[1:]) * self.dtype.itemsize
        check_memory(size * (self.shape[0] if self.fortran else len(indices)), self.where)
        with broken(self.where), self.open() as stream:
            _header(stream)
            if self.fortran:
                flat = np.frombuffer(_exactly(stream, size * self.shape[0]), self.dtype)
                whole = flat.reshape(self.stored[::-1]).T
                return np.ascontiguousarray(whole).reshape(self.shape)[indices]
            result = np.empty((len(indices), *self.shape[1:]), self.dtype)
            target = result.view(np.uint8).reshape(-1) if result.size else np.empty(0, np.uint8)
            position = 0
            for number, index in enumerate(indices):
                _skip(stream, (int(index) - position) * size)
                target[number * size : (number + 1) * size] = np.frombuffer(_exactly(stream, size), np.uint8)
                position = int(index) + 1
            _skip(stream, (self.shape[0] - position) * size)  # to the end: zip members carry a checksum there
            stream.read(1)
            return result


@contextlib.contextmanager
def broken(where: str) -> Iterator[None]:
    """Turn what reading a damaged file raises into a DataError naming it."""
    try:
        yield
    except DataError:
        raise
    except _BROKEN as error:
        raise DataError(
            f"{where} cannot be read: {str(error) or type(error).__name__}", "is the file complete?"
        ) from error


def open_npy(path: Path) -> StoredArray:
    """Return the array of a ``.npy`` file.

    Raises:
        DataError: when it is none, is cut off, or holds Python objects.
    """
    with broken(path.name):
        return _stored(path.name, lambda: path.open("rb"), path.stat().st_size)


def open_npz(path: Path) -> dict[str, StoredArray]:
    """Return the arrays of an ``.npz`` file by key; nothing but headers is read.

    Arrays of Python objects are left out, unless there is nothing else.

    Raises:
        DataError: when it is no zip file, is damaged, or holds no arrays.
    """
    if path.is_file() and not zipfile.is_zipfile(path):
        raise DataError(
            f"{path.name} is not an .npz file (no zip archive inside)", "make it with numpy.savez"
        )
    arrays: dict[str, StoredArray] = {}
    pickled: DataError | None = None
    with broken(path.name):
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if not m.filename.endswith("/")]
        for member in members:
            key = member.filename.removesuffix(".npy")
            try:
                arrays[key] = _stored(f"{path.name}[{key!r}]", _member_opener(path, member), member.file_size)
            except PickledError as error:
                pickled = error
    if pickled is not None and not arrays:
        raise pickled
    if not arrays:
        raise DataError(f"{path.name} holds no arrays")
    return arrays


class PickledError(DataError):
    """An array of Python objects: it would need pickle, which runs code from the file."""


def _member_opener(path: Path, member: zipfile.ZipInfo) -> Opener:
    @contextlib.contextmanager
    def opener() -> Iterator[IO[bytes]]:
        with zipfile.ZipFile(path) as archive, archive.open(member) as stream:
            yield stream

    return opener


def _stored(where: str, opener: Opener, size: int) -> StoredArray:
    with broken(where), opener() as stream:
        shape, fortran, dtype = _header(stream)
        start = stream.tell()
    if dtype.hasobject:
        raise PickledError(
            f"{where} holds Python objects (pickle), which are never loaded", "save plain numeric arrays"
        )
    wanted = math.prod(shape) * dtype.itemsize
    if any(d < 0 for d in shape) or wanted != size - start:
        raise DataError(
            f"{where} says {dtype.name}{list(shape)} ({wanted} bytes), "
            f"but {size - start} bytes follow its header",
            "is the file complete?",
        )
    return StoredArray(where, shape, dtype, fortran, shape, opener)


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    if version not in _READ_HEADER:
        raise ValueError(f"npy format version {version} is for structured arrays")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy remarks on headers that Python 2 wrote
        shape, fortran, dtype = _READ_HEADER[version](stream)
    return tuple(int(d) for d in shape), bool(fortran), dtype


def _exactly(stream: IO[bytes], count: int) -> bytes:
    parts = []
    while count > 0:
        part = stream.read(min(count, 64 * _CHUNK))
        if not part:
            raise EOFError("it ends too early")
        parts.append(part)
        count -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _skip(stream: IO[bytes], count: int) -> None:
    if isinstance(stream, io.BufferedReader):  # a plain file; a zip member must be read to check its sum
        stream.seek(count, io.SEEK_CUR)
        return
    while count > 0:
        part = stream.read(min(count, _CHUNK))
        if not part:
            raise EOFError("it ends too early")
        count -= len(part)
