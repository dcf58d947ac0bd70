"""Check a written model against the plan, before it gets its final name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune import runtime
from onnxprune.calibration.data import CalibrationData
from onnxprune.errors import VerificationError
from onnxprune.evaluate import run
from onnxprune.interface import interface_differences
from onnxprune.io import load
from onnxprune.layers import Layer
from onnxprune.model import Model
from onnxprune.passes.unpack import unpack
from onnxprune.solvers.patterns import Pattern

# The file is run by the same ORT on the same weights; only the order of its sums may differ.
RELATIVE_TOLERANCE = 1e-3
_SAMPLES = 32  # enough to see a wrong weight; agreement with the dense model is measured on all held-out data


@dataclass(frozen=True)
class Expected:
    """What the file must hold.

    Attributes:
        dense: the model as it came.
        pruned: the pruned model with plain weights; the file's weights must equal these bit for bit
            (after a round trip through ``cast``).
        zeros: weight name -> zeros wanted at least.
        pattern: of the zeros.
        cast: True when values were stored as fp16.
    """

    dense: Model
    pruned: Model
    layers: tuple[Layer, ...]
    zeros: Mapping[str, int]
    pattern: Pattern
    cast: bool


def verify_file(path: Path, expected: Expected, data: CalibrationData, threads: int | None) -> Any:
    """Read ``path`` back, check it, compare its weights with the plan, run it; return its session.

    Raises:
        VerificationError: when anything differs from the plan.
    """
    written = load(path)
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise VerificationError(f"the written model does not pass the ONNX checker: {error}") from error
    differences = interface_differences(expected.dense, written)
    if differences:
        raise VerificationError(f"the written model has another interface: {'; '.join(differences)}")
    unpack(written)
    for layer in expected.layers:
        _check_weight(layer, written.array(layer.name), expected)
    session = runtime.session(path, threads=threads, name="the written model")
    _check_outputs(session, expected, data, threads)
    return session


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


def _check_outputs(session: Any, expected: Expected, data: CalibrationData, threads: int | None) -> None:
    """The file in stock ONNX Runtime gives what the pruned weights give in the original graph."""
    reference = runtime.session(expected.pruned.to_bytes(), threads=threads, name="the pruned model")
    for batch in data.head(_SAMPLES).batches:
        for name, a, b in zip(
            expected.dense.index.outputs, run(reference, batch), run(session, batch), strict=True
        ):
            if not isinstance(a, np.ndarray) or a.dtype.kind != "f":
                continue
            if not isinstance(b, np.ndarray) or a.shape != b.shape:
                raise VerificationError(
                    f"output {name!r} of the written model has shape {np.shape(b)}, wanted {a.shape}"
                )
            scale = float(np.abs(a[np.isfinite(a)], dtype=np.float64).max(initial=0.0))
            with np.errstate(invalid="ignore"):
                error = np.nan_to_num(np.abs(a - b, dtype=np.float64)).max(initial=0.0)
            limit = (0.05 if expected.cast else RELATIVE_TOLERANCE) * max(scale, 1e-6)
            if not np.array_equal(np.isfinite(a), np.isfinite(b)) or error > limit:
                raise VerificationError(
                    f"output {name!r} of the written model is off by {error:.3g}, wanted at most {limit:.3g}"
                )
