from __future__ import annotations

import dataclasses
import doctest
import io
from pathlib import Path
from typing import Any, ClassVar

import pytest
from rich.console import Console

from onnxprune.report import text
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


def shown(made: Report, width: int = 100, encoding: str = "utf-8", **arguments: Any) -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    console = Console(file=stream, width=width, markup=False, highlight=False, emoji=False)
    text.render_report(console, made, **arguments)
    stream.seek(0)
    return stream.read()


def test_examples() -> None:
    result = doctest.testmod(text)
    assert result.attempted >= 3
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

    @pytest.mark.parametrize(
        ("before", "after", "words"),
        [
            (1000, 1001, "same size (1.00 -> 1.00 kB)"),
            (1000, 970, "3.0 % smaller (1.00 -> 0.970 kB)"),
            (1000, 500, "2.0x smaller (1.00 -> 0.500 kB)"),
            (1000, 1300, "30.0 % larger (1.00 -> 1.30 kB)"),
            (0, 0, "same size (0 -> 0 B)"),
        ],
    )
    def test_size_in_words(self, before: int, after: int, words: str) -> None:
        assert text.smaller(before, after) == words


class TestWorstAgreement:
    def test_takes_the_worst_output(self) -> None:
        items = [agreement(cosine=0.9, top1=0.8), agreement(cosine=0.99, top1=0.7)]
        assert text.worst_agreement(items) == "cosine 0.900, top-1 70.0 %"

    def test_classes_speak_for_the_model(self) -> None:
        hidden = agreement(name="hidden", cosine=0.2, top1=None, kl=None)
        assert text.worst_agreement([agreement(), hidden]) == "cosine 0.987, top-1 96.1 %"
        assert text.worst_agreement([hidden]) == "cosine 0.200"

    def test_integers_count_equal_values(self) -> None:
        exact = agreement(cosine=None, top1=None, equal=0.75)
        assert text.worst_agreement([exact]) == "75.0 % equal"

    def test_nothing_measured(self) -> None:
        assert text.worst_agreement([]) == ""
        assert text.worst_agreement([agreement(cosine=None, top1=None)]) == ""


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

    def test_few_layers_are_all_listed_without_ado(self) -> None:
        output = shown(report(), 120)
        assert "2 layers\n" in output
        assert "layer.0.attention.self.query.weight" in output

    def test_many_layers_are_cut_with_a_hint_to_the_rest(self) -> None:
        made = report(layers=[layer(i) for i in range(100)])
        output = shown(made, 120, report_path="r.json")
        assert f"100 layers, the {text.MAX_LAYERS} that matter most (all in r.json)" in output
        assert output.count("self.query.weight") == text.MAX_LAYERS
        assert "all with --json" in shown(made, 120)

    def test_notes_of_layers_are_shown(self) -> None:
        assert "damping raised to 0.1" in shown(report(layers=[layer(0, note="damping raised to 0.1")]), 120)

    def test_equal_notes_are_one_line(self) -> None:
        made = report(layers=[layer(i, name=f"w{i}", note="kept dense") for i in range(6)])
        assert "kept dense: w0, w1, w2, w3 and 2 more\n" in shown(made)

    def test_columns_without_values_are_left_out(self) -> None:
        assert "effect" not in shown(report())
        assert "effect" in shown(report(layers=[layer(0, sensitivity=0.1)]))

    def test_metric_row_has_the_change(self) -> None:
        made = report(metric="spearman", metric_before=0.8201, metric_after=0.8052)
        row = next(line for line in shown(made).splitlines() if line.startswith("spearman"))
        assert row.split() == ["spearman", "0.8201", "0.8052", "-0.0149"]
        better = report(metric="acc", metric_before=0.5, metric_after=0.6)
        assert "+0.100" in shown(better)
        assert "unchanged" in shown(report(metric="acc", metric_before=0.5, metric_after=0.5))

    def test_synthetic_data_is_shouted(self) -> None:
        output = shown(report(synthetic=True, data="random"), 160)
        assert output.count(text.SYNTHETIC) == 2
        assert text.SYNTHETIC not in shown(report(), 160)

    def test_stages_that_took_no_time_are_left_out(self) -> None:
        made = report(timings=[("load", 0.001, 0.001), ("solve", 10.0, 19.0), ("save", 2.0, 1.0)])
        output = shown(made, 120)
        assert "12.0 s (20.0 s of processor): solve 10.0 s, save 2.00 s" in output

    def test_note_about_what_cannot_be_compared(self) -> None:
        odd = agreement(
            name="text", kind={"family": "not compared", "axis": -1, "reason": ""}, rows=0, cosine=None,
            correlation=None, relative_error=None, kl=None, top1=None, note="no tensor",
        )  # fmt: skip
        assert "no tensor" in shown(report(agreements=[odd]), 120)
        assert "NaN or infinity" in shown(report(agreements=[agreement(finite=False)]), 160)

    def test_many_outputs_are_cut(self) -> None:
        made = report(agreements=[agreement(name=f"out{i}") for i in range(20)])
        assert f"and {20 - text.MAX_OUTPUTS} more outputs" in shown(made)

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


SKIPPED = (
    SkippedWeight("pos.weight", "Gather_3", 196608, "gathered with constant indices"),
    *(
        SkippedWeight(f"b{n}", "n", n, f"too small: {n} elements, --min-size is 256")
        for n in range(64, 76)
    ),
    SkippedWeight("head", "fc", 512, "excluded by --exclude head"),
)  # fmt: skip


class TestSkipped:
    def test_grouped_by_reason_largest_first(self) -> None:
        groups = text.group_reasons(SKIPPED)
        assert [(reason, len(items)) for reason, items in groups] == [
            ("gathered with constant indices", 1),
            ("too small", 12),
            ("excluded by --exclude head", 1),
        ]

    def test_equal_reasons_keep_their_whole_text(self) -> None:
        same = [SkippedWeight(name, "", 1, "a: b") for name in "xy"]
        assert text.group_reasons(same)[0][0] == "a: b"

    def test_nothing_lost_when_there_are_many_reasons(self) -> None:
        many = [SkippedWeight(f"w{i}", "", 100 - i, f"reason {i}") for i in range(20)]
        output = shown(report(skipped=many))
        assert f"and {20 - text.MAX_REASONS} more for other reasons" in output
        assert "20 weights left alone" in output


class TestMostTelling:
    def test_by_sensitivity_in_graph_order(self) -> None:
        layers = [layer(i, sensitivity=s) for i, s in enumerate((0.1, 0.9, None, 0.5))]
        assert text.most_telling(layers, 2) == [layers[1], layers[3]]

    def test_by_error_without_sensitivity(self) -> None:
        layers = [layer(i, error=e) for i, e in enumerate((0.1, 0.9, 0.5))]
        assert text.most_telling(layers, 2) == [layers[1], layers[2]]

    def test_by_size_without_any(self) -> None:
        layers = [layer(i, error=None, weights=w) for i, w in enumerate((5, 9, 7))]
        assert text.most_telling(layers, 1) == [layers[1]]


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

    def test_labels(self) -> None:
        labels = {"key": "label", "count": 256, "output": "logits", "loss": "cross entropy"}
        output = shown(report(finetuning={**self.FOUND, "labels": labels}))
        assert "labels   256 from array label, cross entropy on output logits" in output
        own = {**labels, "output": None, "loss": None}
        assert "256 from array label, for --loss" in shown(report(finetuning={**self.FOUND, "labels": own}))
