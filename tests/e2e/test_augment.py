"""Changed copies of image samples, through the command line, on a transformer that reads images."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.cli import main

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
COPIES = "3 changed copies (flip, shift)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample transformer on patches of images, one with a mask for its scores, and samples for both."""
    made = tmp_path_factory.mktemp("augment")
    onnx.save(_on_images(onnx.load(SAMPLES / "digits_transformer.onnx")), made / "images.onnx")
    onnx.save(_with_mask(onnx.load(SAMPLES / "digits_transformer.onnx")), made / "masked.onnx")
    np.savez(made / "images.npz", image=np.load(SAMPLES / "digits.npz")["image"][:96])
    tokens = np.load(SAMPLES / "digits_tokens.npz")["tokens"][:96]
    causal = np.where(np.tril(np.ones((16, 16))) > 0, 0, -np.inf).astype(np.float32)
    np.savez(made / "masked.npz", tokens=tokens, mask=np.broadcast_to(causal, (96, 1, 16, 16)))
    return made


def _on_images(model: onnx.ModelProto) -> onnx.ModelProto:
    graph = model.graph
    gather = graph.node[0]
    (table,) = (tensor for tensor in graph.initializer if tensor.name in gather.input)
    weight = np.random.default_rng(0).normal(size=(4, table.dims[1])).astype(np.float32)
    graph.initializer.append(numpy_helper.from_array(weight, "patch"))
    graph.initializer.append(numpy_helper.from_array(np.array([-1, 16, 4]), "shape"))
    made = [
        helper.make_node("Reshape", ["image", "shape"], ["patches"]),
        helper.make_node("MatMul", ["patches", "patch"], list(gather.output)),
    ]
    rest = [*made, *graph.node[1:]]
    del graph.node[:], graph.input[:]
    graph.node.extend(rest)
    graph.input.append(helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8]))
    graph.initializer.remove(table)
    return model


def _with_mask(model: onnx.ModelProto) -> onnx.ModelProto:
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type == "Softmax":
            scores = node.input[0]
            nodes.append(helper.make_node("Add", [scores, "mask"], [f"{scores}_masked"]))
            node.input[0] = f"{scores}_masked"
        nodes.append(node)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    mask = helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["batch", 1, 16, 16])
    model.graph.input.append(mask)
    return model


def prune(folder: Path, name: str, *words: str) -> dict[str, Any]:
    """Prune ``name.onnx`` with ``name.npz`` and return the report."""
    output, errors = io.StringIO(), io.StringIO()
    command = [str(folder / f"{name}.onnx"), "--data", str(folder / f"{name}.npz"), "--json", "--force"]
    command += ["-o", str(folder / "out.onnx"), "--threads", "1", "--target-runtime", "stock", *words]
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        assert main(command) == 0, errors.getvalue()
    report: dict[str, Any] = json.loads(output.getvalue())
    return report


@pytest.mark.parametrize(
    "words",
    [
        ("--sparsity", "0.5", "--attention", "token"),
        ("--sparsity", "0.5", "--pattern", "structured+unstructured", "--attention", "token"),
        ("--min-agreement", "0.5", "--attention", "token", "--patience", "1"),
    ],
)
def test_token_weights_are_those_of_the_copies_too(folder: Path, words: tuple[str, ...]) -> None:
    assert prune(folder, "images", *words)["data"].endswith(COPIES)


def test_none_is_none(folder: Path) -> None:
    report = prune(folder, "images", "--sparsity", "0.5", "--augment", "none")
    assert "changed" not in report["data"]


def test_a_mask_is_no_image(folder: Path) -> None:
    report = prune(folder, "masked", "--sparsity", "0.5")
    assert "changed" not in report["data"]
    assert report["verdict"] == "ok"
