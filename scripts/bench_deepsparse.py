"""The kernels against DeepSparse 1.8 (end of life, evaluation licence) on the same pruned weights.

    python scripts/bench_deepsparse.py LIBRARY DENSE.onnx NAME=PACKED.onnx:PRUNED.onnx... [--rounds 15]

runs in an environment of its own (Python 3.10: ``pip install deepsparse==1.8.0 onnxruntime``), so it does not
import onnxprune. LIBRARY is what ``onnxprune ops info`` names. DENSE runs in ONNX Runtime, PACKED (as
``onnxprune`` wrote it) in ONNX Runtime with the library, PRUNED (``onnxprune export --format dense``) in
DeepSparse; one thread, batch 1, in turns in one process. Ratios are dense time / time by the wall clock: each
library has threads of its own, and some wait busily while another works.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from deepsparse import Engine

TOKENS = 128  # where the length is free
RUNS = 8  # in a row, so that each finds its own weights in the caches


def ort_runner(path: str, library: str = "") -> tuple[Callable[[], Any], dict[str, Any]]:
    """Return a function that runs the model once, and its inputs."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    if library:
        options.register_custom_ops_library(library)
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    feeds: dict[str, Any] = {}
    for value in session.get_inputs():
        shape = [d if isinstance(d, int) else TOKENS if axis else 1 for axis, d in enumerate(value.shape)]
        whole = "int" in value.type
        feeds[value.name] = rng.integers(1000, size=shape) if whole else rng.random(shape, np.float32)
    return lambda: session.run(None, feeds), feeds


def engine_runner(path: str, feeds: dict[str, Any]) -> Callable[[], Any]:
    """Return a function that runs the model once in DeepSparse."""
    arrays = [feeds[v.name] for v in onnx.load(path, load_external_data=False).graph.input]
    engine = Engine(path, batch_size=1, num_cores=1, input_shapes=[list(a.shape) for a in arrays])
    return lambda: engine.run(arrays)


def timed(run: Callable[[], Any]) -> float:
    """Return the shortest time of a run, in ms, once its weights are in the caches."""
    run()
    times = []
    for _ in range(RUNS):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return min(times) * 1e3


def main() -> None:
    """Print a line per variant."""
    arguments = sys.argv[1:]
    rounds = int(arguments.pop(arguments.index("--rounds") + 1)) if "--rounds" in arguments else 15
    library, dense, *variants = [a for a in arguments if a != "--rounds"]
    reference, feeds = ort_runner(dense)
    runners: list[tuple[str, Callable[[], Any], Callable[[], Any]]] = []
    for variant in variants:
        name, _, files = variant.partition("=")
        packed, _, pruned = files.partition(":")
        runners.append((name, ort_runner(packed, library)[0], engine_runner(pruned, feeds)))
    ratios: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name, _, _ in runners}
    for _ in range(rounds):
        for name, ours, theirs in runners:
            base, a, b = timed(reference), timed(ours), timed(theirs)
            ratios[name][0].append(base / a)
            ratios[name][1].append(base / b)
    print(f"{'variant':24} {'onnxprune':>10} {'deepsparse':>11} {'ratio':>7}")
    for name, (ours, theirs) in ratios.items():
        a, b = statistics.median(ours), statistics.median(theirs)
        print(f"{name:24} {a:10.2f} {b:11.2f} {a / b:7.2f}")


if __name__ == "__main__":
    main()
