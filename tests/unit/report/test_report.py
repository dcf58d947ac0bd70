from __future__ import annotations

import dataclasses
import json
import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.errors import UsageError
from onnxprune.recipe import Recipe
from onnxprune.report.report import LayerReport, Report, SkippedWeight, Timing, plain, read_json, to_json


def layer(**changes: Any) -> LayerReport:
    values: dict[str, Any] = {
        "name": "fc.weight",
        "nodes": ("/fc/Gemm",),
        "kind": "gemm",
        "shape": (10, 64),
        "weights": 640,
        "zeros": 448,
        "sparsity": 0.7,
        "pattern": "unstructured",
        "criterion": "obs",
        "error": 0.012,
        "sensitivity": 0.5,
        "stored": "packed",
        "dense_bytes": 2560,
        "stored_bytes": 850,
    }
    return LayerReport(**{**values, **changes})


def report(**changes: Any) -> Report:
    values: dict[str, Any] = {
        "model": "m.onnx",
        "output": "m.pruned.onnx",
        "model_digest": "sha256:00",
        "recipe": Recipe(exclude=("head*",)).to_dict(),
        "data": "x.npz: 256 samples",
        "synthetic": False,
        "file_bytes_before": 3_000_000,
        "file_bytes_after": 1_000_000,
        "weights": 640,
        "zeros": 448,
        "sparsity": 0.7,
        "layers": (layer(),),
        "skipped": (SkippedWeight("b", "n", 16, "too small"),),
        "agreements": ({"name": "y", "kind": {"family": "logits", "axis": -1}, "cosine": 0.99},),
        "verdict": "ok",
        "verdict_text": "Fine.",
        "metric": "acc",
        "metric_before": 0.9,
        "metric_after": 0.8,
        "warnings": ("careful",),
        "timings": (Timing("load", 0.1, 0.2),),
        "peak_rss_bytes": 1 << 30,
        "environment": {"python": "3.11", "versions": {"numpy": "2"}},
        "command_line": "onnxprune m.onnx",
    }
    return Report(**{**values, **changes})


def test_round_trip() -> None:
    assert Report.from_dict(json.loads(to_json(report().to_dict()))) == report()


def test_round_trip_of_the_least() -> None:
    least = report(
        output=None, file_bytes_after=None, layers=(), skipped=(), agreements=(), metric_before=None,
        metric_after=None, warnings=(), timings=(), peak_rss_bytes=None, environment={},
    )  # fmt: skip
    assert Report.from_dict(json.loads(to_json(least.to_dict()))) == least


def test_every_field_is_in_the_document() -> None:
    document = report().to_dict()
    assert list(document) == ["schema_version", *(item.name for item in dataclasses.fields(Report))]
    assert document["layers"][0]["nodes"] == ["/fc/Gemm"]
    assert document["skipped"] == [{"name": "b", "node": "n", "weights": 16, "reason": "too small"}]
    assert document["timings"] == [{"stage": "load", "wall_seconds": 0.1, "cpu_seconds": 0.2}]


def test_numpy_values_become_plain_numbers() -> None:
    made = report(
        weights=np.int64(640),
        sparsity=np.float32(0.5),
        synthetic=np.bool_(True),
        layers=[layer(zeros=np.int32(3), error=np.float64(0.25), shape=np.array([2, 3]), nodes=["a"])],
    )
    document = json.loads(to_json(made.to_dict()))
    assert (document["weights"], document["sparsity"], document["synthetic"]) == (640, 0.5, True)
    assert (document["layers"][0]["zeros"], document["layers"][0]["shape"]) == (3, [2, 3])


def test_what_is_not_finite_becomes_null() -> None:
    document = json.loads(to_json(report(metric_after=math.nan, layers=(layer(error=math.inf),)).to_dict()))
    assert document["metric_after"] is None
    assert document["layers"][0]["error"] is None


def test_json_is_ascii_whatever_the_names() -> None:
    text = to_json(report(model="mod\u00e8le-\udcff.onnx", layers=(layer(name="\u5c64\x1b[0m"),)).to_dict())
    assert text.isascii() and "\x1b" not in text
    assert json.loads(text)["layers"][0]["name"] == "\u5c64\x1b[0m"


def test_recipe_of_a_report_repeats_the_run() -> None:
    document = json.loads(to_json(report().to_dict()))
    assert Recipe.from_dict(document["recipe"]) == Recipe(exclude=("head*",))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(schema_version=99), "schema_version 99"),
        (lambda d: d.pop("schema_version"), "schema_version None"),
        (lambda d: d.update(colour=1), "colour"),
        (lambda d: d.pop("weights"), "weights"),
        (lambda d: d["layers"][0].update(colour=1), "colour"),
        (lambda d: d["layers"][0].pop("zeros"), "zeros"),
        (lambda d: d["timings"][0].pop("stage"), "stage"),
        (lambda d: d.update(layers=3), "schema"),
    ],
)
def test_foreign_documents_are_refused(change: Any, words: str) -> None:
    document = report().to_dict()
    change(document)
    with pytest.raises(UsageError, match=words):
        Report.from_dict(document)


def test_save_and_load(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    report().save(path)
    assert Report.load(path) == report()
    assert stat.S_IMODE(path.stat().st_mode) & stat.S_IRUSR
    assert os.listdir(tmp_path) == ["r.json"]


def test_save_keeps_an_existing_file_unless_forced(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text("mine")
    with pytest.raises(UsageError, match="already exists"):
        report().save(path)
    assert path.read_text() == "mine"
    report().save(path, force=True)
    assert Report.load(path) == report()


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff\xfe\x00", b"3"])
def test_load_names_a_file_that_is_no_report(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"r\.json"):
        read_json(path)


def test_load_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        Report.load(tmp_path / "nowhere.json")


@dataclass(frozen=True)
class Sample:
    a: tuple[int, ...]
    b: Timing


def test_plain_knows_the_usual_kinds() -> None:
    assert plain(Sample((1, 2), Timing("x", 1, 2.5))) == {
        "a": [1, 2],
        "b": {"stage": "x", "wall_seconds": 1, "cpu_seconds": 2.5},
    }
    assert plain({1: {"b", "a"}, "p": PurePosixPath("x/y")}) == {"1": ["a", "b"], "p": "x/y"}
    assert plain(np.arange(4).reshape(2, 2)) == [[0, 1], [2, 3]]
    assert plain(np.array([np.nan, 1.0])) == [None, 1.0]
    with pytest.raises(TypeError, match="object"):
        plain(object())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(JSON)
def test_plain_leaves_json_alone(value: Any) -> None:
    assert plain(value) == value
