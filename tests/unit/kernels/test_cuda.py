"""The Python side of the CUDA kernels' C interface; what is behind it is tested in tests/kernels."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import numpy as np
import pytest

from onnxprune.errors import ResourceError
from onnxprune.kernels import cuda
from onnxprune.storage.device import LAYOUTS

HEADER = Path(__file__).resolve().parents[3] / "ort_ops" / "cuda" / "api.h"


def test_interface_is_that_of_the_header() -> None:
    text = HEADER.read_text(encoding="utf8")
    assert f"#define ONNXPRUNE_CUDA_ABI {cuda.ABI} " in text
    fields = {
        "OnnxpruneCudaTensor": cuda._Tensor,
        "OnnxpruneCudaWeight": cuda._Weight,
        "OnnxpruneCudaRun": cuda._Run,
        "OnnxpruneCudaOp": cuda._Op,
    }
    for body, name in re.findall(r"typedef struct \{(.*?)\} (\w+);", text, re.DOTALL):
        lines = [re.sub(r"//.*", "", line) for line in body.splitlines()]
        found: list[str] = []
        for statement in " ".join(lines).split(";"):
            if match := re.search(r"\(\*(\w+)\)", statement):  # a function
                found.append(match[1])
            else:
                found += re.findall(r"(\w+)(?:\[\w+\])?\s*(?:,|$)", statement.strip())
        assert found == [field[0] for field in fields.pop(name)._fields_], name
    assert not fields
    assert ctypes.sizeof(cuda._Tensor) == 24 and ctypes.sizeof(cuda._Run) == 64


def test_a_weight_as_the_library_gets_it() -> None:
    weight = np.zeros((40, 200), np.float16)
    weight[3, 5] = 1
    packed = cuda.DeviceWeight.of(LAYOUTS["bitmap-tile"], weight)
    given = cuda._pack(packed)
    assert (given.rows, given.cols, given.block_rows, given.type) == (40, 200, 0, 10)
    assert [(t.count, t.type) for t in given.tensors] == [(3 * 2 * 256, 2), (7, 6), (16, 10), (0, 0)]
    assert packed.nbytes == 3 * 2 * 256 + 7 * 4 + 16 * 2


def test_no_library(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="cannot be loaded"):
        cuda.CudaKernels(tmp_path / "none.so")
    (tmp_path / "text.so").write_text("no library")
    with pytest.raises(ResourceError, match="cannot be loaded"):
        cuda.CudaKernels(tmp_path / "text.so")
