"""The figure: read back as an image, or looked into as SVG."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image

from onnxprune.errors import ResourceError, UsageError
from onnxprune.report.curves import NAMED, draw
from onnxprune.sensitivity import LayerSensitivity, SensitivityReport

LAYERS = tuple(
    LayerSensitivity(f"layer{k}.$weight$", "conv", 100, (1e-4 * k, 1e-2 * k), (0.1, 0.2), 0.5)
    for k in range(12)
)
REPORT = SensitivityReport("some/model.onnx", "x.npz", False, (0.5, 0.9), LAYERS, 0.5, {})


def test_an_image_with_lines(tmp_path: Path) -> None:
    draw(REPORT, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.size[0] > 1000 and len(image.convert("RGB").getcolors(10**6)) > 50


def test_the_most_sensitive_layers_are_named_and_bytes_repeat(tmp_path: Path) -> None:
    for name in ("a.svg", "b.SVG"):
        draw(REPORT, tmp_path / name)
    text = (tmp_path / "a.svg").read_text()
    assert text == (tmp_path / "b.SVG").read_text()
    named = [k for k in range(12) if f"layer{k}.$weight$" in text]
    assert named == list(range(12 - NAMED, 12))
    assert "divergence of the model's output" in text


def test_own_errors_where_outputs_were_not_measured(tmp_path: Path) -> None:
    layers = tuple(LayerSensitivity(f"l{k}", "conv", 1, (), (0.0, 0.5), 0.5) for k in range(2))
    draw(SensitivityReport("m", "", False, (0.5, 0.9), layers, 0.5, {}), tmp_path / "a.svg")
    assert "relative error of the layer" in (tmp_path / "a.svg").read_text()


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"ends in \.png or \.svg"):
        draw(REPORT, tmp_path / "a.pdf")
    draw(REPORT, tmp_path / "a.svg")
    with pytest.raises(UsageError, match="exists"):
        draw(REPORT, tmp_path / "a.svg")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ResourceError, match="matplotlib"):
        draw(REPORT, tmp_path / "b.svg")
