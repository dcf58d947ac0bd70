"""Sessions, and what is said when ONNX Runtime is missing, doubled, or refuses the model."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxprune import runtime
from onnxprune.errors import ModelError, ResourceError

TEXT = "g (float[N, 4] x) => (float[N, 3] y) { h = MatMul(x, w) y = Relu(h) }"
W = np.arange(12, dtype=np.float32).reshape(4, 3)

Build = Callable[..., onnx.ModelProto]


def installed(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """Make ``importlib.metadata`` see these distributions and no other."""

    def version(name: str) -> str:
        try:
            return versions[name.replace("-", "_")]
        except KeyError:
            raise importlib.metadata.PackageNotFoundError(name) from None

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_both_packages_clash(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, onnxruntime="1.20.0", onnxruntime_gpu="1.21.1")
    with pytest.raises(ResourceError) as caught:
        runtime.onnxruntime()
    assert "onnxruntime 1.20.0 and onnxruntime-gpu 1.21.1" in str(caught.value)
    assert caught.value.hint.startswith("pip uninstall -y onnxruntime onnxruntime-gpu")


@pytest.mark.parametrize("name", ["onnxruntime", "onnxruntime_gpu"])
def test_either_package_alone_will_do(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    installed(monkeypatch, **{name: "1.20.0"})
    assert runtime.installed_packages() == {name.replace("_", "-"): "1.20.0"}
    assert hasattr(runtime.onnxruntime(), "InferenceSession")


def test_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # makes the import fail
    assert runtime.installed_packages() == {}
    with pytest.raises(ResourceError, match="ONNX Runtime cannot be imported") as caught:
        runtime.onnxruntime()
    assert caught.value.hint == 'pip install "onnxprune[cpu]" or "onnxprune[gpu]"'


@pytest.mark.parametrize("form", ["proto", "bytes", "path"])
def test_every_form_of_a_model_runs(build_model: Build, tmp_path: Path, form: str) -> None:
    proto = build_model(TEXT, {"w": W})
    path = tmp_path / "m.onnx"
    onnx.save(proto, path)
    model = {"proto": proto, "bytes": proto.SerializeToString(), "path": path}[form]
    x = np.eye(4, dtype=np.float32) - 0.5
    session = runtime.session(model, threads=1)
    np.testing.assert_allclose(session.run(None, {"x": x})[0], np.maximum(x @ W, 0), rtol=1e-6)


@pytest.mark.parametrize("broken", ["bytes", "path", "absent", "operator"])
def test_a_refused_model_is_named(build_model: Build, tmp_path: Path, broken: str) -> None:
    proto = build_model(TEXT, {"w": W})
    proto.graph.node[1].op_type = "NoSuchOperator"
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    model = {
        "bytes": b"not a model",
        "path": tmp_path / "bad.onnx",
        "absent": tmp_path / "absent.onnx",
        "operator": proto,
    }[broken]
    with pytest.raises(ModelError, match="the fine model: ONNX Runtime refuses it: ") as caught:
        runtime.session(model, name="the fine model")
    assert "\n" not in str(caught.value)
    if broken == "operator":
        assert "NoSuchOperator" in str(caught.value)


@pytest.mark.parametrize("optimize", [True, False])
def test_settings_reach_the_session(build_model: Build, tmp_path: Path, optimize: bool) -> None:
    written = tmp_path / "optimized.onnx"
    # A constant sum in front: gone after optimisation, still there without.
    proto = build_model("g (float[N, 4] x) => (float[N, 3] y) { w = Add(v, v) y = MatMul(x, w) }", {"v": W})
    session = runtime.session(
        proto,
        threads=2,
        optimize=optimize,
        optimized_path=written,
        config={"session.intra_op.allow_spinning": "0"},
    )
    options = session.get_session_options()
    assert options.intra_op_num_threads == 2
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert session.get_providers() == ["CPUExecutionProvider"]
    assert ("Add" in {node.op_type for node in onnx.load(written).graph.node}) is not optimize


def test_default_threads_are_those_of_the_process(
    build_model: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 1 <= runtime.cpu_count() <= (os.cpu_count() or 1)
    monkeypatch.setattr(runtime, "cpu_count", lambda: 3)
    session = runtime.session(build_model(TEXT, {"w": W}))
    assert session.get_session_options().intra_op_num_threads == 3


def test_cpu_count_obeys_the_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5, 7}, raising=False)
    assert runtime.cpu_count() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert runtime.cpu_count() == 1
