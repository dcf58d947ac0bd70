"""The walk over the layers: exact zeros, less error than magnitude, the same bytes every time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from onnxprune import runtime, sequential
from onnxprune.calibration.collect import collect, find_stages
from onnxprune.calibration.mask import row_mask
from onnxprune.calibration.stats import Moments
from onnxprune.calibration.store import ArrayStore
from onnxprune.calibration.streams import Streams
from onnxprune.errors import ModelError
from onnxprune.layers import Layer, find_layers
from onnxprune.model import Model
from onnxprune.sequential import Solved, prune_sequential
from onnxprune.solvers.columns import column_order
from onnxprune.solvers.patterns import Pattern
from onnxprune.solvers.prune import Method

Batches = list[dict[str, np.ndarray]]
MAGNITUDE = Method("magnitude", refit=False)


def parse(text: str, weights: Mapping[str, np.ndarray]) -> Model:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in weights.items())
    onnx.checker.check_model(proto, full_check=True)
    return Model(proto)


def correlated(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Rows of few hidden causes: what makes second-order pruning worth its price."""
    mix = rng.normal(size=(4, shape[-1]))
    causes = rng.normal(0.5, 1.0, (*shape[:-1], 4))
    return (causes @ mix + 0.2 * rng.normal(size=shape)).astype(np.float32)


def dense_net(seed: int = 0, rows: int = 320) -> tuple[Model, Batches, Batches]:
    """Three MatMuls with biases; batches to calibrate on and others to judge by."""
    rng = np.random.default_rng(seed)
    text = """g (float[N, 16] x) => (float[N, 6] y) {
        a1 = MatMul(x, w1) h1 = Add(a1, b1) r1 = Relu(h1)
        a2 = MatMul(r1, w2) h2 = Add(a2, b2) r2 = Relu(h2)
        a3 = MatMul(r2, w3) y = Add(a3, b3) }"""
    sizes = (16, 24, 20, 6)
    weights = {}
    for i in range(3):
        weights[f"w{i + 1}"] = rng.normal(0, sizes[i] ** -0.5, sizes[i : i + 2]).astype(np.float32)
        weights[f"b{i + 1}"] = rng.normal(0, 0.1, sizes[i + 1]).astype(np.float32)
    batches = [{"x": x} for x in np.split(correlated(rng, rows, 16), 5)]
    return parse(text, weights), batches[:4], batches[4:]


def conv_net(seed: int = 0) -> tuple[Model, Batches, Batches]:
    """Convolution, depthwise convolution, and a residual convolution behind a normalisation."""
    rng = np.random.default_rng(seed)
    text = """g (float[N, 3, 8, 8] x) => (float[N, 8, 8, 8] y) {
        c1 = Conv<pads=[1, 1, 1, 1]>(x, w1, b1)  r1 = Relu(c1)
        c2 = Conv<pads=[1, 1, 1, 1], group=8>(r1, w2)
        n2 = BatchNormalization(c2, g2, s2, m2, v2)  r2 = Relu(n2)
        c3 = Conv(r2, w3, b3)  y = Add(c3, r1) }"""
    weights = {
        "w1": rng.normal(0, 0.3, (8, 3, 3, 3)),
        "b1": rng.normal(0, 0.1, 8),
        "w2": rng.normal(0, 0.3, (8, 1, 3, 3)),
        "g2": rng.uniform(0.5, 2, 8),
        "s2": rng.normal(0, 0.1, 8),
        "m2": rng.normal(0, 0.1, 8),
        "v2": rng.uniform(0.5, 2, 8),
        "w3": rng.normal(0, 0.3, (8, 8, 1, 1)),
        "b3": rng.normal(0, 0.1, 8),
    }
    x = np.cumsum(rng.normal(size=(40, 3, 8, 8)), axis=-1).astype(np.float32)
    batches = [{"x": part} for part in np.split(x, 5)]
    return parse(text, {n: a.astype(np.float32) for n, a in weights.items()}), batches[:4], batches[4:]


NETS = [pytest.param(dense_net, id="dense"), pytest.param(conv_net, id="conv")]
Net = Callable[[int], tuple[Model, Batches, Batches]]


def layers_of(model: Model) -> tuple[Layer, ...]:
    return find_layers(model, min_size=1)[0]


def prune(
    dense: Model,
    batches: Batches,
    sparsity: float | Mapping[str, int] = 0.6,
    method: Method | None = None,
    *,
    one_shot: bool = False,
    budget: int = 2**30,
    **options: Any,
) -> tuple[Model, dict[str, Solved]]:
    layers = layers_of(dense)
    method = method or Method()
    if isinstance(sparsity, float):
        zeros = {layer.name: method.pattern.zeros(layer.view.matrix, sparsity) for layer in layers}
    else:
        zeros = dict(sparsity)
    pruned = dense.copy()
    targets = {name for stage in find_stages(dense, layers) for name in stage.reads}
    targets |= {layer.sites[0].residual for layer in layers} - {""}
    with ArrayStore(budget) as store:
        streams = Streams(dense, None if one_shot else pruned, batches, targets, store, threads=1)
        masks = [row_mask(batch) for batch in batches]
        options.setdefault("seed", 0)
        solved = prune_sequential(dense, pruned, layers, zeros, streams, masks, method, **options)
    return pruned, {item.name: item for item in solved}


def outputs(model: Model, batches: Batches) -> np.ndarray:
    session = runtime.session(model.proto, threads=1)
    return np.concatenate([session.run(None, batch)[0] for batch in batches])


def output_error(dense: Model, pruned: Model, batches: Batches) -> float:
    a, b = outputs(dense, batches), outputs(pruned, batches)
    return float(((a - b) ** 2).sum() / ((a - a.mean(0)) ** 2).sum())


# ----------------------------------------------------------------------------------------------- promises


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("text", ["unstructured", "2:4", "block:2x2"])
@pytest.mark.parametrize(("solver", "one_shot"), [("admm", False), ("sweep", False), ("admm", True)])
def test_zeros_are_exact_and_patterns_hold(net: Net, text: str, solver: str, one_shot: bool) -> None:
    dense, batches, _ = net(0)
    before = dense.to_bytes()
    pattern = Pattern.parse(text)
    pruned, solved = prune(dense, batches, 0.5, Method(solver=solver, pattern=pattern), one_shot=one_shot)
    assert dense.to_bytes() == before
    layers = layers_of(dense)
    assert set(solved) == {layer.name for layer in layers}
    for layer in layers:
        matrix = layer.view.to_matrix(pruned.array(layer.name))
        wanted = pattern.zeros(layer.view.matrix, 0.5)
        assert solved[layer.name].zeros == int((matrix == 0).sum())
        slack = 2 if text.startswith("block") else 0
        assert abs(solved[layer.name].zeros - wanted) <= slack
        order = column_order(layer, pattern)
        assert pattern.holds((matrix if order is None else matrix[:, :, order]) != 0)
    if text != "2:4":  # nothing else than weights and biases changed
        changed = {n for n in dense.index.tensors if (dense.array(n) != pruned.array(n)).any()}
        biases = {layer.bias.name for layer in layers if layer.bias}
        assert changed <= {layer.name for layer in layers} | biases


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("seed", range(3))
def test_beats_one_shot_magnitude_by_far(net: Net, seed: int) -> None:
    dense, batches, test = net(seed)
    ours, _ = prune(dense, batches)
    magnitude, _ = prune(dense, batches, method=MAGNITUDE, one_shot=True, repair=False)
    assert output_error(dense, ours, test) < 0.5 * output_error(dense, magnitude, test)


@pytest.mark.parametrize("net", NETS)
def test_beats_one_shot_second_order(net: Net) -> None:
    """Over a few nets: later layers make up for what earlier ones lost."""
    errors = np.zeros(2)
    for seed in range(4):
        dense, batches, test = net(seed)
        for i, one_shot in enumerate((False, True)):
            pruned, _ = prune(dense, batches, one_shot=one_shot)
            errors[i] += output_error(dense, pruned, test)
    assert errors[0] < errors[1]


@pytest.mark.parametrize("net", NETS)
def test_same_bytes_twice_from_memory_and_from_disk(net: Net) -> None:
    dense, batches, _ = net(0)
    first = prune(dense, batches)[0].to_bytes()
    assert prune(dense, batches)[0].to_bytes() == first
    assert prune(dense, batches, budget=0)[0].to_bytes() == first


def test_the_mean_of_the_outputs_is_kept() -> None:
    """The bias makes up for the mean error of its layer, so also the last one's."""
    dense, batches, _ = dense_net()
    pruned, _ = prune(dense, batches, 0.8)
    scale = outputs(dense, batches).std()
    np.testing.assert_allclose(
        outputs(pruned, batches).mean(0), outputs(dense, batches).mean(0), atol=1e-4 * scale
    )


@pytest.mark.parametrize(
    ("body", "bias"),
    [
        ("y = Gemm<alpha=0.5, beta=-2.0>(x, w, b)", (12,)),
        ("y = Gemm<alpha=3.0>(x, w, b)", (1, 12)),
        ("m = Gemm<alpha=0.5>(x, w) y = Add(m, b)", (12,)),
        ("t = Transpose(x) y = Gemm<transA=1, transB=1>(t, w, b)", (12,)),
        ("m = MatMul(x, w) y = Add(b, m)", (1, 12)),
        ("u = Unsqueeze(x, two) c = Conv<group=2>(u, g) d = Add(c, b) y = Squeeze(d, two)", (1, 12, 1)),
        ("u = Unsqueeze(x, two) c = Conv<group=2>(u, g, b) y = Squeeze(c, two)", (12,)),
    ],
)
def test_every_kind_of_bias_keeps_the_mean(body: str, bias: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    weights = {"w": (12, 12), "g": (12, 6, 1), "b": bias}
    arrays = {n: rng.normal(0, 0.4, shape).astype(np.float32) for n, shape in weights.items()}
    text = f"g (float[N, 12] x) => (float[N, 12] y) {{ {body} }}"
    dense = parse(text, {**arrays, "two": np.array([2])})
    batches = [{"x": correlated(rng, 100, 12)}]
    pruned, _ = prune(dense, batches, 0.8, MAGNITUDE)
    a, b = outputs(dense, batches), outputs(pruned, batches)
    assert np.abs(a - b).max() > 0.1
    np.testing.assert_allclose(a.mean(0), b.mean(0), atol=1e-5 * a.std())


def test_wanda_ranks_by_the_norms_of_the_inputs_not_by_their_spread() -> None:
    rng = np.random.default_rng(0)
    dense = parse(
        "g (float[N, 12] x) => (float[N, 12] y) { y = Gemm(x, w, b) }",
        {"w": rng.normal(size=(12, 12)).astype(np.float32), "b": np.zeros(12, np.float32)},
    )
    x = rng.normal(size=(200, 12)) * np.geomspace(0.1, 1, 12) + np.geomspace(20, 1, 12)
    batches = [{"x": x.astype(np.float32)}]
    pruned, _ = prune(dense, batches, 0.5, Method("wanda"))
    score = np.abs(dense.array("w").T) * np.linalg.norm(x, axis=0)
    kept = pruned.array("w").T != 0
    for row in range(12):
        assert score[row][kept[row]].min() >= score[row][~kept[row]].max()


def test_the_mean_is_kept_through_a_batch_normalization_too() -> None:
    """Its running mean is the bias of the convolution before it, with the other sign."""
    dense, batches, _ = conv_net()
    assert layers_of(dense)[1].bias is not None
    pruned, _ = prune(dense, batches, {"w1": 0, "w2": 40, "w3": 0}, repair=True)
    shifted = {n for n in ("m2", "s2", "v2") if (dense.array(n) != pruned.array(n)).any()}
    assert shifted == {"m2"}

    def mean(model: Model) -> np.ndarray:
        proto = onnx.ModelProto()
        proto.CopyFrom(model.proto)
        del proto.graph.output[:]
        proto.graph.output.append(onnx.ValueInfoProto(name="n2"))
        found = [runtime.session(proto, threads=1).run(None, b)[0] for b in batches]
        return np.asarray(np.concatenate(found).mean((0, 2, 3)))

    np.testing.assert_allclose(mean(pruned), mean(dense), atol=1e-4)


def test_error_is_that_of_the_layer() -> None:
    dense, batches, _ = dense_net()
    _, none = prune(dense, batches, {"w1": 0, "w2": 0, "w3": 0})
    assert all(item.error is not None and item.error < 1e-6 for item in none.values())
    assert all(item.refitted and item.zeros == 0 for item in none.values())
    _, some = prune(dense, batches, {"w1": 300, "w2": 0, "w3": 60})
    errors = [some[name].error or 0.0 for name in ("w1", "w2", "w3")]
    assert errors[0] > 1e-3 > 1e-6 > errors[1] and 1e-4 < errors[2] < 1.0
    assert [some[name].refitted for name in ("w1", "w2", "w3")] == [False, True, False]


def test_layers_that_stay_dense_repair_earlier_ones() -> None:
    dense, batches, test = dense_net(rows=3200)
    zeros = {"w1": 230, "w2": 0, "w3": 0}
    repaired, _ = prune(dense, batches, zeros)
    first_only = dense.copy()
    for name in ("w1", "b1"):
        first_only.set_array(name, repaired.array(name))
    assert output_error(dense, repaired, test) < 0.95 * output_error(dense, first_only, test)


def test_without_repair_only_weights_change() -> None:
    dense, batches, _ = dense_net()
    pruned, solved = prune(dense, batches, method=MAGNITUDE, one_shot=True, repair=False)
    for name in ("w1", "w2", "w3"):
        old, new = dense.array(name), pruned.array(name)
        np.testing.assert_array_equal(new[new != 0], old[new != 0])
        assert not solved[name].refitted
    for name in ("b1", "b2", "b3"):
        np.testing.assert_array_equal(dense.array(name), pruned.array(name))


def test_layers_without_zeros_and_without_repair_stay_byte_for_byte() -> None:
    dense, batches, _ = dense_net()
    pruned, _ = prune(dense, batches, {"w1": 0, "w2": 0, "w3": 0}, one_shot=True, repair=False)
    assert pruned.to_bytes() == dense.to_bytes()


def test_progress_is_told_in_order() -> None:
    dense, batches, _ = dense_net()
    told: list[str] = []
    prune(dense, batches, on_layer=lambda item: told.append(item.name))
    assert told == ["w1", "w2", "w3"]


# ------------------------------------------------------------------------------------------- graph shapes


def test_layers_with_one_input_are_collected_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    dense = parse(
        """g (float[N, T, 8] x) => (float[N, T, 8] y) {
            q = MatMul(x, wq)  k = MatMul(x, wk)  v = MatMul(x, wv)  s = Add(q, k)  t = Mul(s, v)
            y = MatMul(t, wo) }""",
        {n: rng.normal(size=(8, 8)).astype(np.float32) for n in ("wq", "wk", "wv", "wo")},
    )
    seen: list[tuple[str, ...]] = []

    def counted(streams: Streams, stage: Any, *args: Any, **options: Any) -> Moments:
        seen.append(tuple(layer.name for layer in stage.layers))
        return collect(streams, stage, *args, **options)

    monkeypatch.setattr(sequential, "collect", counted)
    prune(dense, [{"x": correlated(rng, 4, 10, 8)}])
    assert seen == [("wq", "wk", "wv"), ("wo",)]


def test_the_residual_target_is_used() -> None:
    """The last layer of a block also makes up for what the skip connection lost."""
    rng = np.random.default_rng(0)
    text = """g (float[N, 12] x) => (float[N, 12] y) {
        s = MatMul(x, w0)  h = Add(x, x)  m = MatMul(h, w1)  b = Add(m, bias)  y = Add(b, s) }"""
    weights = {n: rng.normal(0, 0.4, (12, 12)).astype(np.float32) for n in ("w0", "w1")}
    dense = parse(text, {**weights, "bias": np.zeros(12, np.float32)})
    layers = layers_of(dense)
    assert layers[1].sites[0].residual == "s"
    batches = [{"x": correlated(rng, 6000, 12)}]
    zeros = {"w0": 80, "w1": 0}
    with_target, _ = prune(dense, batches, zeros)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequential, "open_residuals", lambda *args: [])
        plain, _ = prune(dense, batches, zeros)
    assert output_error(dense, with_target, batches) < 0.2 * output_error(dense, plain, batches)


def test_the_residual_target_is_used_when_the_input_is_that_of_the_dense_model() -> None:
    rng = np.random.default_rng(0)
    text = """g (float[N, 12] x) => (float[N, 12] y) {
        s = MatMul(x, w0)  m = Gemm(x, w1, bias)  y = Add(m, s) }"""
    weights = {n: rng.normal(0, 0.4, (12, 12)).astype(np.float32) for n in ("w0", "w1")}
    dense = parse(text, {**weights, "bias": np.zeros(12, np.float32)})
    batches = [{"x": correlated(rng, 6000, 12)}]
    pruned, _ = prune(dense, batches, {"w0": 80, "w1": 0})
    alone = dense.copy()
    alone.set_array("w0", pruned.array("w0"))
    assert output_error(dense, pruned, batches) < 0.2 * output_error(dense, alone, batches)


def test_a_residual_behind_an_unsolved_layer_is_not_waited_for() -> None:
    """Both branches end in layers: the first to be solved cannot know the other."""
    rng = np.random.default_rng(0)
    text = """g (float[N, 12] x) => (float[N, 12] y) {
        h = Relu(x)  l = MatMul(x, w0)  r = MatMul(h, w1)  y = Add(l, r) }"""
    weights = {n: rng.normal(0, 0.4, (12, 12)).astype(np.float32) for n in ("w0", "w1")}
    dense = parse(text, weights)
    batches = [{"x": correlated(rng, 300, 12)}]
    pruned, solved = prune(dense, batches, 0.5)
    assert [item.zeros for item in solved.values()] == [72, 72]
    assert output_error(dense, pruned, batches) < 0.05


def test_a_skip_over_three_layers_at_the_end_of_the_model() -> None:
    """An inverted bottleneck whose sum is the output: nothing behind it keeps the skip alive."""
    rng = np.random.default_rng(0)
    text = """g (float[N, 12] x) => (float[N, 12] y) {
        s = MatMul(x, w0)  u = Relu(s)  a = MatMul(u, w1)  b = Relu(a)  c = MatMul(b, w2)  d = Relu(c)
        e = MatMul(d, w3)  y = Add(e, u) }"""
    weights = {f"w{i}": rng.normal(0, 0.4, (12, 12)).astype(np.float32) for i in range(4)}
    dense = parse(text, weights)
    pruned, _ = prune(dense, [{"x": correlated(rng, 300, 12)}], 0.5)
    assert all((pruned.array(n) == 0).sum() == 72 for n in weights)


def test_two_stages_of_one_graph_input() -> None:
    """With another input between them; nothing behind the layers keeps the input alive."""
    rng = np.random.default_rng(0)
    text = """g (float[N, 12] x, float[N, 12] z) => (float[N, 12] a, float[N, 12] b, float[N, 12] c) {
        a = MatMul(x, w0)  b = MatMul(z, w1)  c = Gemm(x, w2) }"""
    weights = {f"w{i}": rng.normal(0, 0.4, (12, 12)).astype(np.float32) for i in range(3)}
    dense = parse(text, weights)
    pruned, _ = prune(dense, [{"x": correlated(rng, 100, 12), "z": correlated(rng, 100, 12)}], 0.5)
    assert all((pruned.array(n) == 0).sum() == 72 for n in weights)


def test_tied_weights_are_solved_once_for_all_their_uses() -> None:
    rng = np.random.default_rng(0)
    text = """g (float[N, 12] x, float[N, 12] z) => (float[N, 12] y) {
        a = MatMul(x, w)  b = MatMul(z, w)  y = Sub(a, b) }"""
    dense = parse(text, {"w": rng.normal(size=(12, 12)).astype(np.float32)})
    # The inputs of the two uses vary in different directions.
    half = np.arange(12) < 6
    batches = [
        {
            "x": np.where(half, correlated(rng, 300, 12), 0).astype(np.float32),
            "z": np.where(half, 0, correlated(rng, 300, 12)).astype(np.float32),
        }
    ]
    layers = layers_of(dense)
    with ArrayStore(2**30) as store:
        streams = Streams(dense, None, batches, ["x", "z"], store, threads=1)
        streams.advance(["z"])
        second = collect(streams, find_stages(dense, layers, 1)[0], [None], batches=[0], seed=0)
    both, solved = prune(dense, batches, 0.5, tied={"w": second})
    first_only, _ = prune(dense, batches, 0.5)
    assert len(solved) == 1 and (both.array("w") == 0).sum() == 72
    assert output_error(dense, both, batches) < 0.5 * output_error(dense, first_only, batches)


def test_grouped_and_transposed_convolutions() -> None:
    rng = np.random.default_rng(0)
    text = """g (float[N, 4, 6, 6] x) => (float[N, 4, 12, 12] y) {
        a = Conv<group=2, pads=[1, 1, 1, 1]>(x, w0, b0)  r = Relu(a)
        y = ConvTranspose<strides=[2, 2], group=2>(r, w1, b1) }"""
    weights = {
        "w0": rng.normal(0, 0.4, (8, 2, 3, 3)),
        "b0": rng.normal(size=8),
        "w1": rng.normal(0, 0.4, (8, 2, 2, 2)),
        "b1": rng.normal(size=4),
    }
    dense = parse(text, {n: a.astype(np.float32) for n, a in weights.items()})
    x = np.cumsum(rng.normal(size=(20, 4, 6, 6)), axis=-1).astype(np.float32)
    pruned, solved = prune(dense, [{"x": x}], 0.5)
    magnitude, _ = prune(dense, [{"x": x}], 0.5, MAGNITUDE, one_shot=True, repair=False)
    assert (solved["w0"].zeros, solved["w1"].zeros) == (72, 32)
    assert output_error(dense, pruned, [{"x": x}]) < 0.5 * output_error(dense, magnitude, [{"x": x}])


def test_embeddings_and_padding() -> None:
    """A table, then a projection whose statistics see real tokens only."""
    rng = np.random.default_rng(0)
    text = """g (int64[N, T] ids, int64[N, T] attention_mask) => (float[N, T, 12] y) {
        e = Gather(table, ids)  y = MatMul(e, w) }"""
    table = rng.normal(size=(30, 12)).astype(np.float32)
    table[0] = 1e4  # the padding token
    dense = parse(text, {"table": table, "w": rng.normal(size=(12, 12)).astype(np.float32)})
    ids = rng.integers(1, 30, (40, 9))
    mask = (np.arange(9) < rng.integers(2, 9, (40, 1))).astype(np.int64)
    batch = {"ids": ids * mask, "attention_mask": mask}
    pruned, solved = prune(dense, [batch], 0.5)
    assert solved["table"].error is None and solved["table"].zeros == 180
    real = mask.astype(bool)
    a, b = (outputs(m, [batch])[real] for m in (dense, pruned))
    assert ((a - b) ** 2).sum() < 0.5 * (a**2).sum()


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_types_keep_their_type(dtype: type) -> None:
    kind = {np.float16: "float16", np.float64: "double"}[dtype]
    rng = np.random.default_rng(0)
    text = f"""g ({kind}[N, 12] x) => ({kind}[N, 12] y) {{
        h = MatMul(x, w0)  r = Relu(h)  m = MatMul(r, w1)  y = Add(m, b) }}"""
    weights = {n: rng.normal(0, 0.3, (12, 12)).astype(dtype) for n in ("w0", "w1")}
    dense = parse(text, {**weights, "b": rng.normal(size=12).astype(dtype)})
    batches = [{"x": correlated(rng, 200, 12).astype(dtype)}]
    pruned, _ = prune(dense, batches, 0.5)
    for name in ("w0", "w1"):
        assert pruned.array(name).dtype == dtype
        assert (pruned.array(name) == 0).sum() == 72
    assert output_error(dense, pruned, batches) < 0.1


def test_weights_in_constant_nodes() -> None:
    dense, batches, test = dense_net()
    proto = onnx.ModelProto()
    proto.CopyFrom(dense.proto)
    for tensor in reversed(list(proto.graph.initializer)):
        proto.graph.node.insert(0, onnx.helper.make_node("Constant", [], [tensor.name], value=tensor))
    del proto.graph.initializer[:]
    model = Model(proto)
    pruned, _ = prune(model, batches)
    wanted, _ = prune(dense, batches)
    np.testing.assert_array_equal(outputs(pruned, test), outputs(wanted, test))


# --------------------------------------------------------------------------------------------- bad inputs


@pytest.mark.parametrize("one_shot", [False, True])
def test_inputs_that_are_no_numbers(one_shot: bool) -> None:
    dense, batches, _ = dense_net()
    batches[1]["x"] = batches[1]["x"].copy()
    batches[1]["x"][0, 0] = np.nan
    with pytest.raises(
        ModelError, match="the input 'x' of weight 'w1' holds NaN, infinite or too large values"
    ):
        prune(dense, batches, one_shot=one_shot, repair=not one_shot)


@pytest.mark.parametrize("value", [0.0, 5.0])
def test_inputs_that_never_vary(value: float) -> None:
    dense, batches, _ = dense_net()
    pruned, solved = prune(dense, [{"x": np.full_like(b["x"], value)} for b in batches])
    assert all(np.isfinite(pruned.array(n)).all() for n in ("w1", "b1", "w3", "b3"))
    assert [item.zeros for item in solved.values()] == [230, 288, 72]


def test_one_sample() -> None:
    dense, batches, _ = dense_net()
    pruned, solved = prune(dense, [{"x": batches[0]["x"][:1]}])
    assert np.isfinite(outputs(pruned, batches)).all()
    assert solved["w1"].zeros == 230


@pytest.mark.parametrize("offset", [1e3, 1e5])
def test_inputs_far_from_zero(offset: float) -> None:
    """The means leave rounding errors behind that can make H indefinite: damping rises instead of a crash."""
    dense, batches, _ = dense_net()
    pruned, solved = prune(dense, [{"x": b["x"] + np.float32(offset)} for b in batches])
    assert np.isfinite(pruned.array("w1")).all()
    assert solved["w1"].zeros == 230


def test_units_that_are_gone_stay_gone_and_the_rest_makes_up_for_them() -> None:
    model, batches, judged = dense_net(rows=6400)
    layers, _ = find_layers(model, min_size=1)
    gone = {"w1": (1, [2, 3, 9]), "b1": (0, [2, 3, 9]), "w2": (0, [2, 3, 9])}
    support, masked = {}, model.copy()
    for name, (axis, units) in gone.items():
        kept = np.ones(model.array(name).shape, bool)
        np.moveaxis(kept, axis, 0)[units] = False
        support[name] = kept
        masked.set_array(name, np.where(kept, model.array(name), np.float32(0)))
    walked, targets = masked.copy(), {stage.value for stage in find_stages(model, layers)}
    with ArrayStore(2**30) as store:
        streams = Streams(model, walked, batches, targets, store)
        zeros = dict.fromkeys((layer.name for layer in layers), 0)
        masks = [row_mask(batch) for batch in batches]
        prune_sequential(model, walked, layers, zeros, streams, masks, Method(), seed=0, support=support)
    for name, kept in support.items():
        assert not walked.array(name)[~kept].any()
    outputs = [runtime.session(m.proto).run(None, judged[0])[0] for m in (model, masked, walked)]
    plain, repaired = (float(np.square(outputs[0] - y).sum()) for y in outputs[1:])
    assert repaired < 0.3 * plain


# ------------------------------------------------------------------------------------------- recurrent nodes


def recurrent_net() -> tuple[Model, Batches]:
    """An LSTM beside a MatMul with the same input, whose sum with it is a residual branch."""
    rng = np.random.default_rng(0)
    text = """g (float[8, N, 16] x) => (float[8, N, 6] y) {
        h = LSTM<hidden_size=10>(x, W, R, B) s = Squeeze(h, one)
        m = MatMul(x, w) a = Add(m, s) y = MatMul(a, v) }"""
    shapes = {"W": (1, 40, 16), "R": (1, 40, 10), "B": (1, 80), "w": (16, 10), "v": (10, 6)}
    weights = {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    batches = [{"x": correlated(rng, 8, 40, 16)} for _ in range(3)]
    return parse(text, weights | {"one": np.array([1])}), batches


def test_a_recurrent_node_is_solved_when_both_of_its_weights_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its output must not be computed before: it would be that of a pruned W and a dense R for good."""
    dense, batches = recurrent_net()
    assert [stage.layers[0].name for stage in find_stages(dense, layers_of(dense))] == ["W", "w", "R", "v"]
    asked: list[tuple[str, ...]] = []
    advance = Streams.advance
    monkeypatch.setattr(
        Streams,
        "advance",
        lambda self, names, *rest: asked.append(tuple(names)) or advance(self, names, *rest),
    )
    prune(dense, batches)
    assert asked == [("x",), ("x",), ("states of h",), ("a",)]


def test_both_halves_of_a_bias_move() -> None:
    """W and R are solved one after the other; each shifts its own half of B."""
    dense, batches = recurrent_net()
    both, _ = prune(dense, batches, {"W": 400, "R": 250, "w": 0, "v": 0})
    alone, _ = prune(dense, batches, {"W": 400, "R": 0, "w": 0, "v": 0})
    halves = [np.split(model.array("B"), 2, axis=1) for model in (dense, both, alone)]
    assert np.abs(halves[1][0] - halves[0][0]).max() > 1e-3
    assert np.abs(halves[1][1] - halves[0][1]).max() > 1e-3
    np.testing.assert_array_equal(halves[1][0], halves[2][0])  # what comes after W does not touch its half
