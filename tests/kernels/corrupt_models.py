"""Runs mutated models in ONNX Runtime with the library; test_ort_corrupt.py starts it as a process.

usage: corrupt_models.py LIBRARY FOLDER EXAMPLES

FOLDER has base models ``*.onnx``, each with an input of its own in ``*.npz``. Before a model is tried it
is written to FOLDER/last.bin, so that whoever finds this process dead can look at what killed it. Writes
counts to stdout as JSON. A mutated model may be refused; if it is not, its result must be that of ONNX
Runtime without the library.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

INTEGERS = st.sampled_from(
    [-(2**63), -1, 0, 1, 2, 3, 4, 5, 7, 8, 9, 16, 24, 40, 255, 4096, 2**24, 2**27, 2**31, 2**40, 2**62]
)
FLOATS = st.sampled_from([0.0, -1.0, 1e-40, 1e38, float("inf"), float("-inf"), float("nan")])
TYPES = [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8, TensorProto.INT8, TensorProto.DOUBLE]
SIZES = {1: 4, 10: 2, 2: 1, 3: 1, 11: 8}


def mutate_attribute(draw: Any, node: onnx.NodeProto) -> None:
    if not node.attribute:
        return
    attribute = draw(st.sampled_from(list(node.attribute)))
    name = attribute.name
    if draw(st.integers(0, 7)) == 0:
        node.attribute.remove(attribute)
    elif attribute.type == onnx.AttributeProto.INTS:
        ints = list(attribute.ints)
        match draw(st.integers(0, 4)):
            case 0:
                ints = draw(st.lists(INTEGERS, max_size=6))
            case 1 if len(ints) > 1:
                ints.reverse()
            case 2 if ints:
                ints.pop()
            case 3:
                ints.append(draw(INTEGERS))
            case _ if ints:
                ints[draw(st.integers(0, len(ints) - 1))] = draw(INTEGERS)
        attribute.CopyFrom(helper.make_attribute(name, ints, attr_type=onnx.AttributeProto.INTS))
    elif attribute.type == onnx.AttributeProto.INT:
        attribute.i = draw(INTEGERS)
    elif attribute.type == onnx.AttributeProto.FLOAT:
        attribute.f = draw(FLOATS)
    elif attribute.type == onnx.AttributeProto.STRING:
        attribute.s = draw(st.sampled_from([b"", b"SAME_UPPER", b"VALID", b"\xff" * 300]))


def mutate_tensor(draw: Any, graph: onnx.GraphProto) -> None:
    tensor = draw(st.sampled_from(list(graph.initializer)))
    raw = bytearray(tensor.raw_data)
    match draw(st.integers(0, 6)):
        case 0 | 1 | 2 if raw:
            for _ in range(draw(st.integers(1, 3))):
                raw[draw(st.integers(0, len(raw) - 1))] = draw(st.integers(0, 255))
            tensor.raw_data = bytes(raw)
        case 3:
            count = draw(st.integers(0, 2 * (len(raw) // SIZES[tensor.data_type]) + 2))
            raw = (raw * 3)[: count * SIZES[tensor.data_type]]
            tensor.raw_data = bytes(raw)
            tensor.ClearField("dims")
            tensor.dims.append(len(raw) // SIZES[tensor.data_type])
        case 4:
            tensor.data_type = draw(st.sampled_from(TYPES))
            size = SIZES[tensor.data_type]
            tensor.raw_data = bytes(raw[: len(raw) // size * size])
            tensor.ClearField("dims")
            tensor.dims.append(len(raw) // size)
        case 5:
            dims = [*tensor.dims, 1]
            tensor.ClearField("dims")
            tensor.dims.extend(reversed(dims))
        case _:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))


def mutate_inputs(draw: Any, node: onnx.NodeProto) -> None:
    names = list(node.input)
    match draw(st.integers(0, 3)):
        case 0:
            names.pop()
        case 1:
            names.append(draw(st.sampled_from(names)))
        case 2:
            names[draw(st.integers(0, len(names) - 1))] = draw(st.sampled_from([*names, ""]))
        case _:
            names = draw(st.permutations(names))
    del node.input[:]
    node.input.extend(names)


@st.composite
def mutations(draw: Any, bases: list[Path]) -> tuple[str, bytes, list[int]]:
    """Name of the base, the mutated model, and a shape for X."""
    base = draw(st.sampled_from(bases))
    model = onnx.load(base)
    node = model.graph.node[0]
    for _ in range(draw(st.integers(1, 3))):
        match draw(st.integers(0, 9)):
            case 0 | 1 | 2 | 3:
                mutate_attribute(draw, node)
            case 4 | 5 | 6 | 7:
                mutate_tensor(draw, model.graph)
            case 8:
                mutate_inputs(draw, node)
            case _:
                pass  # the shape of X alone
    with np.load(base.with_suffix(".npz")) as feed:
        shape = list(feed["X"].shape)
    if draw(st.integers(0, 3)) == 0:
        shape = draw(st.lists(st.sampled_from([0, 1, 2, 3, 8, 24, 40]), max_size=5))
    return base.name, model.SerializeToString(), shape


def run(model: bytes, feed: dict[str, np.ndarray], library: str | None) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 2
    if library:
        options.register_custom_ops_library(library)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    wanted = {entry.name for entry in session.get_inputs()}
    return session.run(None, {name: array for name, array in feed.items() if name in wanted})[0]


def main(library: str, folder: Path, examples: int) -> None:
    bases = sorted(folder.glob("*.onnx"))
    counts: Counter[str] = Counter()

    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(mutations(bases))
    def attack(case: tuple[str, bytes, list[int]]) -> None:
        name, model, shape = case
        (folder / "last.bin").write_bytes(model)
        with np.load(folder / name.replace(".onnx", ".npz")) as saved:
            feed = dict(saved)
        feed["X"] = np.resize(feed["X"], shape)
        try:
            found = run(model, feed, library)
        except Exception as error:
            counts["refused by us" if "onnxprune." in str(error) else "refused"] += 1
            return
        try:
            expected = run(model, feed, None)
        except Exception:
            counts["refused by the function only"] += 1
            return
        counts["ran"] += 1
        assert found.shape == expected.shape, (name, found.shape, expected.shape)
        finite = np.isfinite(expected)  # 0 * inf is NaN, an entry that is not there is not
        scale = np.abs(expected[finite]).max(initial=1e-3)
        if finite.all():
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * scale)

    attack()
    print(json.dumps(counts))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
