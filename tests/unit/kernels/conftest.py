"""Models for the selection, and sessions whose speed a test decides."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxprune import runtime
from onnxprune.kernels import nodes, whole
from onnxprune.model import Model

TEXT = """g (float[N, 8, 9, 9] x) => (float[N, 24] y) {
    c = Conv <pads = [1, 1, 1, 1]> (x, wc)  r = Relu(c)
    d = Conv <group = 16, pads = [1, 1, 1, 1]> (r, wd)  q = Relu(d)
    k = Conv(q, wk)
    m = ReduceMean <axes = [2, 3], keepdims = 0> (k)
    h = MatMul(m, wm)  hb = Add(h, b)  y = Relu(hb) }"""
PACKED = {"wc": (16, 8, 3, 3), "wk": (48, 16, 1, 1), "wm": (48, 24)}


@pytest.fixture
def dense() -> Model:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {TEXT}')
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(s) * (rng.random(s) < 0.25) for name, s in PACKED.items()}
    arrays |= {"wd": rng.standard_normal((16, 1, 3, 3)), "b": rng.standard_normal(24)}
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(a.astype(np.float32), name) for name, a in arrays.items()
    )
    return Model(proto)


class Timed:
    """A session of ONNX Runtime that claims to take ``seconds``."""

    def __init__(self, session: Any, seconds: float) -> None:
        self.session, self.seconds = session, seconds

    def run(self, names: Any, feed: Any) -> Any:
        return self.session.run(names, feed)

    def get_inputs(self) -> Any:
        return self.session.get_inputs()


class Bench:
    """Makes sessions; ``speed`` maps op types to how many times faster than dense (1.0) each op is."""

    def __init__(self) -> None:
        self.speed: dict[str, float] = {}
        self.made: list[tuple[list[str], int, bool]] = []
        self.layout = 0.0  # seconds that each change between our convolutions and others costs
        self.wrong: set[str] = set()  # ops whose kernel computes something else

    def __call__(self, model: Model, threads: int, with_library: bool) -> Timed:
        ops = [node.op_type for node in model.graph.node]
        self.made.append((ops, threads, with_library))
        seconds = 0.0
        before = False
        for op in ops:
            if "Conv" in op or "MatMul" in op:
                seconds += 1.0 / (self.speed.get(op, 1.0) if with_library else 1.0)
            if "Conv" in op:
                ours = "Sparse" in op or "Direct" in op
                seconds += self.layout * (ours != before)
                before = ours
        session = runtime.session(model.proto, threads=1, kernels=False)
        if with_library and self.wrong.intersection(ops):
            session = _Off(session)
        return Timed(session, seconds)


class _Off:
    def __init__(self, session: Any) -> None:
        self.session = session

    def run(self, names: Any, feed: Any) -> Any:
        return [output * 1.001 for output in self.session.run(names, feed)]

    def get_inputs(self) -> Any:
        return self.session.get_inputs()


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    def best_times(sessions: Sequence[Timed], *_: Any, **__: Any) -> list[float]:
        return [session.seconds for session in sessions]

    monkeypatch.setattr(nodes, "best_times", best_times)
    monkeypatch.setattr(whole, "best_times", best_times)
    yield Bench()


@pytest.fixture
def feed() -> dict[str, Any]:
    return {"x": np.random.default_rng(1).standard_normal((1, 8, 9, 9)).astype(np.float32)}


Build = Callable[..., onnx.ModelProto]
