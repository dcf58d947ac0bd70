from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx.parser
import pytest

from onnxprune import opsinfo, runtime
from onnxprune.kernels import library
from onnxprune.model import Model


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> opsinfo.OpsInfo:
    path = tmp_path / "library.so"
    path.write_bytes(b"one")
    info = replace(opsinfo.info(), library=str(path), problem="", level="avx2")
    monkeypatch.setattr(opsinfo, "info", lambda: info)
    return info


def test_identity_is_content_and_level(found: opsinfo.OpsInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    first = library.identity()
    assert first is not None and first.endswith("avx2") and first == library.identity()
    monkeypatch.setattr(opsinfo, "info", lambda: replace(found, level="avx512"))
    assert library.identity() not in (None, first)
    Path(found.library).write_bytes(b"two")
    monkeypatch.setattr(opsinfo, "info", lambda: found)
    assert library.identity() not in (None, first)


def test_no_library(found: opsinfo.OpsInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opsinfo, "info", lambda: replace(found, problem="too old"))
    assert library.identity() is None
    monkeypatch.setattr(opsinfo, "info", lambda: replace(found, library=""))
    assert library.identity() is None


@pytest.mark.parametrize("with_library", [True, False])
def test_sessions(monkeypatch: pytest.MonkeyPatch, with_library: bool) -> None:
    seen = {}
    real = runtime.session

    def session(model: bytes, **options: object) -> object:
        seen.update(options)
        return real(model, threads=1)

    monkeypatch.setattr(runtime, "session", session)
    text = '<ir_version: 8, opset_import: ["": 17]> g (float[2] x) => (float[2] y) { y = Neg(x) }'
    opened = library.open_session(Model(onnx.parser.parse_model(text)), 3, with_library)
    assert opened.run(None, {"x": np.ones(2, np.float32)})[0].tolist() == [-1, -1]
    assert seen["threads"] == 3 and seen["kernels"] is with_library
