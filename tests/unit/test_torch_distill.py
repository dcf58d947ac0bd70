"""``scripts/torch_distill.py``: what other tools' models are trained with has to teach them something."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "torch_distill.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("torch_distill", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_divergence_by_hand(script: ModuleType) -> None:
    teacher = torch.tensor([[0.75, 0.25], [0.5, 0.5]]).log()
    student = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log()
    first = 0.75 * torch.tensor(1.5).log() + 0.25 * torch.tensor(0.5).log()
    assert script.divergence(student, teacher).item() == pytest.approx(float(first) / 2, rel=1e-5)
    assert script.divergence(teacher + 3, teacher).item() == pytest.approx(0, abs=1e-6)


def test_the_rate_rises_and_falls(script: ModuleType) -> None:
    rates = [script.cycle(k / 100) for k in range(101)]
    assert rates[0] == 0 and max(rates) == rates[10] == 1 and rates[100] == pytest.approx(0)
    assert rates[:11] == sorted(rates[:11]) and rates[10:] == sorted(rates[10:], reverse=True)


def test_images_are_moved_and_mirrored(script: ModuleType) -> None:
    image = torch.arange(64.0).reshape(1, 1, 8, 8).repeat(200, 1, 1, 1)
    found = script.changed(image, torch.Generator().manual_seed(0))
    assert found.shape == image.shape
    centres = {tuple(part[0, 3, 3:5].int().tolist()) for part in found}
    moves = {(27 + 8 * y + x, 28 + 8 * y + x) for y in (-1, 0, 1) for x in (-1, 0, 1)}
    assert centres == moves | {(b, a) for a, b in moves}
    tokens = torch.ones(4, 6)
    assert script.changed(tokens, torch.Generator()) is tokens


def test_a_student_learns(script: ModuleType) -> None:
    torch.manual_seed(0)
    teacher = nn.Linear(6, 3)
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        student.weight.zero_()
    inputs = torch.randn(128, 6)
    before = script.divergence(student(inputs), teacher(inputs)).item()
    assert script.distill(student, teacher, inputs, 0.4, rate=0.05, size=16, processor=True) > 10
    assert script.divergence(student(inputs), teacher(inputs)).item() < 0.3 * before
