"""The library inside ONNX Runtime: every op with its kernel gives what its function gives without."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune import opsinfo
from onnxprune.storage import FORMS
from onnxprune.storage.sparse_functions import ACTIVATIONS, Epilogue, SparseOp

PREFIXES = ["Bitmap", "Gap4", "Gap8"]
CONV = {"auto_pad": "NOTSET", "dilations": [1, 1], "group": 1, "strides": [1, 1]}


def grammar() -> list[SparseOp]:
    """Every op that there is."""
    found = []
    for consumer, prefix, add, activation, norm in itertools.product(
        ("MatMul", "Gemm", "Conv"), (*PREFIXES, ""), (False, True), ("", *ACTIVATIONS), (False, True)
    ):
        possible = prefix or consumer == "Conv"
        possible = possible and not (norm and (consumer != "MatMul" or activation))
        if possible and not (add and consumer == "Gemm"):
            found.append(SparseOp(consumer, prefix, Epilogue(add, activation, norm)))
    return found


def attributes_of(op: SparseOp) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if op.epilogue.activation == "Clip":
        found |= {"low": -0.5, "high": 0.75}
    if op.epilogue.norm:
        found["epsilon"] = 1e-3
    return found


def random(shape: tuple[int, ...], seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_the_library_has_every_op(ops_library: Path) -> None:
    assert FORMS.keys() >= {"bitmap", "gaps4", "gaps8"}
    assert opsinfo.describe(ops_library)["ops"] == len(grammar()) == 125


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("values", ["same", "fp16"])
def test_matmul_and_gemm(
    sparse_model: Any, sparse_weight: Any, ort_session: Any, assert_agree: Any, prefix: str, values: str
) -> None:
    for i, op in enumerate(op for op in grammar() if op.prefix == prefix and op.consumer != "Conv"):
        attributes = attributes_of(op)
        weight, x, y = sparse_weight((40, 24), seed=i), (3, 5, 40), (3, 5, 24)
        if op.consumer == "Gemm":
            attributes["transB"] = i % 2
            weight, x, y = (weight.T.copy() if i % 2 else weight), (7, 40), (7, 24)
        model = sparse_model(op, weight, ["N", *x[1:]], ["N", *y[1:]], values=values, **attributes)
        feed = {"X": random(x), **({"R": random(y)} if op.epilogue.residual else {})}
        assert_agree(model, feed, ort_session)


@pytest.mark.parametrize("prefix", [*PREFIXES, ""])
def test_conv(
    sparse_model: Any, sparse_weight: Any, ort_session: Any, assert_agree: Any, prefix: str
) -> None:
    for i, op in enumerate(op for op in grammar() if op.prefix == prefix and op.consumer == "Conv"):
        attributes = attributes_of(op) | CONV | {"kernel_shape": [3, 3], "pads": [1, 0, 0, 2]}
        attributes |= {"group": 2, "strides": [1 + i % 2, 1]}
        weight, y = sparse_weight((8, 6, 3, 3), seed=i), (2, 8, 8 if i % 2 == 0 else 4, 10)
        model = sparse_model(op, weight, ["N", 12, 9, 10], ["N", *y[1:]], **attributes)
        feed = {"X": random((2, 12, 9, 10)), **({"R": random(y)} if op.epilogue.residual else {})}
        assert_agree(model, feed, ort_session)


@pytest.mark.parametrize("prefix", [*PREFIXES, ""])
def test_conv_of_one_dimension(
    sparse_model: Any, sparse_weight: Any, ort_session: Any, assert_agree: Any, prefix: str
) -> None:
    model = sparse_model(
        SparseOp("Conv", prefix, Epilogue(True, "Relu")),
        sparse_weight((8, 16, 5)),
        ["N", 16, "L"],
        ["N", 8, "M"],
        **CONV | {"kernel_shape": [5], "pads": [2, 1], "strides": [2], "dilations": [2]},
    )
    assert_agree(model, {"X": random((2, 16, 33)), "R": random((2, 8, 14))}, ort_session)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize(
    ("shape", "sparsity"),
    [((2, 4), 0.5), ((7, 3), 0.5), ((64, 33), 0.0), ((64, 32), 1.0), ((513, 260), 0.999), ((1, 9), 0.3),
     ((300, 1), 0.8), ((96, 128), 0.9)],
)  # fmt: skip
def test_any_weight(
    sparse_model: Any,
    sparse_weight: Any,
    ort_session: Any,
    assert_agree: Any,
    prefix: str,
    shape: tuple[int, int],
    sparsity: float,
) -> None:
    """Ragged masks, gaps longer than a step, no zeros, only zeros."""
    weight = sparse_weight(shape, sparsity)
    ragged = prefix == "Bitmap" and weight.size % 8
    model = sparse_model(SparseOp("MatMul", prefix), weight, ["N", shape[0]], ["N", shape[1]])
    x = random((17, shape[0]))
    if not ragged:
        assert_agree(model, {"X": x}, ort_session, threads=2)
    found = ort_session(model).run(None, {"X": x})[0]
    bias = onnx.numpy_helper.to_array(model.graph.initializer[-1])
    np.testing.assert_allclose(found, x @ weight + bias, rtol=1e-4, atol=1e-4)


def test_the_kernel_is_what_runs(
    sparse_model: Any, sparse_weight: Any, ort_session: Any, tmp_path: Path
) -> None:
    model = sparse_model(SparseOp("MatMul", "Gap4"), sparse_weight((32, 16)), ["N", 32], ["N", 16])
    seen = {}
    for kernels in (True, False):
        path = tmp_path / f"{kernels}.onnx"
        ort_session(model, kernels, optimized_model_filepath=str(path))
        seen[kernels] = [node.op_type for node in onnx.load(path).graph.node]
    assert seen[True] == ["SparseGap4MatMul"]
    assert "SparseGap4MatMul" not in seen[False]


def test_packed_ops_without_a_kernel_run_as_before(
    build_model: Any, sparse_weight: Any, ort_session: Any
) -> None:
    from onnxprune.model import Model
    from onnxprune.passes import pack

    weight = sparse_weight((64, 32))
    model = Model(build_model("g (float[N, 64] x) => (float[N, 32] y) { y = MatMul(x, w) }", {"w": weight}))
    pack.pack(model, ["w"])
    proto = model.proto
    assert {node.domain for node in proto.graph.node} == {"onnxprune"}
    x = random((3, 64))
    with_kernels, without = (ort_session(proto, kernels).run(None, {"x": x})[0] for kernels in (True, False))
    np.testing.assert_array_equal(with_kernels, without)


@pytest.mark.parametrize("x", [(5, 32), (2, 3, 32), (2, 1, 3, 1, 32), (32,), (0, 32), (2, 0, 32), (1, 32)])
def test_matmul_takes_any_rank(
    sparse_model: Any, sparse_weight: Any, ort_session: Any, assert_agree: Any, x: tuple[int, ...]
) -> None:
    model = sparse_model(SparseOp("MatMul", "Gap8"), sparse_weight((32, 16)), [*map(str, x[:-1]), 32], None)
    assert assert_agree(model, {"X": random(x)}, ort_session, threads=2).shape == (*x[:-1], 16)


def test_one_session_takes_any_batch_and_size(
    sparse_model: Any, sparse_weight: Any, ort_session: Any, assert_agree: Any
) -> None:
    op = SparseOp("MatMul", "Bitmap", Epilogue(True, "Gelu"))
    model = sparse_model(op, sparse_weight((64, 48)), ["N", "S", 64], ["N", "S", 48])
    session, plain = ort_session(model, threads=2), ort_session(model, kernels=False)
    for batch, length in [(1, 1), (2, 7), (1, 128), (3, 0), (8, 33), (1, 1)]:
        feed = {"X": random((batch, length, 64)), "R": random((batch, length, 48), 2)}
        np.testing.assert_allclose(session.run(None, feed)[0], plain.run(None, feed)[0], rtol=1e-4, atol=1e-4)
    conv = sparse_model(
        SparseOp("Conv", "Gap4", Epilogue(False, "Silu")),
        sparse_weight((16, 8, 3, 3)),
        ["N", 8, "H", "W"],
        ["N", 16, "H", "W"],
        **CONV | {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]},
    )
    session, plain = ort_session(conv, threads=2), ort_session(conv, kernels=False)
    for shape in [(1, 8, 5, 5), (2, 8, 1, 9), (1, 8, 30, 17), (0, 8, 4, 4), (3, 8, 5, 5)]:
        feed = {"X": random(shape)}
        np.testing.assert_allclose(session.run(None, feed)[0], plain.run(None, feed)[0], rtol=1e-4, atol=1e-4)


def test_shapes_are_inferred(sparse_model: Any, sparse_weight: Any, ort_session: Any) -> None:
    model = sparse_model(SparseOp("MatMul", "Gap8"), sparse_weight((32, 16)), ["N", "S", 32], None)
    assert ort_session(model).get_outputs()[0].shape == ["N", "S", 16]
    conv = CONV | {"kernel_shape": [3, 3], "pads": [0, 1, 0, 1], "strides": [2, 1]}
    for prefix in ("Gap8", ""):
        op = SparseOp("Conv", prefix)
        model = sparse_model(op, sparse_weight((16, 8, 3, 3)), ["N", 8, 11, "W"], None, **conv)
        assert ort_session(model).get_outputs()[0].shape == ["N", 16, 5, "W"]


@pytest.mark.parametrize(
    ("x", "r", "message"),
    [((4, 31), (4, 16), r"X has shape \[4, 31\], the weight takes \[\.\.\., 32\]"),
     ((4, 32), (4, 15), r"the residual has shape \[4, 15\], the output \[4, 16\]"),
     ((4, 32), (1, 16), r"the residual has shape \[1, 16\]"),
     ((), (4, 16), r"X has shape \[\]")],
)  # fmt: skip
def test_wrong_inputs_are_refused(
    sparse_model: Any, sparse_weight: Any, ort_session: Any, x: Any, r: Any, message: str
) -> None:
    op = SparseOp("MatMul", "Gap4", Epilogue(residual=True))
    model = sparse_model(op, sparse_weight((32, 16)), None, None)
    session = ort_session(model)
    with pytest.raises(Exception, match=message) as caught:
        session.run(None, {"X": random(x), "R": random(r)})
    assert "the node" in str(caught.value)
    good = session.run(None, {"X": random((4, 32)), "R": random((4, 16))})[0]
    assert good.shape == (4, 16)


@pytest.mark.parametrize(
    ("x", "message"),
    [((1, 7, 5, 5), "the weight takes .N, 8, H, W."), ((1, 8, 5), "the weight takes"),
     ((1, 8, 2, 9), "smaller than the kernel"), ((1, 8, 0, 9), "smaller than the kernel")],
)  # fmt: skip
def test_wrong_inputs_of_conv_are_refused(
    sparse_model: Any, sparse_weight: Any, ort_session: Any, x: tuple[int, ...], message: str
) -> None:
    for prefix in ("Gap4", ""):
        conv = CONV | {"kernel_shape": [3, 3], "pads": [0, 0, 0, 0]}
        model = sparse_model(SparseOp("Conv", prefix), sparse_weight((16, 8, 3, 3)), None, None, **conv)
        session = ort_session(model)
        with pytest.raises(Exception, match=message):
            session.run(None, {"X": random(x)})
        assert session.run(None, {"X": random((1, 8, 3, 3))})[0].shape == (1, 16, 1, 1)


def test_registering_twice_does_no_harm(sparse_model: Any, sparse_weight: Any, ops_library: Path) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    for _ in range(3):
        options.register_custom_ops_library(str(ops_library))
    model = sparse_model(SparseOp("Gemm", "Gap4"), sparse_weight((32, 16)), [4, 32], [4, 16], transB=0)
    sessions = [onnxruntime.InferenceSession(model.SerializeToString(), options) for _ in range(3)]
    results = [session.run(None, {"X": random((4, 32))})[0] for session in sessions]
    np.testing.assert_array_equal(results[0], results[2])


def test_eight_sessions_in_threads(sparse_model: Any, sparse_weight: Any, ort_session: Any) -> None:
    """Each thread makes its session and runs it; all of them also run a common one."""
    weight = sparse_weight((96, 80))
    model = sparse_model(SparseOp("MatMul", "Gap8", Epilogue(False, "Gelu")), weight, ["N", 96], ["N", 80])
    conv = sparse_model(
        SparseOp("Conv", "Gap8", Epilogue(False, "Relu")),
        sparse_weight((32, 16, 3, 3)),
        ["N", 16, "H", "W"],
        None,
        **CONV | {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]},
    )
    common, failures = [ort_session(m, threads=2) for m in (model, conv)], []

    def work(seed: int) -> None:
        try:
            own = [ort_session(m, threads=2) for m in (model, conv)]
            for i in range(20):
                shapes = ((1 + (seed * 7 + i) % 40, 96), (1 + i % 2, 16, 3 + (seed + i) % 9, 8))
                for mine, shared, shape in zip(own, common, shapes, strict=True):
                    x = random(shape, seed + i)
                    np.testing.assert_array_equal(mine.run(None, {"X": x})[0], shared.run(None, {"X": x})[0])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]


@pytest.mark.parametrize("level", ["scalar", "avx2", "avx512", "neon", "nonsense"])
def test_a_lower_level_can_be_forced(ops_library: Path, tmp_path: Path, level: str, sparse_model: Any,
                                     sparse_weight: Any, ort_session: Any) -> None:  # fmt: skip
    levels = opsinfo.describe(ops_library)["levels"]
    assert isinstance(levels, list)
    weight = sparse_weight((128, 64))
    model = sparse_model(SparseOp("MatMul", "Bitmap", Epilogue(False, "Silu")), weight, [30, 128], [30, 64])
    np.save(tmp_path / "x.npy", random((30, 128)))
    onnx.save(model, tmp_path / "m.onnx")
    code = (
        "import sys, numpy as np, onnxruntime as ort; from onnxprune import opsinfo, runtime; import json\n"
        "y = runtime.session('m.onnx', threads=2, kernels=True).run(None, {'X': np.load('x.npy')})[0]\n"
        "np.save('y.npy', y); print(json.dumps(opsinfo.info().level))"
    )
    env = {**os.environ, "ONNXPRUNE_OPS": str(ops_library), "ONNXPRUNE_LEVEL": level}
    env["PYTHONPATH"] = os.pathsep.join(
        [str(Path(opsinfo.__file__).parent.parent), env.get("PYTHONPATH", "")]
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == (level if level in levels else levels[0])
    expected = ort_session(model, kernels=False).run(None, {"X": random((30, 128))})[0]
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, rtol=1e-4, atol=1e-4)


PEAK = """
import resource, sys
import numpy as np
from onnxprune import runtime

session = runtime.session(sys.argv[1], threads=1)
feed = {"X": np.ones((2048, 64), np.float32), "R": np.ones((2048, 8192), np.float32)}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
session.run(None, feed)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_the_residual_becomes_the_output(
    sparse_model: Any, sparse_weight: Any, ops_library: Path, tmp_path: Path
) -> None:
    """Where no other node reads it: of 64 MB between two other nodes there is one copy, not two."""
    model = sparse_model(
        SparseOp("MatMul", "Gap4", Epilogue(True, "Relu")), sparse_weight((64, 8192)), ["N", 64], ["N", 8192]
    )
    node = model.graph.node[0]
    node.input[list(node.input).index("R")] = "before"
    node.output[0] = "sum"
    model.graph.node.insert(0, onnx.helper.make_node("Abs", ["R"], ["before"]))
    model.graph.node.append(onnx.helper.make_node("ReduceMax", ["sum"], ["Y"], axes=[1]))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 1
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    environment = {**os.environ, "ONNXPRUNE_OPS": str(ops_library)}
    run = subprocess.run(
        [sys.executable, "-c", PEAK, path], env=environment, capture_output=True, text=True, check=True
    )
    assert int(run.stdout) < 1.4 * 64 * 1024
