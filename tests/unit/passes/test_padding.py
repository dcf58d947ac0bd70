from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from onnxprune.model import Model
from onnxprune.passes.padding import Pads, automatic_pads

Build = Callable[..., onnx.ModelProto]


@pytest.mark.parametrize(
    ("kind", "kernel", "dilation", "wanted"),
    [
        ("VALID", (3, 4), 1, [0, 0, 0, 0]),
        ("SAME_UPPER", (3, 4), 1, [1, 1, 1, 2]),
        ("SAME_LOWER", (3, 4), 1, [1, 2, 1, 1]),
        ("SAME_UPPER", (4,), 2, [3, 3]),
        ("SAME_LOWER", (2,), 3, [2, 1]),
    ],
)
def test_automatic_pads(kind: str, kernel: tuple[int, ...], dilation: int, wanted: list[int]) -> None:
    ones = [1] * len(kernel)
    assert automatic_pads(kind, kernel, ones, [dilation] * len(kernel)) == wanted


def test_automatic_pads_of_strides_depend_on_the_input() -> None:
    assert automatic_pads("SAME_UPPER", (3, 3), (2, 1), (1, 1)) is None
    assert automatic_pads("VALID", (3, 3), (2, 1), (1, 1)) == [0, 0, 0, 0]


def before(
    build: Build, body: str, pads: list[int], value: str = "p", space: int = 2
) -> tuple[int, list[int]] | None:
    text = f"g (float[N, 8, 9, 9] x) => (float[N, C, H, W] y) {{ {body} }}"
    model = Model(build(text, {"pads": np.array(pads)}))
    return Pads(model).before(value, space)


def test_spatial_pads_with_their_position(build_model: Build) -> None:
    body = "n = Neg(x) p = Pad(n, pads) y = Relu(p)"
    assert before(build_model, body, [0, 0, 1, 2, 0, 0, 3, 4]) == (1, [1, 2, 3, 4])
    assert before(build_model, body, [0, 0, 1, 2, 0, 0, 3, 4], "n") is None
    assert before(build_model, body, [0, 0, 1, 2, 0, 0, 3, 4], "x") is None


@pytest.mark.parametrize("pads", [[0, 1, 0, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0, -1, 0]])
def test_pads_of_other_axes_or_cuts(build_model: Build, pads: list[int]) -> None:
    assert before(build_model, "p = Pad(x, pads) y = Relu(p)", pads) is None


def test_pads_of_another_number_of_axes(build_model: Build) -> None:
    pads = [0, 0, 1, 1, 0, 0, 1, 1]
    assert before(build_model, "p = Pad(x, pads) y = Relu(p)", pads, space=1) is None


def test_a_value_that_others_read_too(build_model: Build) -> None:
    pads = [0, 0, 1, 1, 0, 0, 1, 1]
    assert before(build_model, "p = Pad(x, pads) a = Relu(p) y = Add(a, p)", pads) is None
