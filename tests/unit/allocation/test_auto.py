"""Patterns and sparsities chosen for a speed, or for a damage."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.allocation.auto import CANDIDATES, Choice, Choices, fastest, least_damage
from onnxprune.allocation.budget import GRID, Curve

SIZE = 1000


def choices(seed: int, patterns: int = 4) -> Choices:
    """Damage grows with the sparsity and the height of blocks, time falls with both."""
    rng = np.random.default_rng(seed)
    cost = Curve(SIZE, (0.6, 0.85), tuple(np.sort(rng.random(2) * [0.1, 1]).tolist())).on_grid()
    worse = np.array([1.0, 2.0, 2.5, 3.0])[:patterns, None]
    overhead = np.array([0.5, 0.3, 0.28, 0.25])[:patterns, None]
    relative = np.minimum(1.0, overhead + 1 - GRID)
    return Choices(SIZE, float(rng.integers(1, 10)), CANDIDATES[:patterns], cost * worse, relative)


LAYERS = {f"w{seed}": choices(seed) for seed in range(6)}
DENSE = sum(layer.time for layer in LAYERS.values())


def total(found: dict[str, Choice]) -> tuple[float, float]:
    return sum(c.cost for c in found.values()), sum(c.time for c in found.values())


@pytest.mark.parametrize("speedup", [1.0, 1.3, 2.0, 2.5])
def test_the_speed_is_reached_and_hardly_exceeded(speedup: float) -> None:
    cost, time = total(least_damage(LAYERS, speedup))
    assert time <= DENSE / speedup * (1 + 1e-9)
    assert time >= DENSE / speedup * 0.85
    if speedup == 1.0:
        assert cost == 0


@pytest.mark.parametrize("damage", [0.0, 0.01, 0.1, 1.0])
def test_the_damage_is_kept_to(damage: float) -> None:
    cost, time = total(fastest(LAYERS, damage))
    assert cost <= damage
    assert time < DENSE or damage == 0


def test_more_of_one_is_less_of_the_other() -> None:
    damages = [total(least_damage(LAYERS, s))[0] for s in (1.2, 1.6, 2.0, 2.4)]
    assert damages == sorted(damages) and damages[0] < damages[-1]
    times = [total(fastest(LAYERS, d))[1] for d in (0.01, 0.1, 1.0)]
    assert times == sorted(times, reverse=True) and times[0] > times[-1]


@pytest.mark.parametrize("speedup", [1.5, 2.0])
def test_more_patterns_never_do_more_damage(speedup: float) -> None:
    one = {name: choices(seed, 1) for seed, name in enumerate(LAYERS)}
    assert total(least_damage(LAYERS, speedup))[0] <= total(least_damage(one, speedup))[0]


def test_no_choice_at_the_same_price_is_better() -> None:
    """Lagrange: whatever is as fast as what was found does at least its damage."""
    layers = {name: LAYERS[name] for name in ("w0", "w1")}
    found = least_damage(layers, 1.8)
    cost, time = total(found)
    a, b = layers.values()
    costs = (a.cost[:, :, None, None] + b.cost[None, None]).ravel()
    times = (a.time * a.relative[:, :, None, None] + b.time * b.relative[None, None]).ravel()
    assert costs[times <= time * (1 + 1e-12)].min() >= cost * (1 - 1e-9)


def test_what_cannot_be_reached_is_approached() -> None:
    _, time = total(least_damage(LAYERS, 100.0))
    assert time == pytest.approx(
        sum(layer.time * layer.relative[np.isfinite(layer.cost)].min() for layer in LAYERS.values())
    )


def test_a_layer_that_stays_dense_has_no_pattern() -> None:
    for choice in least_damage(LAYERS, 1.0).values():
        assert choice == Choice(CANDIDATES[0], 0, 0.0, choice.time)


def test_nothing_to_choose() -> None:
    assert fastest({}, 1.0) == least_damage({}, 2.0) == {}
