"""``kill -9`` in the middle of a search: the same command goes on there and writes the same file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = ("--samples", "48", "--threads", "1", "--allocation", "uniform", "--criterion", "magnitude")
EVAL = f"""
import os, pathlib, sys, time
sys.path.insert(0, {str(ROOT / "samples")!r})
import digits_eval

HERE = pathlib.Path(__file__).parent

def accuracy(session):
    with open(HERE / "calls", "a") as calls:
        calls.write("x")
    if os.environ.get("HANG_AT") == str((HERE / "calls").stat().st_size):
        (HERE / "hangs").touch()
        time.sleep(120)
    return digits_eval.accuracy(session)
"""


@pytest.fixture
def folder(tmp_path: Path, digits_cnn: Path, calibration_npz: Path) -> Path:
    shutil.copyfile(digits_cnn, tmp_path / "m.onnx")
    shutil.copyfile(calibration_npz, tmp_path / "x.npz")
    (tmp_path / "ev.py").write_text(EVAL)
    return tmp_path


def start(folder: Path, *words: str, hang_at: int = 0) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "onnxprune", "m.onnx", "--data", "x.npz", "-o", "p.onnx", "--no-refit"]
    command += ["--max-drop", "1%", "--eval", "ev.py:accuracy", "--target-runtime", "stock", "--json"]
    environment = {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache"), "HANG_AT": str(hang_at)}
    return subprocess.Popen(
        [*command, *OPTIONS, *words],
        cwd=folder,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finished(folder: Path, *words: str) -> tuple[dict[str, Any], int]:
    """Return the search of a run that ends by itself, and how often it measured the metric."""
    (folder / "calls").write_bytes(b"")
    process = start(folder, *words)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors.decode()
    search = json.loads(output)["search"]
    for point in search["points"]:
        point.pop("seconds")
    return search, (folder / "calls").stat().st_size


def test_killed_while_searching(folder: Path) -> None:
    whole, asked = finished(folder, "--no-cache")
    wanted = (folder / "p.onnx").read_bytes()
    (folder / "p.onnx").unlink()
    (folder / "p.json").unlink()
    (folder / "calls").write_bytes(b"")

    process = start(folder, hang_at=4)  # the dense model, two candidates, and the third is being judged
    deadline = time.monotonic() + 60
    while not (folder / "hangs").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert process.returncode < 0 and not (folder / "p.onnx").exists()

    again, measured = finished(folder)
    assert (folder / "p.onnx").read_bytes() == wanted
    assert measured == asked - 2
    assert sum(point.pop("known") for point in again["points"]) == 2
    assert [point.pop("known") for point in whole["points"]] == [False] * len(whole["points"])
    assert again == whole

    repeated, measured = finished(folder, "--force")
    assert (folder / "p.onnx").read_bytes() == wanted
    assert measured == 2  # the dense model, and what was written
    assert all(point.pop("known") for point in repeated["points"]) and repeated == whole
