"""Every operator that the view claims passes the node tests of ONNX, or stands here with a reason."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnx.backend.test.case.node import collect_testcases
from onnx.backend.test.case.test_case import TestCase
from onnx.reference.op_run import OpRun  # noqa: F401 - makes numpy know the types of ONNX

from onnxprune.errors import ModelError
from onnxprune.finetune import registry
from onnxprune.finetune.dtypes import torch_tensor
from onnxprune.finetune.view import TorchView
from onnxprune.model import Model, subgraphs

NARROW = "torch has no type of 4 or fewer bits to make, nor the 8-bit exponent"
HALF = "half precision is rounded after other operations than in numpy; the view trains in float32"
RANDOM = "random numbers"
EXCEPTIONS: dict[str, str] = {
    "test_attention_*_bf16*": HALF,
    "test_attention_4d_causal_fp16*": HALF,
    "test_bernoulli_*expanded": RANDOM,
    "test_cast*_to_FLOAT4E2M1*": NARROW,
    "test_cast*_to_*INT[24]*": NARROW,
    "test_cast_e8m0_*_to_FLOAT8E8M0": NARROW,
    "test_dft_inverse*": "zeros that numpy makes 2e-6; the test's absolute tolerance is 1e-7",
    "test_equal_string*": "torch has no strings",
    "test_quantizelinear_*int[24]": NARROW,
    "test_quantizelinear_float4e2m1": NARROW,
    "test_resize_downsample_scales_*_align_corners": "the last position: as ONNX Runtime, by the true length",
    "test_training_dropout": RANDOM,
    "test_training_dropout_default*": RANDOM,
    "test_training_dropout_mask": RANDOM,
}


def claimed(case: TestCase) -> bool:
    """Whether each node of the test, also in subgraphs and functions, is one that we say we run."""
    assert case.model is not None
    versions = {o.domain: o.version for o in case.model.opset_import}
    local = {(f.domain, f.name) for f in case.model.functions}

    def nodes(graph: Any) -> Iterator[onnx.NodeProto]:
        for node in graph.node:
            yield node
            for inner in subgraphs(node):
                yield from nodes(inner)

    every = [*nodes(case.model.graph), *(n for f in case.model.functions for n in nodes(f))]
    return (
        bool(every)
        and all(
            (n.domain, n.op_type) in local
            or any(
                i.name == n.op_type and i.domain == n.domain.replace("ai.onnx", "")
                for i in registry.registered()
            )
            for n in every
        )
        and bool(versions)
    )


CASES = {case.name: case for case in collect_testcases(None) if case.model is not None and claimed(case)}


def reason(name: str) -> str | None:
    return next((why for pattern, why in EXCEPTIONS.items() if fnmatch.fnmatchcase(name, pattern)), None)


def to_torch(value: Any) -> Any:
    if isinstance(value, list):
        return [to_torch(item) for item in value]
    if value is None:
        return None
    if isinstance(value, onnx.TensorProto):
        return torch_tensor(value, widen=False)
    return torch_tensor(numpy_helper.from_array(np.asarray(value)), widen=False)


def compare(found: Any, wanted: Any, case: TestCase) -> None:
    if isinstance(wanted, list):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            compare(one, other, case)
        return
    expected = to_torch(wanted)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    if found.dtype.is_floating_point and found.dtype.itemsize < 4:
        found, expected = found.float(), expected.float()
    np.testing.assert_allclose(
        found.detach().resolve_conj().numpy(), expected.numpy(), rtol=case.rtol, atol=case.atol
    )


def run(case: TestCase) -> None:
    assert case.model is not None and case.data_sets
    view = TorchView(Model(case.model), widen=False)
    for inputs, outputs in case.data_sets:
        names = [i.name for i in case.model.graph.input]
        feeds = {name: to_torch(value) for name, value in zip(names, inputs, strict=True)}
        for feed in feeds.values():
            if isinstance(feed, torch.Tensor) and feed.dtype in (torch.float32, torch.float64):
                feed.requires_grad_()
        found = view(feeds)
        for name, wanted in zip((o.name for o in case.model.graph.output), outputs, strict=True):
            compare(found[name], wanted, case)
        smooth = [y for y in found.values() if isinstance(y, torch.Tensor) and y.requires_grad]
        if smooth:  # the way back runs as well
            torch.autograd.backward(smooth, [torch.ones_like(y) for y in smooth])


def parameter(name: str) -> Any:
    """The same operator written out in others is for the slow tests: it has its own cases here already."""
    return pytest.param(name, marks=[pytest.mark.slow] if "_expanded" in name else [])


@pytest.mark.parametrize("name", [parameter(n) for n in sorted(CASES) if reason(n) is None])
def test_node(name: str) -> None:
    run(CASES[name])


@pytest.mark.parametrize("name", sorted(n for n in CASES if reason(n) is not None))
def test_exception_still_holds(name: str) -> None:
    with pytest.raises((AssertionError, ModelError, registry.Unsupported, TypeError)):
        run(CASES[name])


def test_every_exception_names_a_test() -> None:
    assert [p for p in EXCEPTIONS if not fnmatch.filter(CASES, p)] == []
