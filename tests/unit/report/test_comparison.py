from __future__ import annotations

from dataclasses import replace

from onnxprune.agreement import Agreement
from onnxprune.compare import Comparison, OpCount, WeightZeros
from onnxprune.outputs import FEATURES, LOGITS, OutputKind
from onnxprune.report import comparison
from tests.unit.report.examples import shown

LOGITS_AGREE = Agreement("logits", OutputKind(LOGITS, -1), 256, cosine=0.99, top1=0.97, kl=0.01)

COMPARISON = Comparison(
    models=("a.onnx", "b.onnx"),
    file_bytes=(3_000_000, 1_000_000),
    tensor_bytes=(2_900_000, 900_000),
    ops=(OpCount("MatMul", 4, 0), OpCount("onnxprune.BitmapMatMul", 0, 4)),
    differences=(),
    weights=(
        WeightZeros("w", (8, 8), 64, 0, 32),
        WeightZeros("same", (8, 8), 64, 1, 1),
        WeightZeros("new", (4, 4), 16, None, 4),
    ),
    agreements=(LOGITS_AGREE,),
    verdict="ok",
    verdict_text="The models agree.",
    metric="tasks/t.py:accuracy",
    metric_values=(0.82, 0.8),
    data="x.npz: 256 samples",
)


class TestComparison:
    def test_verdict_first(self) -> None:
        lines = shown(comparison.render_comparison, COMPARISON).splitlines()
        assert lines[0] == ("b.onnx: 3.0x smaller (3.00 -> 1.00 MB), agreement: cosine 0.990, top-1 97.0 %")
        assert lines[1] == "The models agree."

    def test_both_sides(self) -> None:
        output = shown(comparison.render_comparison, COMPARISON)
        assert ["accuracy", "0.8200", "0.8000"] in [line.split() for line in output.splitlines()]
        assert "onnxprune.BitmapMatMul" in output
        assert "x.npz: 256 samples" in output

    def test_only_weights_that_differ_are_listed(self) -> None:
        output = shown(comparison.render_comparison, COMPARISON)
        assert ["w", "8x8", "0.0", "%", "50.0", "%"] in [line.split() for line in output.splitlines()]
        assert "same " not in output.split("weights that differ")[1]
        assert "not there" in output

    def test_interface_differences_are_shown_even_when_quiet(self) -> None:
        odd = replace(COMPARISON, differences=("input 'x' is float32, was int64",))
        assert not odd.agrees
        assert "interface: input 'x'" in shown(comparison.render_comparison, odd, quiet=True)

    def test_synthetic_data_is_shouted(self) -> None:
        output = shown(comparison.render_comparison, replace(COMPARISON, synthetic=True))
        assert "SYNTHETIC DATA: THE NUMBERS MEAN LITTLE" in output

    def test_long_lists_are_cut(self) -> None:
        many = replace(
            COMPARISON,
            weights=tuple(WeightZeros(f"w{i}", (4, 4), 16, 0, 8) for i in range(50)),
            ops=tuple(OpCount(f"Op{i}", 1, 2) for i in range(50)),
        )
        output = shown(comparison.render_comparison, many)
        assert f"({comparison.MAX_WEIGHTS} of 50, all with --json)" in output
        assert f"({comparison.MAX_OPS} of 50, all with --json)" in output

    def test_nothing_could_be_compared(self) -> None:
        bare = replace(COMPARISON, agreements=(), weights=(), ops=(), metric_values=None, verdict="broken")
        output = shown(comparison.render_comparison, bare)
        assert "zeros" in output and "unknown" in output
        assert "agreement:" not in output

    def test_features(self) -> None:
        hidden = Agreement("hidden", OutputKind(FEATURES), 9, cosine=0.5, correlation=0.4, relative_error=0.9)
        output = shown(comparison.render_comparison, replace(COMPARISON, agreements=(hidden,)))
        assert "cosine 0.500" in output.splitlines()[0] and "features" in output
