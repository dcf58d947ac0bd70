"""Single layers: our kernels against ONNX Runtime's dense ones, and against its int8 ones.

    python scripts/bench_kernels.py [--shapes TEXT ...] [--sparsity 0.5,0.7,0.8,0.9]
                                    [--patterns 1,4,16] [--threads 1,2] [--no-int8]

A shape is MxKxN for a MatMul of M rows, or conv:C,H,W,N,k[,stride] for a convolution of batch 1 (padded
so that stride 1 keeps the size). A pattern is the number of output rows that share their columns (1:
unstructured, 4: 4x1); which rows share is random, as the kernels take any. Weights are random: only where
the zeros lie matters. All sessions of a line run in one process in turns, the fastest turn of each counts
(``onnxprune.kernels.stopwatch``); printed is dense time over ours. int8 is ONNX Runtime's dynamic
quantization for a MatMul and static QDQ with per-channel weights for a convolution.

To see what an AVX2 machine would do, hide the wider sets from the whole process: scripts/as_avx2.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

from onnxprune import opsinfo, runtime
from onnxprune.kernels.stopwatch import QUIET, best_times
from onnxprune.model import Model
from onnxprune.passes.pack import pack
from onnxprune.passes.shapes import Shapes, infer, observe
from onnxprune.passes.sparse_ops import find_chains, longest, rewrite

SHAPES = (
    "128x768x768",
    "128x768x3072",
    "128x3072x768",
    "512x768x768",
    "16x768x3072",
    "1x768x3072",
    "128x384x1536",
    "conv:64,56,56,256,1",
    "conv:256,14,14,1024,1",
    "conv:2048,7,7,512,1",
    "conv:64,56,56,64,3",
    "conv:256,14,14,256,3",
)


@dataclass(frozen=True)
class Layer:
    """A MatMul or convolution to measure: its node, the shapes of input and stored weight."""

    text: str
    op: str
    x: tuple[int, ...]
    weight: tuple[int, ...]
    attributes: dict[str, Any]

    @classmethod
    def parse(cls, text: str) -> Layer:
        """Read MxKxN or conv:C,H,W,N,k[,stride]."""
        if not text.startswith("conv:"):
            m, k, n = map(int, text.split("x"))
            return cls(text, "MatMul", (m, k), (k, n), {})
        c, h, w, n, k, *rest = map(int, text.removeprefix("conv:").split(","))
        stride = rest[0] if rest else 1
        attributes = {"kernel_shape": [k, k], "pads": [k // 2] * 4, "strides": [stride] * 2}
        return cls(text, "Conv", (1, c, h, w), (n, c, k, k), attributes)

    def model(self, weight: NDArray[np.float32]) -> Model:
        """Return the layer as a model with input x, output y."""
        node = helper.make_node(self.op, ["x", "w"], ["y"], **self.attributes)
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            [node],
            "layer",
            [value("x", TensorProto.FLOAT, self.x)],
            [value("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(weight, "w")],
        )
        return Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))

    def random_weight(self, sparsity: float, rows: int, rng: np.random.Generator) -> NDArray[np.float32]:
        """Return a stored weight whose output rows share their zeros in random groups of ``rows``."""
        stored = rng.standard_normal(self.weight, np.float32)
        matrix = stored.reshape(stored.shape[0], -1) if self.op == "Conv" else stored.T
        outputs, columns = matrix.shape
        groups = -(-outputs // rows)
        keep = np.ones(groups * columns, bool)
        keep[: round(sparsity * keep.size)] = False
        keep = np.repeat(rng.permutation(keep).reshape(groups, columns), rows, axis=0)[:outputs]
        matrix = np.where(keep[rng.permutation(outputs)], matrix, np.float32(0))
        return np.ascontiguousarray(matrix.reshape(stored.shape) if self.op == "Conv" else matrix.T)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=SHAPES)
    parser.add_argument("--sparsity", default="0.5,0.7,0.8,0.9")
    parser.add_argument("--patterns", default="1,4,16")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--seconds", type=float, default=1.0, help="of turns for each line")
    parser.add_argument("--no-int8", action="store_true")
    options = parser.parse_args()
    sparsities = [float(s) for s in options.sparsity.split(",")]
    patterns = [int(p) for p in options.patterns.split(",")]
    console = Console(width=150)
    console.print(f"kernels: {opsinfo.info().level}, ONNX Runtime {ort.__version__}")
    for threads in map(int, options.threads.split(",")):
        table = Table(title=f"dense time / ours, {threads} thread(s)", title_justify="left")
        for heading in ("layer", "dense us", "GFLOP/s", "int8", "pattern", *(f"{s:.0%}" for s in sparsities)):
            table.add_column(heading, justify="left" if heading == "layer" else "right")
        for text in options.shapes:
            for cells in lines(Layer.parse(text), sparsities, patterns, threads, options):
                table.add_row(*cells)
        console.print(table)


def lines(
    layer: Layer, sparsities: list[float], patterns: list[int], threads: int, options: argparse.Namespace
) -> list[list[str]]:
    """Measure one layer: a line per pattern."""
    rng = np.random.default_rng(0)
    dense = layer.model(layer.random_weight(0.0, 1, rng))
    feed = {"x": rng.standard_normal(layer.x, np.float32)}
    reference = open_session(dense, threads, False)
    int8 = (
        None
        if options.no_int8
        else runtime.session(quantized(layer, dense, feed), threads=threads, config=QUIET)
    )
    flops = (
        2
        * np.prod(layer.weight)
        * (layer.x[0] if layer.op == "MatMul" else reference.run(None, feed)[0][0, 0].size)
    )
    found = []
    for rows in patterns:
        sessions = [reference] + [int8] * bool(int8)
        for sparsity in sparsities:
            sessions.append(open_session(sparse(layer, sparsity, rows, feed, rng), threads, True))
        times = best_times(sessions, [feed], threads, seconds=options.seconds)
        first = 2 if int8 else 1
        cells = [layer.text, f"{times[0] * 1e6:.0f}", f"{flops / times[0] / 1e9:.0f}"]
        cells.append(f"{times[0] / times[1]:.2f}" if int8 else "-")
        cells.append("unstructured" if rows == 1 else f"{rows}x1")
        found.append(cells + [f"{times[0] / t:.2f}" for t in times[first:]])
    return found


def sparse(layer: Layer, sparsity: float, rows: int, feed: dict[str, Any], rng: np.random.Generator) -> Model:
    """Return the layer as one op with a kernel."""
    dense = layer.model(layer.random_weight(sparsity, rows, rng))
    shapes = Shapes(infer(dense), observe(dense, ["x", "y"], [feed]))
    packed = dense.copy()
    pack(packed, ["w"])
    chains, refusals = find_chains(packed, shapes)
    if not chains:
        raise SystemExit(f"{layer.text} at {sparsity}: {refusals}")
    rewrite(packed, longest(chains), shapes)
    return packed


def open_session(model: Model, threads: int, kernels: bool) -> Any:
    """Return a session whose threads sleep when they wait: several sessions share the processors."""
    return runtime.session(model.to_bytes(), threads=threads, config=QUIET, kernels=kernels)


def quantized(layer: Layer, dense: Model, feed: dict[str, Any]) -> onnx.ModelProto:
    """Return ONNX Runtime's int8 form of the layer."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = [feed]

        def get_next(self) -> Any:
            return self.left.pop() if self.left else None

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "dense.onnx", Path(folder) / "int8.onnx"
        onnx.save(dense.proto, source)
        if layer.op == "MatMul":
            quantize_dynamic(source, target)
        else:
            quantize_static(source, target, Reader(), quant_format=QuantFormat.QDQ, per_channel=True)
        return onnx.load(target)


if __name__ == "__main__":
    main()
