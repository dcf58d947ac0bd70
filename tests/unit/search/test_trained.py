"""What training changed is taken out and put back bit by bit."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import onnx
import pytest

from onnxprune.model import Model
from onnxprune.search.trained import changes, with_changes

TEXT = "g (float[N, 3] x) => (float[N, 3] y) { a = MatMul(x, w) b = Add(a, v) y = Add(b, s) }"


@pytest.fixture
def base(build_model: Callable[..., onnx.ModelProto]) -> Model:
    ones = np.ones((3, 3), np.float32)
    return Model(build_model(TEXT, {"w": ones, "v": ones[0], "s": np.float32(2)}))


def test_only_what_differs_and_no_zeros(base: Model) -> None:
    trained = base.copy()
    w = np.float32([[0, 1, -0.0], [np.nan, 0, 2], [0, 0, 0]])
    trained.set_array("w", w)
    trained.set_array("s", np.array(0, np.float32))
    found = changes(base, trained)
    assert sorted(found) == ["s.bits", "s.kept", "w.bits", "w.kept"]
    assert found["w.bits"].dtype == np.uint32 and len(found["w.bits"]) == 4 and len(found["s.bits"]) == 0
    again = with_changes(base, found)
    assert again is not None
    for name in ("w", "v", "s"):
        assert again.array(name).tobytes() == trained.array(name).tobytes()
    assert np.array_equal(base.array("w"), np.ones((3, 3)))  # a copy was changed


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_other_types(dtype: type) -> None:
    base, trained = (_of(np.full((2, 5), value).astype(dtype)) for value in (0.5, 0.1))
    found = changes(base, trained)
    again = with_changes(base, found)
    assert again is not None and again.array("w").tobytes() == trained.array("w").tobytes()


def _of(array: np.ndarray) -> Model:
    model = onnx.ModelProto()
    model.graph.initializer.append(onnx.numpy_helper.from_array(array, "w"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(["a"], object), "text"))
    return Model(model)


def test_of_another_model(base: Model) -> None:
    trained = base.copy()
    trained.set_array("w", np.eye(3, dtype=np.float32))
    found = changes(base, trained)
    for name, array in (
        ("w.kept", found["w.kept"][:1]),
        ("w.kept", found["w.kept"].astype(np.uint16)),
        ("w.bits", found["w.bits"][:1]),
        ("w.bits", found["w.bits"].astype(np.uint16)),
    ):
        assert with_changes(base, {**found, name: array}) is None
    assert with_changes(base, {"w.kept": found["w.kept"]}) is None
    assert with_changes(base, {"z.kept": found["w.kept"], "z.bits": found["w.bits"]}) is None
