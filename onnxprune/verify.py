"""Check a written model against the plan, before it gets its final name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune import ops, runtime
from onnxprune.calibration.data import CalibrationData
from onnxprune.errors import VerificationError
from onnxprune.evaluate import run
from onnxprune.inmemory import session_of
from onnxprune.interface import interface_differences
from onnxprune.io import load
from onnxprune.layers import Layer
from onnxprune.model import Model
from onnxprune.passes.unpack import unpack
from onnxprune.rounding import NOISE, matrices, shaken
from onnxprune.solvers.columns import column_order
from onnxprune.solvers.patterns import Pattern
from onnxprune.storage.domain import sparse_op

# The file is run by the same ORT on the same weights; only the order of its sums may differ.
RELATIVE_TOLERANCE = 1e-3
# With kernels and without, of the largest output. A model that is pruned hard may amplify rounding: then what
# it makes of weights that are shaken.
KERNEL_TOLERANCE = 1e-5
_SAMPLES = 32  # enough to see a wrong weight; agreement with the dense model is measured on all held-out data


@dataclass(frozen=True)
class Expected:
    """What the file must hold.

    Attributes:
        dense: the model as it came.
        pruned: the pruned model with plain weights; the file's weights must equal these bit for bit
            (after a round trip through ``cast``).
        zeros: weight name -> zeros wanted at least.
        patterns: weight name -> pattern that its zeros obey.
        cast: True when values were stored as fp16.
    """

    dense: Model
    pruned: Model
    layers: tuple[Layer, ...]
    zeros: Mapping[str, int]
    patterns: Mapping[str, Pattern]
    cast: bool


def verify_file(path: Path, expected: Expected, data: CalibrationData, threads: int | None) -> Any:
    """Read ``path`` back, check it, compare its weights with the plan, run it; return its session.

    The session is what :func:`onnxprune.session` makes: with the kernels, if their library is there. Then
    the file is run without them as well, and both must agree.

    Raises:
        VerificationError: when anything differs from the plan.
    """
    with ThreadPoolExecutor(1) as beside:  # a session is made in one thread
        making = beside.submit(session_of, expected.pruned, threads=threads, name="the pruned model")
        session, stock = _checked(path, expected, threads)
        reference = making.result()
    _check_outputs(reference, session, stock, expected, data, threads)
    return session


def verify_fixed(
    original: Model,
    fixed: Model,
    values: Mapping[str, NDArray[Any]],
    data: CalibrationData,
    threads: int | None,
) -> None:
    """Run a model, and what is left of it for ``values`` of some inputs, on the same samples.

    Args:
        original: as it came.
        fixed: the same after :func:`onnxprune.passes.fix_input.fix_inputs`.
        values: input -> its value, (1, ...) also stands for as many rows as a batch has.
        data: samples; what they hold for these inputs is not used.
        threads: of ONNX Runtime.

    Raises:
        VerificationError: when an output differs.
        DataError: when ONNX Runtime fails on these samples.
    """
    sessions = [session_of(model, threads=threads) for model in (original, fixed)]
    errors = _Largest(list(original.index.outputs))
    for batch in data.head(_SAMPLES).batches:
        feed = {
            name: _as_given(values[name], array) if name in values else array for name, array in batch.items()
        }
        errors.add(*(run(session, feed) for session in sessions))
    for name, error in errors.relative().items():
        if error > RELATIVE_TOLERANCE:
            raise VerificationError(
                f"with {', '.join(values)} fixed, output {name!r} is off by {error:.3g} of its largest "
                f"value, wanted at most {RELATIVE_TOLERANCE:g}"
            )


def _as_given(value: NDArray[Any], array: NDArray[Any]) -> NDArray[Any]:
    """Return ``value`` for as many rows as ``array`` has, where that is what it lacks."""
    rows = value.ndim > 0 and value.ndim == array.ndim and len(value) == 1
    return np.repeat(value, len(array), axis=0) if rows else value


def _checked(path: Path, expected: Expected, threads: int | None) -> tuple[Any, Any]:
    """Check what can be seen without running ``path``; return its session, and its one without kernels."""
    written = load(path)
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        if _passes_checker(expected.dense):
            raise VerificationError(f"the written model does not pass the ONNX checker: {error}") from error
    differences = interface_differences(expected.dense, written)
    if differences:
        raise VerificationError(f"the written model has another interface: {'; '.join(differences)}")
    switched = any(map(sparse_op, written.graph.node))
    unpack(written)
    for layer in expected.layers:
        _check_weight(layer, written.array(layer.name), expected)
    session = runtime.session(path, threads=threads, name="the written model")
    stock = session
    if switched and ops.library_path() is not None:
        stock = runtime.session(path, threads=threads, kernels=False, name="the written model")
    return session, stock


def _passes_checker(model: Model) -> bool:
    """Whether the model as it came is valid; ONNX Runtime runs some that are not, and so will ours."""
    try:
        onnx.checker.check_model(str(model.path) if model.path is not None else model.proto)
    except onnx.checker.ValidationError:
        return False
    return True


def _check_weight(layer: Layer, found: NDArray[np.generic], expected: Expected) -> None:
    wanted = expected.pruned.array(layer.name)
    accepted = [wanted]
    if expected.cast:  # a weight that does not fit in fp16 keeps its own type
        with np.errstate(over="ignore"):
            accepted.append(wanted.astype(np.float16).astype(wanted.dtype))
    # -0.0 and 0.0 are one value; everything else must agree bit for bit.
    if not any(found.shape == array.shape and np.array_equal(found, array) for array in accepted):
        raise VerificationError(f"weight {layer.name!r} differs from the plan after reading the file back")
    zeros = found.size - int(np.count_nonzero(found))
    if zeros < expected.zeros[layer.name]:
        raise VerificationError(
            f"weight {layer.name!r} has {zeros} zeros in the file, the plan has {expected.zeros[layer.name]}"
        )
    pattern = expected.patterns.get(layer.name, Pattern())
    mask = layer.view.to_matrix(wanted) != 0  # as in the file, but for values that fp16 rounds to zero
    order = column_order(layer, pattern)
    if not pattern.holds(mask if order is None else mask[:, :, order]):
        raise VerificationError(f"the zeros of weight {layer.name!r} do not have the pattern {pattern}")


def _check_outputs(
    reference: Any, session: Any, stock: Any, expected: Expected, data: CalibrationData, threads: int | None
) -> None:
    """The file in stock ONNX Runtime gives what the pruned weights give in the original graph.

    And with the kernels what it gives without, if they are in use.
    """
    wide = 0.05 if expected.cast else RELATIVE_TOLERANCE
    names = list(expected.dense.index.outputs)
    batches = data.head(_SAMPLES).batches
    errors = _Largest(names)
    for batch in batches:
        found = run(stock, batch)
        alone = _Largest(names)
        alone.add(run(reference, batch), found)
        for name, error in alone.relative().items():
            if error > wide:
                raise VerificationError(
                    f"output {name!r} of the written model is off by {error:.3g} of its largest value, "
                    f"wanted at most {wide:g}"
                )
        if session is not stock:
            errors.add(found, run(session, batch))
    off = {name: error for name, error in errors.relative().items() if error > KERNEL_TOLERANCE}
    if not off:
        return
    # A single small batch may by chance not tell how much the model amplifies: all of them together do.
    # Weights that were not pruned run on kernels too
    trembling = shaken(expected.pruned, matrices(expected.pruned))
    other, noise = session_of(trembling, threads=threads, name="the pruned model"), _Largest(names)
    for batch in batches:
        noise.add(run(reference, batch), run(other, batch))
    for name, error in off.items():
        limit = min(max(KERNEL_TOLERANCE, NOISE * noise.relative()[name]), wide)
        if error > limit:
            raise VerificationError(
                f"output {name!r} of the written model is off by {error:.3g} of its largest value with "
                f"the kernels, wanted at most {limit:.3g}",
                "--target-runtime stock does without them",
            )


class _Largest:
    """The largest difference and the largest value of each output, over batches.

    A batch of one sample may have but a number close to zero, of which a rounding error is a lot.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._errors = dict.fromkeys(names, 0.0)
        self._scales = dict.fromkeys(names, 0.0)

    def add(self, a: Sequence[Any], b: Sequence[Any]) -> None:
        """Take the outputs of one batch; ``a`` says how large values are."""
        for name, x, y in zip(self._errors, a, b, strict=True):
            error, scale = _difference(name, x, y)
            self._errors[name] = max(self._errors[name], error)
            self._scales[name] = max(self._scales[name], scale)

    def relative(self) -> dict[str, float]:
        """Return output name -> difference relative to the largest value."""
        return {name: error / max(self._scales[name], 1e-6) for name, error in self._errors.items()}


def _difference(name: str, a: Any, b: Any) -> tuple[float, float]:
    """Return the largest difference of two floating point outputs, and the largest value of the first.

    Raises:
        VerificationError: when their shapes differ; infinity stands for NaN on one side only.
    """
    if not isinstance(a, np.ndarray) or a.dtype.kind != "f":
        return 0.0, 0.0
    if not isinstance(b, np.ndarray) or a.shape != b.shape:
        raise VerificationError(
            f"output {name!r} of the written model has shape {np.shape(b)}, wanted {a.shape}"
        )
    if not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return np.inf, 1.0
    scale = float(np.abs(a[np.isfinite(a)], dtype=np.float64).max(initial=0.0))
    with np.errstate(invalid="ignore"):
        error = np.nan_to_num(np.abs(a - b, dtype=np.float64)).max(initial=0.0)
    return float(error), scale
