"""Check and measure the CUDA kernels on this machine's GPU, and print one table.

    scripts/gpu_check [--dry-run] [--only build,correct,refuse,sanitize,many,speed,runtime] [--arch 90]
                      [--quick] [--cublas PATH] [--table FILE]

build     both libraries, if they are not there; registers and spills of every kernel
correct   every kernel against float64: odd shapes, both types, all activations, poisoned outputs; images
refuse    weights whose indices are wrong are refused when a plan is made
sanitize  a part of that again under compute-sanitizer, if it is found
many      2:4 with many rows of X, by cuSPARSELt, as in ``correct``
speed     every kernel against cuBLAS in a CUDA graph that takes weights in turns from 8 times the L2 cache,
          and the share of the time that reading the weight once takes at the speed of a copy; 1x1 Conv too
runtime   through onnxruntime-gpu without fallback to the CPU: our kernel ran, IO binding, CUDA graph, chains
          of layers, MiniLM

--table keeps the measurements as ``onnxprune ops tune`` does. --dry-run ends with status 0 where a GPU is
missing; otherwise the status is 1 when anything failed or could not be looked at.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from onnxprune import cudabuild, cusparselt, ops, opsbuild
from onnxprune.errors import OnnxPruneError
from onnxprune.kernels.cuda import CudaKernels, DeviceWeight
from onnxprune.kernels.tune import CASES, CONV_SHAPES, NOT_MEASURED, Case, default_cublas, random_weight, tune
from onnxprune.storage.device import LAYOUTS
from onnxprune.storage.device.functions import IMAGES
from onnxprune.storage.reference import ACTIVATIONS

STEPS = ("build", "correct", "refuse", "sanitize", "many", "speed", "runtime")
SHAPES = ((16, 128), (1, 1), (17, 129), (7, 1000), (100, 333), (513, 777), (1024, 4096), (300, 8192))
ROWS = (1, 2, 3, 8, 9, 16, 17, 31, 32, 33, 64, 65, 129, 300)
PIXELS = ((2, 3), (3, 49), (1, 64), (2, 196), (1, 1000))  # images, and pixels of each
MANY_SHAPES, MANY_ROWS = ((16, 16), (48, 160), (1024, 4096), (4096, 1024)), (8, 65, 512, 2051)
LIMIT = {np.dtype(np.float16): 2e-3, np.dtype(ml_dtypes.bfloat16): 1.6e-2}  # of the largest output
SANITIZER_SECONDS = 100  # for each of its tools


@dataclass
class Check:
    """What is known so far, and the lines of the final table: step, what, result, fine or not."""

    options: argparse.Namespace
    kernels: CudaKernels | None = None
    lines: list[tuple[str, str, str, str]] = field(default_factory=list)

    def say(self, step: str, what: str, result: str, state: str = "ok") -> None:
        """Add a line; state is ok, FAILED, missing, or empty for a measurement."""
        self.lines.append((step, what, result, state))
        print(f"{step}: {what}: {result} {state}", flush=True)


def targets(wanted: str) -> tuple[str, ...]:
    """What to compile for: what was asked for, else the GPUs that are here, else everything."""
    if wanted:
        return tuple(wanted.split(","))
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.SubprocessError):
        return ()
    found = (
        {line.strip().replace(".", "") for line in done.stdout.splitlines()} if not done.returncode else set()
    )
    known = cudabuild.build_words(ops.sources())["target"]  # a newer GPU runs the PTX
    return tuple(sorted(found)) if found and found <= set(known) else ()


def build(check: Check) -> None:
    """Make the libraries, look at what the compiler says, open them."""
    begin = time.perf_counter()
    library = ops.library_path()
    if library is None or ops.cuda_path() is None:
        library = opsbuild.build(cuda=True, targets=targets(check.options.arch))
    path = ops.cuda_path()
    assert path is not None
    helpers = ("check", "fill", "unpack", "end_in")
    uses = [use for use in cudabuild.usage(path) if not use.kernel.startswith(helpers)]
    spilled = [use for use in uses if use.spill_bytes or use.stack_bytes]
    most = max((use.registers for use in uses), default=0)
    check.say("build", "libraries", f"{library.parent}, {time.perf_counter() - begin:.0f} s")
    check.say(
        "build",
        "kernels",
        f"{len(uses)}, at most {most} registers, {len(spilled)} spill",
        "FAILED" if spilled or not uses else "ok",
    )
    check.kernels = CudaKernels(path)
    about = check.kernels.info
    if check.kernels.problem:
        check.say("build", "device", check.kernels.problem, "missing")
        return
    for device in about["devices"]:
        text = (
            f"{device['name']}, {device['capability']}, {device['processors']} SMs, driver {about['driver']}"
        )
        check.say("build", "device", text)


def error_of(
    check: Check, packed: DeviceWeight, dense: np.ndarray, x: np.ndarray, count: int
) -> tuple[str, float]:
    """The activation of run number ``count``, and its largest error, over the largest product in float64.

    ``dense`` (N, K) is the weight, ``x`` (M, K) or images (B, K, pixels); every third run has no bias, every
    second is a CUDA graph's.
    """
    assert check.kernels is not None
    activation = ("", *ACTIVATIONS, "Clip")[count % (len(ACTIVATIONS) + 2)]
    bias = np.random.default_rng(count).standard_normal(len(dense)).astype(x.dtype) if count % 3 else None
    found = check.kernels.run(
        packed, x, bias=bias, activation=activation, limits=(-0.5, 0.75), graph=count % 2 == 1
    ).astype(np.float64)
    added = np.zeros(len(dense)) if bias is None else bias.astype(np.float64)
    wide = x.astype(np.float64)
    product = wide @ dense.T + added if x.ndim == 2 else dense @ wide + added[:, None]
    wanted = np.clip(product, -0.5, 0.75) if activation == "Clip" else product
    if activation in ACTIVATIONS:
        wanted = ACTIVATIONS[activation](product)
    error = float(np.abs(found - wanted).max() / max(float(np.abs(product).max()), 1e-3))
    return activation, error if error == error else np.inf


def cases(quick: bool) -> Iterator[tuple[str, tuple[int, int], Any, tuple[int, ...]]]:
    """Layout, shape, type, and what X has beside K: its rows, or images and pixels."""
    for name, layout in LAYOUTS.items():
        for number, shape in enumerate(SHAPES[:6] if quick else SHAPES):
            for dtype in LIMIT:
                sizes = [(m,) for m in ROWS] + list(PIXELS) * (layout.prefix in IMAGES)
                for size in sizes[number % 3 :: 3] if quick else sizes:
                    yield name, shape, dtype, size


def correct(check: Check) -> None:
    """Every kernel against float64."""
    assert check.kernels is not None
    worst: dict[str, float] = {}
    count = 0
    rng = np.random.default_rng(0)
    held: tuple[Any, DeviceWeight, np.ndarray] | None = None
    for name, shape, dtype, (m, *pixels) in cases(check.options.quick):
        layout = LAYOUTS[name]
        if held is None or held[0] != (name, shape, dtype):
            weight = random_weight(layout, shape, 0.4).astype(dtype)
            if layout.refusal(weight):
                continue
            packed = DeviceWeight.of(layout, weight)
            kind = packed.data_type
            held = (
                (name, shape, dtype),
                packed,
                layout.decode(packed.tensors, shape, kind, name).astype(np.float64),
            )
        packed, dense = held[1], held[2]
        x = rng.standard_normal((m, shape[1], *pixels)).astype(dtype)
        activation, error = error_of(check, packed, dense, x, count)
        count += 1
        key = f"{name} {np.dtype(dtype).name}{' images' * bool(pixels)}"
        worst[key] = max(worst.get(key, 0.0), error)
        if not error <= LIMIT[np.dtype(dtype)]:
            check.say(
                "correct",
                f"{key} {shape} X={x.shape} {activation or 'plain'}",
                f"off by {error:.3g}",
                "FAILED",
            )
            if sum(state == "FAILED" for *_, state in check.lines) > 12:
                raise OnnxPruneError("too many failures to go on")
    for key, error in worst.items():
        limit = LIMIT[np.dtype(getattr(ml_dtypes, key.split()[1], None) or key.split()[1])]
        check.say(
            "correct", key, f"largest error {error:.2g} of {limit:g}", "ok" if error <= limit else "FAILED"
        )
    check.say("correct", "runs", str(count))


def refuse(check: Check) -> None:
    """Weights whose sizes are right and whose indices are not."""
    assert check.kernels is not None

    def changed(name: str, position: int, change: Callable[[Any], None]) -> DeviceWeight:
        weight = DeviceWeight.of(LAYOUTS[name], random_weight(LAYOUTS[name], (130, 300), 0.3))
        tensors = [tensor.copy() for tensor in weight.tensors]
        change(tensors[position].reshape(-1))
        return DeviceWeight(weight.layout, tuple(tensors), weight.rows, weight.cols, weight.data_type)

    def put(index: int, value: int) -> Callable[[Any], None]:
        return lambda tensor: tensor.__setitem__(index, value)

    broken = {
        "bitmap-tile: offset far out": changed("bitmap-tile", 1, put(3, 2**30)),
        "bitmap-tile: offset negative": changed("bitmap-tile", 1, put(3, -5)),
        "bitmap-tile: more bits than values": changed("bitmap-tile", 0, put(slice(0, 64), 255)),
        "bitmap-tile-int8: offset far out": changed("bitmap-tile-int8", 1, put(3, 2**30)),
        "block-64: slot far out": changed("block-64", 0, put(0, 2**30)),
        "block-64: slot negative": changed("block-64", 0, put(0, -1)),
        "nm-tile: positions do not ascend": changed("nm-tile", 0, put(7, 0)),
        "delta: starts far out": changed("delta", 0, put(4, 2**30)),
        "delta: steps beyond the row": changed("delta", 1, put(slice(0, None), 255)),
    }
    for what, weight in broken.items():
        try:
            check.kernels.run(weight, np.ones((1, weight.cols), np.float16))
        except OnnxPruneError as error:
            check.say("refuse", what, str(error))
        else:
            check.say("refuse", what, "was not noticed", "FAILED")


def sanitize(check: Check) -> None:
    """The quick part of ``correct`` and ``refuse`` under compute-sanitizer."""
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(tool).is_file():
        check.say("sanitize", "compute-sanitizer", "is not there", "missing")
        return
    script = [sys.executable, __file__, "--only", "build,correct,refuse", "--quick"]
    for kind in ("memcheck", "racecheck"):
        command = [tool, "--tool", kind, "--error-exitcode", "9", *script]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=SANITIZER_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            check.say("sanitize", kind, f"not done in {SANITIZER_SECONDS} s", "missing")
            continue
        errors = [line for line in done.stdout.splitlines() if line.startswith("=========")]
        state = "ok" if done.returncode == 0 else "FAILED"
        check.say("sanitize", kind, errors[-1].strip("= ") if errors else f"status {done.returncode}", state)
        if done.returncode:
            print("\n".join(errors[:40]))


def many(check: Check) -> None:
    """2:4 by cuSPARSELt against float64; rows that are no multiple of eight end with our own kernel."""
    assert check.kernels is not None
    about = check.kernels.cusparselt
    if about["problem"]:
        check.say("many", "cuSPARSELt", f"{about['problem']}; {cusparselt.WHEEL}", "missing")
        return
    check.say("many", "cuSPARSELt", f"{about['version']} ({about['library']})")
    layout, rng, count = LAYOUTS["nm-tile"], np.random.default_rng(0), 0
    for dtype, limit in LIMIT.items():
        worst = 0.0
        for shape in MANY_SHAPES[:2] if check.options.quick else MANY_SHAPES:
            weight = random_weight(layout, shape, 0.5).astype(dtype)
            packed = DeviceWeight.of(layout, weight, many_rows=1)
            for m in MANY_ROWS[:2] if check.options.quick else MANY_ROWS:
                x = rng.standard_normal((m, shape[1])).astype(dtype)
                worst = max(worst, error_of(check, packed, weight.astype(np.float64), x, count)[1])
                count += 1
        check.say(
            "many",
            dtype.name,
            f"largest error {worst:.2g} of {limit:g}",
            "ok" if worst <= limit else "FAILED",
        )


def speed(check: Check) -> None:
    """Against cuBLAS, and against the bytes that must be read."""
    assert check.kernels is not None
    quick, cublas = check.options.quick, check.options.cublas or default_cublas()
    matrices: tuple[Case, ...] = tuple(case for case in CASES if case.pixels == 1)
    images = tuple(case for case in CASES if case.pixels > 1)
    if quick:
        matrices, images = (
            tuple(replace(case, densities=case.densities[:2], rows=case.rows[:2]) for case in each)
            for each in (matrices, images)
        )
    shapes = ((4096, 4096),) if quick else ((4096, 4096), (11008, 4096), (1024, 1024))
    table = tune(check.kernels, shapes=shapes, cases=matrices, cublas=cublas)
    more = tune(check.kernels, shapes=CONV_SHAPES[:1], cases=images, cublas=cublas)
    table = replace(table, entries=table.entries + more.entries)
    check.say("speed", "copy within the device", f"{table.bandwidth:.0f} GB/s", "")
    if missing := check.kernels.cusparselt["problem"]:
        check.say("speed", "nm-tile-cusparselt", f"{missing}; {cusparselt.WHEEL}", "missing")
    _, failed, reasons = table.about.partition(NOT_MEASURED)
    if failed:
        check.say("speed", "nm-tile-cusparselt", reasons, "FAILED")
    for e in table.entries:
        bound_ms = e.bytes / (table.bandwidth * 1e6)
        text = f"{e.ms * 1000:8.1f} us, dense {e.dense_ms * 1000:8.1f} us: {e.gain:5.2f}x"
        text += f", {100 * bound_ms / e.ms:3.0f} % of the byte bound" if e.m <= 32 else ""
        rows = f"M={e.m}" if e.pixels == 1 else f"{e.m // e.pixels} images of {e.pixels} pixels"
        check.say("speed", f"{e.layout:18} {e.rows}x{e.cols} {100 * (1 - e.density):2.0f} % {rows}", text, "")
    if check.options.table:
        table.save(Path(check.options.table))


def runtime(check: Check) -> None:
    """Through ONNX Runtime: see gpu_check_runtime.py."""
    from gpu_check_runtime import check_runtime

    check_runtime(check)


def show(check: Check) -> int:
    """Print the table; return the exit status."""
    width = max((len(what) for _, what, *_ in check.lines), default=0)
    print("\n" + "-" * 100)
    for step, what, result, state in check.lines:
        print(f"{step:9} {what:{width}}  {result}  {state}")
    failed = sum(state == "FAILED" for *_, state in check.lines)
    missing = sum(state == "missing" for *_, state in check.lines)
    print(f"{failed} failed, {missing} could not be looked at")
    if check.options.dry_run:
        return 1 if failed else 0
    return 1 if failed or missing else 0


def main() -> int:
    """Run the steps; one that breaks does not keep the others from running."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default=",".join(STEPS))
    parser.add_argument("--arch", default="")
    parser.add_argument("--cublas", default="")
    parser.add_argument("--table", default="")
    check = Check(parser.parse_args())
    wanted = check.options.only.split(",")
    for step in STEPS:
        if step not in wanted and step != "build":
            continue
        if step != "build" and (check.kernels is None or check.kernels.problem):
            check.say(step, "needs a GPU", "not run", "missing")
            continue
        begin = time.perf_counter()
        try:
            globals()[step](check)
        except Exception as error:  # any step may fail in any way; the table says so
            check.say(step, type(error).__name__, " ".join(str(error).split())[:300], "FAILED")
        print(f"({step}: {time.perf_counter() - begin:.0f} s)", flush=True)
    return show(check)


if __name__ == "__main__":
    os.environ.setdefault("XDG_CACHE_HOME", os.path.join(tempfile.gettempdir(), "onnxprune-gpu-check"))
    sys.exit(main())
