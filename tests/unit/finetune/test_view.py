"""The graph as a torch module: what it computes, which weights it trains, and what it refuses."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, parser

from onnxprune import io
from onnxprune.errors import DataError, ModelError, UsageError
from onnxprune.finetune import registry
from onnxprune.finetune.parameters import default_trained
from onnxprune.finetune.view import TorchView, unsupported
from onnxprune.model import Model
from onnxprune.runtime import session

HEAD = '<ir_version: 9, opset_import: ["" : 18]>'


def parse(text: str, head: str = HEAD, **weights: Any) -> Model:
    """A model from text; ``weights`` become initializers, ``__`` in their names a dot."""
    proto = parser.parse_model(f"{head} {text}")
    for name, array in weights.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name.replace("__", ".")))
    return Model(proto)


def random(*shape: int, seed: int = 0, dtype: type = np.float32) -> NDArray[Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def run(model: Model, outputs: Sequence[str] | None = None, **feeds: NDArray[Any]) -> dict[str, NDArray[Any]]:
    found = TorchView(model, outputs=outputs)({k: torch.from_numpy(v) for k, v in feeds.items()})
    return {name: value.detach().numpy() for name, value in found.items()}


# -- whole models ------------------------------------------------------------------------------------


@pytest.fixture(params=["digits_cnn", "digits_transformer"])
def sample(request: pytest.FixtureRequest) -> tuple[Model, dict[str, NDArray[Any]]]:
    path: Path = request.getfixturevalue(request.param)
    rng = np.random.default_rng(0)
    if request.param == "digits_cnn":
        return io.load(path), {"image": rng.random((3, 1, 8, 8), np.float32)}
    return io.load(path), {"tokens": rng.integers(0, 10, (3, 16))}


def test_computes_what_onnx_runtime_does(sample: tuple[Model, dict[str, NDArray[Any]]]) -> None:
    model, feeds = sample
    wanted = session(model.proto).run(None, feeds)
    for found, right in zip(run(model, **feeds).values(), wanted, strict=True):
        assert np.abs(found - right).max() <= 1e-5 * np.abs(right).max()


def test_every_matrix_gets_a_gradient(sample: tuple[Model, dict[str, NDArray[Any]]]) -> None:
    model, feeds = sample
    view = TorchView(model)
    found = view({k: torch.from_numpy(v) for k, v in feeds.items()})
    sum(
        (value * torch.linspace(-1, 1, value.numel()).view(value.shape)).sum() for value in found.values()
    ).backward()
    matrices = {n: w for n, w in view.weights.items() if w.ndim > 1 and n != "position"}  # a table
    assert len(matrices) >= 4
    assert [n for n, w in matrices.items() if w.grad is None or not w.grad.any()] == []


def test_shapes_never_touch_the_device(sample: tuple[Model, dict[str, NDArray[Any]]]) -> None:
    """The device "meta" holds no data: any value read from it would fail."""
    model, feeds = sample
    view = TorchView(model)
    right = view({k: torch.from_numpy(v) for k, v in feeds.items()})
    found = view.to("meta")({k: torch.from_numpy(v) for k, v in feeds.items()})
    assert {n: v.shape for n, v in found.items()} == {n: v.shape for n, v in right.items()}
    assert {v.device.type for v in found.values()} == {"meta"}


def test_a_copy_is_independent(sample: tuple[Model, dict[str, NDArray[Any]]]) -> None:
    model, arrays = sample
    feeds = {k: torch.from_numpy(v) for k, v in arrays.items()}
    view = TorchView(model)
    other = copy.deepcopy(view)
    before = view(feeds)
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(0.5)
    for name, value in view(feeds).items():
        assert torch.equal(value, before[name])
        assert not torch.equal(value, other(feeds)[name])
    other.load_state_dict(view.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in other(feeds).items())


# -- weights -----------------------------------------------------------------------------------------

LINEAR = "agraph (float[N,3] x) => (float[N,2] y) { y = MatMul(x, w) }"


@pytest.mark.parametrize("name", ["w", "a.b", "a%2Eb", "forward", "a/b:0", "here"])
def test_weights_go_by_their_own_names(name: str) -> None:
    model = parse(LINEAR.replace("w)", "W)"), W=random(3, 2))
    model.graph.initializer[0].name = model.graph.node[0].input[1] = name
    model.reindex()
    view = TorchView(model)
    assert list(view.weights) == [name]
    np.testing.assert_array_equal(view.weights[name].detach().numpy(), model.array(name))


def test_a_tied_weight_is_one_parameter() -> None:
    model = parse(
        """agraph (float[N,3] x) => (float[N,3] y) {
            a = MatMul(x, w)  t = Transpose<perm=[1,0]>(w)  y = MatMul(a, t)
        }""",
        w=random(3, 2),
    )
    view = TorchView(model)
    x = torch.randn(4, 3)
    view({"x": x})["y"].sum().backward()
    w = torch.from_numpy(model.array("w").copy()).requires_grad_()
    (x @ w @ w.t()).sum().backward()
    assert len(list(view.parameters())) == 1
    torch.testing.assert_close(view.weights["w"].grad, w.grad)


def test_constant_nodes_hold_weights_too() -> None:
    node = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(random(3, 2)))
    model = parse(LINEAR)
    model.graph.node.insert(0, node)
    model.reindex()
    view = TorchView(model)
    view({"x": torch.ones(1, 3)})["y"].sum().backward()
    assert view.weights["w"].grad is not None


def test_an_expression_of_weights_follows_them() -> None:
    model = parse(
        "agraph (float[N,2] x) => (float[N,3] y) { t = Transpose<perm=[1,0]>(w)  y = MatMul(x, t) }",
        w=random(3, 2),
    )
    view = TorchView(model)
    x = torch.randn(2, 2)
    with torch.no_grad():
        view.weights["w"].mul_(3)
    torch.testing.assert_close(view({"x": x})["y"], x @ view.weights["w"].t())
    frozen = TorchView(model, trainable=())
    assert [step.where for step in frozen._plan.block.steps] == ["node 'MatMul(y)' (MatMul)"]


def test_only_the_chosen_weights_are_trained() -> None:
    model = parse(
        "agraph (float[N,3] x) => (float[N,2] y) { a = MatMul(x, w)  y = Add(a, b) }",
        w=random(3, 2), b=random(2),
    )  # fmt: skip
    assert {n: w.requires_grad for n, w in TorchView(model).weights.items()} == {"w": True, "b": True}
    chosen = TorchView(model, trainable=["b"]).weights
    assert {n: w.requires_grad for n, w in chosen.items()} == {"w": False, "b": True}
    with pytest.raises(UsageError, match="no value 'c' to train"):
        TorchView(model, trainable=["c"])


def test_statistics_scalars_and_shapes_are_not_trained() -> None:
    model = parse(
        """agraph (float[N,2,4,4] x) => (float[N,2,8,8] z, float[2] q) {
            y = BatchNormalization(x, scale, bias, mean, var)
            d = Mul(y, two)
            z = Resize<mode="nearest">(d, "", factors)
            q = Sqrt(unread)
        }""",
        scale=random(2), bias=random(2), mean=random(2), var=np.ones(2, np.float32), two=np.float32(2),
        factors=np.float32([1, 1, 2, 2]), unread=np.ones(2, np.float32),
    )  # fmt: skip
    trained = {n for n, w in TorchView(model, outputs=["z"]).weights.items() if w.requires_grad}
    assert trained == {"scale", "bias"}
    asked = TorchView(model, outputs=["z"], trainable=["mean", "two", "scale"]).weights
    assert {n for n, w in asked.items() if w.requires_grad} == {"two", "scale"}
    assert "unread" not in asked


ATTENTION = """g (float[N, 4, 8] x) => (float[N, 4, 8] y) {
    k = Transpose<perm = [0, 2, 1]>(x) p = MatMul(x, wq) s = MatMul(p, k) b = Unsqueeze(mask, front)
    h = Add(s, b) a = Softmax(h) c = MatMul(a, x) d = Mul(c, wide) e = Mul(d, table) y = Add(e, bias) }"""


@pytest.mark.parametrize("hidden", [-np.inf, np.finfo(np.float32).min, -10000.0, -100.0, 0.5])
def test_masks_and_tables_beside_the_values_are_not_trained(hidden: float) -> None:
    mask = np.triu(np.full((4, 4), hidden, np.float32), 1)
    model = parse(
        ATTENTION, wq=random(8, 8), mask=mask, front=np.array([0]), wide=random(1, 1, 8), table=random(4, 8),
        bias=random(8),
    )  # fmt: skip
    trained = {name for name, weight in TorchView(model).weights.items() if weight.requires_grad}
    assert trained == {"wq", "wide", "bias"} == default_trained(model)


def test_a_row_of_huge_numbers_beside_the_values_is_a_mask() -> None:
    text = "g (float[N, 4] x) => (float[N, 4] y) { a = MatMul(x, w) y = Add(a, hide) }"
    model = parse(text, w=1e4 * random(4, 4), hide=np.array([0, 0, 0, -1e4], np.float32))
    assert default_trained(model) == {"w"}


def test_a_weight_multiplied_with_its_own_mask_is_trained() -> None:
    text = "g (float[N, 4] x) => (float[N, 6] y) { m = Mul(w, keep) y = MatMul(x, m) }"
    assert "w" in default_trained(parse(text, w=random(4, 6), keep=np.eye(4, 6, dtype=np.float32)))


def test_half_precision_is_held_and_computed_in_float32() -> None:
    model = parse(
        """agraph (float16[N,3] x) => (float16[N,2] y) {
            a = MatMul(x, w)  b = Cast<to=1>(a)  c = Mul(b, big)  y = Cast<to=10>(c)
        }""",
        w=random(3, 2, dtype=np.float16), big=np.float32([[1e6, 1e6]]),
    )  # fmt: skip
    view = TorchView(model)
    assert {w.dtype for w in view.parameters()} == {torch.float32}
    y = view({"x": torch.ones(1, 3, dtype=torch.float16)})["y"]
    assert y.dtype == torch.float32
    assert y.isfinite().all()  # float16 would overflow


def test_double_precision_stays() -> None:
    model = parse(LINEAR.replace("float", "double"), w=random(3, 2, dtype=np.float64))
    assert run(model, x=random(1, 3, dtype=np.float64))["y"].dtype == np.float64


def test_sparse_initializers_are_constants() -> None:
    model = parse(LINEAR)
    values = numpy_helper.from_array(np.float32([5, 7]), "w")
    indices = numpy_helper.from_array(np.int64([1, 4]))
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [3, 2]))
    model.reindex()
    np.testing.assert_array_equal(run(model, x=np.eye(3, dtype=np.float32))["y"], [[0, 5], [0, 0], [7, 0]])


# -- parts of a graph --------------------------------------------------------------------------------

CHAIN = (
    "agraph (float[N,3] x, float[N,2] s) => (float[N,2] z) { a = MatMul(x, w)  b = Relu(a)  z = Add(b, s) }"
)


def test_any_value_can_be_returned() -> None:
    model = parse(CHAIN, w=random(3, 2))
    view = TorchView(model, outputs=["b", "a"])
    assert view.inputs == ("x",)
    found = view({"x": torch.randn(2, 3)})
    assert list(found) == ["b", "a"]
    assert torch.equal(found["a"].relu(), found["b"])


def test_the_graph_can_be_cut() -> None:
    model = parse(CHAIN, w=random(3, 2))
    view = TorchView(model, feeds_from=["a"])
    assert view.inputs == ("a", "s")
    assert not view.weights
    found = view({"a": torch.tensor([[-1.0, 2.0]]), "s": torch.ones(1, 2)})["z"]
    assert found.tolist() == [[1, 3]]


def test_a_fed_value_stands_although_its_node_runs_for_another_output() -> None:
    model = parse(
        "agraph (float[4] x) => (float[4] z) { a, b = Split<num_outputs=2>(x)  z = Concat<axis=0>(a, b) }"
    )
    view = TorchView(model, feeds_from=["a"])
    assert view({"a": torch.zeros(1), "x": torch.arange(4.0)})["z"].tolist() == [0, 2, 3]


@pytest.mark.parametrize(
    ("feeds", "outputs", "text"), [(["q"], None, "cut the graph at"), ([], ["q"], "return")]
)
def test_unknown_values_are_refused(feeds: list[str], outputs: list[str] | None, text: str) -> None:
    with pytest.raises(UsageError, match=f"no value 'q' to {text}"):
        TorchView(parse(CHAIN, w=random(3, 2)), feeds_from=feeds, outputs=outputs)


def test_a_missing_feed_is_named() -> None:
    with pytest.raises(DataError, match=r"no value for 's', wanted: x, s"):
        TorchView(parse(CHAIN, w=random(3, 2)))({"x": torch.zeros(1, 3)})


# -- running -----------------------------------------------------------------------------------------


def test_values_are_freed_at_their_last_use(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[int] = []
    references: list[weakref.ref[torch.Tensor]] = []

    def probe(x: torch.Tensor) -> torch.Tensor:
        y = x + 1
        references.append(weakref.ref(y))
        alive.append(sum(r() is not None for r in references))
        return y

    monkeypatch.setattr(registry, "_table", {**registry._table})
    registry.op(1, domain="test", name="Probe")(probe)
    nodes = " ".join(f"x{i + 1} = test.Probe(x{i})" for i in range(6))
    model = parse(f"agraph (float[2] x0) => (float[2] x6) {{ {nodes} }}", HEAD.replace("]", ', "test" : 1]'))
    with torch.no_grad():
        TorchView(model)({"x0": torch.zeros(2)})
    assert max(alive) <= 2  # a result and the value that it is made from


def test_inputs_are_not_changed() -> None:
    model = parse(
        "agraph (float[3] x) => (float[3] y) { a = Relu(x)  b = Clip(a, one)  y = Identity(x) }",
        one=np.float32(1),
    )
    x = torch.tensor([-1.0, 0.5, 2.0])
    assert TorchView(model)({"x": x})["y"].tolist() == [-1.0, 0.5, 2.0]
    assert x.tolist() == [-1.0, 0.5, 2.0]


def test_autocast_reaches_convolutions_and_products() -> None:
    model = parse(
        """agraph (float[N,2,5,5] x) => (float[N,3,3,3] c, float[N,2,5,2] m) {
            c = Conv(x, k)  m = MatMul(x, w)
        }""",
        k=random(3, 2, 3, 3), w=random(5, 2),
    )  # fmt: skip
    with torch.autocast("cpu", torch.bfloat16):
        found = TorchView(model)({"x": torch.zeros(1, 2, 5, 5)})
    assert {value.dtype for value in found.values()} == {torch.bfloat16}


def test_a_failure_names_the_node() -> None:
    view = TorchView(parse(LINEAR, w=random(3, 2)))
    with pytest.raises(ModelError, match=r"node 'MatMul\(y\)' \(MatMul\): mat1 and mat2 shapes"):
        view({"x": torch.zeros(1, 4)})


def test_branches_read_the_values_around_them() -> None:
    model = parse(
        """agraph (float[2] x, bool c) => (float[2] y) {
            a = Mul(x, w)
            y = If (c) <then_branch = t () => (float[2] p) { p = Add(a, x) },
                        else_branch = e () => (float[2] n) { n = Mul(w, w) }>
        }""",
        w=np.float32([2, 3]),
    )
    view = TorchView(model)
    x = torch.tensor([1.0, 10.0])
    assert view({"x": x, "c": torch.tensor(True)})["y"].tolist() == [3, 40]
    y = view({"x": x, "c": torch.tensor(False)})["y"]
    y.sum().backward()
    assert view.weights["w"].grad.tolist() == [4, 6]


def test_functions_of_the_model_are_expanded() -> None:
    head = '<ir_version: 9, opset_import: ["" : 18, "local" : 1]>'
    model = parse(
        """agraph (float[N,3] x) => (float[N,2] y) { y = local.Outer<slope=0.5>(x, w) }
        <domain: "local", opset_import: ["" : 18, "local" : 1]>
        Outer <slope> (x, w) => (y) { t = local.Inner<alpha: float = @slope>(x)  y = MatMul(t, w) }
        <domain: "local", opset_import: ["" : 11]>
        Inner <alpha> (x) => (y) {
            u = Unsqueeze<axes=[0]>(x) v = LeakyRelu<alpha: float = @alpha>(u) y = Squeeze<axes=[0]>(v)
        }
        """,
        head, w=random(3, 2),
    )  # fmt: skip
    x = random(2, 3, seed=1)
    np.testing.assert_allclose(run(model, x=x)["y"], np.where(x < 0, x / 2, x) @ model.array("w"), rtol=1e-5)


def test_statistics_inside_a_function_are_not_trained() -> None:
    head = '<ir_version: 9, opset_import: ["" : 18, "local" : 1]>'
    model = parse(
        """agraph (float[N,2] x) => (float[N,2] y) { y = local.Norm(x, scale, mean, var) }
        <domain: "local", opset_import: ["" : 18]>
        Norm (x, s, m, v) => (y) { y = BatchNormalization(x, s, s, m, v) }""",
        head, scale=random(2), mean=random(2), var=np.ones(2, np.float32),
    )  # fmt: skip
    assert {n for n, w in TorchView(model).weights.items() if w.requires_grad} == {"scale"}


def test_a_function_that_calls_itself_is_refused() -> None:
    head = '<ir_version: 9, opset_import: ["" : 18, "local" : 1]>'
    text = """agraph (float[3] x) => (float[3] y) { y = local.Loop(x) }
        <domain: "local", opset_import: ["local" : 1]> Loop (x) => (y) { y = local.Loop(x) }"""
    with pytest.raises(ModelError, match="calls itself"):
        TorchView(parse(text, head))


# -- refusals ----------------------------------------------------------------------------------------

STRANGE = """agraph (float[N,3] x) => (float[N,2] z) {
    a = other.Strange(x)  b = other.Strange(a)  c = MatMul(a, w)  d = Relu<soft=1>(x)  e = ImageDecoder(x)
    f = Mod<fmod=2>(x, x)  s1 = Add(c, b) s2 = Add(s1, d)  z = Add(s2, e)
}"""
STRANGE_HEAD = HEAD.replace("]", ', "other" : 3]')


def test_what_cannot_run_is_named_and_counted() -> None:
    model = parse(STRANGE, STRANGE_HEAD, w=random(3, 2))
    text = (
        r"node 'Strange\(a\)' \(other.Strange, opset 3\): the operator is not supported.*soft.*ImageDecoder"
    )
    with pytest.raises(ModelError, match=text):
        TorchView(model)
    gaps = unsupported(model)
    assert [gap.outputs for gap in gaps] == [("a",), ("d",), ("e",)]  # b, c and the sums only depend on them
    assert "attribute 'soft' is not supported" in gaps[1].reason


def test_training_can_start_behind_what_cannot_run() -> None:
    model = parse(STRANGE, STRANGE_HEAD, w=random(3, 2))
    cut = ["b", "d", "e", "a"]
    assert unsupported(model, feeds_from=cut) == ()
    view = TorchView(model, feeds_from=cut)
    feeds = {"a": torch.ones(1, 3), **{name: torch.ones(1, 2) for name in "bde"}}
    view(feeds)["z"].sum().backward()
    assert view.weights["w"].grad is not None


def test_more_gaps_than_a_message_holds_are_counted() -> None:
    nodes = " ".join(f"y{i} = other.Op{i}(x)" for i in range(5))
    results = ", ".join(f"float[1] y{i}" for i in range(5))
    with pytest.raises(ModelError, match=r"Op0.*Op1.*Op2.*and 2 more"):
        TorchView(parse(f"agraph (float[1] x) => ({results}) {{ {nodes} }}", STRANGE_HEAD))


def test_packed_weights_are_refused_with_the_way_out() -> None:
    head = HEAD.replace("]", ', "onnxprune" : 1]')
    with pytest.raises(ModelError, match="export --format dense"):
        TorchView(parse("agraph (float[1] x) => (float[1] y) { y = onnxprune.MatMul(x) }", head))


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("y = Add(x)", "1 inputs, wanted at least 2"),
        ("y = Relu(x, x)", "2 inputs, at most 1"),
        ("y = Concat(x, x)", "attribute 'axis' is missing"),
        ("y = Relu(ghost)", "'ghost' is made by no earlier node"),
        ("y = Cast<to=22>(x)", "INT4 has no counterpart"),
    ],
)
def test_a_broken_node_is_refused_at_once(line: str, text: str) -> None:
    with pytest.raises(ModelError, match=text):
        TorchView(parse(f"agraph (float[3] x) => (float[3] y) {{ {line} }}"))


def test_strings_are_a_gap_only_where_they_are_needed() -> None:
    model = parse("agraph (float[1] x) => (float[1] y, bool[1] z) { y = Relu(x)  z = Equal(s, s) }")
    model.graph.initializer.append(helper.make_tensor("s", TensorProto.STRING, [1], [b"a"]))
    model.reindex()
    assert TorchView(model, outputs=["y"])({"x": torch.ones(1)})["y"].item() == 1
    with pytest.raises(ModelError, match="'s' is made by no earlier node, or not a tensor of numbers"):
        TorchView(model)


def test_models_stay_valid_onnx(sample: tuple[Model, dict[str, NDArray[Any]]]) -> None:
    """The view takes copies: training it changes nothing in the model."""
    model, _ = sample
    before = model.to_bytes()
    with torch.no_grad():
        for weight in TorchView(model).parameters():
            weight.zero_()
    assert model.to_bytes() == before
    onnx.checker.check_model(model.proto)
