from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

from onnxprune.attention.block import AttentionBlock, Projections, Rejected
from onnxprune.attention.maps import Gate
from onnxprune.inspection import AttentionInfo
from onnxprune.report import listing
from tests.unit.report.examples import shown


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
