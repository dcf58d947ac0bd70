"""Models that were tampered with: an error of ONNX Runtime, or the same result as without the library."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.storage.sparse_functions import Epilogue, SparseOp

CONV = {
    "auto_pad": "NOTSET",
    "dilations": [1, 1],
    "group": 2,
    "strides": [2, 1],
    "kernel_shape": [3, 3],
    "pads": [1, 1, 0, 2],
}


def write_bases(folder: Path, sparse_model: Any, sparse_weight: Any) -> None:
    rng = np.random.default_rng(0)

    def write(op: SparseOp, weight: np.ndarray, x: tuple[int, ...], y: tuple[int, ...], **more: Any) -> None:
        model = sparse_model(op, weight, None, None, **more)
        onnx.save(model, folder / f"{op.name}.onnx")
        feed = {
            "X": rng.standard_normal(x),
            **({"R": rng.standard_normal(y)} if op.epilogue.residual else {}),
        }
        np.savez(
            folder / f"{op.name}.npz", **{name: array.astype(np.float32) for name, array in feed.items()}
        )

    weight, conv = sparse_weight((40, 24)), sparse_weight((8, 4, 3, 3))
    for i, prefix in enumerate(("Bitmap", "Gap4", "Gap8")):
        values = {"values": "fp16"} if i == 1 else {}
        norm = {"epsilon": 1e-5}
        write(
            SparseOp("MatMul", prefix, Epilogue(True, "", True)), weight, (5, 40), (5, 24), **values, **norm
        )
        write(
            SparseOp("Gemm", prefix, Epilogue(False, "Clip")),
            weight,
            (5, 40),
            (),
            low=-1.0,
            high=1.0,
            transB=0,
        )
        write(
            SparseOp("Conv", prefix, Epilogue(True, "Relu")),
            conv,
            (2, 8, 9, 8),
            (2, 8, 4, 9),
            **CONV,
            **values,
        )
    write(SparseOp("Conv", "", Epilogue(True, "Silu")), conv, (2, 8, 9, 8), (2, 8, 4, 9), **CONV)


def attack(library: Path, folder: Path, examples: int) -> dict[str, int]:
    script = Path(__file__).with_name("corrupt_models.py")
    done = subprocess.run(
        [sys.executable, str(script), str(library), str(folder), str(examples)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONFAULTHANDLER": "1"},
    )
    assert done.returncode == 0, f"{folder / 'last.bin'}\n{done.stderr[-4000:]}"
    counts: dict[str, int] = json.loads(done.stdout.splitlines()[-1])  # ONNX Runtime prints there too
    return counts


def test_mutated_models(ops_library: Path, tmp_path: Path, sparse_model: Any, sparse_weight: Any) -> None:
    write_bases(tmp_path, sparse_model, sparse_weight)
    counts = attack(ops_library, tmp_path, 200)
    assert counts["refused by us"] > 40 and counts["ran"] > 10, counts


@pytest.mark.slow
def test_many_mutated_models(
    ops_library: Path, tmp_path: Path, sparse_model: Any, sparse_weight: Any
) -> None:
    write_bases(tmp_path, sparse_model, sparse_weight)
    counts = attack(ops_library, tmp_path, 5000)
    assert counts["refused by us"] > 1000 and counts["ran"] > 250, counts


def replace(model: onnx.ModelProto, name: str, change: Any) -> None:
    (tensor,) = (t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()), name))


def set_ints(model: onnx.ModelProto, name: str, ints: list[int]) -> None:
    node = model.graph.node[0]
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, ints, attr_type=onnx.AttributeProto.INTS)])


def flip_last_bit(mask: np.ndarray) -> np.ndarray:
    mask[-1] ^= 1
    return mask


def second_step_zero(steps: np.ndarray) -> np.ndarray:
    steps.reshape(-1)[1] = 0
    return steps


@pytest.mark.parametrize(
    ("prefix", "name", "change", "message"),
    [
        ("Bitmap", "mask", lambda m: m[:-1], "mask has type 2 .119., a weight of shape .40, 24."),
        ("Bitmap", "mask", flip_last_bit, "values, the mask has"),
        ("Bitmap", "values", lambda v: v + 1, "value 0 of the weight is not zero"),
        ("Bitmap", "values", lambda v: v.astype(np.float64), "wanted float32 or float16"),
        ("Gap8", "steps", lambda s: s + 200, "entries of the weight end at position"),
        ("Gap8", "steps", second_step_zero, "entry 1 of the weight is at the position of the one before"),
        ("Gap8", "steps", lambda s: s[..., :-1], "steps has type 2"),
        ("Gap4", "steps", lambda s: np.append(s, s), "steps has type 2"),
        ("Gap4", "values", lambda v: v[..., :-1], "contradict each other: with 279 values"),
        ("Gap4", "B", lambda b: b[:-1], "the bias has type 1 .23., wanted 24 of float32"),
        ("Gap4", "gamma", lambda b: np.append(b, b), "gamma has type 1 .48., wanted 24"),
    ],
)
def test_what_is_wrong_with_a_tensor_is_said(
    sparse_model: Any, sparse_weight: Any, ort_session: Any, prefix: str, name: str, change: Any, message: str
) -> None:
    op = SparseOp("MatMul", prefix, Epilogue(norm=True))
    model = sparse_model(op, sparse_weight((40, 24)), [5, 40], [5, 24], epsilon=1e-5)
    ort_session(model)
    replace(model, name, change)
    with pytest.raises(Exception, match=f"onnxprune.Sparse{prefix}MatMulNorm node 'the node': .*{message}"):
        ort_session(model)


@pytest.mark.parametrize(
    ("attribute", "ints", "message"),
    [
        ("shape", [24, 40], "the bias has type 1"),
        ("shape", [40, 25], r"attributes shape .40, 25. and span .681. contradict each other"),
        ("shape", [960], "wanted two dimensions"),
        ("shape", [-40, -24], "negative dimension"),
        ("shape", [2**62, 24], "elements"),
        ("shape", [0, 24], "there are|contradict"),
        ("span", [1], "and span .1. contradict"),
    ],
)
def test_what_is_wrong_with_an_attribute_is_said(
    sparse_model: Any, sparse_weight: Any, ort_session: Any, attribute: str, ints: list[int], message: str
) -> None:
    model = sparse_model(SparseOp("MatMul", "Gap4"), sparse_weight((40, 24)), [5, 40], [5, 24])
    set_ints(model, attribute, ints)
    with pytest.raises(Exception, match=f"SparseGap4MatMul node 'the node': .*{message}"):
        ort_session(model)


@pytest.mark.parametrize(
    ("attribute", "ints", "message"),
    [
        ("strides", [0, 1], "strides is .0, 1., wanted 1 to"),
        ("strides", [1], "strides is .1., wanted 2 numbers"),
        ("dilations", [1, 2**40], "dilations"),
        ("pads", [-1, 0, 0, 0], "pads"),
        ("kernel_shape", [3, 2], "kernel_shape is .3, 2., the weight has shape .8, 4, 3, 3."),
        ("shape", [8, 4, 9], "kernel_shape|span"),
        ("shape", [4, 8, 3, 3], "the bias has type 1 .8., wanted 4"),
    ],
)
def test_what_is_wrong_with_a_convolution_is_said(
    sparse_model: Any, sparse_weight: Any, ort_session: Any, attribute: str, ints: list[int], message: str
) -> None:
    model = sparse_model(SparseOp("Conv", "Gap8"), sparse_weight((8, 4, 3, 3)), None, None, **CONV)
    set_ints(model, attribute, ints)
    with pytest.raises(Exception, match=f"SparseGap8Conv node 'the node': .*{message}"):
        ort_session(model)


def test_a_weight_that_is_an_input_is_refused(
    sparse_model: Any, sparse_weight: Any, ort_session: Any
) -> None:
    model = sparse_model(SparseOp("MatMul", "Gap4"), sparse_weight((40, 24)), [5, 40], [5, 24])
    values = next(t for t in model.graph.initializer if t.name == "values")
    model.graph.input.append(helper.make_tensor_value_info("values", TensorProto.FLOAT, list(values.dims)))
    with pytest.raises(Exception, match=r"values .input 2. is no initializer"):
        ort_session(model)
