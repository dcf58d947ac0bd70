from __future__ import annotations

import dataclasses
import doctest
import io
from pathlib import Path
from typing import Any, ClassVar

import pytest
from rich.console import Console

from onnxprune.report import text
from onnxprune.report.console import SYNTHETIC
from onnxprune.report.report import Report
from tests.unit.report.examples import SKIPPED, agreement, layer, report


def shown(made: Report, width: int = 100, encoding: str = "utf-8", **arguments: Any) -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    console = Console(file=stream, width=width, markup=False, highlight=False, emoji=False)
    text.render_report(console, made, **arguments)
    stream.seek(0)
    return stream.read()


def test_examples() -> None:
    result = doctest.testmod(text)
    assert result.attempted >= 1
    assert result.failed == 0


class TestHeadline:
    def test_says_size_sparsity_and_agreement(self) -> None:
        assert text.headline(report()) == (
            "3.0x smaller (90.4 -> 30.1 MB), 70.0 % of 10.6 M weights zero, "
            "agreement with the dense model: cosine 0.987, top-1 96.1 %"
        )

    def test_is_the_first_line(self) -> None:
        assert shown(report(), 200).splitlines()[0] == text.headline(report())

    def test_shouts_when_the_data_is_made_up(self) -> None:
        assert "(SYNTHETIC DATA)" in text.headline(report(synthetic=True))

    def test_names_the_users_metric_when_both_are_known(self) -> None:
        made = report(metric="t.py:accuracy", metric_before=0.821, metric_after=0.51)
        assert ", accuracy 0.821 -> 0.510" in text.headline(made)
        assert "accuracy" not in text.headline(report(metric="accuracy", metric_before=0.821))

    def test_dry_run_claims_no_file(self) -> None:
        line = text.headline(report(output=None, file_bytes_after=None))
        assert line.startswith("dry run, nothing written, 70.0 %")
        line = text.headline(report(output=None))
        assert line.startswith("dry run, nothing written: 3.0x smaller")
        assert "wrote" not in shown(report(output=None))

    def test_without_agreements(self) -> None:
        assert "agreement" not in text.headline(report(agreements=()))


class TestSummary:
    def test_quiet_is_the_verdict_only(self) -> None:
        made = report(verdict="broken", verdict_text="It is broken.")
        assert shown(made, 200, quiet=True).splitlines() == [text.headline(made), "It is broken."]

    def test_names_both_files(self) -> None:
        assert "model.pruned.onnx and model.pruned.json" in shown(report(), report_path="model.pruned.json")

    def test_paths_below_the_current_folder_are_short(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        made = report(output=str(tmp_path / "a" / "o.onnx"))
        assert "wrote  a/o.onnx and /elsewhere/r.json" in shown(made, 160, report_path="/elsewhere/r.json")
        external = dataclasses.replace(made, data_files=(f"{made.output}.data",))
        found = shown(external, 160, report_path="/elsewhere/r.json")
        assert "wrote  a/o.onnx, a/o.onnx.data and /elsewhere/r.json" in found

    def test_metric_row_has_the_change(self) -> None:
        made = report(metric="spearman", metric_before=0.8201, metric_after=0.8052)
        row = next(line for line in shown(made).splitlines() if line.startswith("spearman"))
        assert row.split() == ["spearman", "0.8201", "0.8052", "-0.0149"]
        better = report(metric="acc", metric_before=0.5, metric_after=0.6)
        assert "+0.100" in shown(better)
        assert "unchanged" in shown(report(metric="acc", metric_before=0.5, metric_after=0.5))

    def test_synthetic_data_is_shouted(self) -> None:
        output = shown(report(synthetic=True, data="random"), 160)
        assert output.count(SYNTHETIC) == 2
        assert SYNTHETIC not in shown(report(), 160)

    def test_stages_that_took_no_time_are_left_out(self) -> None:
        made = report(timings=[("load", 0.001, 0.001), ("solve", 10.0, 19.0), ("save", 2.0, 1.0)])
        output = shown(made, 120)
        assert "12.0 s (20.0 s of processor): solve 10.0 s, save 2.00 s" in output

    def test_parts_in_order(self) -> None:
        output = shown(report(skipped=SKIPPED, kernels_note="a note"), 120)
        parts = (
            "before",
            "agreement with the dense model\n",
            "2 layers\n",
            "a note",
            "14 weights left alone",
        )
        places = [output.index(part) for part in (*parts, "wrote")]
        assert places == sorted(places)

    @pytest.mark.parametrize("width", [60, 80, 100, 200])
    def test_fits_the_terminal(self, width: int) -> None:
        made = report(layers=[layer(i, name=f"m.{'x' * 200}.{i}") for i in range(40)], skipped=SKIPPED)
        assert max(map(len, shown(made, width).splitlines())) <= width

    def test_is_ascii_for_ascii_names(self) -> None:
        made = report(layers=[layer(i) for i in range(40)], skipped=SKIPPED)
        assert shown(made, 60, encoding="ascii")

    def test_names_cannot_reach_the_terminal_or_be_markup(self) -> None:
        nasty = "w\x1b[31m[bold]:smile:\n\r"
        made = report(
            layers=[layer(0, name=nasty, note=nasty)],
            skipped=[(nasty, nasty, 3, nasty)],
            data=nasty,
            output=nasty,
            metric=nasty,
            metric_before=1.0,
            metric_after=1.0,
            agreements=[agreement(name=nasty, note=nasty)],
            verdict_text=nasty,
        )
        output = shown(made, 200)
        assert "\x1b" not in output and "\r" not in output
        assert r"w\x1b[31m[bold]:smile:\n\r" in output


class TestKernels:
    def rendered(self, **changes: Any) -> str:
        stream = io.StringIO()
        text.render_report(Console(file=stream, width=140), report(**changes), "model.pruned.json")
        return stream.getvalue()

    def test_speed_of_the_model_and_its_layers(self) -> None:
        layers = (
            layer(0, kernel="SparseGap4MatMul", gain=2.13, kernel_note="measured alone"),
            layer(1, gain=0.97, kernel_note="a kernel is no faster"),
            layer(2, gain=0.93, kernel_note="a kernel is no faster"),
            layer(3, kernel="SparseGap4Gemm", gain=3, kernel_note="measured alone", dense_readers=1),
        )
        shown = self.rendered(layers=layers, kernels="measured", speed=((1, 1.84), (2, 1.62)))
        assert "1.6x faster" in shown.splitlines()[0]  # the worst number of threads
        assert "speed, 1 thread " in shown and "1.84x faster with the kernels" in shown
        assert "speed, 2 threads" in shown
        assert [line.split()[-1] for line in shown.splitlines() if " packed " in line] == [
            "2.1x", "dense", "dense", "dense",
        ]  # fmt: skip
        assert "3.0x + 1 dense" in shown
        (reason,) = [line for line in shown.splitlines() if line.startswith("runs dense, a kernel")]
        assert "layer.1." in reason and "layer.2." in reason and "layer.0." not in reason

    def test_nothing_measured(self) -> None:
        shown = self.rendered(layers=(layer(0),))
        assert "faster" not in shown and "speed" not in shown.replace("SYNTHETIC", "")

    def test_the_note(self) -> None:
        assert "no library: kernels" in self.rendered(kernels="table", kernels_note="no library: kernels ...")


class TestTraining:
    FOUND: ClassVar[dict[str, Any]] = {"steps": 60, "best": 56, "before": 0.17, "after": 0.145, "lr": 1e-4}

    def test_what_training_did(self) -> None:
        output = shown(report(finetuning=self.FOUND))
        assert "trained  60 steps, held-out loss 0.170 -> 0.145 (step 56, lr 0.0001)" in output
        assert "labels" not in output
        assert "hardly any less" not in output
        assert "the pruned weights were kept" in shown(report(finetuning={**self.FOUND, "best": 0}))
        little = {**self.FOUND, "after": 0.169}
        assert "hardly any less, more --minutes or samples" in shown(report(finetuning=little), 160)
        higher = shown(report(finetuning={**self.FOUND, "after": 0.18}), 160)
        assert "no lower, but within the scatter" in higher and "hardly" not in higher

    def test_labels(self) -> None:
        labels = {"key": "label", "count": 256, "output": "logits", "loss": "cross entropy"}
        output = shown(report(finetuning={**self.FOUND, "labels": labels}))
        assert "labels   256 from array label, cross entropy on output logits" in output
        own = {**labels, "output": None, "loss": None}
        assert "256 from array label, for --loss" in shown(report(finetuning={**self.FOUND, "labels": own}))
