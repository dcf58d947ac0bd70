"""The view computes what ONNX Runtime computes on graphs from both of torch's exporters."""

from __future__ import annotations

import io
import logging
import warnings

import numpy as np
import onnx
import pytest
import torch

from onnxprune.finetune.view import TorchView
from onnxprune.model import Model
from onnxprune.runtime import session
from tests.unit.finetune.architectures import ARCHITECTURES

pytest.importorskip("onnxscript")  # both exporters need it

TORCHSCRIPT, DYNAMO = (9, 11, 13, 17), (18, 20, 23)
# What the exporter itself cannot write at an opset.
NOT_EXPORTED = {
}


def exported(name: str, opset: int) -> tuple[Model, dict[str, np.ndarray]]:
    torch.manual_seed(0)
    module, inputs = ARCHITECTURES[name]()
    file = io.BytesIO()
    names = [f"in{i}" for i in range(len(inputs))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            torch.onnx.export(
                module.eval(), inputs, file, input_names=names, opset_version=opset,
                dynamo=opset in DYNAMO, verbose=False,
            )  # fmt: skip
        finally:
            logging.disable(logging.NOTSET)
    model = Model(onnx.load_from_string(file.getvalue()))
    return model, {n: x.numpy() for n, x in zip(names, inputs, strict=True)}


def check(name: str, opset: int) -> None:
    model, feeds = exported(name, opset)
    assert model.opset == opset
    view = TorchView(model)
    found = view({n: torch.from_numpy(x) for n, x in feeds.items()})
    wanted = session(model.proto).run(None, feeds)
    for value, right in zip(found.values(), wanted, strict=True):
        assert tuple(value.shape) == right.shape
        assert np.abs(value.detach().numpy() - right).max() <= 1e-5 * max(np.abs(right).max(), 1e-6)
    sum((v * torch.linspace(-1, 1, v.numel()).view(v.shape)).sum() for v in found.values()).backward()
    matrices = {n: w for n, w in view.weights.items() if w.ndim > 1 and w.requires_grad}
    assert matrices
    assert [n for n, w in matrices.items() if w.grad is None or not w.grad.any()] == []


@pytest.mark.slow  # minutes: an export each
@pytest.mark.parametrize("opset", [*TORCHSCRIPT, *DYNAMO])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_export(name: str, opset: int) -> None:
    if (name, opset) in NOT_EXPORTED:
        pytest.skip(NOT_EXPORTED[name, opset])
    check(name, opset)
