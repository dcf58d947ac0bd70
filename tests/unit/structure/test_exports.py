"""Removal equals masking on graphs that torch's two exporters write, with fixed and with free sizes."""

from __future__ import annotations

import io
import logging
import warnings

import numpy as np
import onnx
import pytest
import torch

from onnxprune.model import Model
from tests.unit.structure.graphs import assert_removal_is_masking, summary
from tests.unit.structure.networks import ALL, NETWORKS

pytest.importorskip("onnxscript")  # both exporters need it

TOKENS = ("bert", "llama", "decoder", "encoder", "cross_attention")  # the second axis is a length
# The kinds of groups, and how many units each has; the same from both exporters.
FOUND = {
}
def exported(name: str, opset: int, dynamo: bool, free: bool = False) -> tuple[Model, dict[str, np.ndarray]]:
    """Return the model and its inputs; with ``free`` the batch (and the tokens) may have any size."""
    torch.manual_seed(0)
    module, inputs = ALL[name]()
    file = io.BytesIO()
    names = [f"in{i}" for i in range(len(inputs))]
    axes = [{0: "batch", 1: f"tokens{i}"} if name in TOKENS else {0: "batch"} for i in range(len(inputs))]
    more: dict[str, object] = {}
    if free:
        more = {"dynamic_shapes": axes} if dynamo else {"dynamic_axes": dict(zip(names, axes, strict=True))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            torch.onnx.export(
                module.eval(), inputs, file, input_names=names, opset_version=opset, dynamo=dynamo,
                verbose=False, **more,
            )  # fmt: skip
        finally:
            logging.disable(logging.NOTSET)
    model = Model(onnx.load_from_string(file.getvalue()))
    return model, {n: x.numpy() for n, x in zip(names, inputs, strict=True)}

