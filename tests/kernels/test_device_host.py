"""The CUDA ops where there is no GPU: their index arithmetic, and the way from ONNX Runtime to their C
interface.

``cuda_on_host.cpp`` stands in for the library of kernels. What only a GPU can tell is in test_cuda.py.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxprune import cudabuild
from onnxprune.kernels.cuda import CudaKernels, DeviceWeight
from onnxprune.storage.device import LAYOUTS
from onnxprune.storage.device.functions import IMAGES
from onnxprune.storage.form import Array
from onnxprune.storage.reference import ACTIVATIONS
from tests.kernels.device_nodes import model_of
from tests.unit.storage.device.random_weights import pruned

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
LIMIT = {np.float16: 2e-3, ml_dtypes.bfloat16: 1.5e-2}


@pytest.fixture(scope="session")
def on_host(host_library: Path) -> CudaKernels:
    return CudaKernels(host_library)


def wide(array: Any) -> np.ndarray:
    return np.asarray(array).astype(np.float64)


def expected(
    weight: DeviceWeight, x: Array, bias: Array, activation: str, limits: tuple[float, float]
) -> np.ndarray:
    dense = weight.layout.decode(weight.tensors, (weight.rows, weight.cols), weight.data_type, "w")
    y = wide(x) @ wide(dense).T + wide(bias) if x.ndim == 2 else wide(dense) @ wide(x) + wide(bias)[:, None]
    if activation == "Clip":
        return np.clip(y, *limits)
    return ACTIVATIONS[activation](y) if activation else y


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("name", LAYOUTS)
def test_indices(on_host: CudaKernels, name: str, dtype: Any) -> None:
    """Every lane, register and bit, on whole and on ragged shapes."""
    rng = np.random.default_rng(1)
    for shape in ((16, 128), (70, 333), (5, 8), (64, 512)):
        weight = pruned(name, shape, dtype)
        layout = LAYOUTS[name]
        if layout.refusal(weight):
            continue
        packed = DeviceWeight.of(layout, weight)
        for m, activation in ((1, ""), (3, "Gelu"), (10, "HardSwish")):
            x = rng.standard_normal((m, shape[1])).astype(dtype)
            bias = rng.standard_normal(shape[0]).astype(dtype)
            found = on_host.run(packed, x, bias=bias, activation=activation)
            wanted = expected(packed, x, bias, activation, (0, 0))
            error = np.abs(wide(found) - wanted).max() / np.abs(wanted).max()
            assert error < LIMIT[dtype], (shape, m, error)
        if on_host.takes_images(layout.prefix):
            images = rng.standard_normal((2, shape[1], 7)).astype(dtype)
            found, wanted = on_host.run(packed, images, bias=bias), expected(packed, images, bias, "", (0, 0))
            assert np.abs(wide(found) - wanted).max() / np.abs(wanted).max() < LIMIT[dtype], shape


def test_both_libraries_have_the_same_ops(on_host: CudaKernels, cuda_library: Path) -> None:
    real = CudaKernels(cuda_library)
    assert real.names == on_host.names
    for name in real.names:
        one, other = real._ops[name].contents, on_host._ops[name].contents
        assert list(one.tensor_types) == list(other.tensor_types) and one.tensor_count == other.tensor_count
        assert one.images == other.images == int(name in IMAGES)
    assert {layout.prefix for layout in LAYOUTS.values()} == set(real.names)


@pytest.mark.parametrize("name", LAYOUTS)
def test_sizes_are_checked_without_a_device(cuda_library: Path, name: str) -> None:
    """By the real library: tensors that are too short or too long, other types, other shapes."""
    kernels, layout = CudaKernels(cuda_library), LAYOUTS[name]
    weight = pruned(name, (70, 333), np.float16)
    good = DeviceWeight.of(layout, weight)
    assert kernels.refusal(good) == ""
    for position, tensor in enumerate(good.tensors):
        for changed in (
            tensor.reshape(-1)[:-1],
            np.append(tensor, tensor.reshape(-1)[:1]),
            tensor.astype(np.float64),
        ):
            tensors = list(good.tensors)
            tensors[position] = np.ascontiguousarray(changed)
            assert kernels.refusal(DeviceWeight(layout, tuple(tensors), 70, 333, good.data_type))
    for rows, cols in ((70 + 64, 333), (0, 333), (-1, 333), (70, 2**40)):
        assert kernels.refusal(DeviceWeight(layout, good.tensors, rows, cols, good.data_type))
    assert "float16 or bfloat16" in kernels.refusal(DeviceWeight(layout, good.tensors, 70, 333, 1))


@pytest.fixture
def run_models(ops_library: Path, host_library: Path) -> Callable[..., list[dict[str, Any]]]:
    def run(
        models: list[onnx.ModelProto], x: np.ndarray, bfloat16: bool = False, kind: str = "cuda"
    ) -> list[dict[str, Any]]:
        items = [
            {"model": base64.b64encode(m.SerializeToString()).decode(), "x": x.tolist(), "bfloat16": bfloat16}
            for m in models
        ]
        done = subprocess.run(
            [sys.executable, str(HERE / "device_models.py"), str(ops_library), kind],
            input=json.dumps(items),
            env=os.environ | {"ONNXPRUNE_CUDA": str(host_library)},
            capture_output=True,
            text=True,
            check=True,
        )
        found: list[dict[str, Any]] = json.loads(done.stdout)
        return found

    return run


@pytest.mark.parametrize("dtype", LIMIT)
def test_through_onnxruntime(run_models: Callable[..., Any], dtype: Any) -> None:
    """Attributes, initializers, bias, activation, shapes and their inference, for every op."""
    names, activations = list(LAYOUTS), ["", "Clip", "Silu", "Relu", "GeluTanh", "Gelu"]
    weights = [pruned(name, (70, 130), dtype) for name in names]
    x = np.random.default_rng(2).standard_normal((3, 2, 130)).astype(np.float32)
    models = [model_of(*item) for item in zip(names, weights, activations, strict=True)]
    results = run_models(models, x, dtype is not np.float16)
    for name, weight, activation, model, found in zip(
        names, weights, activations, models, results, strict=True
    ):
        assert "error" not in found, found
        assert found["kept"] == [model.graph.node[0].op_type]
        assert found["shape"] == ["M", 2, 70]  # inferred
        packed = DeviceWeight.of(LAYOUTS[name], weight)
        bias = numpy_helper.to_array(model.graph.initializer[-1])
        wanted = expected(packed, x.astype(dtype).reshape(6, 130), bias, activation, (-0.5, 0.75))
        scale = np.abs(expected(packed, x.astype(dtype).reshape(6, 130), bias, "", (0, 0))).max()
        error = np.abs(np.reshape(found["y"], (6, 70)) - wanted).max() / scale
        assert error < LIMIT[dtype], (name, error)


@pytest.mark.parametrize(("space", "dtype"), [(1, np.float16), (2, np.float16), (2, ml_dtypes.bfloat16)])
def test_convolutions_through_onnxruntime(run_models: Callable[..., Any], space: int, dtype: Any) -> None:
    """1x1, for every op that has one: shapes, their inference, bias, activation."""
    names, activations = [n for n in LAYOUTS if LAYOUTS[n].prefix in IMAGES], ["", "Clip", "Silu", "Relu", ""]
    x = np.random.default_rng(2).standard_normal((3, 130, *(2, 5)[:space])).astype(np.float32)
    weights = [pruned(name, (70, 130), dtype) for name in names]
    models = [
        model_of(name, weight, activation, space=space, opset=22)
        for name, weight, activation in zip(names, weights, activations, strict=True)
    ]
    results = run_models(models, x, dtype is not np.float16)
    for name, weight, activation, model, found in zip(
        names, weights, activations, models, results, strict=True
    ):
        assert "error" not in found, found
        assert found["kept"] == [model.graph.node[0].op_type] and "Conv" in found["kept"][0]
        assert found["shape"] == ["M", 70, *[f"P{axis}" for axis in range(space)]]  # inferred
        packed, flat = DeviceWeight.of(LAYOUTS[name], weight), x.astype(dtype).reshape(3, 130, -1)
        bias = numpy_helper.to_array(model.graph.initializer[-1])
        wanted = expected(packed, flat, bias, activation, (-0.5, 0.75))
        scale = np.abs(expected(packed, flat, bias, "", (0, 0))).max()
        error = np.abs(np.reshape(found["y"], wanted.shape) - wanted).max() / scale
        assert error < LIMIT[dtype], (name, error)
    models[0].graph.input[0].type.tensor_type.shape.dim[1].dim_param = "C"  # else ONNX Runtime refuses first
    (narrow,) = run_models(models[:1], x[:, :-1], dtype is not np.float16)
    assert "the weight takes [B, 130, pixels...]" in narrow["error"]


@pytest.mark.parametrize("space", [1, 2])
def test_the_function_of_a_convolution(run_models: Callable[..., Any], space: int) -> None:
    """Without the kernels a Conv is left, its weight folded, and computes the same."""
    x = np.random.default_rng(2).standard_normal((3, 130, *(4, 5)[:space])).astype(np.float32)
    bias = np.random.default_rng(9).standard_normal(70).astype(np.float16)
    for name, activation in (("block-64", ""), ("nm-tile", "Relu"), ("bitmap-tile", "HardSwish")):
        weight = pruned(name, (70, 130), np.float16)
        (found,) = run_models([model_of(name, weight, activation, space=space)], x, kind="cpu")
        assert "error" not in found, found
        decoding = {"Gather", "GatherElements", "ScatterElements", "Transpose", "CumSum", "Slice"}
        assert any("Conv" in op for op in found["kept"]) and not decoding & set(found["kept"]), found["kept"]
        product = wide(weight) @ wide(x.astype(np.float16)).reshape(3, 130, -1) + wide(bias)[:, None]
        wanted = ACTIVATIONS[activation](product) if activation else product
        np.testing.assert_allclose(np.reshape(found["y"], wanted.shape), wanted, rtol=5e-3, atol=2e-2)


def test_what_is_wrong_with_a_node_is_said(run_models: Callable[..., Any]) -> None:
    weight = pruned("bitmap-tile", (70, 130), np.float16)
    good = model_of("bitmap-tile", weight)
    shape = model_of("bitmap-tile", weight)
    next(a for a in shape.graph.node[0].attribute if a.name == "shape").ints[:] = [130, 7000]
    blocks = model_of("block-64", pruned("block-64", (70, 130), np.float16))
    next(a for a in blocks.graph.node[0].attribute if a.name == "block_rows").i = 48
    short = model_of("bitmap-tile", weight, mask=np.zeros(256, np.uint8))
    bias = model_of("bitmap-tile", weight, B=np.zeros(69, np.float16))
    x = np.zeros((1, 2, 130), np.float32)
    found = run_models([good, shape, blocks, short, bias], x)
    assert "y" in found[0]
    for result in found[1:4]:
        assert "MatMul node 'the node'" in result["error"] and "elements, wanted" in result["error"]
    assert "the bias has shape [69], wanted [70]" in found[4]["error"]
    (narrow,) = run_models([good], np.zeros((1, 2, 129), np.float32))
    assert "error" in narrow


def test_a_session_without_cuda_runs_the_function(run_models: Callable[..., Any]) -> None:
    """It does not get the ops for CUDA: ONNX Runtime would not run the function of an op that it knows."""
    weight = pruned("nm-tile", (70, 130), np.float16)
    x = np.random.default_rng(2).standard_normal((3, 2, 130)).astype(np.float32)
    (found,) = run_models([model_of("nm-tile", weight)], x, kind="cpu")
    assert "error" not in found, found
    assert "NMTileMatMul" not in found["kept"]
    bias = np.random.default_rng(9).standard_normal(70).astype(np.float16)
    wanted = wide(x.astype(np.float16)).reshape(6, 130) @ wide(weight).T + wide(bias)
    np.testing.assert_allclose(np.reshape(found["y"], (6, 70)), wanted, rtol=5e-3, atol=2e-2)


@pytest.mark.parametrize(("many", "rows", "warnings"), [(4, 6, 1), (8, 6, 0), (0, 6, 0), (None, 2050, 1)])
def test_a_warning_where_cusparselt_is_missing(
    ops_library: Path, host_library: Path, many: int | None, rows: int, warnings: int
) -> None:
    """One in a process, at the first product that is meant for it, by ONNX Runtime's logger."""
    model = model_of("nm-tile", pruned("nm-tile", (16, 32), np.float16), "", many)
    text = base64.b64encode(model.SerializeToString()).decode()
    item = {"model": text, "x": np.ones((rows // 2, 2, 32)).tolist(), "bfloat16": False, "severity": 2}
    done = subprocess.run(
        [sys.executable, str(HERE / "device_models.py"), str(ops_library), "cuda"],
        input=json.dumps([item, item]),
        env=os.environ | {"ONNXPRUNE_CUDA": str(host_library)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "error" not in done.stdout
    said = [line for line in done.stderr.splitlines() if "are for cuSPARSELt" in line]
    assert len(said) == warnings, done.stderr
    for line in said:
        assert "W:onnxruntime" in line and f"with {rows} rows of X (node 'the node')" in line
        assert "the host has none" in line and "pip install nvidia-cusparselt-cu13" in line


def described(library: Path, **environment: str) -> dict[str, Any]:
    code = (
        f"import ctypes; l = ctypes.CDLL({str(library)!r}); l.onnxprune_ops_info.restype = ctypes.c_char_p; "
    )
    code += "print(l.onnxprune_ops_info().decode())"
    clean = {key: value for key, value in os.environ.items() if key != "ONNXPRUNE_CUDA"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean | environment, capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)["cuda"]
    return found


def test_what_the_library_says_of_cuda(ops_library: Path, host_library: Path, tmp_path: Path) -> None:
    alone = shutil.copy(ops_library, tmp_path)
    assert described(alone)["problem"].endswith("is not there")
    assert described(alone, ONNXPRUNE_CUDA="off")["problem"] == "switched off by ONNXPRUNE_CUDA=off"
    wrong = "ONNXPRUNE_CUDA is maybe, wanted auto, on, off or a path"
    assert described(alone, ONNXPRUNE_CUDA="maybe")["problem"] == wrong
    found = described(alone, ONNXPRUNE_CUDA=str(host_library))
    assert (found["problem"], found["ops"]) == ("", 5)
    (tmp_path / cudabuild.NAME).write_bytes(b"no library")
    assert "cannot be opened" in described(alone)["problem"]
    shutil.copy(alone, tmp_path / cudabuild.NAME)
    assert described(alone)["problem"] == "it is no library of onnxprune's CUDA kernels"


@pytest.mark.parametrize(("value", "fails"), [("on", True), ("auto", False), ("off", False)])
def test_cuda_on_or_off(ops_library: Path, tmp_path: Path, value: str, fails: bool) -> None:
    alone = shutil.copy(ops_library, tmp_path)
    code = f"import onnxruntime as o; o.SessionOptions().register_custom_ops_library({str(alone)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"ONNXPRUNE_CUDA": value},
        capture_output=True,
        text=True,
    )
    assert (done.returncode != 0) == fails
    assert not fails or "ONNXPRUNE_CUDA=on, but" in done.stderr


def test_the_real_library_says_that_there_is_no_device(cuda_library: Path) -> None:
    kernels = CudaKernels(cuda_library)
    if not kernels.problem:
        pytest.skip("there is one")
    assert "no CUDA device" in kernels.problem and kernels.info["devices"] == []
    with pytest.raises(Exception, match=r"CUDA|driver"):
        kernels.run(
            DeviceWeight.of(LAYOUTS["delta"], pruned("delta", (8, 16), np.float16)),
            np.ones((1, 16), np.float16),
        )
