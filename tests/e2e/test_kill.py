"""``kill -9`` while a model is written: the target is absent or complete, never anything between."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune import io
from onnxprune.model import Model

SIDE, WEIGHTS = 2048, 3  # 3 weights of 16 MiB

# One process imports and loads; its children, one a round, save until they are killed.
SAVER = """
import os, sys
from onnxprune import io
models = [io.load(path) for path in sys.argv[1:]]
print("ready", flush=True)
for line in sys.stdin:
    target, force, external = line.split()
    pid = os.fork()
    if pid == 0:
        count = 0
        while True:
            for model in models:
                name = target.replace("#", str(count))
                io.save(model, name, force=force == "force", external=external == "external")
                count += 1
    print(pid, flush=True)
    os.waitpid(pid, 0)
    print("dead", flush=True)
"""


def version(number: int) -> Model:
    """A model of 48 MiB whose weights and metadata all say ``number``: a mixture shows."""
    array = np.full((SIDE, SIDE), number, np.float32)
    names = [f"w{i}" for i in range(WEIGHTS)]
    values = ["x", *(f"h{i}" for i in range(WEIGHTS - 1)), "y"]
    nodes = [helper.make_node("MatMul", [values[i], names[i]], [values[i + 1]]) for i in range(WEIGHTS)]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", SIDE])],
        [numpy_helper.from_array(array, name) for name in names],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    proto.metadata_props.add(key="version", value=str(number))
    return Model(proto)


@pytest.fixture
def inputs(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "inputs"
    folder.mkdir()
    return [io.save(version(number), folder / f"{number}.onnx")[0] for number in (1, 2)]


class Saver:
    """The process that saves, and is killed."""

    def __init__(self, inputs: list[Path]) -> None:
        command = [sys.executable, "-c", SAVER, *map(str, inputs)]
        # the package under test may come from the working tree, by pytest's pythonpath
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def run_for(self, seconds: float, target: str, *, force: bool, external: bool) -> None:
        assert self.process.stdin is not None
        words = (target, "force" if force else "new", "external" if external else "inline")
        self.process.stdin.write(" ".join(words) + "\n")
        self.process.stdin.flush()
        pid = int(self._line())
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
        assert self._line() == "dead"

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(10)


@pytest.fixture
def saver(inputs: list[Path]) -> Iterator[Saver]:
    saver = Saver(inputs)
    yield saver
    saver.close()


def assert_complete(path: Path) -> None:
    model = io.load(path)
    number = float(model.proto.metadata_props[0].value)
    for i in range(WEIGHTS):
        assert (model.array(f"w{i}") == number).all(), f"{path.name} mixes two versions"


def hidden(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("rounds", [12, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_while_saving(rounds: int, tmp_path: Path, inputs: list[Path], saver: Saver) -> None:
    out = tmp_path / "out"
    out.mkdir()
    digests = [io.file_digest(path) for path in inputs]
    small = Model(helper.make_model(helper.make_graph([], "g", [], [])))
    chance = random.Random(0)
    started = time.perf_counter()
    io.save(io.load(inputs[0]), out / "timing.onnx")
    longest = 1.5 * (time.perf_counter() - started)
    (out / "timing.onnx").unlink()

    interrupted = present = 0
    modes = itertools.cycle(itertools.product((True, False), (False, True)))
    for number, (force, external) in zip(range(rounds), modes, strict=False):
        name = f"{'external' if external else 'inline'}.onnx" if force else f"new{number}-#.onnx"
        saver.run_for(chance.uniform(0, longest), str(out / name), force=force, external=external)
        interrupted += bool(hidden(out))
        for path in out.glob("*.onnx"):
            assert_complete(path)
            present += 1
        for leftover in hidden(out):  # the next save of the same target removes it
            target = out / leftover[1:].partition(".tmp-")[0]
            io.save(small, target, force=True)
            target.unlink()
        assert not hidden(out)
        for path in out.glob("new*"):
            path.unlink()
    assert [io.file_digest(path) for path in inputs] == digests
    assert interrupted > rounds / 4  # else the kills missed what they are for
    assert present > 0
