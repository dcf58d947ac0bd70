"""Structure of an untrusted model: everything the index and ONNX Runtime take for granted.

Rules follow the ONNX IR specification where ONNX Runtime enforces it, or where a violation makes the
model ambiguous (two values of one name). Nodes are in topological order by then, unless they form a cycle
(see :mod:`onnxprune.files.order`). ``onnx.checker`` is not used: it has no limits on nesting or inlining
and would read the external data a second time.
Of two nodes with one name, one may be a Constant: ONNX Runtime makes an initializer of it before it looks at
names, and exporters write such files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx
from onnx import AttributeProto

from onnxprune.errors import ModelError
from onnxprune.files.tensors import describe, show
from onnxprune.model import subgraphs

MAX_CALL_DEPTH = 128  # chain of local functions; ONNX Runtime 1.31 overflows its stack below 5,000
MAX_INLINED_NODES = 10_000_000  # after inlining; two calls a level double it 30 levels down

_ONNX = ("", "ai.onnx")
_CONTENT = (
    ("t", AttributeProto.TENSOR),
    ("g", AttributeProto.GRAPH),
    ("sparse_tensor", AttributeProto.SPARSE_TENSOR),
)
_CONTENTS = (
    ("tensors", AttributeProto.TENSORS),
    ("graphs", AttributeProto.GRAPHS),
    ("sparse_tensors", AttributeProto.SPARSE_TENSORS),
)

FunctionKey = tuple[str, str, str]  # domain, name, overload


def check_structure(proto: onnx.ModelProto) -> None:
    """Check everything about ``proto`` but its tensors.

    Raises:
        ModelError: naming the node and the value.
    """
    _check_header(proto)
    domains = {_domain(o.domain) for o in proto.opset_import}
    functions = _function_table(proto)
    graph = proto.graph
    if not graph.node:
        raise ModelError("the graph has no nodes: nothing to prune")
    if not graph.output:
        raise ModelError("the graph has no outputs")
    for value in graph.input:
        kind = value.type.WhichOneof("value")
        if kind is None or (kind == "tensor_type" and not value.type.tensor_type.elem_type):
            raise ModelError(f"graph input {show(value.name)} has no type")
    _Scope(functions, domains, "").check_graph(graph, ())
    for function in proto.functions:
        _check_function(function, functions)
    _check_calls(graph, functions)


def _check_header(proto: onnx.ModelProto) -> None:
    if not proto.HasField("graph"):
        raise ModelError("the file holds no graph")
    if proto.ir_version < 1:
        raise ModelError(f"ir_version is {proto.ir_version}, wanted 3 or more")
    if proto.ir_version > onnx.IR_VERSION:
        raise ModelError(
            f"ir_version is {proto.ir_version}, "
            f"the installed onnx {onnx.__version__} knows up to {onnx.IR_VERSION}",
            "pip install --upgrade onnx",
        )
    if not proto.opset_import:
        raise ModelError("the model imports no opset", "export it again, or set model.opset_import")
    _check_opsets(proto.opset_import, "the model")


def _check_opsets(imports: Iterable[onnx.OperatorSetIdProto], owner: str) -> None:
    seen: dict[str, int] = {}
    for item in imports:
        domain = _domain(_text(item.domain, "an opset domain"))
        label = domain or "ai.onnx"
        if item.version < 1:
            raise ModelError(
                f"{owner} imports version {item.version} of opset {show(label)}, wanted 1 or more"
            )
        newest = onnx.defs.onnx_opset_version()
        if domain == "" and item.version > newest:  # of other domains only the runtime knows
            raise ModelError(
                f"{owner} imports opset {label} {item.version}, "
                f"the installed onnx {onnx.__version__} knows up to {newest}",
                "pip install --upgrade onnx, or export with an older opset",
            )
        if seen.setdefault(domain, item.version) != item.version:
            raise ModelError(f"{owner} imports opset {show(label)} twice: {seen[domain]} and {item.version}")


def _domain(name: str) -> str:
    return "" if name in _ONNX else name


def _text(value: object, what: str) -> str:
    # protobuf hands out bytes for a string field that is not UTF-8
    if isinstance(value, str):
        return value
    raise ModelError(f"{what} is not valid UTF-8: {show(value)}")


class _Scope:
    """Checks the graphs of one owner: the model, or one function with imports of its own."""

    def __init__(
        self, functions: dict[FunctionKey, onnx.FunctionProto], domains: set[str], inside: str
    ) -> None:
        self.functions = functions
        self.local_domains = {domain for domain, _, _ in functions}
        self.domains = domains
        self.inside = inside  # appended to every message: where this scope is

    def check_graph(self, graph: onnx.GraphProto, outer: tuple[set[str], ...]) -> None:
        """Check one graph and its subgraphs; ``outer`` holds the names of the scopes around it."""
        known: set[str] = set()
        for value in graph.input:
            self._define(value.name, known, "graph input")
        initializers: set[str] = set()
        for tensor in graph.initializer:
            self._define(tensor.name, initializers, "initializer")
        for sparse in graph.sparse_initializer:
            self._define(sparse.values.name, initializers, "initializer")
        known |= initializers  # an initializer may be the default of a graph input
        self._check_nodes(graph.node, known, outer)
        self._check_outputs([o.name for o in graph.output], known, "graph output")

    def check_function(self, function: onnx.FunctionProto) -> None:
        """Check the body of a local function."""
        known: set[str] = set()
        for name in function.input:
            self._define(name, known, "function input")
        self._check_nodes(function.node, known, ())
        self._check_outputs(function.output, known, "function output")

    def _check_nodes(
        self, nodes: Sequence[onnx.NodeProto], known: set[str], outer: tuple[set[str], ...]
    ) -> None:
        names: set[str] = set()
        for node in nodes:
            self._check_node(node)
            if node.name and node.op_type != "Constant":
                if node.name in names:
                    raise ModelError(f"two nodes have the name {show(node.name)}{self.inside}")
                names.add(node.name)
            for value in node.input:
                if value and value not in known and not any(value in scope for scope in outer):
                    self._refuse_read(node, value, nodes)
            for graph in subgraphs(node):
                inner = _Scope(self.functions, self.domains, f" in a subgraph of {describe(node)}")
                inner.check_graph(graph, (*outer, known))
            for value in node.output:
                if value in known or any(value in scope for scope in outer):
                    raise ModelError(
                        f"{describe(node)} makes {show(value)}, a name already taken{self.inside}"
                    )
                if value:
                    known.add(value)

    def _check_node(self, node: onnx.NodeProto) -> None:
        place = f"of a node{self.inside}"
        if not _text(node.op_type, f"the op_type {place}"):
            raise ModelError(f"node {show(node.name)} has no op_type{self.inside}")
        _text(node.name, f"the name {place}")
        for value in (*node.input, *node.output):
            _text(value, f"a value name of {describe(node)}{self.inside}")
        domain = _domain(_text(node.domain, f"the domain {place}"))
        # domains that are neither ONNX nor local are the runtime's business
        if domain not in self.domains and (domain == "" or domain in self.local_domains):
            raise ModelError(
                f"{describe(node)} is of domain {show(domain or 'ai.onnx')}, "
                f"which has no opset import{self.inside or ' in the model'}"
            )
        for attribute in node.attribute:
            self._check_attribute(attribute, node)

    def _check_attribute(self, attribute: onnx.AttributeProto, node: onnx.NodeProto) -> None:
        name = _text(attribute.name, f"an attribute name of {describe(node)}{self.inside}")
        if attribute.ref_attr_name:
            return
        for field, kind in _CONTENT:
            if attribute.HasField(field) != (attribute.type == kind):
                self._refuse_attribute(name, node)
        for field, kind in _CONTENTS:
            if len(getattr(attribute, field)) and attribute.type != kind:
                self._refuse_attribute(name, node)

    def _refuse_attribute(self, name: str, node: onnx.NodeProto) -> None:
        raise ModelError(
            f"attribute {show(name)} of {describe(node)} does not hold what its type says{self.inside}"
        )

    def _define(self, name: object, names: set[str], kind: str) -> None:
        text = _text(name, f"one {kind} name{self.inside}")
        if not text:
            raise ModelError(f"one {kind} has no name{self.inside}")
        if text in names:
            raise ModelError(f"two {kind}s have the name {show(text)}{self.inside}")
        names.add(text)

    def _check_outputs(self, outputs: Iterable[str], known: set[str], kind: str) -> None:
        for name in outputs:
            if _text(name, f"one {kind} name{self.inside}") not in known:
                raise ModelError(f"{kind} {show(name)} is made by no node{self.inside}")

    def _refuse_read(self, node: onnx.NodeProto, value: str, nodes: Sequence[onnx.NodeProto]) -> None:
        maker = next((other for other in nodes if value in other.output), None)
        if maker is None:
            raise ModelError(f"{describe(node)} reads {show(value)}, which nothing produces{self.inside}")
        raise ModelError(
            f"{describe(node)} reads {show(value)} before {describe(maker)} makes it{self.inside}: "
            "the nodes are out of order and cannot be sorted: they form a cycle, or two make one value"
        )


def _function_table(proto: onnx.ModelProto) -> dict[FunctionKey, onnx.FunctionProto]:
    table: dict[FunctionKey, onnx.FunctionProto] = {}
    for function in proto.functions:
        name = _text(function.name, "a function name")
        domain = _domain(_text(function.domain, f"the domain of function {show(name)}"))
        key = (domain, name, _text(function.overload, f"the overload of function {show(name)}"))
        if key in table:
            raise ModelError(f"two functions have the name {show(name)} in domain {show(domain)}")
        table[key] = function
    return table


def _check_function(function: onnx.FunctionProto, table: dict[FunctionKey, onnx.FunctionProto]) -> None:
    owner = f"function {show(function.name)}"
    _check_opsets(function.opset_import, owner)
    domains = {_domain(o.domain) for o in function.opset_import}
    _Scope(table, domains, f" in {owner}").check_function(function)


def _check_calls(graph: onnx.GraphProto, table: dict[FunctionKey, onnx.FunctionProto]) -> None:
    """Refuse recursion, long call chains and models that explode when functions are inlined."""
    cost: dict[FunctionKey, int] = {}  # nodes of a call, inlined
    active: set[FunctionKey] = set()

    def nodes_in(nodes: Iterable[onnx.NodeProto], depth: int) -> int:
        if depth > MAX_CALL_DEPTH:
            raise ModelError(f"functions and subgraphs are nested more than {MAX_CALL_DEPTH} deep")
        total = 0
        for node in nodes:
            key = (_domain(node.domain), node.op_type, node.overload)
            total += call(key, depth + 1) if key in table else 1
            for inner in subgraphs(node):
                total += nodes_in(inner.node, depth + 1)
        if total > MAX_INLINED_NODES:
            raise ModelError(
                f"the model has more than {MAX_INLINED_NODES:,} nodes when its functions are inlined"
            )
        return total

    def call(key: FunctionKey, depth: int) -> int:
        if key in active:
            raise ModelError(f"function {show(key[1])} calls itself")
        if key not in cost:
            active.add(key)
            cost[key] = nodes_in(table[key].node, depth)
            active.remove(key)
        return cost[key]

    nodes_in(graph.node, 0)
    for key in table:
        call(key, 1)
