from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from onnxprune.report import agreement as module
from onnxprune.report.console import SYNTHETIC
from tests.unit.report.examples import agreement


def shown(agreements: Sequence[Mapping[str, Any]], synthetic: bool = False) -> str:
    stream = io.StringIO()
    module.render_agreements(Console(file=stream, width=160), agreements, synthetic)
    return stream.getvalue()


class TestWorstAgreement:
    def test_takes_the_worst_output(self) -> None:
        items = [agreement(cosine=0.9, top1=0.8), agreement(cosine=0.99, top1=0.7)]
        assert module.worst_agreement(items) == "cosine 0.900, top-1 70.0 %"

    def test_classes_speak_for_the_model(self) -> None:
        hidden = agreement(name="hidden", cosine=0.2, top1=None, kl=None)
        spoken_for = {**hidden, "kind": {**hidden["kind"], "counts": False}}
        assert module.worst_agreement([agreement(), spoken_for]) == "cosine 0.987, top-1 96.1 %"
        boxes = {**hidden, "kind": {**hidden["kind"], "counts": True}}
        assert module.worst_agreement([agreement(), boxes]) == "cosine 0.200, top-1 96.1 %"
        assert module.worst_agreement([spoken_for]) == "cosine 0.200"
        old = {key: value for key, value in hidden["kind"].items() if key != "counts"}
        assert module.worst_agreement([agreement(), {**hidden, "kind": old}]) == "cosine 0.987, top-1 96.1 %"
        assert module.worst_agreement([hidden]) == "cosine 0.200"

    def test_integers_count_equal_values(self) -> None:
        exact = agreement(cosine=None, top1=None, equal=0.75)
        assert module.worst_agreement([exact]) == "75.0 % equal"

    def test_nothing_measured(self) -> None:
        assert module.worst_agreement([]) == ""
        assert module.worst_agreement([agreement(cosine=None, top1=None)]) == ""


class TestTable:
    def test_note_about_what_cannot_be_compared(self) -> None:
        odd = agreement(
            name="text", kind={"family": "not compared", "axis": -1, "reason": ""}, rows=0, cosine=None,
            correlation=None, relative_error=None, kl=None, top1=None, note="no tensor",
        )  # fmt: skip
        assert "no tensor" in shown([odd])
        assert "NaN or infinity" in shown([agreement(finite=False)])

    def test_many_outputs_are_cut(self) -> None:
        many = [agreement(name=f"out{i}") for i in range(20)]
        assert f"and {20 - module.MAX_OUTPUTS} more outputs" in shown(many)

    def test_synthetic_data_is_in_the_title(self) -> None:
        assert shown([agreement()]).startswith("agreement with the dense model\n")
        title = shown([agreement()], synthetic=True).splitlines()[0]
        assert title == f"agreement with the dense model ({SYNTHETIC})"

    def test_nothing_to_show(self) -> None:
        assert shown([]) == ""
