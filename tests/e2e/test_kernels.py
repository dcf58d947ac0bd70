"""``--target-runtime``: what the command line writes, with the library of kernels and without."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune import ops, runtime
from onnxprune.cli import main
from onnxprune.kernels.devicetable import DeviceTable, Measured

ROOT = Path(__file__).resolve().parent.parent.parent
SAMPLES = ROOT / "samples"
DATA = {"digits_cnn": "digits.npz", "digits_transformer": "digits_tokens.npz"}
QUICK = ("--solver", "sweep", "--allocation", "uniform", "--samples", "64", "--threads", "1")
needs_library = pytest.mark.skipif(ops.library_path() is None, reason="the library is not built")


@pytest.fixture(autouse=True)
def process_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Undo what the command line sets for its process; decisions of other tests do not count here."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def command(*words: object, status: int = 0) -> tuple[str, str]:
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        found = main([str(word) for word in words])
    assert found == status, errors.getvalue()
    return output.getvalue(), errors.getvalue()


def prune(name: str, output: Path, *words: object) -> dict[str, Any]:
    source = SAMPLES / f"{name}.onnx"
    data = ("--data", SAMPLES / DATA[name], "--sparsity", "0.8", *QUICK)
    report: dict[str, Any] = json.loads(command(source, "-o", output, "--json", *data, *words)[0])
    return report


def ours(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node if node.domain == "onnxprune"]


def outputs(path: Path, name: str, **options: Any) -> Any:
    with np.load(SAMPLES / DATA[name]) as archive:
        feed = {key: archive[key][:32] for key in archive.files}
    return runtime.session(path, threads=1, **options).run(None, feed)[0]


def close(a: Any, b: Any, tolerance: float = 1e-5) -> bool:
    return bool(np.abs(a - b).max() <= tolerance * np.abs(a).max())


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ops.VARIABLE, "0")


@pytest.mark.usefixtures("no_library")
@pytest.mark.parametrize("name", DATA)
def test_the_table_decides_without_a_library(name: str, tmp_path: Path) -> None:
    path = tmp_path / "out.onnx"
    report = prune(name, path)
    assert report["kernels"] == "table" and "no library" in report["kernels_note"] and report["speed"] == []
    switched = {entry["name"]: entry["kernel"] for entry in report["layers"] if entry["kernel"]}
    assert len(switched) >= 3
    assert sorted(op for op in ours(path) if op.startswith("Sparse")) == sorted(switched.values())
    assert all(entry["gain"] > 1 for entry in report["layers"] if entry["kernel"])
    assert all(entry["kernel_note"] for entry in report["layers"] if entry["kind"] != "embedding")
    # The file undone holds the same weights and computes the same
    command("export", path, "-o", tmp_path / "dense.onnx", "--format", "dense", "-q")
    assert ours(tmp_path / "dense.onnx") == []
    assert close(outputs(path, name), outputs(tmp_path / "dense.onnx", name))
    before = {t.name for t in onnx.load(SAMPLES / f"{name}.onnx").graph.initializer}
    assert {entry["name"] for entry in report["layers"]} <= before


@pytest.mark.usefixtures("no_library")
def test_packed_again_and_inspected(tmp_path: Path) -> None:
    path = tmp_path / "out.onnx"
    report = prune("digits_cnn", path)
    command("export", path, "-o", tmp_path / "packed.onnx", "--format", "packed", "-q")
    assert not any(op.startswith("Sparse") for op in ours(tmp_path / "packed.onnx"))
    found = json.loads(command("inspect", path, "--json")[0])
    zeros = {layer["name"]: layer["zeros"] for layer in found["models"][0]["layers"]}
    assert all(zeros[entry["name"]] == entry["zeros"] for entry in report["layers"])
    _, errors = command(path, "-o", tmp_path / "twice.onnx", status=3)
    assert "packed by onnxprune already" in errors and "export --format dense" in errors


def test_stock_is_packed_only(tmp_path: Path) -> None:
    path = tmp_path / "out.onnx"
    report = prune("digits_cnn", path, "--target-runtime", "stock")
    assert report["kernels"] == "" and not any(entry["kernel"] for entry in report["layers"])
    assert ours(path) and not any(op.startswith(("Sparse", "Direct")) for op in ours(path))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--batch", "8"), "--batch is for --target-runtime cuda"),
        (("--target-runtime", "cuda", "--cuda-table", "none.json"), "cannot read the table none.json"),
        (("--target-runtime", "cpu", "--format", "dense"), "needs packed weights"),
    ],
)
def test_refusals(tmp_path: Path, words: tuple[str, ...], text: str) -> None:
    _, errors = command(SAMPLES / "digits_cnn.onnx", "-o", tmp_path / "out.onnx", *words, status=2)
    assert text in errors and not (tmp_path / "out.onnx").exists()


def test_cuda_needs_measurements(tmp_path: Path) -> None:
    words = ("--target-runtime", "cuda", "-o", tmp_path / "out.onnx")
    _, errors = command(SAMPLES / "digits_cnn.onnx", *words, status=4)
    assert "nothing was measured on a GPU yet" in errors and "onnxprune ops tune" in errors


def test_cuda_by_a_table(tmp_path: Path) -> None:
    """A table of a made-up GPU: what it says is faster is switched, and the file runs without any library."""
    entries = [
        Measured("bitmap-tile", n, k, density, 8, 1.0, 2.0, 1)
        for n in (32, 64, 128, 256)
        for k in (32, 64, 128, 256)
        for density in (0.2, 0.5)
    ]
    DeviceTable("made up", "", 1.0, tuple(entries)).save(tmp_path / "table.json")
    path = tmp_path / "out.onnx"
    words = ("--target-runtime", "cuda", "--batch", "8", "--cuda-table", str(tmp_path / "table.json"))
    report = prune("digits_transformer", path, *words)
    switched = [entry for entry in report["layers"] if entry["kernel"]]
    assert switched and all(entry["gain"] == 2.0 for entry in switched)
    assert report["kernels"] == "device table" and "float16" in report["kernels_note"]
    assert sorted(op for op in ours(path) if op.startswith("BitmapTile")) == sorted(
        entry["kernel"] for entry in switched
    )
    assert any(entry["stored"] == "packed" and not entry["kernel"] for entry in report["layers"])
    found = json.loads(command("inspect", path, "--json")[0])
    zeros = {layer["name"]: layer["zeros"] for layer in found["models"][0]["layers"]}
    assert all(zeros[entry["name"]] >= entry["zeros"] for entry in report["layers"])
    command("export", path, "-o", tmp_path / "dense.onnx", "--format", "dense", "-q")
    assert ours(tmp_path / "dense.onnx") == []
    assert close(outputs(path, "digits_transformer"), outputs(tmp_path / "dense.onnx", "digits_transformer"))


@needs_library
@pytest.mark.parametrize("name", DATA)
def test_measured_with_the_library(name: str, tmp_path: Path) -> None:
    path = tmp_path / "out.onnx"
    report = prune(name, path)
    assert report["kernels"] == "measured"
    switched = [entry["kernel"] for entry in report["layers"] if entry["kernel"]]
    assert bool(switched) == bool(report["speed"])
    assert all(speed["ratio"] >= 1 for speed in report["speed"])
    assert set(switched) <= set(ours(path))
    assert close(outputs(path, name, kernels=True), outputs(path, name, kernels=False))
    # Decisions are kept, so the same command writes the same file
    again = tmp_path / "again.onnx"
    prune(name, again)
    assert again.read_bytes() == path.read_bytes()
