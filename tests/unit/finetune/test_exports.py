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
# The first opset at which torch can write an architecture, and for densenet ONNX Runtime can run it.
FIRST = {
    "densenet": 11,
    "pyramid": 11,
    "mixture": 13,
    "encoder": 17,
    "fused_attention": 17,
    "llama": 17,
    "vit": 17,
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


def assert_equal_to_runtime(name: str, opset: int) -> None:
    model, feeds = exported(name, opset)
    assert model.opset == opset
    view = TorchView(model)
    wanted = session(model.proto).run(None, feeds)
    for learning in (False, True):
        with torch.set_grad_enabled(learning):
            found = view({n: torch.from_numpy(x) for n, x in feeds.items()})
        for value, right in zip(found.values(), wanted, strict=True):
            assert tuple(value.shape) == right.shape
            assert np.abs(value.detach().numpy() - right).max() <= 1e-5 * max(np.abs(right).max(), 1e-6)
    sum((v * torch.linspace(-1, 1, v.numel()).view(v.shape)).sum() for v in found.values()).backward()
    matrices = {n: w for n, w in view.weights.items() if w.ndim > 1 and w.requires_grad}
    assert matrices
    assert [n for n, w in matrices.items() if w.grad is None or not w.grad.any()] == []
    # "meta" holds no data: shape arithmetic that left the CPU, or data read as a shape, would fail
    shapes = {
        n: v.shape for n, v in view.to("meta")({n: torch.from_numpy(x) for n, x in feeds.items()}).items()
    }
    assert shapes == {n: v.shape for n, v in found.items()}


EVERY = [(n, o) for n in ARCHITECTURES for o in (*TORCHSCRIPT, *DYNAMO) if o >= FIRST.get(n, 0)]
QUICK = [(name, 17) for name in ARCHITECTURES]


@pytest.mark.parametrize(("name", "opset"), QUICK)
def test_export(name: str, opset: int) -> None:
    assert_equal_to_runtime(name, opset)


@pytest.mark.slow  # the newer exporter takes seconds for each
@pytest.mark.parametrize(("name", "opset"), [pair for pair in EVERY if pair not in QUICK])
def test_export_at_every_opset(name: str, opset: int) -> None:
    assert_equal_to_runtime(name, opset)
