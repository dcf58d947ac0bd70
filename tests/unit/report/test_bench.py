from __future__ import annotations

from dataclasses import replace

import pytest

from onnxprune.report import bench
from onnxprune.timing import BenchResult, ModelLoad, Ratio, Timing
from tests.unit.report.examples import shown


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
        output = shown(bench.render_bench, BENCH)
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
        assert bench.bench_verdicts(result) == [words]

    def test_one_line_per_number_of_threads(self) -> None:
        result = replace(
            BENCH, timings=(*BENCH.timings, timing("a", 1, 1, 1, 2), timing("b", 0.9, 0.8, 0.95, 2))
        )
        assert [line.split(", ")[1] for line in bench.bench_verdicts(result)] == ["1 thread", "2 threads"]

    def test_single_model_has_its_time(self) -> None:
        alone = replace(BENCH, models=BENCH.models[:1], timings=BENCH.timings[:1])
        assert bench.bench_verdicts(alone) == ["a takes 2.00 ms, 1 thread"]

    def test_quiet_is_the_verdict(self) -> None:
        assert shown(bench.render_bench, BENCH, quiet=True) == "b is 2.00x faster than a, 1 thread\n"
