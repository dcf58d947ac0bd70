"""Each MatMul kernel at each level against numpy: odd shapes, patterns, epilogues, threads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kernels.matmul_library import ACTIVATIONS, Array, Kernels, MatMul, activate, reference


@pytest.fixture(scope="session")
def library(ops_library: Path) -> Kernels:
    return Kernels(ops_library)


def blocks(rows: int, cols: int, size: int, density: float, seed: int = 0, *, free: bool = False) -> Array:
    """A weight whose blocks of `size` rows share their columns; free: the rows of a block lie anywhere."""
    rng = np.random.default_rng(seed)
    mask = np.repeat(rng.random((-(-rows // size), cols)) < density, size, 0)[:rows]
    if free:
        mask = mask[rng.permutation(rows)]
    # No zero among the values: it would be no entry, and break its block
    values = rng.uniform(0.5, 1, (rows, cols)) * rng.choice([-1, 1], (rows, cols))
    return (values * mask).astype(np.float32)


def normal(*shape: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def each(library: Kernels, weight: Array) -> Iterator[tuple[str, MatMul]]:
    """All kernels that take the weight, at all levels of this machine, and the choice of the table."""
    for level in library.levels:
        for kernel in [*library.kernels, None]:
            found = MatMul(library, kernel, level, weight)
            if found.handle:
                yield f"{kernel} at {level}", found


def check(library: Kernels, weight: Array, x: Array, **epilogue: Any) -> None:
    expected = reference(x, weight, **epilogue)
    # Of the sums that the result is the end of: cancellation is not the kernel's error
    scale = max(1.0, float((np.abs(x) @ np.abs(weight.T)).max(initial=0)))
    for name, kernel in each(library, weight):
        for in_place in {False, epilogue.get("residual") is not None}:
            y = kernel(x, in_place=in_place, **epilogue)
            np.testing.assert_allclose(y, expected, rtol=1e-5, atol=2e-7 * scale, err_msg=name)


def test_every_level_of_the_machine_is_tested(library: Kernels) -> None:
    assert library.levels[-1] == "scalar"
    assert len(set(library.kernels)) == len(library.kernels) >= 3


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("free", [False, True])
def test_patterns(library: Kernels, size: int, free: bool) -> None:
    weight = blocks(304, 530, size, 0.3, free=free)
    for rows in (1, 5, 33):
        check(library, weight, normal(rows, 530))


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 31, 47, 49, 64, 95, 129])
def test_rows_of_x(library: Kernels, rows: int) -> None:
    weight = np.concatenate([blocks(48, 70, 16, 0.4), blocks(23, 70, 1, 0.3)])
    check(library, weight, normal(rows, 70), bias=normal(71, seed=2))


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 300), (3, 7), (5, 255), (16, 256), (17, 257), (130, 513), (700, 3)]
)
@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 1.0])
def test_shapes(library: Kernels, shape: tuple[int, int], density: float) -> None:
    for size in (1, 4):
        weight = blocks(*shape, size, density)
        for rows in (1, 19):
            check(library, weight, normal(rows, shape[1]), bias=normal(shape[0], seed=3))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("add", [False, True])
def test_epilogue(library: Kernels, activation: str, add: bool) -> None:
    for size in (1, 4, 16):
        weight, x = blocks(83, 60, size, 0.4), normal(21, 60)
        residual = normal(21, 83, seed=5) if add else None
        for rows in (3, 21):
            part = None if residual is None else residual[:rows]
            check(
                library,
                weight,
                x[:rows],
                bias=normal(83, seed=4),
                residual=part,
                activation=activation,
                low=-0.5,
                high=1.5,
            )


@pytest.mark.parametrize("beta", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
def test_layer_norm(library: Kernels, beta: bool, threads: int) -> None:
    for size, free in ((1, False), (4, True), (16, False)):
        weight = blocks(331, 200, size, 0.3, free=free)
        for rows in (1, 40, 130):
            check(
                library,
                weight,
                normal(rows, 200),
                bias=normal(331, seed=2),
                residual=normal(rows, 331, seed=3),
                gamma=normal(331, seed=4),
                beta=normal(331, seed=5) if beta else None,
                threads=threads,
            )


@pytest.mark.parametrize("size", [1, 4, 16])
@pytest.mark.parametrize("free", [False, True])
def test_threads_change_nothing(library: Kernels, size: int, free: bool) -> None:
    weight, x = blocks(1040, 300, size, 0.5, free=free), normal(260, 300)
    for name, kernel in each(library, weight):
        one = kernel(x, bias=normal(1040))
        for _ in range(3):
            np.testing.assert_array_equal(kernel(x, bias=normal(1040), threads=4), one, err_msg=name)


@pytest.mark.parametrize("shape", [(1100, 600), (200, 9000)])
def test_many_rows_of_x_come_in_bands(library: Kernels, shape: tuple[int, int]) -> None:
    """Many tiles, a task each; and few that are so high that they are worked on one after another."""
    rows, cols = shape
    for free in (False, True):
        weight = blocks(40, cols, 4, 60 / cols, free=free)
        check(library, weight, normal(rows, cols), residual=normal(rows, 40, seed=2), threads=2)


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "silu", "hardswish"])
def test_activations_are_exact_enough(library: Kernels, activation: str) -> None:
    x = np.concatenate(
        [np.linspace(-12, 12, 4001), np.geomspace(1e-30, 1e4, 500), -np.geomspace(1e-30, 80, 500)]
    )
    x = x.astype(np.float32)[:, None]
    with np.errstate(over="ignore"):
        expected = activate(x.astype(np.float64), activation)
    for name, kernel in each(library, np.ones((1, 1), np.float32)):
        found = kernel(x, activation=activation)
        # erf is good to 4e-7, times x: where 1 + erf cancels only the absolute error is small
        np.testing.assert_allclose(found, expected, rtol=1.5e-6, atol=2e-6, err_msg=name)


def test_not_a_number_and_infinity_pass(library: Kernels) -> None:
    weight = np.eye(9, dtype=np.float32)
    x = np.ones((9, 9), np.float32)
    x[2] = np.nan
    x[5] = np.inf
    for activation in ("none", "relu", "clip"):
        for name, kernel in each(library, np.ascontiguousarray(weight[:, :9])):
            y = kernel(x, activation=activation, low=0.0, high=3.0)
            assert np.isnan(y[2]).all(), name
            assert np.isfinite(y[[0, 1, 3, 4, 6, 7, 8]]).all(), name
            # A padded row may meet infinity with a zero weight, as in the dense product
            assert (np.isnan(y[5]) | (y[5] == (3.0 if activation == "clip" else np.inf))).all(), name


def test_first_few_rows_then_many(library: Kernels) -> None:
    """A weight may want another layout for one row of X than for many: both are built of what is held."""
    for weight in (blocks(96, 300, 16, 0.3), blocks(96, 300, 4, 0.3), blocks(96, 300, 1, 0.3)):
        for tokens in (0, 1, 128):
            for level in library.levels:
                kernel = MatMul(library, None, level, weight, tokens)
                for rows in (1, 64, 2):
                    x = normal(rows, 300)
                    np.testing.assert_allclose(kernel(x), reference(x, weight), rtol=1e-5, atol=1e-4)


def test_the_table_knows_blocks(library: Kernels) -> None:
    """Blocks of 16 rows are worth vectors of outputs for one row of X, rows of their own never."""
    for level in library.levels:
        assert library.choice(blocks(256, 256, 16, 0.3), 1, level) == "token16"
        assert not library.choice(blocks(256, 256, 1, 0.3), 128, level).startswith("token")


def test_memory_is_below_the_dense_weight(library: Kernels) -> None:
    for size, density in ((1, 0.5), (4, 0.7), (16, 0.7)):
        weight = blocks(512, 512, size, density)
        for level in library.levels:
            assert MatMul(library, None, level, weight, 128).bytes < 0.9 * weight.nbytes


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_weight(library: Kernels, data: st.DataObject) -> None:
    rows, cols, tokens = (data.draw(st.integers(1, most)) for most in (90, 600, 70))
    size = data.draw(st.sampled_from([1, 2, 3, 4, 7, 8, 16, 32]))
    density, seed = data.draw(st.floats(0, 1)), data.draw(st.integers(0, 2**31))
    weight = blocks(rows, cols, size, density, seed, free=data.draw(st.booleans()))
    check(
        library,
        weight,
        normal(tokens, cols, seed=seed + 1),
        bias=normal(rows) if data.draw(st.booleans()) else None,
        residual=normal(tokens, rows, seed=9) if data.draw(st.booleans()) else None,
        activation=data.draw(st.sampled_from(ACTIVATIONS)),
        low=-1.0,
        high=2.0,
        threads=data.draw(st.sampled_from([1, 2])),
    )
