"""2:4 with many rows of X: the way to cuSPARSELt, with the emulator and a stand-in for the library.

``cusparselt_on_host.cpp`` is that stand-in. Of NVIDIA's library, which needs a GPU to do anything, symbols,
version and header are compared with what we declare.
"""

from __future__ import annotations

import argparse
import base64
import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import numpy_helper

from onnxprune.kernels import cuda
from onnxprune.kernels.cuda import CudaKernels, DeviceWeight
from onnxprune.kernels.tune import random_weight
from onnxprune.storage.device import LAYOUTS
from onnxprune.storage.reference import ACTIVATIONS
from tests.kernels.device_nodes import model_of
from tests.kernels.emulated import ROOT, compiler, headers

pytestmark = pytest.mark.slow  # the emulator compiles for half a minute

HERE = Path(__file__).parent
NAME = "libcusparseLt.so.0"
VARIABLE = "ONNXPRUNE_CUSPARSELT"
LIMIT = {np.float16: 2e-3, ml_dtypes.bfloat16: 1.5e-2}
ROWS, COLS, MANY = 48, 160, 64  # of W; from so many rows of X on


def on_host(folder: Path, *flags: str) -> Path:
    """Compile the stand-in."""
    made = folder / NAME
    command = [compiler(), "-std=c++17", "-O1", "-fPIC", "-shared", f"-Wl,-soname,{NAME}", *flags]
    subprocess.run([*command, str(HERE / "cusparselt_on_host.cpp"), "-o", str(made)], check=True)
    return made


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return on_host(tmp_path_factory.mktemp("cusparselt"))


class Op:
    """NMTile of the emulator, with plans that live for several runs; arrays stand for device memory."""

    def __init__(self, library: Path, stand_in: Path) -> None:
        self.emulator = ctypes.CDLL(str(library))
        self.library = ctypes.CDLL(str(stand_in))
        self.kernels = CudaKernels(library)
        self._op = self.kernels._ops["NMTile"].contents
        self._held: list[Any] = []
        self.library.on_host_reset()

    def calls(self, name: str) -> int:
        return int(self.library.on_host_calls(name.encode()))

    def fail(self, name: str, status: int = 3) -> None:
        self.library.on_host_fail(name.encode(), status)

    def plan(self, dtype: Any = np.float16, shape: tuple[int, int] = (ROWS, COLS), many: int = MANY) -> Plan:
        weight = random_weight(LAYOUTS["nm-tile"], shape, 0.5).astype(dtype)
        return Plan(self, DeviceWeight.of(LAYOUTS["nm-tile"], weight, many), weight)

    def function(self, name: str, *types: Any, result: Any = ctypes.c_char_p) -> Any:
        return ctypes.CFUNCTYPE(result, *types)(getattr(self._op, name))


class Plan:
    """A plan of the op, and what its weight is."""

    def __init__(self, op: Op, packed: DeviceWeight, weight: Any) -> None:
        self.op, self.weight, self._packed = op, weight, cuda._pack(packed)
        self._arrays = packed  # what the plan reads
        self._plan = ctypes.c_void_p()
        create = op.function("create", ctypes.c_void_p, ctypes.c_void_p)
        assert create(ctypes.addressof(self._packed), ctypes.addressof(self._plan)) is None
        rng = np.random.default_rng(1)
        self.bias = aligned(rng.standard_normal(len(weight)).astype(weight.dtype))

    def run(self, m: int, activation: str = "", stream: int = 1, bias: bool = True, shift: int = 0) -> str:
        """Multiply and compare; return what many_problem says, empty where cuSPARSELt multiplied."""
        dtype, (rows, cols) = self.weight.dtype, self.weight.shape
        x = aligned(np.random.default_rng(m).standard_normal((m, cols)).astype(dtype), shift)
        y = aligned(np.full((m + 1, rows), np.nan, dtype))  # a row behind
        run = cuda._Run(
            x.ctypes.data, y.ctypes.data, self.bias.ctypes.data if bias else None, m, 1,
            cuda._ACTIVATION[activation], -0.5, 0.75, stream,
        )  # fmt: skip
        error = self.op.function("run", ctypes.c_void_p, ctypes.c_void_p)(self._plan, ctypes.addressof(run))
        assert error is None, error
        product = x.astype(np.float64) @ self.weight.astype(np.float64).T
        product += self.bias.astype(np.float64) if bias else 0
        wanted = np.clip(product, -0.5, 0.75) if activation == "Clip" else product
        wanted = ACTIVATIONS[activation](product) if activation in ACTIVATIONS else wanted
        off = np.abs(y[:m].astype(np.float64) - wanted).max() / np.abs(product).max()
        assert off < LIMIT[dtype.type], (m, activation, off)  # also false for what is not a number
        assert np.isnan(y[m].astype(np.float64)).all()
        problem = self.op.function("many_problem", ctypes.c_void_p)(self._plan)
        return problem.decode() if problem else ""

    def close(self) -> None:
        self.op.function("destroy", ctypes.c_void_p, result=None)(self._plan)


def aligned(array: Any, shift: int = 0) -> Any:
    """A copy that begins ``shift`` elements behind a multiple of 16 bytes."""
    room = np.empty(array.size + 32, array.dtype)
    first = (-room.ctypes.data % 16) // array.itemsize + shift
    part = room[first : first + array.size].reshape(array.shape)
    part[...] = array
    return part


@pytest.fixture
def op(
    emulator_library: Path, stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Op]:
    """With a library of its own, which looks for cuSPARSELt and searches its algorithms anew."""
    monkeypatch.setenv(VARIABLE, str(stand_in))
    made = Op(shutil.copy(emulator_library, tmp_path / "emulator.so"), stand_in)
    before = made.emulator.onnxprune_emulator_allocated()
    alive = made.library.on_host_alive()
    yield made
    made.emulator.onnxprune_emulator_capture(0)
    assert made.emulator.onnxprune_emulator_allocated() == before, "device memory was not given back"
    assert made.library.on_host_alive() == alive, "objects of cuSPARSELt were not destroyed"


@pytest.mark.parametrize("dtype", LIMIT)
def test_products(op: Op, dtype: Any) -> None:
    """Activations of the library and our own, with bias and without, rows that are no multiple of eight."""
    plan = op.plan(dtype)
    rows = (MANY, 65, 71, 128, 200)
    for number, activation in enumerate(("", "Relu", "Gelu", "Clip", "HardSwish")):
        assert plan.run(rows[number], activation, bias=number % 2 == 0) == ""
    assert op.calls("Matmul") == 5 and op.calls("SpMMACompress2") == 1
    plan.close()


def test_few_rows_are_for_the_own_kernel(op: Op) -> None:
    plan, never = op.plan(), op.plan(many=0)
    assert plan.run(MANY - 1) == "" and never.run(MANY) == ""
    assert op.calls("Init") == op.calls("Matmul") == 0
    plan.close(), never.close()


def test_a_plan_for_each_number_of_rows(op: Op) -> None:
    """One weight, one search between two powers of two, a plan for rows, bias, activation and stream."""
    plan = op.plan()
    for _ in range(3):
        assert plan.run(MANY) == plan.run(MANY + 3) == plan.run(80) == ""
    assert (op.calls("SpMMACompress2"), op.calls("MatmulSearch"), op.calls("Matmul")) == (1, 1, 9)
    described = op.calls("MatmulDescriptorInit")
    assert described == 2  # 64 and 80
    assert (
        plan.run(80, stream=2)
        == plan.run(80, "Relu")
        == plan.run(80, bias=False)
        == plan.run(80, "Gelu")
        == ""
    )
    assert op.calls("MatmulDescriptorInit") == described + 3  # Gelu is ours
    assert op.calls("MatmulSearch") == 3  # with ReLU and without a bias
    assert plan.run(160) == "" and op.calls("MatmulSearch") == 4
    other = op.plan()
    assert other.run(80) == "" and op.calls("MatmulSearch") == 4  # a weight of the same shape
    plan.close(), other.close()


def test_plans_are_bounded(op: Op) -> None:
    """The one that was not used for longest goes, but none that a graph holds."""
    plan = op.plan()
    assert plan.run(MANY) == ""
    op.emulator.onnxprune_emulator_capture(1)
    assert plan.run(MANY) == ""
    op.emulator.onnxprune_emulator_capture(0)
    for i in range(1, 16):
        assert plan.run(MANY + 8 * i) == ""
    made = op.calls("MatmulDescriptorInit")
    assert plan.run(400) == plan.run(MANY) == "" and op.calls("MatmulDescriptorInit") == made + 1
    assert plan.run(MANY + 8) == "" and op.calls("MatmulDescriptorInit") == made + 2  # had to go for 400
    op.emulator.onnxprune_emulator_capture(1)
    for m in (400, *(MANY + 8 * i for i in range(1, 16) if i != 2)):
        assert plan.run(m) == "", m
    op.emulator.onnxprune_emulator_capture(0)
    assert "belong to CUDA graphs" in plan.run(408)
    plan.close()


def test_capture(op: Op) -> None:
    """Nothing is allocated while a stream is captured (the emulator would end the process)."""
    plan = op.plan()
    op.emulator.onnxprune_emulator_capture(1)
    assert "is new to cuSPARSELt" in plan.run(MANY) and op.calls("Init") == 0
    op.emulator.onnxprune_emulator_capture(0)
    assert plan.run(MANY) == ""
    op.emulator.onnxprune_emulator_capture(1)
    assert plan.run(MANY) == "" and "72 rows is new" in plan.run(75)
    op.emulator.onnxprune_emulator_capture(0)
    plan.close()


@pytest.mark.parametrize(
    ("function", "says", "sticks"),
    [
        ("Init", "start", True),
        ("StructuredDescriptorInit", "describe the weight", True),
        ("SpMMACompressedSize2", "size the compressed weight", True),
        ("SpMMACompress2", "compress the weight", True),
        ("DenseDescriptorInit", "describe X and Y", False),
        ("MatmulDescriptorInit", "describe the product", False),
        ("MatmulDescSetAttribute", "describe the product", False),
        ("MatmulAlgSelectionInit", "choose an algorithm", False),
        ("MatmulPlanInit", "make a plan", False),
        ("MatmulGetWorkspace", "size its workspace", False),
        ("Matmul", "multiply", False),
    ],
)
def test_what_fails_is_left_to_the_own_kernel(op: Op, function: str, says: str, sticks: bool) -> None:
    """The output is right, the reason is kept, and what failed is not tried at every run."""
    plan = op.plan()
    op.fail(function)
    first = plan.run(MANY, "Relu")
    assert f"cuSPARSELt fails to {says}: status 3, invalid value" in first
    tried = op.calls(function)
    assert plan.run(MANY, "Relu") == first and op.calls(function) == tried
    op.library.on_host_reset()
    assert (plan.run(MANY + 8) == "") == (not sticks)  # other rows get a plan of their own
    plan.close()


@pytest.mark.parametrize("function", ["MatmulSearch", "MatmulAlgGetAttribute", "MatmulAlgSetAttribute"])
def test_without_what_the_search_found(op: Op, function: str) -> None:
    plan = op.plan()
    op.fail(function, 10)
    assert plan.run(MANY) == plan.run(MANY + 8) == "" and op.calls("MatmulSearch") == 1
    plan.close()


@pytest.mark.parametrize("allocation", range(4))
def test_no_memory(op: Op, allocation: int) -> None:
    """For the dense weight, a buffer, the compressed weight, a workspace."""
    plan = op.plan()
    op.emulator.onnxprune_emulator_fail_after(allocation)
    first = plan.run(MANY)
    assert "bytes: out of memory" in first and plan.run(MANY) == first
    plan.close()


def test_workspaces(op: Op) -> None:
    plan = op.plan()
    op.library.on_host_workspace(ctypes.c_size_t(65 << 20))
    assert "wants a workspace of 68157440 bytes" in plan.run(MANY)
    op.library.on_host_workspace(ctypes.c_size_t((64 << 20) - 1000))  # what the search found would take more
    assert plan.run(MANY + 8) == ""
    op.library.on_host_workspace(ctypes.c_size_t(0))
    assert plan.run(MANY + 16) == ""
    plan.close()


def test_what_does_not_suit_it(op: Op) -> None:
    plan, odd = op.plan(), op.plan(shape=(40, COLS))
    assert "begin at multiples of 16 bytes" in plan.run(MANY, shift=1)
    assert "takes multiples of 16, the weight is 40 x 160" in odd.run(MANY)
    assert op.calls("Init") == 0
    tiny = op.plan(many=1)
    assert "elements, X has 7 rows" in tiny.run(7)
    plan.close(), odd.close(), tiny.close()


def test_who_asks_for_it_gets_it_or_the_reason(
    emulator_library: Path, stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ops tune and gpu_check call: no measurement of the own kernel passes for one of cuSPARSELt."""
    weight = random_weight(LAYOUTS["nm-tile"], (ROWS, COLS), 0.5)
    asked = DeviceWeight.of(LAYOUTS["nm-tile"], weight, MANY)
    x = np.ones((MANY, COLS), np.float16)
    for value, fails in ((str(stand_in), False), ("off", True)):
        monkeypatch.setenv(VARIABLE, value)
        kernels = CudaKernels(shutil.copy(emulator_library, tmp_path / f"{fails}.so"))
        if fails:
            with pytest.raises(Exception, match="switched off by ONNXPRUNE_CUSPARSELT=off"):
                kernels.run(asked, x)
        else:
            np.testing.assert_allclose(kernels.run(asked, x), x @ weight.T, rtol=5e-3, atol=2e-2)
        kernels.run(asked, x[:-1])


def test_threads(op: Op) -> None:
    """Runs of one node on several streams at once share its weight and nothing else."""
    plan = op.plan()

    def work(stream: int) -> set[str]:
        return {plan.run(MANY + 8 * (i % 2), stream=stream) for i in range(10)}

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [{""}] * 4
    assert (op.calls("SpMMACompress2"), op.calls("MatmulDescriptorInit")) == (1, 8)
    plan.close()


def through_onnxruntime(
    ops_library: Path, cuda: Path, stand_in: Path, rows: int, many: int | None
) -> tuple[Any, list[str]]:
    """Largest error of a node with so many rows of X, and which functions of cuSPARSELt were called."""
    weight = random_weight(LAYOUTS["nm-tile"], (ROWS, COLS), 0.5)
    x = np.random.default_rng(3).standard_normal((rows // 2, 2, COLS)).astype(np.float16)
    model = model_of("nm-tile", weight, "Gelu", many)
    item = {"model": base64.b64encode(model.SerializeToString()).decode(), "x": x.tolist(), "bfloat16": False}
    names = {"ONNXPRUNE_CUDA": str(cuda), VARIABLE: str(stand_in), "CUSPARSELT_ON_HOST_TRACE": "1"}
    done = subprocess.run(
        [sys.executable, str(HERE / "device_models.py"), str(ops_library), "cuda"],
        input=json.dumps([item]), env=os.environ | names, capture_output=True, text=True, check=True,
    )  # fmt: skip
    (result,) = json.loads(done.stdout)
    assert "error" not in result and result["kept"] == ["NMTileMatMulGelu"], result
    bias = numpy_helper.to_array(model.graph.initializer[-1]).astype(np.float64)
    product = x.reshape(rows, COLS).astype(np.float64) @ weight.astype(np.float64).T + bias
    error = np.abs(np.reshape(result["y"], (rows, ROWS)) - ACTIVATIONS["Gelu"](product)).max()
    return error / np.abs(product).max(), re.findall(r"cuSPARSELt: (\w+)", done.stderr)


@pytest.mark.parametrize(
    ("rows", "many", "used"),
    [(80, 64, True), (80, 96, False), (80, 0, False), (80, None, False), (2048, None, True)],
)
def test_through_onnxruntime(
    ops_library: Path, emulator_library: Path, stand_in: Path, rows: int, many: int | None, used: bool
) -> None:
    """The attribute decides, and 2048 where there is none."""
    error, calls = through_onnxruntime(ops_library, emulator_library, stand_in, rows, many)
    assert error < LIMIT[np.float16] and calls.count("Matmul") == int(used)


def test_gpu_check_sees_it_and_sees_mistakes(op: Op, gpu_check: ModuleType) -> None:
    check = gpu_check.Check(argparse.Namespace(quick=True), op.kernels)
    gpu_check.many(check)
    assert [state for *_, state in check.lines] == ["ok"] * 3, check.lines
    assert op.calls("Matmul") == 2 * 2 * 2
    op.library.on_host_reset()
    op.library.on_host_skew(1)
    gpu_check.many(check)
    assert [state for *_, state in check.lines[3:]] == ["ok", "FAILED", "FAILED"]
    op.library.on_host_skew(0)


def found(library: Path, before: str = "pass", **environment: str) -> dict[str, str]:
    """What the library of kernels says of cuSPARSELt, in a process of its own."""
    code = f"import ctypes, sys; {before}; l = ctypes.CDLL({str(library)!r}); "
    code += "l.onnxprune_cuda_info.restype = ctypes.c_char_p; print(l.onnxprune_cuda_info().decode())"
    clean = {key: value for key, value in os.environ.items() if key != VARIABLE}
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean | environment, capture_output=True, text=True, check=True
    )
    about: dict[str, str] = json.loads(done.stdout)["cusparselt"]
    return about


def test_finding_it(emulator_library: Path, stand_in: Path, tmp_path: Path) -> None:
    library, path = emulator_library, str(stand_in)
    assert found(library, **{VARIABLE: path}) == {"library": path, "version": "0.8.1", "problem": ""}
    in_path = found(library, LD_LIBRARY_PATH=str(stand_in.parent))
    assert (in_path["library"], in_path["problem"]) == (path, "")
    loaded = found(library, before=f"ctypes.CDLL({path!r})")  # as the Python package does with NVIDIA's wheel
    assert (loaded["library"], loaded["problem"]) == (path, "")
    assert found(library, **{VARIABLE: "off"})["problem"].endswith("switched off by ONNXPRUNE_CUSPARSELT=off")
    assert "wanted a path, auto or off" in found(library, **{VARIABLE: "maybe"})["problem"]
    missing = found(library, **{VARIABLE: str(tmp_path / "none.so")})
    assert "cannot be opened" in missing["problem"] and "none.so" in missing["problem"]
    (tmp_path / "text.so").write_text("no library")
    assert "cannot be opened" in found(library, **{VARIABLE: str(tmp_path / "text.so")})["problem"]


@pytest.mark.parametrize(("version", "good"), [("0.6.2", 0), ("0.7.1", 1), ("0.10.0", 1), ("1.0.0", 0)])
def test_its_version(emulator_library: Path, stand_in: Path, version: str, good: bool) -> None:
    about = found(emulator_library, **{VARIABLE: str(stand_in), "CUSPARSELT_ON_HOST": version})
    assert about["version"] == version and (about["problem"] == "") == good
    assert good or f"it is {version}, wanted 0.7 or newer, below 1" in about["problem"]


def test_a_function_is_missing(emulator_library: Path, tmp_path: Path) -> None:
    about = found(emulator_library, **{VARIABLE: str(on_host(tmp_path, "-DWITHOUT_SEARCH"))})
    assert about["problem"].endswith("it lacks cusparseLtMatmulSearch")


# ---------------------------------------------------------------- NVIDIA's own


@pytest.fixture(scope="module", params=["nvidia-cusparselt-cu13", "nvidia-cusparselt-cu12==0.7.1"])
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a wheel, the newest and the oldest that will do, from the network (150 to 240 MB)."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder)]
    done = subprocess.run([*command, request.param], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"pip cannot install {request.param}: {done.stderr.strip().splitlines()[-1:]}")
    return next(folder.glob("nvidia/*/include/cusparseLt.h")).parents[1]


def test_the_real_library_has_what_is_used(emulator_library: Path, real: Path) -> None:
    path = str(real / "lib" / NAME)
    about = found(emulator_library, **{VARIABLE: path})
    assert about["problem"] == "" and about["library"] == path
    numbers = re.findall(r"#define CUSPARSELT_VER_(?:MAJOR|MINOR|PATCH) +(\d+)", header_of(real))
    assert about["version"] == ".".join(numbers)


def header_of(real: Path) -> str:
    return (real / "include" / "cusparseLt.h").read_text(encoding="utf8")


def test_the_real_library_without_a_gpu(
    emulator_library: Path, stand_in: Path, real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It refuses to start, and the own kernel multiplies."""
    if Path("/dev/nvidiactl").exists():
        pytest.skip("there may be a GPU, which would be given the host's memory")
    monkeypatch.setenv(VARIABLE, str(real / "lib" / NAME))
    op = Op(shutil.copy(emulator_library, tmp_path / "emulator.so"), stand_in)
    plan = op.plan()
    assert plan.run(MANY).startswith("cuSPARSELt fails to start: status 1")
    plan.close()


# cuSPARSE's own header is in another wheel; these are its numbers
CUSPARSE_H = """
#pragma once
typedef enum { CUSPARSE_STATUS_SUCCESS = 0 } cusparseStatus_t;
typedef enum { CUSPARSE_OPERATION_NON_TRANSPOSE = 0, CUSPARSE_OPERATION_TRANSPOSE = 1 } cusparseOperation_t;
typedef enum { CUSPARSE_ORDER_COL = 1, CUSPARSE_ORDER_ROW = 2 } cusparseOrder_t;
"""


def test_the_real_header_agrees(real: Path, tmp_path: Path) -> None:
    """Sizes, numbers and arguments of all that is declared in ``ort_ops/cuda/cusparselt.h``."""
    (tmp_path / "cusparse.h").write_text(CUSPARSE_H)
    text = (HERE / "cusparselt_declared.cpp").read_text(encoding="utf8")
    ours = (ROOT / "ort_ops" / "cuda" / "cusparselt.h").read_text(encoding="utf8")
    for name in re.findall(r"^  [a-z].*?\(\*(\w+)\)\(", ours, re.MULTILINE):
        assert f"SAME_FUNCTION({name})" in text, name
        if f"cusparseLt{name}(" not in header_of(real):  # of those that are optional
            text = text.replace(f"SAME_FUNCTION({name})", "")
    include = [f"-I{path}" for path in (tmp_path, real / "include", headers(), ROOT / "ort_ops" / "cuda")]

    def compare(source: str) -> str:
        file = tmp_path / "declared.cpp"
        file.write_text(source)
        command = [compiler(), "-std=c++17", "-fsyntax-only", *include, str(file)]
        return subprocess.run(command, capture_output=True, text=True, check=False).stderr

    assert compare(text) == ""
    for old, new in (("ORDER_ROW, kRows", "ORDER_ROW, kColumns"), ("Lt ## name", "LtDestroy")):
        assert text.count(old) == 1 and "static assertion failed" in compare(text.replace(old, new))
