from __future__ import annotations

from typing import Any

import pytest

from onnxprune.errors import ModelError
from onnxprune.kernels.cache import Cache
from onnxprune.kernels.nodes import HOPELESS, WRONG, measure
from onnxprune.kernels.weights import Profile
from onnxprune.model import Model
from onnxprune.passes.chains import Chain
from onnxprune.passes.pack import pack
from onnxprune.passes.shapes import Shapes, infer, observe
from onnxprune.passes.sparse_ops import find_chains

Options = list[tuple[Chain, ...]]


@pytest.fixture
def packed(dense: Model, feed: dict[str, Any]) -> tuple[Model, Options, Shapes]:
    values = ["x", "c", "r", "d", "q", "k", "m", "h", "hb", "y"]
    shapes = Shapes(infer(dense), observe(dense, values, [feed]))
    model = dense.copy()
    pack(model, ["wc", "wk", "wm"], form="gaps8")
    return model, find_chains(model, shapes)[0], shapes


def run(packed: Any, number: int, bench: Any, cache: Cache | None = None, threads: Any = (1, 2)) -> Any:
    model, options, shapes = packed
    weight = Profile(0.3, 1)
    return measure(model, options[number], weight, shapes, threads, bench, cache or Cache("", enabled=False))


def test_the_fastest_way_is_taken(packed: Any, bench: Any) -> None:
    bench.speed = {"SparseGap8Conv": 1.5, "SparseGap8ConvRelu": 2.5}
    gain = run(packed, 0, bench)
    assert gain.chain.op_type == "SparseGap8ConvRelu" and gain.ratio == pytest.approx(2.5)
    bench.speed["SparseGap8Conv"] = 3.0
    assert run(packed, 0, bench).chain.op_type == "SparseGap8Conv"
    # Each is measured against the same nodes, on its own, with every number of threads
    assert {ops[0] for ops, _, with_library in bench.made if not with_library} == {"Gap8Conv"}
    assert {threads for _, threads, _ in bench.made} == {1, 2}


def test_a_dense_convolution(packed: Any, bench: Any) -> None:
    bench.speed = {"DirectConvRelu": 1.2}
    gain = run(packed, 1, bench)
    assert gain.chain.op_type == "DirectConvRelu" and gain.ratio == pytest.approx(1.2)


def test_a_kernel_that_is_off_is_not_used(packed: Any, bench: Any) -> None:
    bench.speed, bench.wrong = {"SparseGap8ConvRelu": 9.0, "SparseGap8Conv": 1.5}, {"SparseGap8ConvRelu"}
    assert run(packed, 0, bench).chain.op_type == "SparseGap8Conv"
    bench.wrong.add("SparseGap8Conv")
    assert run(packed, 0, bench).ratio == WRONG


def test_an_op_that_onnx_runtime_refuses(packed: Any, bench: Any) -> None:
    def sessions(model: Model, threads: int, with_library: bool) -> Any:
        if with_library:
            raise ModelError("no kernel")
        return bench(model, threads, with_library)

    assert run(packed, 2, sessions).ratio == WRONG


def test_the_worst_number_of_threads_counts(packed: Any, bench: Any) -> None:
    def sessions(model: Model, threads: int, with_library: bool) -> Any:
        bench.speed = {"SparseGap8Conv": 3.0 if threads == 1 else 2.0}
        return bench(model, threads, with_library)

    assert run(packed, 2, sessions).ratio == pytest.approx(2.0)


def test_what_is_hopeless_is_not_measured_again(packed: Any, bench: Any) -> None:
    bench.speed = {"SparseGap8Conv": HOPELESS / 2}
    assert run(packed, 2, bench).ratio < HOPELESS
    assert {threads for _, threads, _ in bench.made} == {1}


def test_equal_nodes_share_a_measurement(packed: Any, bench: Any) -> None:
    cache = Cache("", enabled=False)
    bench.speed = {"SparseGap8Conv": 1.5}
    first = run(packed, 2, bench, cache)
    made = len(bench.made)
    assert run(packed, 2, bench, cache) == first and len(bench.made) == made
    run(packed, 2, bench, cache, threads=(1,))
    assert len(bench.made) > made


@pytest.mark.parametrize("weight", [Profile(0.4, 1), Profile(0.3, 4)])
def test_other_weights_do_not(packed: Any, bench: Any, weight: Profile) -> None:
    model, options, shapes = packed
    cache = Cache("", enabled=False)
    run(packed, 2, bench, cache)
    made = len(bench.made)
    measure(model, options[2], weight, shapes, (1, 2), bench, cache)
    assert len(bench.made) > made
