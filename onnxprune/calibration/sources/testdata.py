"""ONNX test data: ``test_data_set_*/input_*.pb``, tensors in the order of the graph's inputs."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from onnxprune.calibration.batching import check_memory
from onnxprune.calibration.checks import split_feed
from onnxprune.calibration.inputs import Array, Feed
from onnxprune.calibration.sources import Loaded, Request
from onnxprune.errors import DataError

_INPUT = re.compile(r"^input_(\d+)\.pb$")


def matches(reference: str) -> bool:
    """Whether ``reference`` is a ``test_data_set_*`` folder or holds some."""
    path = Path(reference).expanduser()
    return path.is_dir() and bool(_inputs(path) or data_sets(path))


def data_sets(folder: Path) -> list[Path]:
    """Return the test data sets inside ``folder``, in numeric order."""
    found = [p for p in folder.glob("test_data_set_*") if p.is_dir() and _inputs(p)]
    return sorted(found, key=lambda p: (_number(p.name), p.name))


def _number(name: str) -> int:
    digits = re.findall(r"\d+", name)
    return int(digits[-1]) if digits else 0


def _inputs(folder: Path) -> list[Path]:
    return sorted((p for p in folder.iterdir() if _INPUT.match(p.name)), key=lambda p: _number(p.name))


def load(reference: str, request: Request) -> Loaded:
    """Read the chosen data sets; each is one feed.

    Raises:
        DataError: when a file is no tensor, or a set does not fit the model's inputs.
    """
    folder = Path(reference).expanduser()
    sets = [folder] if _inputs(folder) else data_sets(folder)
    samples: list[Feed] = []
    picked = request.choose(len(sets))
    for number in picked:
        files, specs = _inputs(sets[number]), request.inputs.specs
        where = sets[number].name
        if len(files) != len(specs):
            raise DataError(
                f"{where}: holds {len(files)} inputs ({', '.join(p.name for p in files)}), "
                f"the model has {len(specs)}: {request.inputs}"
            )
        feed = {s.name: read_tensor(p, f"{where}/{p.name}") for s, p in zip(specs, files, strict=True)}
        samples.extend(split_feed(feed, request.inputs, where))
    chosen = request.choose(len(samples))
    notes = (f"{len(picked)} of {len(sets)} data sets",) if len(picked) < len(sets) else ()
    return Loaded([samples[i] for i in chosen], len(samples), notes)


def read_tensor(path: Path, where: str) -> Array:
    """Return the tensor of a ``.pb`` file.

    Raises:
        DataError: when it is none, is cut off, or points to another file.
    """
    check_memory(path.stat().st_size, where)
    tensor = onnx.TensorProto()
    try:
        tensor.ParseFromString(path.read_bytes())
    except (DecodeError, OSError) as error:
        raise DataError(f"{where} is not a tensor: {error}") from error
    if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
        raise DataError(f"{where} keeps its data in another file, which is not followed")
    try:
        array: Array = np.asarray(numpy_helper.to_array(tensor))
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{where} is not a complete tensor: {error}") from error
    if tensor.data_type == onnx.TensorProto.STRING:
        return np.array(
            [x.decode("utf8", "replace") if isinstance(x, bytes) else x for x in array.flat]
        ).reshape(array.shape)
    return array
