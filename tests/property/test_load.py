"""Whatever is in the file: a checked model or one of our errors, never anything else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx.parser
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxprune import io
from onnxprune.errors import OnnxPruneError

TEXT = """<ir_version: 10, opset_import: ["": 21, "local": 1], metadata_props: ["k": "v"]>
g (float[N, 4] x, bool c) => (float[N, 4] y) {
    k = Constant<value = float[2] {1, 2}>()
    h = MatMul(x, w)
    f = local.F(h)
    y = If(c)<then_branch = t () => (float[N, 4] a) { a = Add(f, h) },
              else_branch = e () => (float[N, 4] b) { b = MatMul(f, s) }>
}
<domain: "local", opset_import: ["": 21]> F (p) => (q) { m = Constant<value = float {1}>() q = Mul(p, m) }"""


def seed() -> bytes:
    model = onnx.parser.parse_model(TEXT)
    model.graph.initializer.append(numpy_helper.from_array(np.eye(4, dtype=np.float32), "w"))
    values = helper.make_tensor("s", TensorProto.FLOAT, [2], [1.0, 2.0])
    indices = helper.make_tensor("i", TensorProto.INT64, [2], [0, 5])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4, 4]))
    outside = model.graph.initializer.add(name="e", data_type=1, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "e.bin"), ("offset", "4"), ("length", "16")):
        outside.external_data.add(key=key, value=value)
    return model.SerializeToString()


SEED = seed()

position = st.integers(0, len(SEED) - 1)
edit = st.one_of(
    st.tuples(st.just("set"), position, st.binary(min_size=1, max_size=4)),
    st.tuples(st.just("insert"), position, st.binary(min_size=1, max_size=12)),
    st.tuples(st.just("delete"), position, st.integers(1, 20)),
    st.tuples(st.just("repeat"), position, st.integers(1, 40)),
    # tags, lengths and sign bits sit in single bytes: nudging them finds other paths than noise does
    st.tuples(st.just("nudge"), position, st.sampled_from([-1, 1, 8, -8, 128])),
)


def apply(data: bytes, edits: list[tuple[str, int, bytes | int]]) -> bytes:
    for kind, at, what in edits:
        at = min(at, len(data))
        if kind == "set":
            data = data[:at] + what + data[at + len(what) :]
        elif kind == "insert":
            data = data[:at] + what + data[at:]
        elif kind == "delete":
            data = data[:at] + data[at + what :]
        elif kind == "repeat":
            data = data[:at] + data[at : at + what] * 2 + data[at + what :]
        elif at < len(data):
            data = data[:at] + bytes([(data[at] + what) % 256]) + data[at + 1 :]
    return data


def check(folder: Path, data: bytes, *, save: bool = True) -> bool:
    """Load ``data``; when it is a model, everything later stages rely on must work."""
    (folder / "e.bin").write_bytes(bytes(64))
    path = folder / "model.onnx"
    path.write_bytes(data)
    try:
        model = io.load(path)
    except OnnxPruneError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 1000
        return False
    for name in model.index.tensors:
        model.array(name)
    if save:
        io.save(model, folder / "ext.onnx", force=True, external=True)
        (out,) = io.save(model, folder / "out.onnx", force=True, external=False)
        assert io.load(out).to_bytes() == model.to_bytes()
    return True


def test_the_seed_is_a_model(tmp_path: Path) -> None:
    assert check(tmp_path, SEED)


@given(edits=st.lists(edit, min_size=1, max_size=4))
@settings(max_examples=200)
def test_mutated_model(edits: list[tuple[str, int, bytes | int]], tmp_path_factory: object) -> None:
    check(_folder(tmp_path_factory), apply(SEED, edits))


@given(data=st.binary(max_size=200))
@settings(max_examples=100)
def test_noise(data: bytes, tmp_path_factory: object) -> None:
    check(_folder(tmp_path_factory), data)


def test_every_single_byte_nudged(tmp_path: Path) -> None:
    accepted = sum(check(tmp_path, apply(SEED, [("nudge", at, 1)]), save=False) for at in range(len(SEED)))
    assert 0 < accepted < len(SEED)


def _folder(factory: object) -> Path:
    folder: Path = factory.getbasetemp() / "mutated"  # type: ignore[attr-defined]
    folder.mkdir(exist_ok=True)
    return folder
