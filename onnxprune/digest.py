"""What results depend on, as digests: the model, the user's functions, this program, this machine.

Files in the user's cache are named by them, so that what was measured of something else is never read.
"""

from __future__ import annotations

import contextlib
import hashlib
from functools import cache
from pathlib import Path

import onnxprune
from onnxprune import machine
from onnxprune.model import Model
from onnxprune.userfunction import UserFunction


def of_model(model: Model) -> str:
    """Return the SHA-256 of what a model computes: its interface, nodes, functions and values."""
    state = hashlib.sha256()
    graph = model.graph
    parts = (*model.proto.opset_import, *model.proto.functions, *graph.input, *graph.output, *graph.node)
    for part in parts:
        state.update(part.SerializeToString(deterministic=True))
    for sparse in graph.sparse_initializer:
        state.update(sparse.SerializeToString(deterministic=True))
    for name in sorted(model.index.tensors):
        state.update(model.index.tensors[name].SerializeToString(deterministic=True))
    return state.hexdigest()


def of_function(function: UserFunction) -> str:
    """Return the SHA-256 of a user's function: how it is called, and the file it stands in.

    What that file imports or reads is not looked at.
    """
    state = hashlib.sha256(function.reference.rpartition(":")[2].encode())
    with contextlib.suppress(OSError):  # a function typed into an interpreter has no file
        state.update(Path(function.file).read_bytes())
    return state.hexdigest()


@cache
def of_program() -> str:
    """Return the SHA-256 of this package's version and sources: a changed method gives other results."""
    state = hashlib.sha256(onnxprune.__version__.encode())
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        state.update(path.read_bytes())
    return state.hexdigest()


def of_machine(threads: int | None) -> str:
    """Return what rounding depends on, as text: processor, versions of packages, threads."""
    found = machine.environment()
    parts = [str(found[name]) for name in ("cpu", "instruction_sets", "versions")]
    return "; ".join([*parts, str(threads or machine.threads())])
