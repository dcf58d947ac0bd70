"""Put ops with a CUDA kernel in the place of matrix products, where they are chosen for it.

Matches (:mod:`onnxprune.passes.device_products`): MatMul whose second operand is a matrix and a constant,
Gemm with plain attributes, and Conv with a kernel of ones, stride 1, one group and no padding, that alone
read their weight; with the bias and the activation behind them, if nothing else reads the values in between
and none of them is a graph output. Weights are float32, float16 or bfloat16. Changes: product, bias and
activation become one node of domain ``onnxprune`` with the product's name; the weight's tensor becomes the
values of its layout, others come beside it. Where the model is float32, the weight and the bias are rounded
to float16, a Cast goes before the node (one for all that read the same value) and one behind it. Writes the
functions; IR version 8 or newer. Guarantees: stock ONNX Runtime computes the same from the same weights,
decoded at load. :mod:`onnxprune.passes.unpack` makes standard nodes again.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxprune.model import Model
from onnxprune.passes.device_products import DeviceProduct, device_matrix, find_device_products
from onnxprune.passes.expand import NO_BIAS
from onnxprune.passes.unread import drop_unread
from onnxprune.storage.device.functions import DeviceOp, attributes
from onnxprune.storage.device.layout import Layout
from onnxprune.storage.domain import write_functions
from onnxprune.storage.edit import Names, drop_value_info, fill, raise_ir_version
from onnxprune.storage.form import DOMAIN, MIN_IR_VERSION, Array, onnx_type


def rewrite_device(
    model: Model, chosen: Mapping[str, Layout], many_rows: Mapping[str, int] | None = None
) -> None:
    """Replace the products of the weights ``chosen`` (name -> layout) in place.

    Each must be among :func:`find_device_products`, and its layout must not refuse :func:`device_matrix`;
    that of a convolution has a kernel for it (:data:`onnxprune.storage.device.functions.IMAGES`).
    ``many_rows``: of 2:4 weights, from how many rows of X on cuSPARSELt multiplies, 0 for never; the kernel
    decides for the others.
    """
    if not chosen:
        return
    products, _ = find_device_products(model)
    writer = _Writer(model)
    for weight, layout in chosen.items():
        writer.replace(products[weight], layout, (many_rows or {}).get(weight))
    writer.finish()


class _Writer:
    """State of one call: new nodes are put in place once all are known."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.names = Names(model)
        self.casts: dict[str, tuple[str, onnx.NodeProto]] = {}  # X -> its value in 16 bits, and the node
        self.gone: dict[int, list[onnx.NodeProto]] = {}  # position -> what comes there
        self.stale: set[str] = set()

    def replace(self, product: DeviceProduct, layout: Layout, many_rows: int | None) -> None:
        """Make the nodes of one product."""
        graph = self.model.graph
        matrix = device_matrix(self.model, product)
        assert matrix is not None and not layout.refusal(matrix)
        wide = self.model.index.tensors[product.weight].data_type == TensorProto.FLOAT
        kind = onnx_type(matrix.dtype)
        old = graph.node[next(i for i in product.nodes if product.weight in graph.node[i].input)]
        bias = self._bias(product, matrix)  # before the weight is gone
        tensors = self._tensors(product.weight, layout, layout.encode(matrix))
        op = DeviceOp(layout.prefix, product.activation, bool(product.space))
        x = self._cast(product.x) if wide else product.x
        y = self.names.fresh(f"{product.output}_fp16") if wide else product.output
        node = helper.make_node(op.name, [x, *tensors, bias], [y], old.name, old.doc_string, DOMAIN)
        node.metadata_props.extend(old.metadata_props)
        node.attribute.extend(
            attributes(layout, len(matrix), matrix.shape[1], kind, product.trans, many_rows, product.space)
        )
        node.attribute.extend(helper.make_attribute(name, value) for name, value in product.limits.items())
        after = (
            [helper.make_node("Cast", [y], [product.output], f"{y}_to_float32", to=TensorProto.FLOAT)]
            if wide
            else []
        )
        for position in product.nodes:
            self.gone[position] = []
            self.stale.update(set(graph.node[position].output) - {product.output})
        self.gone[product.nodes[-1]] = [node, *after]

    def _cast(self, x: str) -> str:
        """Return the name of ``x`` in float16; ``finish`` puts the node behind the one that makes ``x``."""
        if x not in self.casts:
            name = self.names.fresh(f"{x}_fp16")
            self.casts[x] = (
                name,
                helper.make_node("Cast", [x], [name], f"{name}_from_float32", to=TensorProto.FLOAT16),
            )
        return self.casts[x][0]

    def _bias(self, product: DeviceProduct, matrix: Array) -> str:
        values = np.zeros(len(matrix), matrix.dtype)
        name = f"{product.weight}{NO_BIAS}"
        if product.bias:
            values = self.model.array(product.bias).reshape(-1).astype(matrix.dtype)
            name = f"{product.bias}_{matrix.dtype}"
        name = self.names.fresh(name)
        self.model.graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    def _tensors(self, weight: str, layout: Layout, tensors: tuple[Array, ...]) -> list[str]:
        """Put the tensors of the layout where the weight was; return their names in order."""
        names = []
        for role, array in zip(layout.inputs, tensors, strict=True):
            if role == "values":
                names.append(weight)
                fill(self.model.index.tensors[weight], numpy_helper.from_array(array, weight))
            else:
                names.append(self.names.fresh(f"{weight}_{role}"))
                self.model.graph.initializer.append(numpy_helper.from_array(array, names[-1]))
        self.stale.add(weight)
        return names

    def finish(self) -> None:
        """Put the nodes in place, drop what nobody reads, write the functions."""
        graph = self.model.graph
        read = {name for position in self.gone for name in graph.node[position].input if name}
        for position in sorted(self.gone, reverse=True):
            del graph.node[position]
            for node in reversed(self.gone[position]):
                graph.node.insert(position, node)
        for x, (_, cast) in self.casts.items():
            made = next((i for i, node in enumerate(graph.node) if x in node.output), -1)
            graph.node.insert(made + 1, cast)
        drop_value_info(graph, self.stale)
        self.model.reindex()
        drop_unread(self.model, read)
        raise_ir_version(self.model, MIN_IR_VERSION, self.stale)
        self.model.reindex()
        write_functions(self.model)
