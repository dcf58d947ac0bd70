from __future__ import annotations

import io
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from onnxprune.agreement import Agreement
from onnxprune.attention.block import AttentionBlock, Projections, Rejected
from onnxprune.attention.maps import Gate
from onnxprune.compare import Comparison, OpCount, WeightZeros
from onnxprune.doctor import Check
from onnxprune.inspection import AttentionInfo
from onnxprune.outputs import FEATURES, LOGITS, OutputKind
from onnxprune.report import listing
from onnxprune.timing import BenchResult, ModelLoad, Ratio, Timing


def shown(draw: Any, *arguments: Any, width: int = 120, **options: Any) -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    draw(Console(file=stream, width=width, markup=False, highlight=False), *arguments, **options)
    stream.seek(0)
    output = stream.read()
    assert all(len(line) <= width for line in output.splitlines())
    return output


class TestChecks:
    CHECKS = (
        Check("python", "ok", "3.11"),
        Check("disk", "note", "little"),
        Check("onnx", "problem", "gone", "get it"),
    )

    def test_all_lines_and_the_verdict(self) -> None:
        output = shown(listing.render_checks, self.CHECKS)
        assert [line.split()[0] for line in output.splitlines()[:3]] == ["ok", "note", "problem"]
        assert "hint: get it" in output and "1 problem: see the hints above" in output

    def test_quiet_shows_problems_only(self) -> None:
        output = shown(listing.render_checks, self.CHECKS, quiet=True)
        assert "3.11" not in output and "gone" in output
        assert shown(listing.render_checks, self.CHECKS[:1], quiet=True) == "ready to prune\n"


@dataclass(frozen=True)
class Layer:
    name: str = "fc.weight"
    nodes: tuple[str, ...] = ("/fc",)
    kind: str = "gemm"
    shape: tuple[int, ...] = (10, 64)
    dtype: str = "float32"
    matrix: tuple[int, int, int] = (1, 10, 64)
    weights: int = 640
    bytes: int = 2560
    zeros: int = 0
    storage: str = "dense"


@dataclass(frozen=True)
class Skip:
    name: str
    node: str
    size: int
    reason: str


class TestInspection:
    RESULT = SimpleNamespace(
        attention=None,
        structure=None,
        layers=(Layer(), Layer(name="conv.weight", zeros=320)),
        skipped=(Skip("b", "n", 16, "too small: 16 elements"), Skip("e\x1b[1m", "n", 99, "quantized")),
        inputs={"x": "float32[N,64]"},
        outputs={"y": "float32[N,10]"},
    )

    def test_counts_layers_and_zeros(self) -> None:
        output = shown(listing.render_inspection, "m.onnx", self.RESULT)
        first = output.splitlines()[0]
        assert first == "m.onnx: 2 layers, 1.28 k prunable weights (5.12 kB), 25.0 % zero already"
        assert "in   x float32[N,64]" in output and "out  y float32[N,10]" in output
        assert "conv.weight" in output and "50.0 %" in output
        assert "2 weights left alone" in output and "quantized" in output and "\x1b" not in output

    def test_quiet_is_one_line(self) -> None:
        assert shown(listing.render_inspection, "m.onnx", self.RESULT, quiet=True).count("\n") == 1

    def test_nothing_to_prune(self) -> None:
        nothing = SimpleNamespace(
            layers=(), skipped=(), inputs={}, outputs={}, attention=None, structure=None
        )
        assert shown(listing.render_inspection, "m.onnx", nothing).startswith(
            "m.onnx: 0 layers, 0 prunable weights (0 B)\n"
        )


def test_export() -> None:
    result = SimpleNamespace(
        output="o.onnx",
        format="dense",
        tensors=1,
        file_bytes_before=1000,
        file_bytes_after=2500,
        kept_dense={},
        speed={},
        note="",
    )
    assert shown(listing.render_export, result) == (
        "o.onnx: 1 tensor stored as dense, 2.5x larger (1.00 -> 2.50 kB)\n"
    )


def test_export_says_what_it_kept() -> None:
    kept = {f"w{i}": "tied" for i in range(listing.MAX_WEIGHTS + 1)}
    result = SimpleNamespace(
        output="o.onnx", format="packed", tensors=1, file_bytes_before=9, file_bytes_after=9, kept_dense=kept,
        speed={2: 1.5}, note="",
    )  # fmt: skip
    output = shown(listing.render_export, result)
    assert "kept dense (16 of 17, all with --json)" in output and "w15  " in output and "w16" not in output
    assert shown(listing.render_export, result, quiet=True).splitlines()[1:] == [
        "1.50x faster with the kernels, 2 threads, on this machine"
    ]


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
        lines = shown(listing.render_comparison, COMPARISON).splitlines()
        assert lines[0] == ("b.onnx: 3.0x smaller (3.00 -> 1.00 MB), agreement: cosine 0.990, top-1 97.0 %")
        assert lines[1] == "The models agree."

    def test_both_sides(self) -> None:
        output = shown(listing.render_comparison, COMPARISON)
        assert ["accuracy", "0.8200", "0.8000"] in [line.split() for line in output.splitlines()]
        assert "onnxprune.BitmapMatMul" in output
        assert "x.npz: 256 samples" in output

    def test_only_weights_that_differ_are_listed(self) -> None:
        output = shown(listing.render_comparison, COMPARISON)
        assert ["w", "8x8", "0.0", "%", "50.0", "%"] in [line.split() for line in output.splitlines()]
        assert "same " not in output.split("weights that differ")[1]
        assert "not there" in output

    def test_interface_differences_are_shown_even_when_quiet(self) -> None:
        odd = replace(COMPARISON, differences=("input 'x' is float32, was int64",))
        assert not odd.agrees
        assert "interface: input 'x'" in shown(listing.render_comparison, odd, quiet=True)

    def test_synthetic_data_is_shouted(self) -> None:
        output = shown(listing.render_comparison, replace(COMPARISON, synthetic=True))
        assert "SYNTHETIC DATA: THE NUMBERS MEAN LITTLE" in output

    def test_long_lists_are_cut(self) -> None:
        many = replace(
            COMPARISON,
            weights=tuple(WeightZeros(f"w{i}", (4, 4), 16, 0, 8) for i in range(50)),
            ops=tuple(OpCount(f"Op{i}", 1, 2) for i in range(50)),
        )
        output = shown(listing.render_comparison, many)
        assert f"({listing.MAX_WEIGHTS} of 50, all with --json)" in output
        assert f"({listing.MAX_OPS} of 50, all with --json)" in output

    def test_nothing_could_be_compared(self) -> None:
        bare = replace(COMPARISON, agreements=(), weights=(), ops=(), metric_values=None, verdict="broken")
        output = shown(listing.render_comparison, bare)
        assert "zeros" in output and "unknown" in output
        assert "agreement:" not in output

    def test_features(self) -> None:
        hidden = Agreement("hidden", OutputKind(FEATURES), 9, cosine=0.5, correlation=0.4, relative_error=0.9)
        output = shown(listing.render_comparison, replace(COMPARISON, agreements=(hidden,)))
        assert "cosine 0.500" in output.splitlines()[0] and "features" in output


def timing(name: str, ratio: float, low: float, high: float, threads: int = 1) -> Timing:
    pair = Ratio(ratio, low, high, (low, high))
    return Timing(name, threads, 30, 300, 2.0 * ratio, 2.5, 1.9, 2.0, 0.04, pair, pair)


BENCH = BenchResult(
    models=(ModelLoad("a", "a.onnx", 3_000_000, 12.0, 11.0), ModelLoad("b", "b.onnx", 1_000_000, 20.0, 19.0)),
    timings=(timing("a", 1, 1, 1), timing("b", 0.5, 0.48, 0.55)),
    inputs={"x": "float32[1,64]"},
    data="synthetic",
    notes=("the machine is busy",),
    environment={"cpu": "Fake CPU", "platform": "Linux"},
)


class TestBench:
    def test_verdict_and_figures(self) -> None:
        output = shown(listing.render_bench, BENCH)
        assert output.splitlines()[0] == "b is 2.00x faster than a, 1 thread"
        assert "2.00x (1.82 to 2.08)" in output
        assert "note: the machine is busy" in output and "x float32[1,64]" in output
        assert "2.00 ms" in output and "12.0 ms" in output and "Fake CPU, Linux" in output

    @pytest.mark.parametrize(
        ("ratio", "words"),
        [
            ((2.0, 1.9, 2.1), "b is 2.00x slower than a, 1 thread"),
            ((1.003, 1.001, 1.005), "b is as fast as a (1.00x (1.00 to 1.00)), 1 thread"),
            ((1.0, 0.9, 1.1), "b is as fast as a within the noise (1.00x (0.91 to 1.11)), 1 thread"),
            ((float("nan"),) * 3, "b is too quick for this machine's clock, 1 thread"),
        ],
    )
    def test_verdicts(self, ratio: tuple[float, float, float], words: str) -> None:
        result = replace(BENCH, timings=(BENCH.timings[0], timing("b", *ratio)))
        assert listing.bench_verdicts(result) == [words]

    def test_one_line_per_number_of_threads(self) -> None:
        result = replace(
            BENCH, timings=(*BENCH.timings, timing("a", 1, 1, 1, 2), timing("b", 0.9, 0.8, 0.95, 2))
        )
        assert [line.split(", ")[1] for line in listing.bench_verdicts(result)] == ["1 thread", "2 threads"]

    def test_single_model_has_its_time(self) -> None:
        alone = replace(BENCH, models=BENCH.models[:1], timings=BENCH.timings[:1])
        assert listing.bench_verdicts(alone) == ["a takes 2.00 ms, 1 thread"]

    def test_quiet_is_the_verdict(self) -> None:
        assert shown(listing.render_bench, BENCH, quiet=True) == "b is 2.00x faster than a, 1 thread\n"


class TestAttention:
    BLOCK = AttentionBlock("softmax", "decomposed", 3, "c", heads=4, weights=Projections("q", "k", None, "o"))

    def test_everything_that_was_found(self) -> None:
        gate = Gate("mul", "x", "g", "y", ("w2", "w1"))
        found = AttentionInfo((self.BLOCK,), (gate,), (Rejected("last", "a classifier"),))
        lines = shown(listing.render_attention, found).splitlines()
        assert lines[1].split() == ["softmax", "decomposed", "4", "q", "k", "-", "o"]
        assert any(line.split() == ["mul", "w2,", "w1"] for line in lines)
        assert any(line.split(maxsplit=1) == ["last", "a classifier"] for line in lines)

    def test_nothing(self) -> None:
        output = shown(listing.render_attention, AttentionInfo((), (), ()))
        assert output == "no attention between tokens or channels\n"
