from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from onnxprune.report.curve import judged_on, render_search

POINT: dict[str, Any] = {
    "sparsity": 0.5,
    "zeros": 50,
    "bytes": 1_500_000,
    "metric": 80.123,
    "agreement": 0.98,
    "final_metric": 79.9,
    "final_agreement": 0.97,
    "tuned": 0,
    "holds": True,
    "why": "",
    "seconds": 1.0,
}
SEARCH: dict[str, Any] = {
    "dense_metric": 80.5,
    "metric_bound": 79.5,
    "agreement_bound": 0.96,
    "own_data": False,
    "selection_samples": 128,
    "final_samples": 100,
    "chosen": 0.7,
    "stopped": "the bracket closed",
    "notes": [],
    "points": [
        POINT,
        {**POINT, "sparsity": 0.7, "tuned": 40},
        {**POINT, "sparsity": 0.9, "metric": None, "final_metric": None, "holds": False, "why": "too bad"},
    ],
}


def shown(search: dict[str, Any]) -> list[str]:
    text = io.StringIO()
    render_search(Console(file=text, width=140), search)
    return [" ".join(line.split()) for line in text.getvalue().splitlines()]


def test_table() -> None:
    lines = shown(SEARCH)
    assert lines[0] == "3 models were tried for a metric of 79.50 (dense 80.50) and an agreement of 0.9600"
    assert lines[2] == "0.50 1.50 MB 80.12 0.9800 79.90 0.9700 holds"
    assert lines[3] == "0.70 1.50 MB 80.12 0.9800 79.90 0.9700 40 steps chosen"
    assert lines[4] == "0.90 1.50 MB 0.9800 0.9700 too bad"
    assert lines[5] == "128 samples chose the model, 100 samples that chose nothing judge it (final)"


def test_a_metric_with_its_own_samples_is_said_to_have_chosen() -> None:
    assert "the metric's own samples chose the model" in judged_on({**SEARCH, "own_data": True})
    assert "79.90" not in " ".join(shown({**SEARCH, "own_data": True}))  # it is the same number again
    agreement_only = {**SEARCH, "own_data": True, "metric_bound": None, "dense_metric": None}
    assert "chose nothing judge it" in judged_on(agreement_only)


def test_a_search_that_found_nothing() -> None:
    lines = shown({**SEARCH, "chosen": None, "metric_bound": None, "points": SEARCH["points"][2:]})
    assert lines[0] == "1 model was tried for an agreement of 0.9600"
