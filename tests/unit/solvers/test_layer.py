"""Layers solved from their statistics: shared work changes nothing, and little of it is done twice."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest

from onnxprune.calibration.stats import Moments
from onnxprune.errors import ModelError
from onnxprune.layers import Bias, Layer, MatrixView, Site, find_layers
from onnxprune.model import Model
from onnxprune.parallel import workers
from onnxprune.solvers import admm
from onnxprune.solvers.layer import (
    CAUTION,
    Job,
    Solution,
    aim,
    dense_matrix,
    fill_kept,
    ridge,
    solve_layer,
    solve_layers,
)
from onnxprune.solvers.patterns import Pattern
from onnxprune.solvers.prune import Method
from onnxprune.solvers.reconstruct import target_weight

TEXT = """<ir_version: 8, opset_import: ["": 17]>
g (float[N, 20] x) => (float[N, 12] y, float[N, 8] z) {
    a = MatMul(x, w1) y = Add(a, b1) z = MatMul(x, w2) }"""


@pytest.fixture
def jobs() -> list[Job]:
    """Two layers with one input that differs in the pruned model, one of them with a bias."""
    import onnx.parser
    from onnx import numpy_helper

    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(TEXT)
    shapes = {"w1": (20, 12), "b1": (12,), "w2": (20, 8)}
    proto.graph.initializer.extend(
        numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)
        for name, shape in shapes.items()
    )
    model = Model(proto)
    x = (rng.normal(size=(1, 300, 4)) @ rng.normal(size=(4, 20)) + 1).astype(np.float32)
    moments = Moments.zeros(1, 20)
    moments.add(x, x + 0.3 * rng.normal(size=x.shape).astype(np.float32), [1] * 300)
    layers = {layer.name: layer for layer in find_layers(model, min_size=1)[0]}
    return [
        Job(layers[name], dense_matrix(model, layers[name]), moments, zeros, Pattern())
        for name, zeros in (("w1", 100), ("w2", 90), ("w2", 0))
    ]


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("solver", ["admm", "sweep"])
def test_together_as_alone(jobs: list[Job], threads: int, solver: str) -> None:
    method = Method(solver=solver)
    with workers(threads):
        together = solve_layers(jobs, method, repair=True)
    for job, found in zip(jobs, together, strict=True):
        alone = solve_layer(job, aim(job, method, repair=True), method, repair=True)
        np.testing.assert_allclose(found.weight, alone.weight, rtol=1e-4, atol=1e-5)
        assert (found.zeros, found.damping) == (alone.zeros, alone.damping)
        assert found.zeros == job.zeros
        assert (found.shift is None) == (job.layer.bias is None)


def test_layers_without_a_bias_are_aimed_at_the_raw_moments(jobs: list[Job]) -> None:
    biased, plain = (aim(job, Method(), repair=True) for job in jobs[:2])
    assert np.trace(biased.H[0]) < np.trace(plain.H[0])
    assert not np.allclose(biased.weight, jobs[0].W)  # what the pruned inputs ask for
    alone = aim(jobs[0], Method(), repair=False)
    assert alone.weight is jobs[0].W and alone.used == alone.wanted


def test_what_earlier_layers_lost_is_made_up_for_with_more_caution(jobs: list[Job]) -> None:
    job = jobs[0]
    found = aim(job, Method(damping=1e-6), repair=True)
    H, G, R = job.moments.centred(job.layer.name, True)
    share = ridge(job.moments, H, 1e-6)
    assert found.used == found.wanted == share > 1e-6  # the zeros are chosen with what the noise asks for
    careful, _ = target_weight(job.W, H, G, R, CAUTION * share)
    np.testing.assert_allclose(found.weight, careful, rtol=1e-5)
    bold, _ = target_weight(job.W, H, G, R, share)
    assert np.linalg.norm(careful - job.W) < 0.95 * np.linalg.norm(bold - job.W)
    assert ridge(job.moments, H, 0.5, CAUTION) == max(0.5, CAUTION * share)


def test_an_inverse_is_made_once_for_all_that_share_it(
    jobs: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[float] = []
    inverse = admm.Prepared._inverse

    def count(self: admm.Prepared, rho: float) -> np.ndarray:
        made.append(rho)
        return inverse(self, rho)

    monkeypatch.setattr(admm.Prepared, "_inverse", count)
    same = [jobs[1], Job(jobs[1].layer, jobs[1].W, jobs[1].moments, 30, Pattern())]
    solve_layers(same, Method(), repair=True)
    assert sorted(made) == sorted(rho for rho, _ in admm.schedule_for(jobs[1].W.shape, quick=False).penalties)
    made.clear()
    solve_layers(jobs[2:], Method(), repair=True)  # no zeros, nothing to invert
    solve_layers(jobs[:1], Method("wanda"), repair=True)
    solve_layers(jobs[:1], Method(solver="sweep"), repair=True)
    assert made == []


def test_a_layer_alone_has_its_inverses_made_beside_its_target(
    jobs: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: set[int] = set()
    both = threading.Barrier(2, timeout=20)
    inverse = admm.Prepared._inverse

    def meet(self: admm.Prepared, rho: float) -> np.ndarray:
        if len(threads) < 2:
            threads.add(threading.get_ident())
            both.wait()  # raises when only one thread ever comes here
        return inverse(self, rho)

    monkeypatch.setattr(admm.Prepared, "_inverse", meet)
    with workers(2):
        solve_layers(jobs[:1], Method(), repair=True)
    assert len(threads) == 2


def test_the_ridge_is_what_the_noise_asks_for() -> None:
    rng = np.random.default_rng(0)
    few, many = Moments.zeros(1, 30), Moments.zeros(1, 30)
    for moments, rows in ((few, 20), (many, 5000)):
        x = (rng.standard_normal((1, rows, 30)) * np.linspace(0.1, 2, 30)).astype(np.float32)
        moments.add(x, x, [1] * rows)
    assert ridge(few, few.H / few.n, 0.01) > 0.3
    assert 0.001 < ridge(many, many.H / many.n, 0.001) < 0.02
    assert ridge(many, many.H / many.n, 0.05) == 0.05
    far = Moments.zeros(1, 30)
    x = (rng.standard_normal((1, 20, 30)) * np.linspace(0.1, 2, 30) + 10).astype(np.float32)
    far.add(x, x, [1] * 20)
    assert ridge(far, far.H / far.n, 1e-4) < 0.05  # H is mostly means, and they are known well


@pytest.mark.parametrize("scale", [1.0, 1e-12])
def test_kept_weights_are_not_zero(scale: float) -> None:
    """Kernels find the rows of a block by what is not zero."""
    W = np.array([[[0.5, 0.0, -1e-30, 0.0]]], np.float32) * np.float32(scale)
    mask = np.array([[[True, True, True, False]]])
    found = fill_kept(W, mask, np.dtype(np.float32))
    np.testing.assert_array_equal(found != 0, mask)
    np.testing.assert_allclose(found, W, rtol=0, atol=1e-6 * scale)
    assert found.dtype == np.float32
    if scale == 1:
        np.testing.assert_array_equal(found.astype(np.float16) != 0, mask)
    assert (fill_kept(np.zeros((1, 1, 4), np.float32), mask, np.dtype(np.float32)) != 0).sum() == 3


def test_kept_weights_of_fp16_layers_are_not_zero_in_fp16() -> None:
    W = np.array([[[0.01, 0.0, -1e-30, 4e-8, 0.0]]], np.float32)
    mask = np.array([[[True, True, True, True, False]]])
    found = fill_kept(W, mask, np.dtype(np.float16)).astype(np.float16)
    np.testing.assert_array_equal(found != 0, mask)
    assert found[0, 0, 2] < 0


def test_statistics_that_cannot_be_inverted(jobs: list[Job]) -> None:
    jobs[0].moments.H[0, 3, :] = jobs[0].moments.H[0, :, 3] = 0
    jobs[0].moments.H[0, 3, 3] = -1e6
    with pytest.raises(ModelError, match=r"'w1', 'w2', 'w2' cannot be inverted with --damping 0\.01"):
        solve_layers(jobs, Method(), repair=False)


@pytest.mark.parametrize("solver", ["admm", "sweep"])
@pytest.mark.parametrize("pattern", ["unstructured", "block:2x1,adjacent", "block:2x1"])
def test_outputs_that_count_more_keep_more(jobs: list[Job], solver: str, pattern: str) -> None:
    """The number of zeros stays; equal weights change nothing."""
    job, method = replace(jobs[0], pattern=Pattern.parse(pattern)), Method(solver=solver)
    rows = np.ones((1, 12), np.float32)
    plain, equal = solve_layers([job, replace(job, rows=rows)], method, repair=True)
    np.testing.assert_allclose(equal.weight, plain.weight, rtol=1e-5, atol=1e-6)
    rows[0, :6] = 10
    (found,) = solve_layers([replace(job, rows=rows)], method, repair=True)
    assert found.zeros == plain.zeros
    kept, before = np.count_nonzero(found.weight[0, :6]), np.count_nonzero(plain.weight[0, :6])
    assert kept > before
    assert np.isfinite(found.weight).all() and found.error is not None


def test_a_bias_that_is_half_of_a_tensor() -> None:
    """The shift goes to the layer's own half, from the dense values; the other half stays as it is now."""
    import onnx
    from onnx import numpy_helper

    def model(b: np.ndarray) -> Model:
        tensors = {"R": np.zeros((2, 6, 4), np.float32), "B": b}
        graph = onnx.GraphProto(initializer=[numpy_helper.from_array(a, n) for n, a in tensors.items()])
        return Model(onnx.ModelProto(graph=graph))

    b = np.arange(24, dtype=np.float32).reshape(2, 12)
    dense, now = model(b), model(b + 100)
    view = MatrixView((2, 6, 4), (6, 2, 4), (0, 1, 2), (6, 2, 4))
    site = Site(0, "states", "y")
    layer = Layer(
        "R", "rnn_recurrence", view, np.dtype("f4"), (site,), ("n",), bias=Bias("B", 1, 1.0, half=1)
    )
    shift = np.arange(1.0, 13.0)
    solution = Solution(np.zeros((6, 2, 4), np.float32), 48, shift, None, 0.0)
    found = solution.arrays(dense, layer, now)["B"]
    np.testing.assert_array_equal(found[:, :6], b[:, :6] + 100)
    np.testing.assert_array_equal(found[:, 6:], b[:, 6:] + shift.reshape(2, 6))
    np.testing.assert_array_equal(solution.arrays(dense, layer)["B"][:, :6], b[:, :6])
