"""Sums that grow with the data, and what is pruned from them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import onnxprune
from onnxprune import runtime
from onnxprune.errors import DataError, UsageError, VerificationError
from onnxprune.io import load
from onnxprune.model import Model
from onnxprune.online import pruner as online
from onnxprune.online.pruner import Pruner
from onnxprune.passes.unpack import unpack
from tests.unit.online.examples import IDS, X, noise

CONV = """g (float[N, 3, 6, 6] x) => (float[N, 5] y) {
    c = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w, b)  r = Relu(c)  m = GlobalAveragePool(r)
    f = Flatten(m)  y = Gemm(f, v, u) }"""
TIED = """g (float[N, 16] x) => (float[N, 16] y) { h = MatMul(x, w)  r = Relu(h)  y = MatMul(r, w) }"""
OPTIONS: dict[str, Any] = {"min_size": 32, "threads": 1, "solver": "sweep"}
IMAGES = np.random.default_rng(6).normal(size=(40, 3, 6, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def convolution(build_model: Callable[..., onnx.ModelProto]) -> Model:
    weights = {"w": noise(8, 3, 3, 3), "b": noise(8), "v": noise(8, 5), "u": noise(5)}
    return Model(build_model(CONV, weights))


def weights(model: Model) -> dict[str, np.ndarray]:
    return {name: model.array(name) for name in model.index.tensors}


def assert_same(a: Model, b: Model) -> None:
    for name, array in weights(a).items():
        np.testing.assert_array_equal(array, b.array(name), err_msg=name)


def test_is_public() -> None:
    assert onnxprune.Pruner is Pruner


def test_prunes_to_the_sparsity_and_leaves_the_model(dense: Model) -> None:
    before = weights(dense)
    pruner = Pruner(dense, **OPTIONS)
    assert pruner.feed(X) == 64 == pruner.samples
    for sparsity in (0.25, 0.5, 0.75):
        pruned = pruner.prune(sparsity)
        zeros = sum(int((pruned.array(name) == 0).sum()) for name in ("w1", "w2"))
        assert zeros == round(sparsity * (16 * 24 + 24 * 12))
    for name, array in before.items():
        np.testing.assert_array_equal(dense.array(name), array)


def test_is_what_one_shot_pruning_does_at_once(dense: Model, tmp_path: Path) -> None:
    options = {**OPTIONS, "allocation": "uniform", "sparsity": 0.5, "samples": 64}
    pruner = Pruner(dense, **options)
    whole = np.concatenate([X, X[:1]])  # prune holds one sample out of so few
    report = onnxprune.prune(
        dense,
        tmp_path / "p.onnx",
        data=whole,
        solve="one-shot",
        target_runtime="stock",
        **options,
    )
    assert report.sparsity == 0.5
    calibration, _ = onnxprune.opening.read_data(dense, pruner.recipe, whole)  # type: ignore[attr-defined]
    pruner.feed(iter(calibration.batches))
    written, pruned = load(tmp_path / "p.onnx"), pruner.prune()
    unpack(written)
    for name in ("w1", "w2", "b1"):
        # The noise that sets the ridge is measured around another centre: that of the first batch
        np.testing.assert_allclose(written.array(name), pruned.array(name), rtol=0, atol=0.02)
        assert np.mean((written.array(name) == 0) == (pruned.array(name) == 0)) > 0.99


class TestPortions:
    """Samples give the same sums in whatever portions they come."""

    def test_two_halves(self, dense: Model) -> None:
        once, twice = Pruner(dense, **OPTIONS), Pruner(dense, **OPTIONS)
        once.feed(X)
        twice.feed(X[:32])
        middle = twice.prune(0.5)
        twice.feed(X[32:])
        assert_same(once.prune(0.5), twice.prune(0.5))
        assert any((middle.array(name) != once.prune(0.5).array(name)).any() for name in ("w1", "w2"))

    @settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(cuts=st.lists(st.integers(1, 63), max_size=4))
    def test_any_cuts(self, dense: Model, cuts: list[int]) -> None:
        once, pieces = Pruner(dense, **OPTIONS), Pruner(dense, **OPTIONS)
        once.feed({"x": X})
        edges = [0, *sorted(set(cuts)), 64]
        pieces.feed(X[a:b] for a, b in itertools.pairwise(edges))
        assert_same(once.prune(0.6), pieces.prune(0.6))

    def test_images(self, convolution: Model) -> None:
        once, pieces = Pruner(convolution, **OPTIONS), Pruner(convolution, **OPTIONS)
        once.feed(IMAGES)
        for image in IMAGES:
            pieces.feed({"x": image[None]})
        assert_same(once.prune(0.5), pieces.prune(0.5))

    def test_tables(self, table: Model) -> None:
        once, pieces = Pruner(table, **OPTIONS), Pruner(table, **OPTIONS)
        once.feed(IDS)
        pieces.feed([IDS[:7], IDS[7:21], IDS[21:]])
        assert_same(once.prune(0.5), pieces.prune(0.5))

    def test_pruning_in_between_changes_nothing(self, dense: Model) -> None:
        one, other = Pruner(dense, **OPTIONS), Pruner(dense, **OPTIONS)
        for pruner in (one, other):
            pruner.feed(X[:21])
            if pruner is other:
                pruner.prune(0.7)
                pruner.prune(0.2)
            pruner.feed(X[21:])
        assert_same(one.prune(0.5), other.prune(0.5))

    def test_memory_is_that_of_the_sums(self, dense: Model) -> None:
        pruner = Pruner(dense, **OPTIONS)
        sizes = []
        for _ in range(5):
            pruner.feed(X)
            sizes.append(sum(array.nbytes for array in pruner.state_dict().values()))
        assert len(set(sizes)) == 1


def test_tied_weights_are_solved_for_all_their_uses(build_model: Callable[..., onnx.ModelProto]) -> None:
    model = Model(build_model(TIED, {"w": noise(16, 16)}))
    pruner = Pruner(model, **OPTIONS)
    pruner.feed(X)
    assert [stage.site for stage in pruner.stages] == [0, 1]
    pruned = pruner.prune(0.5)
    assert int((pruned.array("w") == 0).sum()) == 128


def test_more_data_is_better_than_little(dense: Model) -> None:
    rows = np.random.default_rng(7).normal(size=(200, 16))
    feeds = {"x": (rows @ np.linalg.qr(noise(16, 16))[0]).astype(np.float32)}

    def error(count: int) -> float:
        pruner = Pruner(dense, **OPTIONS)
        pruner.feed(X[:count])
        (a,), (b,) = (
            runtime.session(m.proto, threads=1).run(None, feeds) for m in (dense, pruner.prune(0.6))
        )
        return float(np.square(a - b).sum() / np.square(a).sum())

    assert error(64) < error(4)


class TestSave:
    def test_writes_a_packed_file_that_runs(self, dense: Model, tmp_path: Path) -> None:
        pruner = Pruner(dense, **OPTIONS)
        pruner.feed(X)
        path = pruner.save(tmp_path / "p.onnx", 0.8)
        (a,) = runtime.session(path, threads=1).run(None, {"x": X})
        (b,) = runtime.session(pruner.prune(0.8).proto, threads=1).run(None, {"x": X})
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
        with pytest.raises(UsageError, match=r"p\.onnx"):
            pruner.save(path, 0.5)
        pruner.save(path, 0.5, force=True)

    def test_nothing_is_left_when_the_check_fails(
        self, dense: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*args: Any) -> None:
            raise VerificationError("no")

        monkeypatch.setattr(online, "verify_file", fail)
        pruner = Pruner(dense, **OPTIONS)
        pruner.feed(X)
        with pytest.raises(VerificationError):
            pruner.save(tmp_path / "p.onnx", 0.8)
        assert not list(tmp_path.iterdir())


class TestState:
    @pytest.mark.parametrize("count", [32, 37])
    def test_goes_on_where_it_was(self, dense: Model, tmp_path: Path, count: int) -> None:
        once, first, second = (Pruner(dense, **OPTIONS) for _ in range(3))
        once.feed(X)
        first.feed(X[:count])
        first.save_state(tmp_path / "sums.npz")
        second.load_state(tmp_path / "sums.npz")
        assert_same(first.prune(0.5), second.prune(0.5))
        second.feed(X[count:])
        assert second.samples == 64
        assert_same(once.prune(0.5), second.prune(0.5))

    def test_of_tables(self, table: Model) -> None:
        once, second = Pruner(table, **OPTIONS), Pruner(table, **OPTIONS)
        once.feed(IDS)
        second.load_state_dict(once.state_dict())
        assert_same(once.prune(0.5), second.prune(0.5))

    def test_of_another_model(self, dense: Model, convolution: Model) -> None:
        state = Pruner(dense, **OPTIONS).state_dict()
        with pytest.raises(DataError, match="not one of"):
            Pruner(convolution, **OPTIONS).load_state_dict(state)
        with pytest.raises(DataError, match="not one of"):
            Pruner(dense, **{**OPTIONS, "exclude": ("w2",)}).load_state_dict(state)

    def test_damaged(self, dense: Model) -> None:
        pruner = Pruner(dense, **OPTIONS)
        pruner.feed(X)
        state = pruner.state_dict()
        with pytest.raises(DataError, match="damaged"):
            pruner.load_state_dict({name: a for name, a in state.items() if not name.endswith(".H")})
        with pytest.raises(DataError, match="damaged"):
            pruner.load_state_dict({**state, "sums.0.H": state["sums.0.H"][:, :3]})
        assert_same(pruner.prune(0.5), pruner.prune(0.5))  # it still has its own


class TestRefusals:
    def test_nothing_fed(self, dense: Model) -> None:
        with pytest.raises(DataError, match="nothing was fed"):
            Pruner(dense, **OPTIONS).prune(0.5)

    @pytest.mark.parametrize(
        "options",
        [
            {"finetune": True},
            {"augment": ("flip",)},
            {"pattern": "auto"},
            {"min_agreement": 0.9},
            {"format": "sparse-initializer"},
            {"criterion": "obs+fisher"},
            {"attention": ("token",)},
            {"threshold": "mean"},
            {"target_size": "1kB"},
            {"budget": "flops"},
        ],
    )
    def test_options_that_need_data(self, dense: Model, options: dict[str, Any]) -> None:
        with pytest.raises(UsageError, match="Pruner"):
            Pruner(dense, **{**OPTIONS, **options})

    def test_data_that_does_not_fit(self, dense: Model) -> None:
        pruner = Pruner(dense, **OPTIONS)
        with pytest.raises(DataError):
            pruner.feed(X[:, :5])
        with pytest.raises(DataError):
            pruner.feed([])
        assert pruner.samples == 0

    @pytest.mark.parametrize(
        "options",
        [
            {"pattern": "2:4"},
            {"pattern": "block:4x1"},
            {"granularity": "neuron", "solver": "admm"},
            {"allocation": "erk"},
            {"allocation": "owl"},
            {"criterion": "attention"},
        ],
    )
    def test_patterns_hold(self, dense: Model, tmp_path: Path, options: dict[str, Any]) -> None:
        pruner = Pruner(dense, **{**OPTIONS, **options})
        pruner.feed(X)
        assert pruner.save(tmp_path / "p.onnx", 0.5).is_file()  # the check reads the patterns


def test_a_batch_that_the_model_fixes(build_model: Callable[..., onnx.ModelProto]) -> None:
    text = "g (float[8, 16] x) => (float[8, 24] y) { y = MatMul(x, w) }"
    model = Model(build_model(text, {"w": noise(16, 24)}))
    once, pieces = Pruner(model, **OPTIONS), Pruner(model, **OPTIONS)
    once.feed(X)
    pieces.feed([X[:16], X[16:24], X[24:]])
    assert pieces.samples == 64
    assert_same(once.prune(0.5), pieces.prune(0.5))
