"""Size, load time and latency of packed models against the same weights stored dense.

    python scripts/bench_storage.py [MODEL.onnx ...] [--sparsity 0.7] [--rounds 9] [--values fp16]
        [--form bitmap] [--opset 9]

Each model (default: one like MiniLM, 36 MatMul of 10.6 M weights) is pruned by magnitude, each weight by
the same share, and saved twice. Loading: a fresh process each time, dense and packed in turns, processor
time (user + system) of creating the session with one intra-op thread; medians, and the fastest of each.
Peak memory is the process's high-water mark above what it held before. Latency: both sessions in one
process, in turns, one thread, on synthetic inputs (``onnxprune.bench``).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxprune import bench, load
from onnxprune.model import Model
from onnxprune.passes.pack import pack
from onnxprune.runtime import session
from onnxprune.storage import FORMS

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
LOAD = """
import os, sys, time
import onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = 1
options.log_severity_level = 3
def memory(key):
    line = next(line for line in open("/proc/self/status") if line.startswith(key))
    return int(line.split()[1]) / 1024
before = memory("VmRSS")
start = time.process_time()
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
print(time.process_time() - start, memory("VmHWM") - before)
"""


def minilm_like(opset: int) -> Model:
    """Return a chain of the 36 MatMul of a 6-layer encoder with 384 channels."""
    rng = np.random.default_rng(0)
    shapes = [(384, 384)] * 4 + [(384, 1536), (1536, 384)]
    nodes, weights, value = [], [], "x"
    for index, shape in enumerate(shapes * 6):
        array = rng.standard_normal(shape, dtype=np.float32) / np.float32(shape[0] ** 0.5)
        weights.append(numpy_helper.from_array(array, f"w{index}"))
        nodes.append(helper.make_node("MatMul", [value, f"w{index}"], [f"h{index}"]))
        value = f"h{index}"
    make = helper.make_tensor_value_info
    inputs, outputs = [make("x", TensorProto.FLOAT, [128, 384])], [make(value, TensorProto.FLOAT, [128, 384])]
    graph = helper.make_graph(nodes, "minilm_like", inputs, outputs, weights)
    return Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8))


def prune(model: Model, sparsity: float) -> list[str]:
    """Zero the smallest weights of every float tensor of two or more axes; return the tensors' names."""
    names = []
    for name, tensor in list(model.index.tensors.items()):
        if tensor.data_type not in FLOATS or len(tensor.dims) < 2 or name not in model.index.uses:
            continue
        array = model.array(name).copy()
        if array.size < 256:
            continue
        zeros = round(sparsity * array.size)
        array.reshape(-1)[np.argsort(np.abs(array).reshape(-1), kind="stable")[:zeros]] = 0
        model.set_array(name, array)
        names.append(name)
    return names


def load_once(path: Path) -> tuple[float, float]:
    """Return seconds of processor time and MiB of peak memory of one load in a fresh process."""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    run = [sys.executable, "-c", LOAD, str(path)]
    done = subprocess.run(run, capture_output=True, text=True, check=True, env=environment)
    seconds, peak = done.stdout.split()
    return float(seconds), float(peak)


def op_types(path: Path, folder: Path) -> Counter[tuple[str, str]]:
    """Return how often each op is in the graph that ONNX Runtime makes of the file."""
    optimized = folder / "optimized.onnx"
    session(path, optimized_path=optimized)
    return Counter((node.domain, node.op_type) for node in onnx.load(optimized).graph.node)


def measure(label: str, model: Model, arguments: argparse.Namespace) -> str:
    """Return one line of the table."""
    names = prune(model, arguments.sparsity)
    packed = model.copy()
    report = pack(packed, names, values=arguments.values, form=arguments.form)
    count = sum(int(np.prod(model.index.tensors[entry.name].dims)) for entry in report.changed)
    ratio = sum(w.stored_bytes for w in report.weights) / sum(w.dense_bytes for w in report.weights)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = [folder / "dense.onnx", folder / "packed.onnx"]
        for path, proto in zip(paths, (model, packed), strict=True):
            path.write_bytes(proto.to_bytes())
        same = op_types(paths[0], folder) == op_types(paths[1], folder)
        loads: list[list[tuple[float, float]]] = [[], []]
        for turn in range(arguments.rounds + 1):
            for path, results in zip(paths, loads, strict=True):
                result = load_once(path)
                if turn:  # the first fills the page cache
                    results.append(result)
        times = [[seconds for seconds, _ in results] for results in loads]
        peaks = [statistics.median(peak for _, peak in results) for results in loads]
        median = statistics.median(times[1]) - statistics.median(times[0])
        best = min(times[1]) - min(times[0])
        timing = bench(paths, threads=[1], rounds=arguments.rounds * 2).timings[1]
        files = [path.stat().st_size / 1e6 for path in paths]
    return (
        f"{label:22s} {len(report.changed):3d}/{len(names):<3d} {count / 1e6:7.2f} {ratio:7.4f} "
        f"{files[0]:7.2f} {files[1]:7.2f}   {median / count * 1e9:6.1f} {best / count * 1e9:6.1f}   "
        f"{peaks[0]:6.0f} {peaks[1]:6.0f}   {timing.ratio.median:6.3f} {'yes' if same else 'NO'}"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Packed against dense: size, load, latency.")
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--sparsity", type=float, default=0.7)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--values", choices=("same", "fp16"), default="same")
    parser.add_argument("--form", choices=tuple(FORMS), help="of all weights; default: chosen for each")
    parser.add_argument("--opset", type=int, default=17, help="of the model like MiniLM")
    arguments = parser.parse_args()
    print(
        f"{arguments.sparsity:.0%} zeros, {arguments.rounds} rounds in turns, 1 thread.\n"
        "load: CPU ns a packed weight above the dense load; peak: MiB while loading;\n"
        "latency: packed / dense; ops: same op types after folding"
    )
    print(
        f"{'model':22s} {'tensors':7s} {'M wts':>7s} {'size':>7s} {'MB':>7s} {'packed':>7s}   {'load':>6s} "
        f"{'best':>6s}   {'peak':>6s} {'packed':>6s}   {'lat.':>6s} ops"
    )
    models = [(path.parent.name or path.name, load(path)) for path in arguments.models]
    for label, model in models or [("36 MatMul like MiniLM", minilm_like(arguments.opset))]:
        print(measure(label, model, arguments), flush=True)


if __name__ == "__main__":
    main()
