"""Only what :mod:`tests.unit.test_pipeline` does not see through ``prune``: each refusal is tested there."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.parser
import pytest

from onnxprune.errors import ResourceError, UsageError
from onnxprune.model import Model
from onnxprune.recipe import Recipe
from onnxprune.targets import find_targets


@pytest.fixture
def proto() -> onnx.ModelProto:
    text = '<ir_version: 8, opset_import: ["": 17]> g (float[2] x) => (float[2] y) { y = Neg(x) }'
    return onnx.parser.parse_model(text)


def test_names(proto: onnx.ModelProto, tmp_path: Path) -> None:
    model = Model(proto, tmp_path / "net.onnx")
    found = find_targets(model, None, None, Recipe(), False, False)
    assert found == (tmp_path / "net.pruned.onnx", tmp_path / "net.pruned.json")
    chosen = find_targets(model, tmp_path / "a.onnx", tmp_path / "b.json", Recipe(), False, False)
    assert chosen == (tmp_path / "a.onnx", tmp_path / "b.json")
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_does_not_end_with_onnx(proto: onnx.ModelProto, tmp_path: Path) -> None:
    model = Model(proto, tmp_path / "net.v2")
    assert find_targets(model, None, None, Recipe(), False, False)[0] == tmp_path / "net.v2.pruned.onnx"


def test_a_dry_run_is_refused_what_the_real_one_is(
    proto: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model(proto, tmp_path / "net.onnx")
    assert find_targets(model, None, None, Recipe(), True, False) == (None, None)
    assert find_targets(Model(proto), None, None, Recipe(), True, False) == (None, None)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "net.pruned.onnx").write_text("of an earlier run")
    with pytest.raises(UsageError, match="already exists"):
        find_targets(model, None, None, Recipe(), True, False)
    assert find_targets(model, None, None, Recipe(), True, True) == (None, None)
    with pytest.raises(UsageError, match="there is no folder"):
        find_targets(model, tmp_path / "no" / "a.onnx", None, Recipe(), True, False)
    with pytest.raises(UsageError, match="already exists"):
        find_targets(model, tmp_path / "a.onnx", tmp_path / "net.pruned.onnx", Recipe(), True, False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for dry_run in (False, True):
        with pytest.raises(ResourceError, match="nothing was measured on a GPU"):
            find_targets(model, tmp_path / "b.onnx", None, Recipe(target_runtime="cuda"), dry_run, False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.pruned.onnx"]


def test_refusals(proto: onnx.ModelProto, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs an output path"):
        find_targets(Model(proto), None, None, Recipe(), False, False)
    with pytest.raises(UsageError, match="both the model and its report"):
        find_targets(Model(proto), tmp_path / "a", tmp_path / "a", Recipe(), False, False)
    for output, report in (("-", None), (None, "-")):
        with pytest.raises(UsageError, match="not written to stdout") as caught:
            find_targets(Model(proto, tmp_path / "net.onnx"), output, report, Recipe(), False, False)
        assert "--json" in caught.value.hint
