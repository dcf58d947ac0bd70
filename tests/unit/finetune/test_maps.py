"""Attention maps: which are found, and how far apart two of them are, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from onnxprune.finetune.batches import Taps
from onnxprune.finetune.maps import MOST, RANK, affordable, attention_maps, map_divergence
from tests.unit.attention.forms import NAMES, make, softmax
from tests.unit.finetune.networks import residual_net


@pytest.mark.parametrize("name", NAMES)
def test_maps_are_the_probabilities(name: str) -> None:
    case = make(name)
    found = attention_maps(case.model)
    if not found:  # one operator does all of it
        assert "Attention" in name
        return
    (value,) = Taps(case.model, found, case.feed)(case.feed).values()
    if value.ndim == RANK:
        np.testing.assert_allclose(np.nan_to_num(value), case.P, rtol=1e-4, atol=1e-6)


def test_a_network_of_convolutions_has_none() -> None:
    assert attention_maps(residual_net()) == ()


def test_the_last_maps_that_fit() -> None:
    quarter = MOST // 4
    assert affordable({"a": quarter, "b": quarter, "c": 2 * quarter}) == ("a", "b", "c")
    assert affordable({"a": 1, "b": 2 * quarter, "c": 2 * quarter}) == ("b", "c")
    assert affordable({"a": 1, "b": MOST, "c": 1}) == ("c",)
    assert affordable({"a": MOST + 1}) == affordable({}) == ()


def maps(seed: int, *shape: int) -> np.ndarray:
    return softmax(3 * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def both(student: np.ndarray, teacher: np.ndarray, mask: np.ndarray | None = None) -> float:
    tensors = (torch.from_numpy(array) for array in (student, teacher))
    return float(map_divergence(*tensors, None if mask is None else torch.from_numpy(mask)))


def test_divergence_per_query() -> None:
    q, p = maps(0, 2, 3, 5, 7), maps(1, 2, 3, 5, 7)
    assert both(q, p) == pytest.approx(float((p * np.log(p / q)).sum(-1).mean()), rel=1e-5)
    assert both(p, p) == 0
    p[..., 4:] = 0  # masked keys
    p /= p.sum(-1, keepdims=True)
    kept = p[..., :4]
    assert both(q, p) == pytest.approx(float((kept * np.log(kept / q[..., :4])).sum(-1).mean()), rel=1e-5)


def test_queries_of_padding_do_not_count() -> None:
    q, p = maps(2, 2, 3, 4, 4), maps(3, 2, 3, 4, 4)
    mask = np.array([[True, True, True, False], [True, False, False, False]])
    rows = (p * np.log(p / q)).sum(-1).mean(1)
    assert both(q, p, mask) == pytest.approx(float(rows[mask].mean()), rel=1e-5)
    assert both(q, p, mask[:, :3]) == pytest.approx(float(rows.mean()), rel=1e-5)


def test_gradient_leads_to_the_teacher_through_zeros() -> None:
    teacher = torch.from_numpy(maps(4, 1, 2, 3, 4))
    scores = torch.zeros(1, 2, 3, 4, requires_grad=True)
    masked = torch.tensor([0.0, 0.0, 0.0, -200.0])
    teacher = (teacher.log() + masked).softmax(-1)
    first = float(map_divergence((scores + masked).softmax(-1), teacher).detach())
    for _ in range(400):
        loss = map_divergence((scores + masked).softmax(-1), teacher)
        (gradient,) = torch.autograd.grad(loss, scores)
        assert gradient.isfinite().all()
        scores = (scores - 4 * gradient).detach().requires_grad_()
    assert float(loss.detach()) < 1e-3 * first
