"""Each convolution kernel at each level against numpy: odd shapes, patterns, epilogues, threads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.kernels.conv_library import Conv, ConvKernel, ConvLibrary, reference
from tests.kernels.matmul_library import ACTIVATIONS, Array


@pytest.fixture(scope="session")
def library(ops_library: Path) -> ConvLibrary:
    return ConvLibrary(ops_library)


def blocks(conv: Conv, size: int, density: float, seed: int = 0) -> Array:
    """A weight in which `size` rows of a group, from anywhere in it, share their columns."""
    rng = np.random.default_rng(seed)
    rows, cols = conv.weight_shape
    per_group = rows // conv.group
    masks = []
    for _ in range(conv.group):
        mask = np.repeat(rng.random((-(-per_group // size), cols)) < density, size, 0)[:per_group]
        masks.append(mask[rng.permutation(per_group)])
    # No zero among the values: it would be no entry, and break its block
    values = rng.uniform(0.5, 1, (rows, cols)) * rng.choice([-1, 1], (rows, cols))
    return (values * np.concatenate(masks)).astype(np.float32)


def normal(*shape: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def each(library: ConvLibrary, weight: Array, conv: Conv) -> Iterator[tuple[str, ConvKernel]]:
    """All kernels that take the weight, at all levels of this machine, and the choice of the table."""
    for level in library.levels:
        for name in [*library.kernels, None]:
            kernel = ConvKernel(library, name, level, weight, conv)
            if kernel.handle:
                yield f"{name} at {level}", kernel


def check(library: ConvLibrary, conv: Conv, weight: Array, **epilogue: Any) -> None:
    x = normal(*conv.x_shape)
    expected = reference(conv, x, weight, **epilogue)
    scale = max(1.0, float(reference(conv, np.abs(x), np.abs(weight)).max(initial=0)))
    found = list(each(library, weight, conv))
    assert len(found) >= 2 * len(library.levels)
    for name, kernel in found:
        for in_place in {False, epilogue.get("residual") is not None}:
            y = kernel(x, in_place=in_place, **epilogue)
            np.testing.assert_allclose(y, expected, rtol=1e-5, atol=2e-7 * scale, err_msg=f"{name} {conv}")


SHAPES = {
    "pointwise 7": Conv(40, 7, 7, 70, (1, 1)),
    "pointwise 14": Conv(64, 14, 14, 96, (1, 1)),
    "pointwise, one pixel": Conv(30, 1, 1, 17, (1, 1)),
    "pointwise, stride": Conv(12, 13, 11, 20, (1, 1), stride=(2, 2)),
    "pointwise, padded": Conv(8, 5, 6, 12, (1, 1), pads=(1, 0, 2, 3)),
    "3x3 at 7": Conv(24, 7, 7, 36, pads=(1, 1, 1, 1)),
    "3x3 at 7, rows shared out": Conv(128, 7, 7, 320, pads=(1, 1, 1, 1)),
    "grouped, rows shared out": Conv(160, 7, 6, 256, pads=(1, 1, 1, 1), group=2, batch=2),
    "pointwise, rows shared out": Conv(400, 7, 7, 500, (1, 1)),
    "3x3 at 14, batch": Conv(16, 14, 14, 20, pads=(1, 1, 1, 1), batch=3),
    "3x3 at 56": Conv(8, 56, 56, 12, pads=(1, 1, 1, 1)),
    "3x3 valid": Conv(8, 9, 30, 12),
    "3x3, stride 2": Conv(8, 15, 14, 12, stride=(2, 2), pads=(1, 1, 1, 1)),
    "3x3, stride 2, same upper": Conv(3, 32, 32, 16, stride=(2, 2), pads=(0, 0, 1, 1)),
    "3x3, strides differ": Conv(5, 20, 21, 9, stride=(1, 3), pads=(1, 1, 1, 1)),
    "3x3, dilated": Conv(6, 13, 17, 12, dilation=(2, 3), pads=(2, 3, 2, 3)),
    "3x3, dilated, stride 2": Conv(6, 20, 22, 8, stride=(2, 2), dilation=(2, 2), pads=(2, 2, 2, 2)),
    "3x3, dilation 3, stride 2": Conv(6, 20, 22, 8, stride=(2, 2), dilation=(3, 3), pads=(3, 3, 3, 3)),
    "5x3, uneven pads": Conv(7, 11, 12, 10, (5, 3), pads=(3, 0, 1, 2)),
    "1-D": Conv(16, 1, 50, 24, (1, 5), stride=(1, 2), pads=(0, 2, 0, 2)),
    "kernel as large as the input": Conv(6, 5, 4, 9, (5, 4)),
    "more padding than input": Conv(4, 2, 2, 8, (5, 5), pads=(4, 4, 4, 4)),
    "grouped": Conv(24, 9, 10, 36, pads=(1, 1, 1, 1), group=4),
    "grouped, 1x1": Conv(24, 9, 10, 36, (1, 1), group=3, batch=2),
    "depthwise 3x3": Conv(9, 14, 15, 9, pads=(1, 1, 1, 1), group=9, batch=2),
    "depthwise 3x3, wide": Conv(3, 112, 112, 3, pads=(1, 1, 1, 1), group=3),
    "depthwise 3x3, stride 2": Conv(6, 31, 18, 6, stride=(2, 2), pads=(0, 0, 1, 1), group=6),
    "depthwise 5x5": Conv(6, 7, 7, 6, (5, 5), pads=(2, 2, 2, 2), group=6),
    "depthwise 5x5, stride 2": Conv(6, 28, 27, 6, (5, 5), stride=(2, 2), pads=(2, 2, 2, 2), group=6),
    "depthwise 7x7": Conv(4, 40, 37, 4, (7, 7), pads=(3, 3, 3, 3), group=4),
    "depthwise, dilated": Conv(4, 19, 18, 4, dilation=(2, 2), pads=(2, 2, 2, 2), group=4),
    "depthwise, multiplier": Conv(4, 15, 17, 12, (5, 5), stride=(2, 2), pads=(2, 2, 2, 2), group=4),
    "depthwise 1-D": Conv(8, 1, 30, 8, (1, 3), pads=(0, 1, 0, 1), group=8),
}


def test_every_level_of_the_machine_is_tested(library: ConvLibrary) -> None:
    assert library.levels[-1] == "scalar"
    assert {"depthwise", "direct", "tile"} <= set(library.kernels)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("size", [1, 4])
def test_shapes(library: ConvLibrary, name: str, size: int) -> None:
    conv = SHAPES[name]
    residual = normal(*conv.y_shape, seed=2)
    check(library, conv, blocks(conv, size, 0.4), bias=normal(conv.out_channels), residual=residual)


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("kernel", [1, 3])
def test_patterns(library: ConvLibrary, size: int, kernel: int) -> None:
    pad = kernel // 2
    conv = Conv(70, 10, 10, 150, (kernel, kernel), pads=(pad, pad, pad, pad))
    check(library, conv, blocks(conv, size, 0.3), bias=normal(150))


@pytest.mark.parametrize("density", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("name", ["pointwise 7", "3x3 at 7", "grouped", "depthwise 3x3"])
def test_empty_rows_and_full_ones(library: ConvLibrary, name: str, density: float) -> None:
    conv = SHAPES[name]
    check(library, conv, blocks(conv, 1, density), bias=normal(conv.out_channels))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", ["pointwise 14", "3x3 at 14, batch", "depthwise 3x3", "3x3, stride 2"])
@pytest.mark.parametrize("added", [False, True])
def test_epilogues(library: ConvLibrary, name: str, activation: str, added: bool) -> None:
    conv = SHAPES[name]
    residual = normal(*conv.y_shape, seed=2) if added else None
    bias = normal(conv.out_channels)
    epilogue: dict[str, Any] = {"bias": bias, "residual": residual, "activation": activation}
    check(library, conv, blocks(conv, 4, 0.3), low=-0.5, high=1.5, **epilogue)


@pytest.mark.parametrize(
    "conv",
    [
        Conv(256, 14, 14, 256, pads=(1, 1, 1, 1)),
        Conv(96, 28, 28, 128, (1, 1)),
        Conv(64, 56, 56, 64, pads=(1, 1, 1, 1), group=64, batch=2),
    ],
)
def test_threads_change_nothing(library: ConvLibrary, conv: Conv) -> None:
    weight, x = blocks(conv, 2, 0.3), normal(*conv.x_shape)
    for name, kernel in each(library, weight, conv):
        if "scalar" not in name:
            np.testing.assert_array_equal(kernel(x), kernel(x, threads=3), err_msg=name)


def test_sizes_may_change_from_call_to_call(library: ConvLibrary) -> None:
    first = Conv(12, 9, 9, 16, pads=(1, 1, 1, 1))
    weight = blocks(first, 4, 0.4)
    for name, kernel in each(library, weight, first):
        for conv in (
            first,
            replace(first, height=20, width=31, batch=2),
            first,
            replace(first, height=3, width=2),
        ):
            x = normal(*conv.x_shape)
            np.testing.assert_allclose(
                kernel(x, conv=conv), reference(conv, x, weight), rtol=1e-5, atol=1e-5, err_msg=name
            )


def test_a_sparse_kernel_is_smaller_than_the_weight(library: ConvLibrary) -> None:
    conv = Conv(128, 7, 7, 128, pads=(1, 1, 1, 1))
    weight = blocks(conv, 1, 0.3)
    for name, kernel in each(library, weight, conv):
        kernel(normal(*conv.x_shape))
        assert 0 < kernel.bytes < 0.95 * weight.nbytes, name


@st.composite
def convs(draw: st.DrawFn) -> Conv:
    group = draw(st.integers(1, 4))
    pair = st.tuples
    return Conv(
        group * draw(st.integers(1, 9)),
        draw(st.integers(1, 34)),
        draw(st.integers(1, 34)),
        group * draw(st.integers(1, 9)),
        draw(pair(st.integers(1, 5), st.integers(1, 5))),
        draw(pair(st.integers(1, 3), st.integers(1, 3))),
        draw(pair(st.integers(1, 3), st.integers(1, 3))),
        draw(pair(*[st.integers(0, 5)] * 4)),
        group,
        draw(st.integers(1, 3)),
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(conv=convs(), size=st.sampled_from([1, 2, 4, 8]), density=st.floats(0, 1), seed=st.integers(0, 99))
def test_any_convolution(library: ConvLibrary, conv: Conv, size: int, density: float, seed: int) -> None:
    assume(min(conv.out) >= 1)
    check(library, conv, blocks(conv, size, density, seed), bias=normal(conv.out_channels))
