"""The library with the kernels, and models of one sparse node."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxprune import cudabuild, ops, opsbuild
from onnxprune.errors import ResourceError
from onnxprune.storage import FORMS
from onnxprune.storage.functions import set_attributes
from onnxprune.storage.sparse_functions import SparseOp, make_sparse_function
from tests.kernels.emulated import ROOT, compiled

HERE = Path(__file__).parent
Dims = Sequence[int | str] | None
# Now, and not in a fixture: tests get a cache of their own, in which nothing is built.
_FOUND = ops.library_path()
_CACHED = None if _FOUND else ops.cached_path()
_CUDA = ops.cuda_path()


@pytest.fixture(scope="session")
def ops_library() -> Path:
    """The library that is installed, built, or named by ONNXPRUNE_OPS; else it is built now (a minute)."""
    if _FOUND:
        return _FOUND
    assert _CACHED is not None
    if not _CACHED.is_file():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ops, "cached_path", lambda: _CACHED)
            try:
                opsbuild._compiler()
            except ResourceError as error:
                pytest.skip(f"no kernels: {error}")
            opsbuild.build()
    return _CACHED


@pytest.fixture(scope="session")
def cuda_library() -> Path:
    """The library of CUDA kernels that was built before (``onnxprune ops build --cuda``); nvcc takes
    minutes."""
    if _CUDA is None or not _CUDA.is_file():
        pytest.skip("no library of CUDA kernels: onnxprune ops build --cuda makes it")
    return _CUDA


@pytest.fixture(scope="session")
def host_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in, compiled (seconds)."""
    compiler = next((name for name in opsbuild._COMPILERS if shutil.which(name)), None)
    if compiler is None:
        pytest.skip("no C++ compiler")
    made = tmp_path_factory.mktemp("host") / cudabuild.NAME
    flags = ["-std=c++17", "-O2", "-fPIC", "-shared", f"-I{HERE.parent.parent / 'ort_ops'}"]
    subprocess.run([compiler, *flags, str(HERE / "cuda_on_host.cpp"), "-o", str(made)], check=True)
    return made


@pytest.fixture(scope="session")
def emulator_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CUDA kernels compiled for the host (half a minute, so for slow tests)."""
    return compiled(tmp_path_factory.mktemp("emulator"))


@pytest.fixture(scope="session")
def gpu_check() -> ModuleType:
    """``scripts/gpu_check.py`` as a module."""
    spec = importlib.util.spec_from_file_location("gpu_check", ROOT / "scripts" / "gpu_check.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_check"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def sparse_model() -> Callable[..., onnx.ModelProto]:
    """Return ``build(op, weight, x, y, ...)``: a model of one node of our domain, with its function.

    ``x`` and ``y`` are the declared shapes of input ``X`` and output ``Y`` (and of input ``R``).
    """

    def build(
        op: SparseOp,
        weight: NDArray[np.float32],
        x: Dims,
        y: Dims,
        *,
        values: str = "same",
        opset: int = 17,
        seed: int = 0,
        **attributes: Any,
    ) -> onnx.ModelProto:
        rng = np.random.default_rng(seed)
        form = next((f for f in FORMS.values() if f.prefix == op.prefix), None)
        packed = form.encode(weight, values=values) if form else None
        names = list(form.inputs) if form else ["W"]
        tensors: dict[str, NDArray[Any]] = dict(
            zip(names, packed.tensors if packed else [weight], strict=True)
        )
        features_first = op.consumer == "Conv" or (op.consumer == "Gemm" and attributes.get("transB"))
        outputs = weight.shape[0 if features_first else 1]
        inputs = [helper.make_tensor_value_info("X", TensorProto.FLOAT, x)]
        for name in op.tail_inputs():
            if name == "R":
                inputs.append(helper.make_tensor_value_info("R", TensorProto.FLOAT, y))
            else:
                tensors[name] = rng.standard_normal(outputs).astype(np.float32)
        node = helper.make_node(
            op.name, ["X", *names, *op.tail_inputs()], ["Y"], "the node", domain="onnxprune", **attributes
        )
        if form and packed:
            set_attributes(node, form, packed, opset)
        graph = helper.make_graph(
            [node],
            "g",
            inputs,
            [helper.make_tensor_value_info("Y", TensorProto.FLOAT, y)],
            [numpy_helper.from_array(array, name) for name, array in tensors.items()],
        )
        imports = [helper.make_opsetid("", opset), helper.make_opsetid("onnxprune", 1)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=8)
        model.functions.append(make_sparse_function(op, form, opset, cast=bool(packed and packed.cast)))
        return model

    return build


@pytest.fixture(scope="session")
def ort_session(ops_library: Path) -> Callable[..., Any]:
    """Return ``session(model, kernels=True, threads=1, **options)``: with the library or without it."""
    import onnxruntime

    def session(
        model: onnx.ModelProto | bytes | str, kernels: bool = True, threads: int = 1, **options: Any
    ) -> Any:
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        settings.log_severity_level = 4
        for name, value in options.items():
            setattr(settings, name, value)
        if kernels:
            settings.register_custom_ops_library(str(ops_library))
        source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
        return onnxruntime.InferenceSession(source, settings, providers=["CPUExecutionProvider"])

    return session


@pytest.fixture
def sparse_weight() -> Callable[..., NDArray[np.float32]]:
    """Return ``weight(shape, sparsity=0.7, seed=0)``: normal values, a share of them zero."""

    def weight(shape: Sequence[int], sparsity: float = 0.7, seed: int = 0) -> NDArray[np.float32]:
        rng = np.random.default_rng(seed)
        dense = rng.standard_normal(shape).astype(np.float32)
        dense[rng.random(shape) < sparsity] = 0
        return dense

    return weight


@pytest.fixture(scope="session")
def assert_agree() -> Callable[..., None]:
    """Return ``assert_agree(model, feed, ort_session)``: with and without the kernels within 1e-5."""

    def check(
        model: onnx.ModelProto,
        feed: Mapping[str, NDArray[Any]],
        session: Callable[..., Any],
        threads: int = 1,
    ) -> NDArray[Any]:
        expected = session(model, kernels=False).run(None, dict(feed))[0]
        found = session(model, threads=threads).run(None, dict(feed))[0]
        assert found.shape == expected.shape
        scale = np.abs(expected).max(initial=1e-3)
        error = np.abs(found - expected).max(initial=0) / scale
        assert error < 1e-5, f"{model.graph.node[0].op_type}: {error}"
        return np.asarray(found)

    return check
