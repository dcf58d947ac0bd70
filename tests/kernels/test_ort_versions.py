"""One binary against several releases of ONNX Runtime, and our declarations against its own header."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune import ops
from onnxprune.storage.sparse_functions import Epilogue, SparseOp

# The oldest that the library is for, some between, the newest (None) for this Python
RELEASES = ("1.17.3", "1.20.1", "1.23.2", None)
CONV = {
    "auto_pad": "NOTSET",
    "dilations": [1, 1],
    "group": 2,
    "strides": [2, 1],
    "kernel_shape": [3, 3],
    "pads": [1, 1, 0, 2],
}
# Runs in an environment with nothing but numpy and one ONNX Runtime
CHILD = """
import json, sys
from pathlib import Path
import numpy as np, onnxruntime as ort
library, folder = sys.argv[1], Path(sys.argv[2])
report = {"version": ort.__version__, "errors": {}, "shapes": {}}
for path in sorted(folder.glob("*.onnx")):
    results = []
    for kernels in (True, False):
        options = ort.SessionOptions()
        options.intra_op_num_threads = 2
        if kernels:
            options.register_custom_ops_library(library)
            options.optimized_model_filepath = str(path.with_suffix(".optimized"))
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        feed = dict(np.load(path.with_suffix(".npz")))
        results.append(session.run(None, feed)[0])
        if kernels:
            report["shapes"][path.stem] = session.get_outputs()[0].shape
            assert path.stem.encode() in path.with_suffix(".optimized").read_bytes()
            feed["X"] = feed["X"][..., :-1] if feed["X"].ndim == 2 else feed["X"][:, :-1]
            try:
                session.run(None, feed)
            except Exception as error:
                assert "the weight takes" in str(error), error
            else:
                raise AssertionError("a wrong input was accepted")
    scale = abs(results[1]).max()
    report["errors"][path.stem] = float(abs(results[0] - results[1]).max() / scale)
bad = folder / "bad.model"
try:
    options = ort.SessionOptions()
    options.register_custom_ops_library(library)
    ort.InferenceSession(bad.read_bytes(), options, providers=["CPUExecutionProvider"])
except Exception as error:
    assert "node 'the node'" in str(error), error
else:
    raise AssertionError("a corrupt model was accepted")
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, sparse_model: Any) -> Path:
    folder = tmp_path_factory.mktemp("models")
    rng = np.random.default_rng(0)

    def weight(*shape: int) -> np.ndarray:
        dense = rng.standard_normal(shape).astype(np.float32)
        return np.where(rng.random(shape) < 0.7, np.float32(0), dense)

    def write(op: SparseOp, w: np.ndarray, x: tuple[int, ...], y: tuple[int, ...], **more: Any) -> None:
        model = sparse_model(op, w, ["N", "C", *x[2:]], None, **more)
        onnx.save(model, folder / f"{op.name}.onnx")
        feed = {
            "X": rng.standard_normal(x),
            **({"R": rng.standard_normal(y)} if op.epilogue.residual else {}),
        }
        np.savez(
            folder / f"{op.name}.npz", **{name: array.astype(np.float32) for name, array in feed.items()}
        )

    for i, prefix in enumerate(("Bitmap", "Gap4", "Gap8")):
        values = ("same", "fp16")[i % 2]
        matmul, gemm = Epilogue(True, "", True), Epilogue(False, "Gelu")
        write(
            SparseOp("MatMul", prefix, matmul), weight(40, 24), (5, 40), (5, 24), values=values, epsilon=1e-5
        )
        write(SparseOp("Gemm", prefix, gemm), weight(40, 24), (5, 40), (5, 24), transB=0)
        write(
            SparseOp("Conv", prefix, Epilogue(True, "Relu")),
            weight(8, 4, 3, 3),
            (2, 8, 9, 8),
            (2, 8, 4, 9),
            **CONV,
        )
    write(
        SparseOp("Conv", "", Epilogue(False, "Silu")), weight(8, 4, 3, 3), (2, 8, 9, 8), (2, 8, 4, 9), **CONV
    )
    for prefix, opset in (("Bitmap", 7), ("Gap8", 9), ("Gap4", 10)):  # without CumSum
        old = SparseOp("MatMul", prefix, Epilogue(False, "Relu"))
        write(old, weight(40, 24), (5, 40), (5, 24), opset=opset)
    bad = onnx.load(folder / "SparseBitmapGemmGelu.onnx")
    next(t for t in bad.graph.initializer if t.name == "mask").raw_data = b"\xff" * 120
    (folder / "bad.model").write_bytes(bad.SerializeToString())
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("release", RELEASES)
def test_one_binary_runs_in_every_release(
    ops_library: Path, models: Path, tmp_path: Path, release: str | None
) -> None:
    if release == "1.17.3" and sys.version_info >= (3, 13):
        pytest.skip("ONNX Runtime 1.17 has no wheel for this Python")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    wanted = [
        "onnxruntime" + (f"=={release}" if release else ""),
        "numpy<2" if release == "1.17.3" else "numpy",
    ]
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:", *wanted]
    subprocess.run(install, check=True)
    done = subprocess.run(
        [python, "-c", CHILD, ops_library, models], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert release in (None, report["version"])
    assert len(report["errors"]) == 13
    assert {name: error for name, error in report["errors"].items() if not error < 1e-5} == {}
    assert all(shape[0] == "N" and shape[-1] in (24, 9) for shape in report["shapes"].values())


def declared() -> list[tuple[int, str]]:
    """Slot and name of each function of ONNX Runtime that we use."""
    sources = ops.sources_path()
    assert sources is not None
    text = (sources / "src" / "ort_abi.h").read_text()
    return [(int(slot), name) for slot, name in re.findall(r"X\((\d+), [\w*]+, (\w+),", text)]


def test_slots_ascend_and_are_unlike() -> None:
    slots = [slot for slot, _ in declared()]
    assert len(slots) > 30 and slots == sorted(set(slots))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_declarations_agree_with_the_header_of_1_17(tmp_path: Path) -> None:
    """That header is in the wheel of amd-quark, and in no package of ONNX Runtime itself."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "-d",
        tmp_path,
        "amd-quark==0.13",
    ]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith("/onnxruntime_c_api.h"))
        header = Path(archive.extract(name, tmp_path))
    sources = ops.sources_path()
    assert sources is not None
    fields = re.findall(
        r"\(\*(\w+)\)\(", (sources / "src" / "ort_abi.h").read_text().partition("OrtCustomOp {")[2]
    )
    fields = fields[: fields.index("GetEndVersion") + 1]  # those behind came with 1.18
    lines = [f"static_assert(offsetof(OrtApi, {n}) == {slot} * sizeof(void*));" for slot, n in declared()]
    lines += [
        f"static_assert(offsetof(OrtCustomOp, {n}) == {i + 1} * sizeof(void*));" for i, n in enumerate(fields)
    ]
    lines.append(f"static_assert(sizeof(OrtCustomOp) == {len(fields) + 1} * sizeof(void*));")
    lines.append(
        "static_assert(ORT_API_VERSION == 17 && ORT_OP_ATTR_INTS == 2 && ORT_INVALID_ARGUMENT == 2);"
    )
    program = tmp_path / "check.cpp"
    program.write_text(f'#include <cstddef>\n#include "{header}"\n' + "\n".join(lines))
    done = subprocess.run(
        ["g++", "-std=c++17", "-fsyntax-only", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
