from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from onnxprune import export as export_function
from onnxprune.errors import DataError, ModelError, UsageError, VerificationError
from onnxprune.export import export
from onnxprune.inspection import inspect
from onnxprune.io import load
from onnxprune.model import Model
from onnxprune.passes.fix_input import fix_inputs

if TYPE_CHECKING:
    import onnx

TEXT = "g (float[N, 96] x) => (float[N, 64] y) { h = MatMul(x, pruned)  y = MatMul(h, full) }"


@pytest.fixture
def weights() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    pruned = random.normal(size=(96, 80)).astype(np.float32)
    pruned[random.random(pruned.shape) < 0.7] = 0
    return {"pruned": pruned, "full": random.normal(size=(80, 64)).astype(np.float32)}


@pytest.fixture
def dense(
    tmp_path: Path, build_model: Callable[..., onnx.ModelProto], weights: dict[str, np.ndarray]
) -> Path:
    path = tmp_path / "dense.onnx"
    path.write_bytes(build_model(TEXT, weights).SerializeToString())
    return path


@pytest.fixture
def feed() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).normal(size=(3, 96)).astype(np.float32)}


def storage(path: Path) -> dict[str, str]:
    return {layer.name: layer.storage for layer in inspect(path).layers}


class TestFixedInputs:
    TEXT = """g (float[N, 96] x, int64 rate) => (float[N, 64] y) { c = Equal(rate, high)
        y = If (c) <then_branch = a () => (float[N, 64] p) { h = MatMul(x, pruned) p = MatMul(h, full) },
                    else_branch = b () => (float[N, 64] q) { q = MatMul(x, other) }> }"""

    @pytest.fixture
    def both(
        self, tmp_path: Path, build_model: Callable[..., onnx.ModelProto], weights: dict[str, Any]
    ) -> Path:
        more = {"high": np.array(16000), "other": np.ones((96, 64), np.float32)}
        path = tmp_path / "both.onnx"
        path.write_bytes(build_model(self.TEXT, weights | more).SerializeToString())
        return path

    @pytest.mark.parametrize(("form", "rate"), [("dense", 16000), ("packed", 16000), ("dense", 8000)])
    def test_the_branch_becomes_the_model(
        self, both: Path, form: str, rate: int, run_model: Callable[..., Any]
    ) -> None:
        out = both.with_name("one.onnx")
        result = export(both, out, format=form, fix={"rate": rate})
        assert result.note == f"rate is always {rate}: it decides If(y)"
        assert result.file_bytes_after < result.file_bytes_before - 20_000
        feed = {"x": np.random.default_rng(1).normal(size=(3, 96)).astype(np.float32), "rate": np.array(rate)}
        wanted = run_model(both, feed)[0]
        assert np.array_equal(run_model(out, feed | {"rate": np.array(1)})[0], wanted)
        assert storage(out) == ({"pruned": form, "full": "dense"} if rate == 16000 else {"other": "dense"})

    def test_an_input_that_decides_nothing(self, both: Path) -> None:
        model = load(both)
        model.graph.node[0].input[1] = "rate"
        model.graph.node[1].input[0] = "flag"
        model.graph.input.add(name="flag").type.tensor_type.elem_type = 9
        model.reindex()
        result = export(model, both.with_name("one.onnx"), fix={"rate": 1})
        assert result.note == "rate is always 1: it decides no If node"

    def test_it_is_compared_with_the_model_as_it_came(
        self, both: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def wrong(model: Model, fix: Mapping[str, Any]) -> list[str]:
            return fix_inputs(model, {"rate": 8000})

        monkeypatch.setattr(sys.modules["onnxprune.export"], "fix_inputs", wrong)
        with pytest.raises(VerificationError, match="with rate fixed, output 'y' is off by"):
            export(both, both.with_name("one.onnx"), fix={"rate": 16000})
        assert not both.with_name("one.onnx").exists()

    def test_samples_that_it_cannot_run_on(self, tmp_path: Path, build_model: Callable[..., Any]) -> None:
        """Nothing in the graph says that a sample has to have a multiple of 91 columns."""
        text = """g (float[N, M] x, int64 rate) => (float[K, 64] y) { c = Equal(rate, high)
            y = If (c) <then_branch = a () => (float[K, 64] p) { p = MatMul(x, pruned) },
                        else_branch = b () => (float[K, 64] q) {
                            r = Reshape(x, rows) q = MatMul(r, pruned) }> }"""
        arrays = {
            "pruned": np.ones((91, 64), np.float32),
            "high": np.array(16000),
            "rows": np.array([-1, 91]),
        }
        path = tmp_path / "m.onnx"
        path.write_bytes(build_model(text, arrays).SerializeToString())
        result = export(path, tmp_path / "one.onnx", fix={"rate": 8000})
        assert "it decides If(y); not compared with the model as it came, give it --data: " in result.note
        data = [{"x": np.ones((3, 182), np.float32), "rate": np.array(1)}]
        result = export(path, tmp_path / "two.onnx", fix={"rate": 8000}, data=data)
        assert result.note == "rate is always 8000: it decides If(y)"
        with pytest.raises(DataError, match="ONNX Runtime cannot run"):
            export(path, tmp_path / "three.onnx", fix={"rate": 16000}, data=data)

    def test_a_wrong_input_leaves_nothing_behind(self, both: Path) -> None:
        with pytest.raises(ModelError, match="no input named 'sr'") as caught:
            export(both, both.with_name("one.onnx"), fix={"sr": 16000})
        assert "its inputs are x, rate" in str(caught.value.hint)
        assert not both.with_name("one.onnx").exists()


@pytest.mark.parametrize("form", ["packed", "sparse-initializer"])
def test_there_and_back(
    dense: Path,
    form: str,
    feed: dict[str, np.ndarray],
    run_model: Callable[..., Any],
    weights: dict[str, Any],
) -> None:
    stored, back = dense.with_name("stored.onnx"), dense.with_name("back.onnx")
    result = export(dense, stored, format=form)
    assert (result.tensors, result.format, result.output) == (1, form, str(stored))
    assert result.file_bytes_after == stored.stat().st_size
    assert storage(stored) == {"pruned": form, "full": "dense"}
    np.testing.assert_array_equal(run_model(stored, feed)[0], run_model(dense, feed)[0])

    result = export(stored, back, format="dense")
    assert (result.tensors, result.file_bytes_before) == (1, stored.stat().st_size)
    assert storage(back) == {"pruned": "dense", "full": "dense"}
    for name, value in weights.items():
        np.testing.assert_array_equal(load(back).array(name), value)


def test_packed_is_smaller(dense: Path, weights: dict[str, np.ndarray]) -> None:
    result = export(dense, dense.with_name("p.onnx"), format="packed")
    saved = result.file_bytes_before - result.file_bytes_after
    assert saved > 0.5 * weights["pruned"].nbytes


def test_packed_to_sparse_initializer(dense: Path, feed: dict[str, np.ndarray], run_model: Any) -> None:
    packed, sparse = dense.with_name("p.onnx"), dense.with_name("s.onnx")
    export(dense, packed, format="packed")
    export(packed, sparse, format="sparse-initializer")
    assert storage(sparse)["pruned"] == "sparse-initializer"
    np.testing.assert_array_equal(run_model(sparse, feed)[0], run_model(dense, feed)[0])


def test_dense_model_stays_dense(dense: Path) -> None:
    assert export(dense, dense.with_name("d.onnx"), format="dense").tensors == 0


def test_weights_without_zeros_are_left_alone(
    tmp_path: Path, build_model: Callable[..., onnx.ModelProto], weights: dict[str, np.ndarray]
) -> None:
    weights = {**weights, "pruned": np.ones_like(weights["pruned"])}
    path = tmp_path / "full.onnx"
    path.write_bytes(build_model(TEXT, weights).SerializeToString())
    result = export(path, tmp_path / "p.onnx", format="packed")
    assert (result.tensors, result.kept_dense) == (0, {})
    assert storage(tmp_path / "p.onnx") == {"pruned": "dense", "full": "dense"}


def test_weights_that_would_grow_are_kept_with_the_reason(
    tmp_path: Path, build_model: Callable[..., onnx.ModelProto], weights: dict[str, np.ndarray]
) -> None:
    few = np.ones_like(weights["pruned"])
    few[0, 0] = 0
    path = tmp_path / "few.onnx"
    path.write_bytes(build_model(TEXT, {**weights, "pruned": few}).SerializeToString())
    result = export(path, tmp_path / "p.onnx", format="packed")
    assert result.tensors == 0
    assert "bytes" in result.kept_dense["pruned"]


def test_half_precision_rounds_and_nothing_else(dense: Path, weights: dict[str, np.ndarray]) -> None:
    half, back = dense.with_name("h.onnx"), dense.with_name("b.onnx")
    export(dense, half, format="packed", values="fp16")
    assert half.stat().st_size < dense.stat().st_size
    export(half, back, format="dense")
    rounded = weights["pruned"].astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(load(back).array("pruned"), rounded)
    np.testing.assert_array_equal(load(back).array("full"), weights["full"])


def test_loaded_model_is_left_as_it_is(dense: Path) -> None:
    model = load(dense)
    before = model.to_bytes()
    result = export_function(model, dense.with_name("p.onnx"), format="packed")
    assert model.to_bytes() == before
    assert result.model == str(dense)


def test_existing_output_and_input_are_safe(dense: Path) -> None:
    taken = dense.with_name("taken.onnx")
    taken.write_bytes(b"mine")
    with pytest.raises(UsageError, match="exists"):
        export(dense, taken, format="packed")
    assert taken.read_bytes() == b"mine"
    export(dense, taken, format="packed", force=True)
    before = dense.read_bytes()
    with pytest.raises(UsageError, match="input"):
        export(dense, dense, format="packed", force=True)
    assert dense.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"format": "zip"}, "--format is 'zip'"),
        ({"format": "packed", "values": "int4"}, "--values is 'int4'"),
        ({"format": "dense", "values": "fp16"}, "packed"),
    ],
)
def test_odd_options(dense: Path, options: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        export(dense, dense.with_name("o.onnx"), **options)
    assert not dense.with_name("o.onnx").exists()


def test_no_model(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(ModelError):
        export(tmp_path / "text.onnx", tmp_path / "o.onnx")
    assert not (tmp_path / "o.onnx").exists()


def test_file_that_differs_is_not_published(dense: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from onnxprune import export as _  # noqa: F401  loads the module, whose name is also the function's

    module = sys.modules["onnxprune.export"]
    real = module.pack

    def pack(model: Any, names: Any, **options: Any) -> Any:
        model.set_array("full", model.array("full") + np.float32(1))
        return real(model, names, **options)

    monkeypatch.setattr(module, "pack", pack)
    with pytest.raises(VerificationError, match="'full' differs"):
        export(dense, dense.with_name("o.onnx"), format="packed")
    assert sorted(path.name for path in dense.parent.iterdir()) == ["dense.onnx"]


class TestKernels:
    """target_runtime="cpu": what another tool pruned gets the ops that are faster here."""

    @pytest.fixture
    def wide(self, tmp_path: Path, build_model: Callable[..., onnx.ModelProto]) -> Path:
        """One layer that no dense product can keep up with: 95 % zeros."""
        random = np.random.default_rng(0)
        weight = random.normal(size=(768, 768)).astype(np.float32)
        weight[random.random(weight.shape) < 0.95] = 0
        path = tmp_path / "wide.onnx"
        text = "g (float[64, 768] x) => (float[64, 768] y) { y = MatMul(x, w) }"
        path.write_bytes(build_model(text, {"w": weight}).SerializeToString())
        return path

    def test_switches_and_counts(self, wide: Path, run_model: Callable[..., Any]) -> None:
        output = wide.with_name("fast.onnx")
        result = export(wide, output, format="packed", target_runtime="cpu")
        assert (result.tensors, result.switched) == (1, 1)
        assert "made up" in result.note
        assert [node.domain for node in load(output).graph.node] == ["onnxprune"]
        assert load(output).graph.node[0].op_type.startswith("Sparse")
        feed = {"x": np.random.default_rng(1).normal(size=(64, 768)).astype(np.float32)}
        np.testing.assert_allclose(run_model(output, feed)[0], run_model(wide, feed)[0], atol=1e-3)

    def test_a_packed_model_again(self, wide: Path) -> None:
        plain, again = wide.with_name("plain.onnx"), wide.with_name("again.onnx")
        export(wide, plain, format="packed")
        result = export(
            plain, again, format="packed", target_runtime="cpu", data={"x": np.ones((64, 768), "f4")}
        )
        assert result.switched == 1
        assert "made up" not in result.note

    def test_stock_switches_nothing(self, wide: Path) -> None:
        result = export(wide, wide.with_name("plain.onnx"), format="packed")
        assert (result.switched, result.speed, result.note) == (0, {}, "")

    @pytest.mark.parametrize(("form", "target"), [("dense", "cpu"), ("packed", "cuda")])
    def test_refuses(self, wide: Path, form: str, target: str) -> None:
        with pytest.raises(UsageError, match=f"target-runtime.*{target}"):
            export(wide, wide.with_name("o.onnx"), format=form, target_runtime=target)
