from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxprune import ops
from onnxprune.errors import ModelError, ResourceError, UsageError
from onnxprune.kernels import tune as module
from onnxprune.kernels.cuda import DeviceWeight
from onnxprune.kernels.devicetable import CUSPARSELT
from onnxprune.kernels.tune import (
    CASES,
    CONV_SHAPES,
    SHAPES,
    Case,
    default_cublas,
    open_kernels,
    parse_shape,
    random_weight,
    tune,
)
from onnxprune.storage.device import LAYOUTS


class Kernels:
    """Times that follow from sizes, in place of a GPU."""

    info: dict[str, Any] = {  # noqa: RUF012
        "devices": [{"name": "A GPU", "l2_bytes": 1000}],
        "driver": 1,
        "compiler": "nvcc",
    }
    cusparselt: dict[str, str] = {"version": "0.8.1", "problem": ""}  # noqa: RUF012

    def time(
        self, weight: DeviceWeight, rows: Sequence[int], *, total_bytes: int, pixels: int
    ) -> list[float]:
        assert total_bytes == 8000 and weight.many_rows in (0, 1)
        return [float(weight.nbytes + m) / (1 + weight.many_rows) for m in rows]

    def time_dense(
        self, shape: tuple[int, int], rows: Sequence[int], *, transposed: bool, pixels: int, **_: Any
    ) -> list[float]:
        assert pixels == 1 or (not transposed and all(m % pixels == 0 for m in rows))
        return [2.0 * shape[0] * shape[1] + m + 5 * transposed for m in rows]

    def bandwidth(self) -> float:
        return 3000.0


def test_every_case_is_measured() -> None:
    cases = (Case("bitmap-tile", (0.5, 0.2), (1, 8)), Case("block-32", (0.5,), (1, 64)))
    table = tune(Kernels(), shapes=[(256, 256)], cases=cases)  # type: ignore[arg-type]
    assert (table.gpu, table.bandwidth) == ("A GPU", 3000.0)
    assert [(e.layout, e.m) for e in table.entries] == [
        *[("bitmap-tile", m) for m in (1, 8, 1, 8)],
        ("block-32", 1),
        ("block-32", 64),
    ]
    assert all(e.dense_ms == 2 * 256 * 256 + e.m for e in table.entries)  # the faster way of lying
    assert [round(e.density, 1) for e in table.entries] == [0.5, 0.5, 0.2, 0.2, 0.5, 0.5]
    few = tune(Kernels(), shapes=[(256, 256)], cases=cases, rows=(8,))  # type: ignore[arg-type]
    assert {e.m for e in few.entries} == {8}


def test_cusparselt_is_measured_beside_our_own_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [case for case in CASES if case.layout == "nm-tile" and case.pixels == 1]
    assert [case.name for case in cases] == ["nm-tile", CUSPARSELT]
    table = tune(Kernels(), shapes=[(256, 256)], cases=cases, rows=(8, 4096))  # type: ignore[arg-type]
    times = {(e.layout, e.m): e.ms for e in table.entries}
    assert list(times) == [("nm-tile", 8), ("nm-tile", 4096), (CUSPARSELT, 4096)]
    assert times[CUSPARSELT, 4096] == times["nm-tile", 4096] / 2 and table.about.endswith("cuSPARSELt 0.8.1")
    monkeypatch.setattr(Kernels, "cusparselt", {"version": "", "problem": "it is not there"})
    table = tune(Kernels(), shapes=[(256, 256)], cases=cases)  # type: ignore[arg-type]
    assert {e.layout for e in table.entries} == {"nm-tile"}
    assert table.about.endswith("no cuSPARSELt: it is not there")


def test_where_cusparselt_fails_the_rest_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = Kernels.time

    def time(kernels: Kernels, weight: DeviceWeight, rows: Sequence[int], **options: Any) -> list[float]:
        if weight.many_rows == failing:
            raise ModelError("out of memory")
        return measured(kernels, weight, rows, **options)

    monkeypatch.setattr(Kernels, "time", time)
    cases, failing = [case for case in CASES if case.layout == "nm-tile"], 1
    table = tune(Kernels(), shapes=[(256, 256)], cases=cases)  # type: ignore[arg-type]
    assert {e.layout for e in table.entries} == {"nm-tile"}
    assert table.about.endswith("cuSPARSELt not measured with 256x256: out of memory")
    failing = 0
    with pytest.raises(ModelError):
        tune(Kernels(), shapes=[(256, 256)], cases=cases)  # type: ignore[arg-type]


def test_images_are_measured_on_weights_of_their_own() -> None:
    cases = (Case("block-64", (0.5,), (8,)), Case("block-64", (0.5,), (1, 8), pixels=49))
    table = tune(Kernels(), cases=cases)  # type: ignore[arg-type]
    assert {(e.rows, e.cols) for e in table.entries if e.pixels == 1} == set(SHAPES)
    images = [e for e in table.entries if e.pixels > 1]
    assert {(e.rows, e.cols) for e in images} == set(CONV_SHAPES)
    assert {(e.pixels, e.m) for e in images} == {(49, 49), (49, 8 * 49)}
    assert all(e.dense_ms == 2 * e.rows * e.cols + e.m for e in images)
    one = tune(Kernels(), cases=cases, shapes=[(128, 256)], rows=(8,))  # type: ignore[arg-type]
    assert [(e.rows, e.cols, e.m, e.pixels) for e in one.entries] == [
        (128, 256, 8, 1),
        (128, 256, 8 * 49, 49),
    ]
    assert {case.pixels for case in CASES} == {1, 49, 196, 784}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}-{case.pixels}")
def test_random_weights_fit_their_layout(case: Case) -> None:
    layout = LAYOUTS[case.layout]
    for density in case.densities:
        weight = random_weight(layout, (256, 512), density)
        assert not layout.refusal(weight) and weight.dtype == np.float16
        assert np.count_nonzero(weight) / weight.size == pytest.approx(density, abs=0.03)


def test_shapes() -> None:
    assert parse_shape("4096x11008") == (4096, 11008)
    for text in ("4096", "0x3", "axb", "3x-1", "9999999x3"):
        with pytest.raises(UsageError, match="wanted outputs x inputs"):
            parse_shape(text)


def test_without_library_or_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ops, "cuda_path", lambda: None)
    with pytest.raises(ResourceError, match="not built"):
        open_kernels()

    class Broken:
        problem = "no CUDA device"

        def __init__(self, _: Path) -> None: ...

    monkeypatch.setattr(ops, "cuda_path", lambda: tmp_path)
    monkeypatch.setattr(module, "CudaKernels", Broken)
    with pytest.raises(ResourceError, match="cannot run here: no CUDA device"):
        open_kernels()


def test_cublas_of_a_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "nvidia" / "cu13" / "lib" / "libcublas.so.13"
    path.parent.mkdir(parents=True)
    path.touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert default_cublas().endswith((".so.12", ".so.13"))  # this one, or that of an installed wheel
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(module, "_TOOLKIT", path.parent)
    assert default_cublas() == str(path)
    monkeypatch.setattr(module, "_TOOLKIT", tmp_path)
    assert default_cublas() == ""
