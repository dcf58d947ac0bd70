from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx
import pytest

from onnxprune.attention.maps import energy_map
from onnxprune.calibration import collect as collect_module
from onnxprune.calibration.collect import (
    Stage,
    collect,
    energies,
    find_stages,
    row_positions,
    token_counts,
)
from onnxprune.calibration.stats import Moments
from onnxprune.calibration.store import ArrayStore
from onnxprune.calibration.streams import DENSE, PRUNED, Streams
from onnxprune.errors import ModelError
from onnxprune.layers import Layer, find_layers
from onnxprune.model import Model
from onnxprune.parallel import workers
from onnxprune.solvers.layer import dense_matrix
from onnxprune.solvers.reconstruct import bias_shift, target_weight

Build = Callable[..., onnx.ModelProto]
RNG = np.random.default_rng(0)


def noise(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


@pytest.fixture
def store() -> Iterator[ArrayStore]:
    with ArrayStore(2**30) as held:
        yield held


def layers_of(model: Model) -> tuple[Layer, ...]:
    return find_layers(model, min_size=1)[0]


# -------------------------------------------------------------------------------------------------- stages


def stages(model: Model, site: int = 0) -> list[tuple[str, list[str]]]:
    found = find_stages(model, layers_of(model), site)
    assert all(stage.site == site for stage in found)
    return [(stage.value, [layer.name for layer in stage.layers]) for stage in found]


def test_layers_with_one_input_share_a_stage(build_model: Build) -> None:
    model = Model(
        build_model(
            """g (float[N, T, 8] x) => (float[N, T, 8] y) {
                q = MatMul(x, wq)  k = MatMul(x, wk)  v = MatMul(x, wv)
                s = Add(q, k)  t = Add(s, v)  y = MatMul(t, wo) }""",
            {name: noise(8, 8) for name in ("wq", "wk", "wv", "wo")},
        )
    )
    assert stages(model) == [("x", ["wq", "wk", "wv"]), ("t", ["wo"])]


def test_other_rows_of_the_same_input_are_another_stage(build_model: Build) -> None:
    model = Model(
        build_model(
            """g (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) {
                a = Conv(x, point)  b = Conv<pads=[1, 1, 1, 1]>(x, wide)
                c = Conv<group=4>(x, depth)  d = Conv(x, second)  e = MatMul(x, dense)  f = MatMul(left, x)
                y = Sum(a, b, c, d, e, f) }""",
            {
                "point": noise(4, 4, 1, 1),
                "second": noise(4, 4, 1, 1),
                "wide": noise(4, 4, 3, 3),
                "depth": noise(4, 1, 1, 1),  # a scale for each channel: a vector, no layer
                "dense": noise(8, 8),
                "left": noise(8, 8),
            },
        )
    )
    found = stages(model)
    assert ("x", ["point", "second"]) in found
    assert sorted(names[0] for _, names in found) == ["dense", "left", "point", "wide"]


def test_batched_weights_of_other_axes_are_another_stage(build_model: Build) -> None:
    """Both have two groups, but group 0 is another half of the input."""
    model = Model(
        build_model(
            """g (float[2, 2, N, 8] x) => (float[2, 2, N, 8] y) {
                a = MatMul(x, u)  b = MatMul(x, v)  y = Add(a, b) }""",
            {"u": noise(2, 1, 8, 8), "v": noise(1, 2, 8, 8)},
        )
    )
    assert len(stages(model)) == 2


def test_a_stage_never_depends_on_a_later_one(build_model: Build) -> None:
    """Weights are listed in any order; the order of the graph counts."""
    model = Model(
        build_model(
            """g (float[N, 8] x) => (float[N, 8] y) {
                a = MatMul(x, w3)  b = Relu(a)  c = MatMul(b, w1)  d = MatMul(x, w0)  e = Add(c, d)
                y = MatMul(e, w2) }""",
            {f"w{i}": noise(8, 8) for i in range(4)},
        )
    )
    assert stages(model) == [("x", ["w3", "w0"]), ("b", ["w1"]), ("e", ["w2"])]


def test_later_sites_of_tied_weights(build_model: Build) -> None:
    model = Model(
        build_model(
            "g (float[N, 8] x) => (float[N, 8] y) { a = MatMul(x, w)  b = MatMul(a, v)  y = MatMul(b, w) }",
            {"w": noise(8, 8), "v": noise(8, 8)},
        )
    )
    assert stages(model) == [("x", ["w"]), ("a", ["v"])]
    assert stages(model, 1) == [("b", ["w"])]
    assert stages(model, 2) == []


# ---------------------------------------------------------------------------------------------------- rows


@pytest.fixture
def linear(build_model: Build) -> Layer:
    text = "g (float[N, T, 8] x) => (float[N, T, 8] y) { y = MatMul(x, w) }"
    return layers_of(Model(build_model(text, {"w": noise(8, 8)})))[0]


def test_all_rows(linear: Layer) -> None:
    assert row_positions(linear, noise(2, 3, 8), None, 6, seed=0) is None


def test_real_tokens_only(linear: Layer) -> None:
    mask = np.array([[True, True, False], [True, False, False]])
    positions = row_positions(linear, noise(2, 3, 8), mask, 100, seed=0)
    np.testing.assert_array_equal(positions, [0, 1, 3])


def test_a_mask_of_another_shape_means_nothing(linear: Layer) -> None:
    assert row_positions(linear, noise(2, 4, 8), np.ones((2, 3), bool), 100, seed=0) is None


@pytest.mark.parametrize("masked", [False, True])
def test_a_limited_number_of_rows(linear: Layer, masked: bool) -> None:
    mask = np.arange(40).reshape(4, 10) % 2 == 0
    x = noise(4, 10, 8)
    chosen = row_positions(linear, x, mask if masked else None, 7, seed=3)
    assert chosen is not None and len(chosen) == 7
    assert (np.diff(chosen) > 0).all() and chosen.min() >= 0 and chosen.max() < 40
    if masked:
        assert mask.ravel()[chosen].all()
    np.testing.assert_array_equal(chosen, row_positions(linear, x, mask if masked else None, 7, seed=3))
    assert (chosen != row_positions(linear, x, mask if masked else None, 7, seed=4)).any()


# ------------------------------------------------------------------------------------------------- collect


def walk(
    model: Model,
    pruned: Model | None,
    batches: list[dict[str, np.ndarray]],
    targets: list[str],
    store: ArrayStore,
) -> Streams:
    """Streams at the last of ``targets``; with a pruned model all weights count as changed."""
    streams = Streams(model, pruned, batches, targets, store, threads=1)
    if pruned is not None:
        streams.weights_changed([layer.name for layer in layers_of(model)])
    streams.advance(targets)
    return streams


TWO = "g (float[N, T, 8] x) => (float[N, T, 6] y) { h = MatMul(x, w)  r = Relu(h)  y = MatMul(r, v) }"


def two_layers(build_model: Build) -> tuple[Model, Model]:
    dense = Model(build_model(TWO, {"w": noise(8, 8), "v": noise(8, 6)}))
    pruned = dense.copy()
    pruned.set_array("w", noise(8, 8))
    return dense, pruned


def relu(x: np.ndarray, model: Model) -> np.ndarray:
    return np.maximum(x.reshape(-1, 8) @ model.array("w"), 0)


def test_moments_of_both_streams(build_model: Build, store: ArrayStore) -> None:
    dense, pruned = two_layers(build_model)
    batches = [{"x": noise(2, 3, 8)}, {"x": noise(1, 5, 8)}]
    streams = walk(dense, pruned, batches, ["r"], store)
    stage = find_stages(dense, layers_of(dense))[1]
    moments = collect(streams, stage, [None, None], batches=range(2), seed=0)
    rows_d, rows_p = (np.concatenate([relu(b["x"], m) for b in batches]) for m in (dense, pruned))
    assert moments.n == 11
    np.testing.assert_allclose(moments.H[0], rows_p.T @ rows_p, rtol=1e-4, atol=1e-4)
    assert moments.G is not None
    np.testing.assert_allclose(moments.G[0], rows_d.T @ rows_p, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(moments.sum_d[0], rows_d.sum(0), rtol=1e-4)
    np.testing.assert_allclose(moments.sum_p[0], rows_p.sum(0), rtol=1e-4)
    first = collect(streams, stage, [None, None], batches=[0], seed=0)
    second = collect(streams, stage, [None, None], batches=[1], seed=0)
    np.testing.assert_allclose((first + second).H, moments.H)


LINEAR_TEXT = "g (float[N, 16] x) => (float[N, 24] y) { y = MatMul(x, w) }"


def test_sums_can_be_added_to(build_model: Build, store: ArrayStore) -> None:
    model = Model(build_model(LINEAR_TEXT, {"w": noise(16, 24)}))
    layers, _ = find_layers(model, min_size=1)
    stage = find_stages(model, layers)[0]
    x = np.random.default_rng(0).normal(size=(3, 6, 16)).astype(np.float32)
    streams = Streams(model, None, [{"x": part} for part in x], {"x"}, store, 1)
    streams.advance(["x"])
    held = Moments.zeros(1, 16)
    for number in range(3):
        assert collect(streams, stage, [None] * 3, batches=[number], seed=0, into=held) is held
    whole = collect(streams, stage, [None] * 3, batches=range(3), seed=0)
    assert held.n == whole.n == 18 and len(held.spreads) == 1
    np.testing.assert_allclose(held.H, whole.H, rtol=1e-5, atol=1e-5)


def test_padding_never_enters(build_model: Build, store: ArrayStore) -> None:
    dense, _ = two_layers(build_model)
    x = noise(2, 3, 8)
    mask = np.array([[True, True, False], [True, False, False]])
    dirty = np.where(mask[:, :, None], x, np.float32(1e6))
    stage = find_stages(dense, layers_of(dense))[0]
    moments = collect(walk(dense, None, [{"x": dirty}], ["x"], store), stage, [mask], batches=[0], seed=0)
    rows = x[mask]
    assert moments.n == 3
    np.testing.assert_allclose(moments.H[0], rows.T @ rows, rtol=1e-4, atol=1e-4)


def test_rows_are_limited_over_all_batches(
    build_model: Build, store: ArrayStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect_module, "MIN_ROWS", 40)
    monkeypatch.setattr(collect_module, "ROWS_PER_FEATURE", 1)
    dense, pruned = two_layers(build_model)
    streams = walk(dense, pruned, [{"x": noise(3, 10, 8)} for _ in range(4)], ["r"], store)
    stage = find_stages(dense, layers_of(dense))[1]
    moments = collect(streams, stage, [None] * 4, batches=range(4), seed=0)
    assert moments.n == 40
    again = collect(streams, stage, [None] * 4, batches=range(4), seed=0)
    assert moments.G is not None and again.G is not None
    assert moments.H.tobytes() == again.H.tobytes() and moments.G.tobytes() == again.G.tobytes()


def test_the_same_bytes_from_memory_and_from_disk(build_model: Build) -> None:
    dense, pruned = two_layers(build_model)
    batches = [{"x": noise(2, 33, 8)} for _ in range(3)]
    found = []
    for budget in (2**30, 0):
        for other in (None, pruned):
            with ArrayStore(budget) as store:
                streams = walk(dense, other, batches, ["x", "r"], store)
                found += [
                    collect(streams, stage, [None] * 3, batches=range(3), seed=0)
                    for stage in find_stages(dense, layers_of(dense))
                ]
    for a, b in zip(found[:4], found[4:], strict=True):
        for field in ("H", "sum_d", "sum_p"):
            assert getattr(a, field).tobytes() == getattr(b, field).tobytes()
        assert (a.G is None) == (b.G is None) and (a.G is None or a.G.tobytes() == b.G.tobytes())
    assert found[0].G is None  # equal streams
    assert found[3].G is not None


NARROW = {
    "matmul": """g (float[N, 10, 8] x) => (float[N, 10, 3] y) {
        h = MatMul(x, w)  r = Relu(h)  m = MatMul(r, v)  s = MatMul(h, u)  b = Add(m, bias)
        y = Add(b, s) }""",
    "conv": """g (float[N, 8, 5, 5] x) => (float[N, 4, 5, 5] y) {
        h = Conv(x, w)  r = Relu(h)  m = Conv<pads = [1, 1, 1, 1]>(r, v)  s = Conv(h, u)  b = Add(m, bias)
        y = Add(b, s) }""",
    "grouped": """g (float[N, 8, 5, 5] x) => (float[N, 4, 5, 5] y) {
        h = Conv(x, w)  r = Relu(h)  y = Conv<group = 2, pads = [1, 1, 1, 1]>(r, v, bias) }""",
}
SHAPES = {
    "matmul": {"w": (8, 8), "v": (8, 3), "u": (8, 3), "bias": (3,)},
    "conv": {"w": (8, 8, 1, 1), "v": (4, 8, 3, 3), "u": (4, 8, 1, 1), "bias": (1, 4, 1, 1)},
    "grouped": {"w": (8, 8, 1, 1), "v": (4, 4, 3, 3), "bias": (4,)},
}


@pytest.mark.parametrize("kind", NARROW)
@pytest.mark.parametrize("open_branch", [False, True])
def test_few_outputs_give_the_same_target_without_the_cross_product(
    build_model: Build, store: ArrayStore, kind: str, open_branch: bool
) -> None:
    """The residual may be known or not; the target and the bias are what G would give."""
    dense = Model(build_model(NARROW[kind], {name: noise(*shape) for name, shape in SHAPES[kind].items()}))
    pruned = dense.copy()
    pruned.set_array("w", noise(*SHAPES[kind]["w"]))
    shape = (6, 10, 8) if kind == "matmul" else (6, 8, 5, 5)
    wanted = ["r", "s"] if open_branch and kind != "grouped" else ["r"]
    streams = walk(dense, pruned, [{"x": noise(*shape)} for _ in range(2)], wanted, store)
    stage = next(s for s in find_stages(dense, layers_of(dense)) if s.value == "r")
    weights = {layer.name: dense_matrix(dense, layer) for layer in stage.layers}
    options = {"batches": range(2), "seed": 0, "residuals": open_branch and kind != "grouped"}
    by_cross = collect(streams, stage, [None] * 2, **options)
    by_output = collect(streams, stage, [None] * 2, **options, weights=weights)
    assert by_cross.G is not None and by_output.G is None
    W = weights["v"]
    for centre in (False, True):
        a, b = (target_weight(W, *m.centred("v", centre), 0.01)[0] for m in (by_cross, by_output))
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
        assert np.abs(a - W).max() > 0.1  # there is something to make up for
    a, b = (bias_shift(m, "v", W, W * np.float32(0.7)) for m in (by_cross, by_output))
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)
    # The variance of the outputs is for convolutions that no residual makes up for
    assert set(by_output.outputs) == ({"v"} if kind == "grouped" else set()) and not by_cross.outputs


def test_many_outputs_keep_the_cross_product(build_model: Build, store: ArrayStore) -> None:
    dense, pruned = two_layers(build_model)  # 6 outputs of 8 inputs
    streams = walk(dense, pruned, [{"x": noise(2, 3, 8)}], ["r"], store)
    stage = find_stages(dense, layers_of(dense))[1]
    weights = {layer.name: dense_matrix(dense, layer) for layer in stage.layers}
    assert collect(streams, stage, [None], batches=[0], seed=0, weights=weights).G is not None


RESIDUAL = """g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) {
    s = Conv(x, w)  h = Relu(x)  c = Conv<pads=[1, 1, 1, 1]>(h, v)  b = Add(c, bias)
    t = SKIP(s)  y = Add(b, t) }"""


@pytest.mark.parametrize("limit", [10**6, 30])
@pytest.mark.parametrize("skip", ["Relu", "GlobalAveragePool"])
def test_residual_of_a_convolution(
    build_model: Build, store: ArrayStore, monkeypatch: pytest.MonkeyPatch, skip: str, limit: int
) -> None:
    """The other branch, also one that broadcasts, whatever rows are chosen."""
    monkeypatch.setattr(collect_module, "MIN_ROWS", limit)
    monkeypatch.setattr(collect_module, "ROWS_PER_FEATURE", 0)
    weights = {"w": noise(4, 4, 1, 1), "v": noise(4, 4, 3, 3), "bias": noise(1, 4, 1, 1)}
    dense = Model(build_model(RESIDUAL.replace("SKIP", skip), weights))
    pruned = dense.copy()
    pruned.set_array("w", noise(4, 4, 1, 1))
    streams = walk(dense, pruned, [{"x": noise(2, 4, 6, 6)}], ["h", "t"], store)
    stage = next(s for s in find_stages(dense, layers_of(dense)) if s.value == "h")
    assert stage.layers[0].sites[0].residual == "t"
    moments = collect(streams, stage, [None], batches=[0], seed=0, residuals=True)
    difference = streams.value("t", 0, DENSE) - streams.value("t", 0, PRUNED)
    difference = np.broadcast_to(difference, (2, 4, 6, 6))
    if limit > 72:
        np.testing.assert_allclose(moments.sum_r["v"][0], difference.sum((0, 2, 3)), rtol=1e-3, atol=1e-4)
        centre = np.moveaxis(difference, 1, -1).reshape(-1, 4).T @ np.moveaxis(
            streams.value("h", 0, DENSE), 1, -1
        ).reshape(-1, 4)
        np.testing.assert_allclose(moments.R["v"][0, :, 4::9], centre, rtol=1e-3, atol=1e-3)
    else:
        assert moments.n == 30 and moments.R["v"].shape == (1, 4, 36)
    assert not collect(streams, stage, [None], batches=[0], seed=0).R


def test_residual_of_batched_matrices(
    build_model: Build, store: ArrayStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect_module, "MIN_ROWS", 5)
    monkeypatch.setattr(collect_module, "ROWS_PER_FEATURE", 0)
    text = """g (float[N, 2, T, 8] x) => (float[N, 2, T, 8] y) {
        s = MatMul(x, w)  h = Relu(x)  m = MatMul(h, v)  y = Add(m, s) }"""
    dense = Model(build_model(text, {"w": noise(8, 8), "v": noise(2, 8, 8)}))
    pruned = dense.copy()
    pruned.set_array("w", noise(8, 8))
    streams = walk(dense, pruned, [{"x": noise(3, 2, 4, 8)}], ["h", "s"], store)
    stage = next(s for s in find_stages(dense, layers_of(dense)) if s.value == "h")
    moments = collect(streams, stage, [None], batches=[0], seed=0, residuals=True)
    assert moments.n == 5
    assert moments.sum_r["v"].shape == (2, 8) and moments.R["v"].shape == (2, 8, 8)


def test_a_residual_larger_than_the_output_is_left_out(build_model: Build, store: ArrayStore) -> None:
    text = """g (float[N, T, 8] x, float[1, T, 8] p) => (float[N, T, 8] y) {
        s = MatMul(x, w)  h = Relu(p)  m = MatMul(h, v)  y = Add(m, s) }"""
    dense = Model(build_model(text, {"w": noise(8, 8), "v": noise(8, 8)}))
    pruned = dense.copy()
    pruned.set_array("w", noise(8, 8))
    streams = walk(dense, pruned, [{"x": noise(3, 4, 8), "p": noise(1, 4, 8)}], ["h", "s"], store)
    stage = next(s for s in find_stages(dense, layers_of(dense)) if s.value == "h")
    assert not collect(streams, stage, [None], batches=[0], seed=0, residuals=True).R


def test_residual_in_the_units_of_a_gemm_with_alpha(build_model: Build, store: ArrayStore) -> None:
    """The output is alpha W x, so W x must make up for r / alpha."""
    text = """g (float[N, 8] x) => (float[N, 8] y) {
        s = MatMul(x, w)  h = Relu(x)  m = Gemm<alpha=0.5>(h, v, b)  y = Add(m, s) }"""
    dense = Model(build_model(text, {"w": noise(8, 8), "v": noise(8, 8), "b": noise(8)}))
    pruned = dense.copy()
    pruned.set_array("w", noise(8, 8))
    streams = walk(dense, pruned, [{"x": noise(20, 8)}], ["h", "s"], store)
    stage = next(s for s in find_stages(dense, layers_of(dense)) if s.value == "h")
    moments = collect(streams, stage, [None], batches=[0], seed=0, residuals=True)
    difference = streams.value("s", 0, DENSE) - streams.value("s", 0, PRUNED)
    np.testing.assert_allclose(moments.sum_r["v"][0], difference.sum(0) / 0.5, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_values_that_are_no_numbers(build_model: Build, store: ArrayStore, value: float) -> None:
    dense, _ = two_layers(build_model)
    x = noise(2, 3, 8)
    x[0, 0, 0] = value
    stage = find_stages(dense, layers_of(dense))[0]
    streams = walk(dense, None, [{"x": x}], ["x"], store)
    with pytest.raises(
        ModelError, match="the input 'x' of weight 'w' holds NaN, infinite or too large values"
    ):
        collect(streams, stage, [None], batches=[0], seed=0)


# ------------------------------------------------------------------------------------------------- tokens


def test_token_counts(build_model: Build, store: ArrayStore) -> None:
    model = Model(
        build_model("g (int64[N, T] ids) => (float[N, T, 8] y) { y = Gather(w, ids) }", {"w": noise(6, 8)})
    )
    batches = [{"ids": np.array([[1, 1, 2], [-1, 0, 0]])}, {"ids": np.array([[3, 3]])}]
    masks = [np.array([[True, True, True], [True, False, False]]), np.ones((7, 7), bool)]
    stage = find_stages(model, layers_of(model))[0]
    streams = walk(model, None, batches, ["ids"], store)
    np.testing.assert_array_equal(token_counts(streams, stage, masks), [0, 2, 1, 2, 0, 1])
    np.testing.assert_array_equal(token_counts(streams, stage, [None, None]), [2, 2, 1, 2, 0, 1])


def test_an_empty_collection_is_empty_moments(build_model: Build, store: ArrayStore) -> None:
    dense, _ = two_layers(build_model)
    stage = find_stages(dense, layers_of(dense))[0]
    moments = collect(
        walk(dense, None, [{"x": noise(1, 2, 8)}], ["x"], store), stage, [None], batches=[], seed=0
    )
    assert isinstance(moments, Moments) and moments.n == 0 and isinstance(stage, Stage)


@pytest.mark.parametrize(
    ("text", "weights", "feeds", "wanted"),
    [
        ("float[N, 8] x) => (float[N, 8] y) { y = MatMul(x, w) }", (8, 8), [(5, 8), (3, 8)], [1] * 8),
        (
            "float[N, T, 8] x) => (float[N, T, 8] y) { y = MatMul(x, w) }",
            (8, 8),
            [(2, 3, 8), (1, 5, 8)],
            [3, 3, 5],
        ),
        (
            "float[N, T, 8] x) => (float[M, 8] y) { r = Reshape(x, flat) y = MatMul(r, w) }",
            (8, 8),
            [(2, 3, 8)],
            [3, 3],
        ),
        (
            "float[N, 2, 5, 5] x) => (float[N, 4, 3, 3] y) { y = Conv(x, w) }",
            (4, 2, 3, 3),
            [(3, 2, 5, 5)],
            [9] * 3,
        ),
        (
            "float[N, T, 8] x) => (float[T, N, 8] y) { r = Transpose<perm=[1, 0, 2]>(x) y = MatMul(r, w) }",
            (8, 8),
            [(2, 3, 8)],
            [6],  # whose rows are whose cannot be told
        ),
    ],
)
def test_rows_are_counted_by_sample(
    build_model: Build,
    store: ArrayStore,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    weights: tuple[int, ...],
    feeds: list[tuple[int, ...]],
    wanted: list[int],
) -> None:
    model = Model(build_model(f"g ({text}", {"w": noise(*weights), "flat": np.array([-1, 8])}))
    (stage,) = find_stages(model, layers_of(model))
    streams = Streams(model, None, [{"x": noise(*shape)} for shape in feeds], [stage.value], store, threads=1)
    streams.advance([stage.value])
    seen: list[int] = []
    monkeypatch.setattr(
        Moments, "add", lambda self, dense, pruned, counts=(), weights=None: seen.extend(counts)
    )
    collect(streams, stage, [None] * len(feeds), batches=range(len(feeds)), seed=0)
    assert seen == wanted


def test_chosen_rows_are_counted_by_sample(
    build_model: Build, store: ArrayStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model(
        build_model("g (float[N, T, 8] x) => (float[N, T, 8] y) { y = MatMul(x, w) }", {"w": noise(8, 8)})
    )
    (stage,) = find_stages(model, layers_of(model))
    streams = Streams(model, None, [{"x": noise(3, 4, 8)}], ["x"], store, threads=1)
    mask = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]], dtype=bool)
    seen: list[int] = []
    monkeypatch.setattr(
        Moments, "add", lambda self, dense, pruned, counts=(), weights=None: seen.extend(counts)
    )
    collect(streams, stage, [mask], batches=[0], seed=0)
    assert seen == [2, 1, 4]


def test_tokens_weigh_their_rows(build_model: Build, store: ArrayStore) -> None:
    """A token with weight 2 counts twice, one of padding never; the statistics stay sums over batches."""
    dense, pruned = two_layers(build_model)
    batches = [{"x": noise(2, 5, 8)}, {"x": noise(1, 4, 8)}]
    streams = walk(dense, pruned, batches, ["r"], store)
    masks = [np.array([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]], bool), None]
    tokens = [np.arange(10, dtype=np.float32).reshape(2, 5), np.array([[2, 0, 1, 1]], np.float32)]
    stage = find_stages(dense, layers_of(dense))[1]
    found = collect(streams, stage, masks, batches=[0, 1], seed=0, tokens=tokens)
    x_d = np.concatenate([relu(batch["x"], dense) for batch in batches])
    x_p = np.concatenate([relu(batch["x"], pruned) for batch in batches])
    a = np.concatenate([np.where(masks[0], tokens[0], 0).ravel(), tokens[1].ravel()])
    assert found.n == a.sum() and found.G is not None
    np.testing.assert_allclose(found.sum_d[0], a @ x_d, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.H[0], (x_p * a[:, None]).T @ x_p, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(found.G[0], (x_d * a[:, None]).T @ x_p, rtol=1e-4, atol=1e-3)


def test_chosen_rows_keep_their_weights(
    build_model: Build, store: ArrayStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect_module, "ROWS_PER_FEATURE", 1)
    monkeypatch.setattr(collect_module, "MIN_ROWS", 1)
    dense, _ = two_layers(build_model)
    batch = {"x": np.repeat(np.arange(40, dtype=np.float32), 8).reshape(2, 20, 8)}
    streams = walk(dense, None, [batch], ["x"], store)
    tokens = np.arange(40, dtype=np.float32).reshape(2, 20)
    found = collect(
        streams, find_stages(dense, layers_of(dense))[0], [None], batches=[0], seed=0, tokens=[tokens]
    )
    assert 0 < found.n < tokens.sum()
    chosen = row_positions(layers_of(dense)[0], batch["x"], None, 8, seed=0)
    assert chosen is not None and found.n == tokens.ravel()[chosen].sum()


def test_rows_that_are_no_tokens_count_alike(build_model: Build, store: ArrayStore) -> None:
    model = Model(
        build_model(
            "g (float[N, 2, 5, 5] x) => (float[N, 4, 3, 3] y) { y = Conv(x, w) }", {"w": noise(4, 2, 3, 3)}
        )
    )
    streams = walk(model, None, [{"x": noise(2, 2, 5, 5)}], ["x"], store)
    (stage,) = find_stages(model, layers_of(model))
    found = collect(streams, stage, [None], batches=[0], seed=0, tokens=[np.full((2, 2), 7, np.float32)])
    assert found.n == 2 * 9


def test_energies_of_a_small_window_are_the_energy_map() -> None:
    x = noise(3, 4, 5, 2)
    rows = x.transpose(0, 2, 3, 1).reshape(1, -1, 4)
    np.testing.assert_allclose(energies(rows, [10, 10, 10]), energy_map(x).ravel(), rtol=1e-5)
    uneven = energies(rows[:, :12], [10, 2])
    np.testing.assert_allclose([uneven[:10].mean(), uneven[10:].mean()], 1, rtol=1e-5)
    np.testing.assert_array_equal(energies(np.zeros((1, 4, 3), np.float32), [4]), np.ones(4))


def test_places_weigh_their_rows(build_model: Build, store: ArrayStore) -> None:
    """The sums are those of the dense rows' energies, mean 1 in each image; other layers know no places."""
    text = "g (float[N, 3, 4, 4] x) => (float[N, 8, 4, 4] y) { y = Conv(x, w) }"
    model = Model(build_model(text, {"w": noise(8, 3, 1, 1)}))
    x = noise(2, 3, 4, 4)
    streams = walk(model, None, [{"x": x}], ["x"], store)
    (stage,) = find_stages(model, layers_of(model))
    found = collect(streams, stage, [None], batches=[0], seed=0, places=True)
    rows, a = x.transpose(0, 2, 3, 1).reshape(-1, 3), energy_map(x).ravel()
    assert found.n == pytest.approx(32)
    np.testing.assert_allclose(found.H[0], (rows * a[:, None]).T @ rows, rtol=1e-4, atol=1e-4)
    linear, _ = two_layers(build_model)
    streams = walk(linear, None, [{"x": noise(2, 5, 8)}], ["x"], store)
    stage = find_stages(linear, layers_of(linear))[0]
    plain, same = (
        collect(streams, stage, [None], batches=[0], seed=0, places=places) for places in (False, True)
    )
    np.testing.assert_array_equal(plain.H, same.H)


@pytest.mark.parametrize("samples", [1, 3])
def test_threads_change_no_statistics(build_model: Build, samples: int) -> None:
    """Each thread sees few samples: what they vary by must not depend on how they are dealt."""
    model = Model(
        build_model("g (float[N, 6] x) => (float[N, 4] y) { y = MatMul(x, w) }", {"w": noise(6, 4)})
    )
    layers = find_layers(model, min_size=1)[0]
    batches = [{"x": noise(samples, 6) + k} for k in range(8)]
    found = []
    for threads in (1, 2, 8):
        with ArrayStore(2**20) as held, workers(threads):
            streams = Streams(model, None, batches, {"x"}, held, 1)
            streams.advance(["x"])
            (stage,) = find_stages(model, layers)
            found.append(collect(streams, stage, [None] * 8, batches=range(8), seed=0))
    for other in found[1:]:
        np.testing.assert_allclose(other.H, found[0].H, rtol=1e-6)
        assert other.uncertainty() == pytest.approx(found[0].uncertainty(), rel=1e-6)
        assert len(other.spreads) == 1 and other.n == found[0].n
    assert found[0].uncertainty() > 0
