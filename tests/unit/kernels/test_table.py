from __future__ import annotations

import pytest

from onnxprune.kernels.table import GAINS, MARGIN, expected_gain, kind_of


@pytest.mark.parametrize(
    ("consumer", "shape", "kind"),
    [
        ("MatMul", (768, 3072), "matmul"),
        ("Gemm", (10, 64), "matmul"),
        ("Conv", (64, 32, 1, 1), "conv1x1"),
        ("Conv", (64, 32, 1), "conv1x1"),
        ("Conv", (64, 32, 3, 1), "conv"),
    ],
)
def test_kinds(consumer: str, shape: tuple[int, ...], kind: str) -> None:
    assert kind_of(consumer, shape) == kind


def test_entries_are_what_was_measured() -> None:
    for (kind, group), points in GAINS.items():
        for density, gain in points.items():
            assert expected_gain(kind, group, density) == pytest.approx(gain)


@pytest.mark.parametrize("kind", ["matmul", "conv1x1", "conv"])
@pytest.mark.parametrize("group", [1, 2, 4, 8, 16])
def test_fewer_weights_are_never_slower(kind: str, group: int) -> None:
    gains = [expected_gain(kind, group, density / 100) for density in range(1, 101)]
    assert gains == sorted(gains, reverse=True)
    assert all(gain <= 100 / density for density, gain in enumerate(gains, 1) if density > 5)
    assert gains[-1] == 0.0  # dense


@pytest.mark.parametrize(
    ("kind", "group", "switched", "kept"),
    [
        ("matmul", 1, 0.5, 0.55),
        ("conv1x1", 1, 0.35, 0.45),
        ("conv", 1, 0.3, 0.35),
        ("conv", 4, 0.55, 0.65),
        ("matmul", 16, 0.6, 0.7),
    ],
)
def test_break_even(kind: str, group: int, switched: float, kept: float) -> None:
    assert expected_gain(kind, group, switched) >= MARGIN > expected_gain(kind, group, kept)
