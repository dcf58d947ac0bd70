"""``kill -9`` during a pruning run: the target is absent or complete, and the next run repairs the rest."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from onnxprune import io

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = ("--samples", "16", "--threads", "1", "--allocation", "uniform", "--no-cache", "--quiet")
STARTUP = 0.35  # share of a run that is imports: most kills come later


def start(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "onnxprune", "m.onnx", "--data", "x.npz", "-o", "out/p.onnx"]
    command += ["--target-runtime", "stock"]  # the same bytes every time, whatever is measured
    return subprocess.Popen(
        [*command, *OPTIONS, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder / "tmp")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def finish(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors.decode()


def assert_whole(path: Path) -> None:
    """The file loads, and it is the pruned model and not some part of it."""
    model = io.load(path)
    assert any(node.domain == "onnxprune" for node in model.graph.node)


@pytest.fixture
def folder(tmp_path: Path, digits_transformer: Path, calibration_tokens_npz: Path) -> Path:
    shutil.copyfile(digits_transformer, tmp_path / "m.onnx")
    shutil.copyfile(calibration_tokens_npz, tmp_path / "x.npz")
    (tmp_path / "out").mkdir()
    (tmp_path / "tmp").mkdir()
    return tmp_path


@pytest.mark.parametrize("rounds", [3, pytest.param(60, marks=pytest.mark.slow)])
def test_killed_while_pruning(rounds: int, folder: Path) -> None:
    digest, data = io.file_digest(folder / "m.onnx"), (folder / "x.npz").read_bytes()
    started = time.perf_counter()
    finish(start(folder))
    whole = time.perf_counter() - started
    good = (folder / "out" / "p.onnx").read_bytes()

    chance = random.Random(0)
    killed = 0
    for number in range(rounds):
        replace = number % 2 == 1  # over a finished file, or where there is none
        if not replace:
            for path in (folder / "out").glob("p.*"):
                path.unlink()
        target = folder / "out" / "p.onnx"
        existed = target.exists()
        process = start(folder, "--force")
        time.sleep(whole * chance.uniform(STARTUP, 1.05))
        process.kill()
        process.communicate()
        killed += process.returncode < 0
        whole *= 1 if process.returncode < 0 else 0.8  # the machine got faster: kill earlier
        if existed or target.exists():
            assert_whole(target)
            assert target.read_bytes() == good
        assert io.file_digest(folder / "m.onnx") == digest
    assert killed > rounds / 4  # else the kills came too late

    finish(start(folder, "--force"))
    assert sorted(os.listdir(folder / "out")) == ["p.json", "p.onnx"]
    assert (folder / "out" / "p.onnx").read_bytes() == good
    assert (folder / "x.npz").read_bytes() == data
    assert sorted(os.listdir(folder)) == ["m.onnx", "out", "tmp", "x.npz"]


def test_killed_at_the_moment_of_writing(folder: Path) -> None:
    """The hidden folder is there: the worst moment. The run after it removes what is left."""
    process = start(folder)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        files = [path for path in (folder / "out").glob(".p.onnx.tmp-*/*") if path.is_file()]
        if files:
            break
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert process.returncode < 0
    assert not (folder / "out" / "p.onnx").exists()
    assert [path.name for path in (folder / "out").iterdir() if path.name.startswith(".p.onnx.tmp-")]
    finish(start(folder))
    assert sorted(os.listdir(folder / "out")) == ["p.json", "p.onnx"]
    assert_whole(folder / "out" / "p.onnx")
