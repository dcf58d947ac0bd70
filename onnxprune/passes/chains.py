"""What follows a product and fits into the epilogue of an op with a kernel."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from onnx import TensorProto

from onnxprune.model import Model, only_reader
from onnxprune.passes.products import Product
from onnxprune.passes.regions import Region, activation, normalisation
from onnxprune.passes.shapes import Shapes
from onnxprune.storage.sparse_functions import Epilogue


@dataclass(frozen=True)
class Chain:
    """A product and nodes behind it that one op replaces; nothing else reads the values in between.

    Attributes:
        product: where it begins.
        nodes: positions of all nodes that go, ascending.
        output: the value that the op makes.
        epilogue: what the nodes behind the product do.
        bias: a value ``(N,)`` or a constant that broadcasts to it, empty for none.
        residual: the other operand of the Add, or empty.
        norm: gamma and beta.
        numbers: the attributes ``low`` and ``high``, or ``epsilon``.
    """

    product: Product
    nodes: tuple[int, ...]
    output: str
    epilogue: Epilogue = field(default_factory=Epilogue)
    bias: str = ""
    residual: str = ""
    norm: tuple[str, ...] = ()
    numbers: Mapping[str, float] = field(default_factory=dict)

    @property
    def op_type(self) -> str:
        """Name of the op."""
        return replace(self.product.op, epilogue=self.epilogue).name


def chains(model: Model, product: Product, shapes: Shapes) -> list[Chain]:
    """Return all ways to replace ``product``, from the product alone to the longest."""
    node = model.graph.node[product.position]
    plain = Chain(product, (*sorted(product.absorbed), product.position), node.output[0], bias=product.bias)
    found = [plain if product.bias else _with_bias(model, plain, shapes)]
    if product.op.consumer != "Gemm":
        found += _with_residual(model, found[-1], shapes)
    found += _with_activation(model, found[-1])
    if product.op.consumer == "MatMul" and not found[-1].epilogue.activation:
        found += _with_norm(model, found[-1])
    return [c for c in found if not replace(product.op, epilogue=c.epilogue).refusal(model.opset)]


def _reader(model: Model, value: str, op_type: str) -> tuple[int, str] | None:
    """Return position and other operand of the one node that reads ``value``, if it is of this type."""
    node = only_reader(model, value)
    if node is None or node.op_type != op_type or node.domain not in ("", "ai.onnx"):
        return None
    other = node.input[1] if node.input[0] == value else node.input[0]
    return None if other == value else (model.index.uses[value][0].index, other)


def _grow(chain: Chain, nodes: tuple[int, ...], output: str) -> Chain:
    return replace(chain, nodes=tuple(sorted({*chain.nodes, *nodes})), output=output)


def _with_bias(model: Model, chain: Chain, shapes: Shapes) -> Chain:
    found = _reader(model, chain.output, "Add")
    if found is None:
        return chain
    position, other = found
    tensor = model.index.tensors.get(other)
    if tensor is None or not _is_bias(tensor, chain.product, shapes.rank(chain.output)):
        return chain
    return replace(_grow(chain, (position,), model.graph.node[position].output[0]), bias=other)


def _is_bias(tensor: TensorProto, product: Product, rank: int | None) -> bool:
    """Whether a constant is one number for each output, and adds no axis to the product's output."""
    dims = list(tensor.dims)
    if tensor.data_type != TensorProto.FLOAT or math.prod(dims) != product.features:
        return False
    if product.axis == 1:
        space = len(product.shape) - 2
        return len(dims) in (space + 1, space + 2) and dims[-space - 1] == product.features
    return bool(dims) and dims[-1] == product.features and len(dims) <= (rank or 2)


def _with_residual(model: Model, chain: Chain, shapes: Shapes) -> list[Chain]:
    found = _reader(model, chain.output, "Add")
    if found is None or found[1] in model.index.tensors:
        return []
    position, other = found
    output = model.graph.node[position].output[0]
    if not (shapes.equal(chain.output, other) and shapes.rank(other)):
        return []
    longer = _grow(chain, (position,), output)
    return [replace(longer, residual=other, epilogue=replace(chain.epilogue, residual=True))]


def _with_activation(model: Model, chain: Chain) -> list[Chain]:
    found = activation(model, chain.output)
    if found is None:
        return []
    region, known = found
    numbers = {"low": known.low, "high": known.high} if known.name == "Clip" else {}
    end = replace(chain.epilogue, activation=known.name)
    return [replace(_longer(chain, region), epilogue=end, numbers=numbers)]


def _with_norm(model: Model, chain: Chain) -> list[Chain]:
    found = normalisation(model, chain.output, chain.product.features)
    if found is None:
        return []
    region, known = found
    end = replace(chain.epilogue, norm=True)
    norm, numbers = (known.gamma, known.beta), {"epsilon": known.epsilon}
    return [replace(_longer(chain, region), epilogue=end, norm=norm, numbers=numbers)]


def _longer(chain: Chain, region: Region) -> Chain:
    return _grow(chain, region.nodes, region.output)
