"""A report and its parts to be rendered, and what a terminal shows."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from onnxprune.report.report import LayerReport, Report, SkippedWeight


def layer(position: int = 0, **changes: Any) -> LayerReport:
    values: dict[str, Any] = {
        "name": f"encoder.layer.{position}.attention.self.query.weight",
        "nodes": (f"/encoder/layer.{position}/MatMul",),
        "kind": "matmul",
        "shape": (384, 384),
        "weights": 147456,
        "zeros": 103219,
        "sparsity": 0.7,
        "pattern": "unstructured",
        "criterion": "obs",
        "error": 0.01 * position,
        "sensitivity": None,
        "stored": "packed",
        "dense_bytes": 589824,
        "stored_bytes": 195000,
    }
    return LayerReport(**{**values, **changes})


def agreement(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "name": "logits",
        "kind": {"family": "logits", "axis": -1, "reason": ""},
        "rows": 256,
        "cosine": 0.98712,
        "correlation": 0.981,
        "relative_error": 0.11,
        "max_abs": 1.0,
        "kl": 0.013,
        "top1": 0.961,
        "kappa": 0.95,
        "equal": None,
        "finite": True,
        "note": "",
    }
    return {**values, **changes}


def report(**changes: Any) -> Report:
    values: dict[str, Any] = {
        "model": "model.onnx",
        "output": "model.pruned.onnx",
        "model_digest": "",
        "recipe": {},
        "data": "sentences.txt: 256 samples",
        "synthetic": False,
        "file_bytes_before": 90_400_000,
        "file_bytes_after": 30_100_000,
        "weights": 10_614_528,
        "zeros": 7_430_170,
        "sparsity": 0.7,
        "layers": (layer(0), layer(1)),
        "agreements": (agreement(),),
        "verdict": "ok",
        "verdict_text": "",
    }
    return Report(**{**values, **changes})


SKIPPED = (
    SkippedWeight("pos.weight", "Gather_3", 196608, "gathered with constant indices"),
    *(
        SkippedWeight(f"b{n}", "n", n, f"too small: {n} elements, --min-size is 256")
        for n in range(64, 76)
    ),
    SkippedWeight("head", "fc", 512, "excluded by --exclude head"),
)  # fmt: skip


def shown(draw: Any, *arguments: Any, width: int = 120, **options: Any) -> str:
    """What ``draw(console, *arguments)`` writes: plain ASCII, no line longer than ``width``."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    draw(Console(file=stream, width=width, markup=False, highlight=False), *arguments, **options)
    stream.seek(0)
    output = stream.read()
    assert all(len(line) <= width for line in output.splitlines())
    return output
