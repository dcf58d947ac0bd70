"""Cut a chain out of a model: a small model of its own, to be run and measured alone."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxprune.model import Model
from onnxprune.passes.chains import Chain
from onnxprune.passes.constants import evaluate
from onnxprune.storage.domain import write_functions


def cut_out(model: Model, chain: Chain, shapes: Mapping[str, tuple[int, ...]]) -> Model:
    """Return a model of the nodes of ``chain`` as they are in ``model``.

    Args:
        model: what ``chain`` was found in.
        chain: its input and residual become inputs, its output the output; what else it reads is constant.
        shapes: of the input and the residual.
    """
    decoder = model.index.producer.get(chain.product.weight)  # of a weight that other nodes read too
    before = [] if decoder is None or chain.product.weight in model.index.tensors else [decoder]
    nodes = [model.graph.node[position] for position in (*before, *chain.nodes)]
    made = {output for node in nodes for output in node.output}
    read = list(dict.fromkeys(name for node in nodes for name in node.input if name and name not in made))
    inputs = [name for name in dict.fromkeys((chain.product.x, chain.residual)) if name]
    computed = evaluate(model, [n for n in read if n not in inputs and n not in model.index.tensors])
    proto = onnx.ModelProto(ir_version=model.proto.ir_version)
    proto.opset_import.extend(o for o in model.proto.opset_import if o.domain in ("", "ai.onnx"))
    graph = proto.graph
    graph.name = "chain"
    graph.node.extend(nodes)
    graph.input.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shapes[name])) for name in inputs
    )
    graph.output.append(helper.make_tensor_value_info(chain.output, TensorProto.FLOAT, None))
    for name in read:
        if name in model.index.tensors:
            tensor = graph.initializer.add()
            tensor.CopyFrom(model.index.tensors[name])
            tensor.name = name
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in computed.items())
    small = Model(proto)
    write_functions(small)
    return small
