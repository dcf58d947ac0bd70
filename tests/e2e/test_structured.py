"""Structured pruning through the command line: smaller shapes, plain operators, the same interface."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune.cli import main
from onnxprune.interface import interface_differences
from onnxprune.io import load
from onnxprune.report.report import Report

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
DATA = {"digits_cnn": "digits.npz", "digits_transformer": "digits_tokens.npz"}
FAST = ("--samples", "64", "--threads", "1")


def command(folder: Path, name: str, *words: str | Path) -> tuple[int, str, str]:
    """Prune a sample; return status, stdout and stderr."""
    output, errors = io.StringIO(), io.StringIO()
    given = (SAMPLES / f"{name}.onnx", "-o", folder / "out.onnx", "--data", SAMPLES / DATA[name], *FAST)
    with contextlib.chdir(folder), contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        status = main([str(word) for word in (*given, *words)])
    return status, output.getvalue(), errors.getvalue()


def prune(folder: Path, name: str, *words: str | Path) -> dict[str, Any]:
    status, text, errors = command(folder, name, "--json", *words)
    assert status == 0, errors
    dense, smaller = load(SAMPLES / f"{name}.onnx"), load(folder / "out.onnx")
    onnx.checker.check_model(str(folder / "out.onnx"), full_check=True)
    assert not interface_differences(dense, smaller)
    found: dict[str, Any] = json.loads(text)
    assert Report.from_dict(found).structured == found["structured"]
    return found


def less(found: dict[str, Any], what: str) -> float:
    before, after = found["structured"][what]
    return float(after / before)


@pytest.mark.parametrize("name", DATA)
def test_a_share_of_the_multiplications(tmp_path: Path, name: str) -> None:
    words = ("--pattern", "structured", "--budget", "flops", "--sparsity", "0.4")
    words += ("--allocation", "error") if name == "digits_cnn" else ()
    found = prune(tmp_path, name, *words, "--target-runtime", "stock")
    assert 0.5 < less(found, "multiplications") <= 0.6
    assert found["file_bytes_after"] < 0.8 * found["file_bytes_before"]
    assert found["agreements"][0]["top1"] > 0.95
    used = {node.op_type for node in onnx.load(tmp_path / "out.onnx").graph.node}
    assert used <= {node.op_type for node in onnx.load(SAMPLES / f"{name}.onnx").graph.node}
    kinds = {group["kind"] for group in found["structured"]["groups"]}
    assert kinds == ({"channel", "neuron"} if name == "digits_cnn" else {"head", "neuron"})


def test_a_speed(tmp_path: Path) -> None:
    words = ("--pattern", "neuron,head", "--target-speedup", "1.3x")
    found = prune(tmp_path, "digits_transformer", *words)
    assert found["structured"]["predicted"] > 1.1
    assert found["structured"]["speed"][0]["ratio"] > 1.1
    assert less(found, "parameters") < 0.95


def test_some_kinds_and_multiples(tmp_path: Path) -> None:
    words = ("--pattern", "neuron", "--sparsity", "0.5", "--round-to", "24", "--allocation", "uniform")
    found = prune(tmp_path, "digits_transformer", *words)
    groups = found["structured"]["groups"]
    assert {group["kind"] for group in groups} == {"neuron"}
    assert all(group["after"] % 24 == 0 and 0 < group["after"] < group["before"] for group in groups)
    assert any("does not name head" in item["reason"] for item in found["structured"]["pinned"])


def test_zeros_in_what_is_left(tmp_path: Path) -> None:
    words = ("--pattern", "structured+2:4", "--sparsity", "0.7", "--allocation", "error")
    found = prune(tmp_path, "digits_transformer", *words)
    assert found["sparsity"] == pytest.approx(0.5, abs=0.01)
    assert {layer["pattern"] for layer in found["layers"]} == {"2:4"}
    assert less(found, "parameters") < 0.9
    assert found["agreements"][0]["top1"] > 0.9


def test_whole_branches(tmp_path: Path) -> None:
    words = ("--pattern", "layer", "--budget", "flops", "--sparsity", "0.3")
    found = prune(tmp_path, "digits_transformer", *words)
    gone = [group for group in found["structured"]["groups"] if not group["after"]]
    assert gone and all(group["kind"] == "layer" for group in gone)
    adds = [sum(n.op_type == "Add" for n in onnx.load(p).graph.node) for p in (
        SAMPLES / "digits_transformer.onnx", tmp_path / "out.onnx")]  # fmt: skip
    assert adds[1] <= adds[0] - len(gone)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["oneshot", "cubic:2"])
def test_training_a_smaller_model(tmp_path: Path, schedule: str) -> None:
    words = ("--pattern", "structured", "--sparsity", "0.7", "--finetune", "--steps", "8", "--lr", "0.001")
    found = prune(tmp_path, "digits_transformer", *words, "--schedule", schedule)
    assert 0.3 < less(found, "parameters") < 0.6
    assert found["finetuning"]["steps"] == 8
    assert found["finetuning"]["after"] <= 1.25 * found["finetuning"]["before"]  # or the start is kept


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--pattern", "hidden"), "nothing can be removed with --pattern hidden"),
        (("--pattern", "head", "--sparsity", "0.9"), "was asked for"),
        (("--pattern", "structured", "--exclude", "*"), "nothing can be removed"),
        (("--pattern", "neuron", "--threshold", "mean"), "removes whole units"),
    ],
)
def test_refusals_say_why(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    status, _, errors = command(tmp_path, "digits_transformer", *words)
    assert status in (2, 3) and message in errors
    assert not (tmp_path / "out.onnx").exists()


def test_the_terminal_says_what_became_of_the_shapes(tmp_path: Path) -> None:
    status, text, _ = command(tmp_path, "digits_transformer", "--pattern", "neuron", "--sparsity", "0.5")
    assert status == 0
    assert "fewer multiplications" in text and "groups made smaller" in text and "parameters" in text


def test_equal_vectors_that_are_stored_once_do_not_tie_layers(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    nodes, values = [], {"b": np.zeros(32, np.float32), "c": np.zeros(4, np.float32)}
    for k, (read, made, bias) in enumerate([("x", "p", "b"), ("q", "r", "b"), ("s", "y", "c")]):
        values[f"w{k}"] = rng.normal(size=(32, len(values[bias]))).astype(np.float32)
        nodes.append(onnx.helper.make_node("Gemm", [read, f"w{k}", bias], [made], name=f"fc{k}"))
        if made != "y":
            nodes.append(onnx.helper.make_node("Relu", [made], [chr(ord(made) + 1)]))
    ends = [onnx.helper.make_tensor_value_info(n, 1, ["N", size]) for n, size in (("x", 32), ("y", 4))]
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in values.items()]
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), tmp_path / "in.onnx")
    known = onnxprune.inspect(tmp_path / "in.onnx", groups=True).structure
    assert known is not None and [group.name for group in known.groups] == ["fc0", "fc1"]
    for target in ("stock", "cpu"):
        report = onnxprune.prune(
            tmp_path / "in.onnx", pattern="neuron", sparsity=0.5, target_runtime=target, dry_run=True
        )
        assert report.structured is not None
        assert [group["name"] for group in report.structured["groups"]] == ["fc0", "fc1"]


def test_as_many_units_as_a_floor_allows(tmp_path: Path) -> None:
    words = (
        "--pattern",
        "structured",
        "--max-drop",
        "1%",
        "--eval",
        f"{SAMPLES / 'digits_eval.py'}:accuracy",
    )
    found = prune(tmp_path, "digits_cnn", *words, "--target-runtime", "stock", "--criterion", "wanda")
    assert found["metric_after"] >= 0.99 * found["metric_before"]
    assert less(found, "parameters") < 0.7
    assert found["search"]["chosen"] > 0.3
    assert any(not point["holds"] for point in found["search"]["points"])
