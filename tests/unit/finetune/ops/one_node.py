"""One node, run by ONNX Runtime (or by the reference evaluator) and by its function in the torch view."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper
from onnx.reference import ReferenceEvaluator

from onnxprune import runtime
from onnxprune.finetune import ops, registry  # noqa: F401 - ops fills the registry

torch.set_num_threads(1)
Array = NDArray[Any]


class Node(NamedTuple):
    """A node with its inputs; an input that is None is left out."""

    op: str
    inputs: Sequence[Array | None]
    attributes: Mapping[str, Any]
    outputs: int = 1
    opset: int = 17
    domain: str = ""
    float_outputs: bool = False  # for operators whose types ONNX Runtime cannot infer

    def model(self) -> onnx.ModelProto:
        """The node as a model with inputs x0, x1, ... and outputs y0, y1, ..."""
        names = [f"x{i}" if x is not None else "" for i, x in enumerate(self.inputs)]
        outputs = [f"y{i}" for i in range(self.outputs)]
        node = helper.make_node(self.op, names, outputs, domain=self.domain, **self.attributes)
        feeds = [
            helper.make_tensor_value_info(f"x{i}", helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
            for i, x in enumerate(self.inputs)
            if x is not None
        ]
        imports = [helper.make_opsetid("", max(self.opset, 17) if self.domain else self.opset)]
        if self.domain:
            imports.append(helper.make_opsetid(self.domain, self.opset))
        results = [onnx.ValueInfoProto(name=name) for name in outputs]
        if self.float_outputs:
            results = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs]
        graph = helper.make_graph([node], "g", feeds, results)
        return helper.make_model(graph, opset_imports=imports, ir_version=10)

    def feeds(self) -> dict[str, Array]:
        return {f"x{i}": x for i, x in enumerate(self.inputs) if x is not None}

    def by_ort(self, model: onnx.ModelProto | None = None) -> list[Array]:
        # without optimisations: what the operator itself does, not what a fusion makes of it
        session = runtime.session(model or self.model(), threads=1, optimize=False)
        results: list[Array] = session.run(None, self.feeds())
        return results

    def by_reference(self) -> list[Array]:
        results: list[Array] = ReferenceEvaluator(self.model()).run(None, self.feeds())
        return results

    def call(self, *tensors: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """Call the function of the torch view as the view does."""
        found = registry.find(self.domain, self.op, self.opset)
        assert found is not None
        assert self.attributes.keys() <= found.attributes
        assert found.required <= self.attributes.keys()
        attributes = {k: tuple(v) if isinstance(v, list) else v for k, v in self.attributes.items()}
        if found.wants_outputs:
            attributes["outputs"] = (True,) * self.outputs
        result = found.function(*tensors, **attributes)
        return result if isinstance(result, tuple) else (result,)

    def by_torch(self) -> list[Array]:
        tensors = [None if x is None else torch.from_numpy(x.copy()) for x in self.inputs]
        with torch.no_grad():
            return [y.numpy() for y in self.call(*tensors)[: self.outputs]]

    def gradients(self) -> list[torch.Tensor | None]:
        """Gradient of a random projection of the float outputs, for every float input (None for others)."""
        tensors = [None if x is None else torch.from_numpy(x.copy()) for x in self.inputs]
        for tensor in tensors:
            if tensor is not None and tensor.is_floating_point():
                tensor.requires_grad_()
        generator = torch.Generator().manual_seed(0)
        loss = torch.zeros(())
        for y in self.call(*tensors)[: self.outputs]:
            if y.is_floating_point():
                loss = loss + (y * torch.randn(y.shape, generator=generator)).sum()
        loss.backward()
        return [None if t is None or not t.is_floating_point() else t.grad for t in tensors]


def assert_same(
    ours: Sequence[Array], theirs: Sequence[Array], *, rtol: float = 1e-5, atol: float = 1e-5
) -> None:
    """Compare shapes, element types and values."""
    assert len(ours) == len(theirs)
    for index, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        assert mine.dtype == other.dtype, index
        np.testing.assert_allclose(mine, other, rtol=rtol, atol=atol, err_msg=f"output {index}", strict=True)


def assert_gradients(node: Node, *, without: Sequence[int] = ()) -> None:
    """A finite gradient that is not all zero reaches every float input but ``without``."""
    for index, (x, grad) in enumerate(zip(node.inputs, node.gradients(), strict=True)):
        if x is None or x.dtype.kind != "f" or index in without:
            continue
        assert grad is not None, f"no gradient reaches input {index}"
        assert torch.isfinite(grad).all(), f"the gradient of input {index} is not finite"
        assert grad.abs().max() > 0, f"the gradient of input {index} is zero"


def draws(seed: int = 3) -> Any:
    """Return ``draw(*shape)``: normal numbers, the same ones in every call of this."""
    rng = np.random.default_rng(seed)
    return lambda *shape: rng.standard_normal(shape).astype(np.float32)


def trimmed(inputs: list[Array | None]) -> list[Array | None]:
    """Leave out inputs at the end that are absent."""
    while inputs[-1] is None:
        inputs.pop()
    return inputs
