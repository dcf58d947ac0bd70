"""Sessions, and what is said when ONNX Runtime is missing, doubled, or refuses the model."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune import ops, opsinfo, runtime
from onnxprune.errors import ModelError, ResourceError

TEXT = "g (float[N, 4] x) => (float[N, 3] y) { h = MatMul(x, w) y = Relu(h) }"
W = np.arange(12, dtype=np.float32).reshape(4, 3)

LIBRARY = ops.library_path()  # before the tests get a cache of their own

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
    assert caught.value.hint == "pip install onnxruntime, or onnxruntime-gpu"


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


def has_kernels(session: Any) -> bool:
    """Whether the session was made with the kernels: registering leaves a note in its configuration."""
    try:
        return bool(session.get_session_options().get_session_config_entry("onnxprune.registered"))
    except Exception:  # ONNX Runtime's for an entry that is not there
        return False


@pytest.fixture
def fake_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file that is there but is no library."""
    path = tmp_path / "libfake.so"
    path.write_bytes(b"no library")
    monkeypatch.setenv("ONNXPRUNE_OPS", str(path))
    monkeypatch.setattr(runtime, "_told", set())
    return path


def packed(build_model: Build, domain: str = "onnxprune") -> onnx.ModelProto:
    proto = build_model(TEXT, {"w": W})
    proto.opset_import.add(domain=domain, version=1)
    return proto


@pytest.mark.parametrize("form", ["proto", "bytes", "path"])
def test_our_domain_is_seen_in_every_form(build_model: Build, tmp_path: Path, form: str) -> None:
    for domain, expected in (("onnxprune", True), ("com.microsoft", False)):
        proto = packed(build_model, domain)
        proto.doc_string = "onnxprune wrote it"  # not what counts
        path = tmp_path / f"{domain}.onnx"
        onnx.save(proto, path)
        model = {"proto": proto, "bytes": proto.SerializeToString(), "path": path}[form]
        assert runtime._has_our_ops(model) is expected


@pytest.mark.parametrize("broken", [b"", b"\x3a\xff", b"not a model", b"\xff" * 20, b"\x08"])
def test_what_is_no_model_has_none_of_our_ops(tmp_path: Path, broken: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(broken)
    assert not runtime._has_our_ops(broken)
    assert not runtime._has_our_ops(tmp_path / "m.onnx")
    assert not runtime._has_our_ops(tmp_path / "absent.onnx")


def test_no_library_is_no_failure(monkeypatch: pytest.MonkeyPatch, build_model: Build) -> None:
    import onnxruntime

    monkeypatch.setenv("ONNXPRUNE_OPS", "0")
    assert runtime.register(onnxruntime.SessionOptions()) is False
    assert runtime.session(packed(build_model), threads=1).run(None, {"x": W.T})[0].shape == (3, 3)
    with pytest.raises(ResourceError, match="no kernels: switched off by ONNXPRUNE_OPS=0") as caught:
        runtime.session(packed(build_model), kernels=True)
    assert "onnxprune ops build" in caught.value.hint


def test_a_broken_library_is_one_warning(build_model: Build, fake_kernels: Path) -> None:
    with pytest.warns(RuntimeWarning, match="libfake.so cannot be used, packed models run at dense speed"):
        session = runtime.session(packed(build_model), threads=1)
    assert session.run(None, {"x": W.T})[0].shape == (3, 3)
    runtime.session(packed(build_model), threads=1)  # a second warning would be an error
    with pytest.raises(ResourceError, match=r"libfake\.so cannot be used"):
        runtime.session(packed(build_model), kernels=True)


def test_the_kernels_are_left_alone_where_they_are_not_wanted(build_model: Build, fake_kernels: Path) -> None:
    runtime.session(packed(build_model), kernels=False)
    runtime.session(build_model(TEXT, {"w": W}))  # nothing of ours in it
    providers = ("CUDAExecutionProvider", "CPUExecutionProvider")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "library_path", lambda: pytest.fail("looked for those for the CPU"))
        patch.setattr(
            opsinfo,
            "info",
            lambda: opsinfo.OpsInfo("", "", "", (), 0, "", "", "", "", opsinfo.CudaInfo("", "none")),
        )
        with pytest.warns(UserWarning, match="CUDA"):  # ONNX Runtime's, as this machine has none
            runtime.session(packed(build_model), providers=providers, threads=1)


@pytest.mark.skipif(LIBRARY is None, reason="no kernels: onnxprune ops build")
def test_registered_when_the_model_has_our_ops(build_model: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXPRUNE_OPS", str(LIBRARY))
    assert has_kernels(runtime.session(packed(build_model)))
    assert not has_kernels(runtime.session(build_model(TEXT, {"w": W})))
    assert has_kernels(runtime.session(build_model(TEXT, {"w": W}), kernels=True))


def test_errors_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ModelError, match=r"text\.onnx: ONNX Runtime refuses it"):
        runtime.session(tmp_path / "text.onnx")


class Options:
    """Stands for session options; remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def add_session_config_entry(self, key: str, value: str) -> None:
        self.told.append(f"{key}={value}")

    def register_custom_ops_library(self, path: str) -> None:
        self.told.append(path)


def test_register_for_cuda(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Only where those kernels can run, and the session says that it has CUDA before the library looks."""

    def says(problem: str) -> None:
        found = opsinfo.OpsInfo("", "", "", (), 0, "", "", "", "", opsinfo.CudaInfo("x", problem))
        monkeypatch.setattr(opsinfo, "info", lambda: found)

    monkeypatch.setattr(ops, "library_path", lambda: tmp_path / "lib.so")
    says("no CUDA device")
    options = Options()
    assert not runtime.register(options, cuda=True) and options.told == []
    with pytest.raises(ResourceError, match="no CUDA kernels: no CUDA device"):
        runtime.register(options, cuda=True, required=True)
    says("")
    assert runtime.register(options, cuda=True)
    assert options.told == ["onnxprune.cuda=1", str(tmp_path / "lib.so")]
