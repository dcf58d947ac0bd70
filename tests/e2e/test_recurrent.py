"""LSTM, GRU and RNN from end to end: accuracy, storage, fine-tuning, criteria, structured pruning."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

import onnxprune
from onnxprune import runtime
from onnxprune.layers import find_layers
from onnxprune.layers.recurrent import GATES
from onnxprune.model import Model

Arrays = dict[str, NDArray[Any]]
MAGNITUDE = {"criterion": "magnitude"}
KINDS = ("LSTM", "GRU", "GRU, linear_before_reset=1", "RNN")
STEPS, FEATURES, HIDDEN = 12, 16, 24
QUICK: dict[str, Any] = {
    "threads": 1, "cache": False, "min_size": 16, "target_runtime": "stock", "samples": 96,
    "allocation": "uniform",
}  # fmt: skip


def network(
    kind: str, direction: str = "forward", *, lengths: bool = False, dtype: Any = np.float32
) -> Model:
    """Sequences (N, 12, 16) through two recurrent layers to 4 numbers for each step."""
    op, _, more = kind.partition(", ")
    D, G = 1 + (direction == "bidirectional"), GATES[op]
    rng = np.random.default_rng(0)
    weights: Arrays = {"head": rng.normal(0, 0.3, (D * HIDDEN, 4)), "flat": np.array([0, 0, D * HIDDEN])}
    steps = ["t = Transpose<perm=[1, 0, 2]>(x)"]
    value, features = "t", FEATURES
    for k in "12":
        weights |= {
            f"W{k}": rng.normal(0, features**-0.5, (D, G * HIDDEN, features)),
            f"R{k}": rng.normal(0, HIDDEN**-0.5, (D, G * HIDDEN, HIDDEN)),
            f"B{k}": rng.normal(0, 0.1, (D, 2 * G * HIDDEN)),
        }
        options = f'hidden_size={HIDDEN}, direction="{direction}"' + (f", {more}" if more else "")
        last = ", n" if lengths else ""
        steps.append(f"y{k} = {op}<{options}>({value}, W{k}, R{k}, B{k}{last})")
        steps.append(f"p{k} = Transpose<perm=[0, 2, 1, 3]>(y{k}) v{k} = Reshape(p{k}, flat)")
        value, features = f"v{k}", D * HIDDEN
    kinds = {np.float32: "float", np.float16: "float16"}
    kept = f"float[N, {STEPS}, {FEATURES}] x" + (", int32[N] n" if lengths else "")
    text = f"g ({kept}) => (float[{STEPS}, N, 4] y) {{ {' '.join(steps)} y = MatMul(v2, head) }}"
    text = text.replace("float[", f"{kinds[dtype]}[")
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
    for name, array in weights.items():
        proto.graph.initializer.append(
            numpy_helper.from_array(array if name == "flat" else array.astype(dtype), name)
        )
    onnx.checker.check_model(proto)
    return Model(proto)


def sequences(rows: int, seed: int, *, lengths: bool = False, dtype: Any = np.float32) -> Arrays:
    """Smooth sequences of few causes: what makes second-order pruning worth its price."""
    rng = np.random.default_rng(seed)
    causes = rng.normal(0.3, 1, (rows, STEPS, 5))
    for t in range(1, STEPS):
        causes[:, t] = 0.7 * causes[:, t - 1] + 0.7 * causes[:, t]
    mix = np.random.default_rng(9).normal(size=(5, FEATURES))
    found: Arrays = {"x": (causes @ mix + 0.2 * rng.normal(size=(rows, STEPS, FEATURES))).astype(dtype)}
    if lengths:
        found["n"] = rng.integers(1, STEPS + 1, rows).astype(np.int32)
    return found


def pruned(tmp_path: Path, model: Model, feeds: Arrays, name: str = "o.onnx", **options: Any) -> Model:
    """Prune all four weights; return what was written."""
    report = onnxprune.prune(model, tmp_path / name, data=feeds, force=True, **(QUICK | options))
    assert {layer.name for layer in report.layers} >= {"W1", "R1", "W2", "R2"}
    return onnxprune.io.load(tmp_path / name)


def run(model: Model | Path, feeds: Arrays) -> NDArray[Any]:
    session = runtime.session(model if isinstance(model, Path) else model.proto, threads=1, kernels=False)
    return np.asarray(session.run(None, feeds)[0], np.float64)


def error(found: NDArray[Any], wanted: NDArray[Any], real: Any = True) -> float:
    real = np.broadcast_to(real, found.shape)
    return float(((found - wanted)[real] ** 2).sum() / (wanted[real] ** 2).sum())


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("kind", KINDS)
def test_obs_is_far_better_than_magnitude(tmp_path: Path, kind: str, direction: str) -> None:
    model, feeds, judge = network(kind, direction), sequences(96, 1), sequences(64, 2)
    dense, errors = run(model, judge), {}
    for name, options in (("obs", {}), ("repaired", MAGNITUDE), ("magnitude", MAGNITUDE | {"refit": False})):
        found = pruned(tmp_path, model, feeds, sparsity=0.6, format="dense", **options)
        weights = {layer.name: found.array(layer.name) for layer in find_layers(model, min_size=16)[0]}
        zeros, size = (sum(f(w) for w in weights.values()) for f in (lambda w: (w == 0).sum(), np.size))
        assert zeros == pytest.approx(0.6 * size, abs=len(weights))
        errors[name] = error(run(found, judge), dense)
    assert errors["obs"] < 0.8 * errors["repaired"] and errors["obs"] < 0.2 * errors["magnitude"], errors


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_steps_behind_the_end_do_not_count(tmp_path: Path, kind: str) -> None:
    """What stands there may be anything: it changes no weight."""
    model, feeds = network(kind, "bidirectional", lengths=True), sequences(96, 1, lengths=True)
    behind = np.arange(STEPS) >= feeds["n"][:, None]
    found = []
    for k, junk in enumerate((0.0, 1e3)):
        x = np.where(behind[..., None], np.float32(junk), feeds["x"])
        found.append(
            pruned(tmp_path, model, {"x": x, "n": feeds["n"]}, f"{k}.onnx", sparsity=0.6, format="dense")
        )
    for name in ("W1", "R1", "B1", "W2", "R2"):
        np.testing.assert_allclose(found[0].array(name), found[1].array(name), atol=1e-5)
    judge = sequences(64, 2, lengths=True)
    real = (np.arange(STEPS)[:, None] < judge["n"])[..., None]
    assert error(run(found[0], judge), run(model, judge), real) < 0.2


@pytest.mark.parametrize("kind", KINDS)
def test_the_packed_file_is_smaller_and_answers_bit_for_bit(tmp_path: Path, kind: str) -> None:
    model, feeds = network(kind, "bidirectional"), sequences(96, 1)
    outputs, ops = [], []
    for form in ("dense", "packed"):
        pruned(tmp_path, model, feeds, f"{form}.onnx", sparsity=0.7, format=form, solver="sweep")
        outputs.append(run(tmp_path / f"{form}.onnx", feeds))
        runtime.session(
            tmp_path / f"{form}.onnx", threads=1, kernels=False, optimized_path=tmp_path / "run.onnx"
        )
        ops.append(Counter(node.op_type for node in onnx.load(tmp_path / "run.onnx").graph.node))
    np.testing.assert_array_equal(*outputs)
    assert ops[0] == ops[1] and ops[1][kind.partition(",")[0]] == 2  # all decoding is done at load
    sizes = [(tmp_path / f"{form}.onnx").stat().st_size for form in ("dense", "packed")]
    assert sizes[1] < 0.65 * sizes[0]


@pytest.mark.parametrize("pattern", ["2:4", "block:4x1,adjacent"])
def test_patterns_hold_in_each_matrix(tmp_path: Path, pattern: str) -> None:
    model = network("GRU", "bidirectional")
    found = pruned(tmp_path, model, sequences(96, 1), sparsity=0.5, pattern=pattern, format="dense")
    for layer in find_layers(model, min_size=16)[0]:
        if layer.kind.startswith("rnn"):
            W = layer.view.to_matrix(found.array(layer.name))
            G, rows, columns = W.shape
            blocks = (
                W.reshape(G, rows, -1, 4) if pattern == "2:4" else W.reshape(G, -1, 4, columns).swapaxes(2, 3)
            )
            zeros = (blocks == 0).sum(-1)
            assert set(np.unique(zeros)) == ({2} if pattern == "2:4" else {0, 4})


def test_models_in_half_precision(tmp_path: Path) -> None:
    model, feeds = network("LSTM", dtype=np.float16), sequences(96, 1, dtype=np.float16)
    found = pruned(tmp_path, model, feeds, sparsity=0.6)
    judge = sequences(64, 2, dtype=np.float16)
    assert error(run(tmp_path / "o.onnx", judge), run(model, judge)) < 0.1
    assert all(t.data_type != onnx.TensorProto.FLOAT for t in found.graph.initializer)


@pytest.mark.parametrize("criterion", ["fisher", "taylor", "obs+fisher", "wanda", "activation"])
def test_criteria(tmp_path: Path, criterion: str) -> None:
    """Gradients as well: torch runs the node and gives those of W and R."""
    model, feeds = network("GRU"), sequences(32, 1)
    found = pruned(tmp_path, model, feeds, sparsity=0.5, criterion=criterion, samples=16, solver="sweep")
    judge = sequences(64, 2)
    assert 0 < error(run(tmp_path / "o.onnx", judge), run(model, judge)) < 0.5
    assert any(node.op_type.endswith("Decode") for node in found.graph.node)


def test_fine_tuning_keeps_the_zeros(tmp_path: Path) -> None:
    model, feeds = network("LSTM", "bidirectional"), sequences(96, 1)
    before = pruned(
        tmp_path, model, feeds, "before.onnx", sparsity=0.8, criterion="magnitude", format="dense"
    )
    report = onnxprune.distill(
        tmp_path / "before.onnx", model, tmp_path / "after.onnx", data=feeds, format="dense",
        steps=60, lr=0.01, min_size=16, cache=False, threads=1, target_runtime="stock",
    )  # fmt: skip
    after = onnxprune.io.load(tmp_path / "after.onnx")
    for name in ("W1", "R1", "W2", "R2"):
        np.testing.assert_array_equal(after.array(name) == 0, before.array(name) == 0)
        assert not np.array_equal(after.array(name), before.array(name))
    judge = sequences(64, 2)
    dense = run(model, judge)
    assert error(run(after, judge), dense) < 0.7 * error(run(before, judge), dense)
    assert report.sparsity == pytest.approx(0.8, abs=0.01)


def test_hidden_units_go_where_nothing_reads_them(tmp_path: Path) -> None:
    """Half of the units are copies that what follows ignores: removing as many costs next to nothing."""
    model, feeds = network("GRU"), sequences(96, 1)
    dead = np.arange(HIDDEN) % 2 == 0
    for name, axis in (("R1", 2), ("W2", 2)):
        array = np.array(model.array(name))
        np.moveaxis(array, axis, 0)[dead] *= np.float32(1e-3)
        model.set_array(name, array)
    options = {k: v for k, v in QUICK.items() if k not in ("min_size", "allocation")}
    onnxprune.prune(model, tmp_path / "o.onnx", data=feeds, pattern="hidden", sparsity=0.3, **options)
    found = onnxprune.io.load(tmp_path / "o.onnx")
    assert found.array("R1").shape[2] < HIDDEN
    judge = sequences(64, 2)
    assert error(run(found, judge), run(model, judge)) < 0.05


def test_sums_that_grow(tmp_path: Path) -> None:
    """:class:`onnxprune.Pruner` shifts both halves of the biases, those of W and those of R."""
    model, feeds = network("LSTM"), sequences(96, 1)
    pruner = onnxprune.Pruner(model, min_size=16, threads=1)
    pruner.feed(feeds)
    found, dense = pruner.prune(0.6), model.array("B1")
    for half in np.split(found.array("B1") - dense, 2, axis=1):
        assert np.abs(half).max() > 1e-4
    judge = sequences(64, 2)
    magnitude = pruned(
        tmp_path, model, feeds, sparsity=0.6, criterion="magnitude", refit=False, format="dense"
    )
    errors = [error(run(m, judge), run(model, judge)) for m in (found, magnitude)]
    assert errors[0] < 0.3 * errors[1]


def test_inspect_names_them(tmp_path: Path) -> None:
    found = onnxprune.inspect(network("LSTM", "bidirectional"))
    kinds = {layer.name: (layer.kind, layer.matrix) for layer in found.layers}
    assert kinds["W1"] == ("rnn_input", (1, 192, 16)) and kinds["R1"] == ("rnn_recurrence", (2, 96, 24))
    assert helper.tensor_dtype_to_np_dtype(1) == np.dtype(found.layers[0].dtype)
