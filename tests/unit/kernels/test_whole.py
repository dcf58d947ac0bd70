from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxprune.kernels.cache import Cache
from onnxprune.kernels.nodes import Gain
from onnxprune.kernels.whole import Whole, _limits
from onnxprune.model import Model
from onnxprune.passes.pack import pack
from onnxprune.passes.shapes import Shapes, infer, observe
from onnxprune.passes.sparse_ops import find_chains


class Case:
    """The model with its longest chains, and what each gains alone."""

    def __init__(self, dense: Model, feed: Any, bench: Any) -> None:
        self.dense, self.feed, self.bench = dense, feed, bench
        self.shapes = Shapes(infer(dense))
        self.model = dense.copy()
        pack(self.model, ["wc", "wk", "wm"], form="gaps8")
        options, _ = find_chains(self.model, self.shapes)
        self.chains = [chains[-1] for chains in options]

    def best(self, ratios: list[float], cache: Cache | None = None) -> tuple[list[str], list[float]]:
        gains = [Gain(chain, ratio) for chain, ratio in zip(self.chains, ratios, strict=True)]
        self.bench.speed = {g.chain.op_type: g.ratio for g in gains}
        self.whole = Whole(
            self.model, self.dense, self.shapes, [self.feed], [1, 2], self.bench,
            cache or Cache("", enabled=False),
        )  # fmt: skip
        chosen, found = self.whole.best(gains)
        return [chain.op_type for chain in chosen], found


@pytest.fixture
def case(dense: Model, feed: Any, bench: Any) -> Case:
    return Case(dense, feed, bench)


ALL = ["SparseGap8ConvRelu", "DirectConvRelu", "SparseGap8Conv", "SparseGap8MatMulRelu"]


def test_winners_are_switched(case: Case) -> None:
    chosen, ratios = case.best([2.0, 1.2, 2.0, 3.0])
    assert chosen == ALL
    assert ratios == pytest.approx([4 / (0.5 + 1 / 1.2 + 0.5 + 1 / 3)] * 2, abs=1e-3)


def test_losers_are_not(case: Case) -> None:
    assert case.best([2.0, 0.9, 0.8, 3.0])[0] == ["SparseGap8ConvRelu", "SparseGap8MatMulRelu"]
    assert case.whole.failure == ""


def test_nothing_wins(case: Case) -> None:
    assert case.best([1.0, 0.9, 0.8, 1.04]) == ([], [])
    assert case.best([-1.0] * 4) == ([], [])


def test_a_layer_that_loses_alone_may_keep_the_layout(case: Case) -> None:
    """Between two winners, a slower op of ours costs less than two changes of the layout."""
    case.bench.layout = 0.4
    chosen, ratios = case.best([2.0, 0.9, 2.0, 0.8])
    assert chosen == ALL[:3] and min(ratios) > 1


def test_winners_alone_that_lose_together(case: Case) -> None:
    case.bench.layout = 5.0
    assert case.best([2.0, 0.5, 2.0, 0.9]) == ([], [])


def test_matrix_products_do_not_depend_on_convolutions(case: Case) -> None:
    case.bench.layout = 5.0
    assert case.best([2.0, 0.5, 2.0, 3.0])[0] == ["SparseGap8MatMulRelu"]


@pytest.mark.parametrize(
    ("areas", "limits"),
    [([], []), ([49], []), ([49, 196, 49], [196]), ([1, 2, 3, 4], [2, 3, 4]), (list(range(9)), [2, 5, 8])],
)
def test_sizes_that_part_the_images(areas: list[int], limits: list[int]) -> None:
    assert _limits(areas) == limits


def test_a_region_of_large_images(bench: Any) -> None:
    """The kernels win on large images and lose on small ones, where everything in between loses too."""
    text = """g (float[N, 8, 16, 16] x) => (float y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w0)  b = Conv <pads = [1, 1, 1, 1]> (a, w1)
        p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (b)
        c = Conv <pads = [1, 1, 1, 1]> (p, w2)  y = Conv <pads = [1, 1, 1, 1]> (c, w3) }"""
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
    rng = np.random.default_rng(0)
    for i in range(4):
        array = rng.standard_normal((8, 8, 3, 3)) * (rng.random((8, 8, 3, 3)) < 0.3)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), f"w{i}"))
    dense = Model(proto)
    model = dense.copy()
    pack(model, ["w0", "w2"], form="gaps8")  # w1 and w3 stay dense
    feed = {"x": rng.standard_normal((1, 8, 16, 16)).astype(np.float32)}
    shapes = Shapes(infer(dense), observe(dense, ["x", "a", "p", "c"], [feed]))
    options, _ = find_chains(model, shapes)
    gains = [Gain(c[-1], r) for c, r in zip(options, (2.0, 1.0, 0.9, 0.7), strict=True)]
    bench.speed, bench.layout = {"SparseGap8Conv": 4.0, "DirectConv": 1.04}, 0.2

    class Small(bench.__class__):  # type: ignore[misc, name-defined]
        def __call__(self, model: Model, threads: int, with_library: bool) -> Any:
            timed = super().__call__(model, threads, with_library)
            by_output = {node.output[0]: node.op_type for node in model.graph.node}
            if with_library:  # each op of ours on a small image costs dearly
                timed.seconds += sum(by_output[v].startswith(("Sparse", "Direct")) for v in ("c", "y"))
            return timed

    bench.__class__ = Small
    whole = Whole(model, dense, shapes, [feed], [1], bench, Cache("", enabled=False))
    chosen, _ = whole.best(gains)
    assert [c.output for c in chosen] == ["a", "b"]


def test_the_worst_thread_count_decides(case: Case) -> None:
    real = case.bench.__class__.__call__

    class Uneven(case.bench.__class__):  # type: ignore[misc, name-defined]
        def __call__(self, model: Model, threads: int, with_library: bool) -> Any:
            timed = real(self, model, threads, with_library)
            if threads == 2 and with_library:
                timed.seconds *= 3
            return timed

    case.bench.__class__ = Uneven
    assert case.best([2.0, 1.2, 2.0, 3.0]) == ([], [])


def test_a_choice_that_fails_is_none(case: Case) -> None:
    real = case.bench

    def sessions(model: Model, threads: int, with_library: bool) -> Any:
        session = real(model, threads, with_library)
        if any(node.op_type == "DirectConvRelu" for node in model.graph.node):
            session.session = None  # run() raises
        return session

    sessions.speed = {}  # type: ignore[attr-defined]
    case.bench = sessions
    real.speed = dict(zip(ALL, (2.0, 9.0, 2.0, 3.0), strict=True))
    assert case.best([2.0, 9.0, 2.0, 3.0])[0] == [ALL[0], ALL[2], ALL[3]]
    assert "NoneType" in case.whole.failure


def test_a_decision_is_remembered(case: Case) -> None:
    cache = Cache("", enabled=False)
    first = case.best([2.0, 1.2, 2.0, 3.0], cache)
    made = len(case.bench.made)
    assert case.best([2.0, 1.2, 2.0, 3.0], cache) == first
    assert len(case.bench.made) == made
    case.model.set_array("wd", case.model.array("wd") * 2)  # another model
    case.best([2.0, 1.2, 2.0, 3.0], cache)
    assert len(case.bench.made) > made
