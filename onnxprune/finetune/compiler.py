"""From the graph to a :class:`~onnxprune.finetune.plan.Plan`.

Constant sub-expressions are computed here, once. Shape arithmetic stays on the CPU: where a value lives
is known for nearly every value before the first run, so moves between devices are steps of the plan.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx
import torch
from onnx import AttributeProto

from onnxprune.finetune import registry
from onnxprune.finetune.attributes import resolved, value_of
from onnxprune.finetune.dtypes import DTYPES, sparse_tensor, torch_tensor, widened
from onnxprune.finetune.gaps import PACKED_DOMAIN, Gap, Inside, check_arguments, why_not
from onnxprune.finetune.plan import FAILURES, HERE, NOTHING, Block, Plan, Step, Value, to_device, to_host
from onnxprune.finetune.registry import FUSED_DOMAIN, Implementation, Unsupported, plain
from onnxprune.finetune.scope import Building, Scope, opsets
from onnxprune.model import label, node_reads

CPU, DEVICE, ANYWHERE = "cpu", "device", "anywhere"
MAKES_TYPE_OF = frozenset({"CastLike", "QuantizeLinear"})  # their result has the type of an input
MAX_DEPTH = 64  # functions inside functions; a function that calls itself would never end


class Compiler:
    """Builds one plan.

    Attributes:
        gaps: the nodes that could not be compiled.
        held: weights that some node wants fixed, also inside functions and bodies.
        narrow: names of values in 4 or fewer bits, which are held in a wider type.

    Args:
        proto: the model; its functions and opsets.
        widen: half-precision floats are computed in float32.
    """

    def __init__(self, proto: onnx.ModelProto, *, widen: bool) -> None:
        self.widen = widen
        self.gaps: list[Gap] = []
        self.held: set[str] = set()
        self.narrow: set[str] = set()
        self._functions = {(f.domain, f.name, f.overload): f for f in proto.functions}
        self._opsets = opsets(proto.opset_import)
        self._constants: dict[int, Value] = {}
        self._buffers: dict[int, torch.Tensor] = {}
        self._weights: dict[int, str] = {}
        self._place: list[str] = [CPU, DEVICE]
        self._lost: set[str] = set()
        self._fed: frozenset[str] = frozenset()
        self._root = Scope({}, {**self._opsets, FUSED_DOMAIN: 1})

    # -- entry ---------------------------------------------------------------------------------------

    def compile(
        self,
        nodes: Sequence[onnx.NodeProto],
        feeds: Sequence[str],
        results: Sequence[str],
        weights: Mapping[str, tuple[torch.Tensor, bool]],
        constants: Mapping[str, torch.Tensor | None],
    ) -> Plan:
        """Compile ``nodes``.

        Args:
            nodes: of the main graph, in order.
            feeds: names that the caller gives.
            results: names that the caller wants.
            weights: name -> (its values, whether it is trained).
            constants: name -> its values; None for what torch cannot hold.
        """
        scope, block = self._root, Building()
        self._fed = frozenset(feeds)
        inputs = []
        for name in feeds:
            scope.slots[name] = self._slot(DEVICE)
            inputs.append(scope.slots[name])
        block.made.update(inputs)
        for name, (tensor, trained) in weights.items():
            slot = self._slot(DEVICE)
            self._weights[slot] = name
            scope.slots.setdefault(name, slot)
            if not trained:
                self._constants[slot] = tensor
        for name, constant in constants.items():
            if constant is not None:
                scope.slots.setdefault(name, self._constant(constant))
        for node in nodes:
            self._node(node, scope, block)
        outputs = tuple(self._result(scope, name) for name in results)
        self._free(block, outputs)
        plan_block = Block(tuple(inputs), outputs, block.steps)
        used = _used(plan_block) - self._weights.keys()
        return Plan(
            block=plan_block,
            feeds=tuple(feeds),
            results=tuple(results),
            slots=len(self._place),
            constants={slot: tensor for slot, tensor in self._constants.items() if slot in used},
            buffers={slot: tensor for slot, tensor in self._buffers.items() if slot in used},
            weights=dict(self._weights),
        )

    def _result(self, scope: Scope, name: str) -> int:
        slot = scope.find(name)
        return NOTHING if slot is None else slot  # only behind a gap: the plan is not used then

    def _bind(self, scope: Scope, name: str, slot: int) -> None:
        if scope.depth or name not in self._fed:  # what the caller feeds stands, although a node makes it too
            scope.slots[name] = slot

    def _narrow_slots(self) -> set[int]:
        return {self._root.slots[name] for name in self.narrow if name in self._root.slots}

    # -- slots ---------------------------------------------------------------------------------------

    def _slot(self, place: str) -> int:
        self._place.append(place)
        return len(self._place) - 1

    def _constant(self, value: Value) -> int:
        slot = self._slot(CPU)
        self._constants[slot] = value
        return slot

    def _at(self, slot: int, place: str, block: Building) -> int:
        """Return the slot that holds the same value at ``place``."""
        if slot == NOTHING or self._place[slot] == place:
            return slot
        known = block.known_move(slot, place)
        if known is not None:
            return known
        if slot in self._constants and isinstance(
            self._constants[slot], torch.Tensor
        ):  # also an untrained weight that is wanted on the CPU
            fresh = self._slot(place)
            (self._constants if place == CPU else self._buffers)[fresh] = self._constants[slot]
            root = block
            while root.outer is not None:
                root = root.outer
            root.moved[slot, place] = fresh
            return fresh
        fresh = self._slot(place)
        move = Step(to_host, (slot,), (fresh,)) if place == CPU else Step(to_device, (slot, HERE), (fresh,))
        block.steps.append(move)
        block.made.add(fresh)
        block.moved[slot, place] = fresh
        return fresh

    # -- nodes ---------------------------------------------------------------------------------------

    def _node(self, node: onnx.NodeProto, scope: Scope, block: Building) -> None:
        name = scope.prefix + label(node)
        version = scope.opsets.get(plain(node.domain), 0)
        if not scope.depth and not self._lost.isdisjoint(node_reads(node)):
            self._lost.update(node.output)  # needs the result of a gap: no finding of its own
            return
        try:
            inputs = self._inputs(node, scope)
            function = self._functions.get((node.domain, node.op_type, node.overload))
            if function is not None:
                self._function(node, function, inputs, scope, block, name)
                return
            implementation = registry.find(node.domain, node.op_type, version)
            if implementation is None:
                raise Unsupported(why_not(node.domain, node.op_type))
            self._step(node, implementation, inputs, scope, block, name)
        except Unsupported as error:
            if scope.depth:  # the node of the main graph is the one to report
                inside = "" if isinstance(error, Inside) else f"inside it, node {name!r} ({node.op_type}): "
                raise Inside(f"{inside}{error}") from error
            op = f"{node.domain}.{node.op_type}" if plain(node.domain) else node.op_type
            self.gaps.append(Gap(name, op, version, str(error), tuple(o for o in node.output if o)))
            self._lost.update(node.output)

    def _inputs(self, node: onnx.NodeProto, scope: Scope) -> tuple[int, ...]:
        missing = [name for name in node_reads(node) if scope.find(name) is None]
        if missing:
            raise Unsupported(f"input {missing[0]!r} is made by no earlier node, or not a tensor of numbers")
        slots = [scope.find(name) if name else NOTHING for name in node.input]
        while slots and slots[-1] == NOTHING:
            slots.pop()
        return tuple(slot for slot in slots if slot is not None)

    def _step(
        self,
        node: onnx.NodeProto,
        implementation: Implementation,
        inputs: tuple[int, ...],
        scope: Scope,
        block: Building,
        name: str,
    ) -> None:
        if node.op_type in MAKES_TYPE_OF and not self._narrow_slots().isdisjoint(inputs[1:]):
            raise Unsupported("it makes values of 4 or fewer bits")
        attributes, graphs = self._attributes(node, implementation, scope)
        check_arguments(implementation, len(inputs))
        outputs = list(node.output)
        if implementation.wants_outputs:
            attributes["outputs"] = tuple(bool(o) for o in outputs)
        call = (
            functools.partial(implementation.function, **attributes)
            if attributes
            else implementation.function
        )
        where = f"node {name!r} ({node.op_type})"
        host = _host_positions(implementation, len(inputs))
        if (
            not graphs
            and implementation.foldable
            and all(s in self._constants or s == NOTHING for s in inputs)
        ):
            self._fold(call, inputs, outputs, scope)
            return
        frozen = {inputs[i] for i in implementation.frozen if i < len(inputs)}
        self.held.update(self._weights[slot] for slot in frozen & self._weights.keys())
        bodies = tuple((key, self._body(graph, scope, block)) for key, graph in graphs.items())
        arguments, place, align = self._placed(inputs, host, block)
        place = ANYWHERE if bodies else CPU if implementation.on_host else place
        slots = []
        for output in outputs:
            slots.append(self._slot(place) if output else NOTHING)
            if output:
                self._bind(scope, output, slots[-1])
        block.made.update(slots)
        block.steps.append(
            Step(call, arguments, tuple(slots), bodies=bodies, align=align, host=host, where=where)
        )

    def _fold(
        self, call: Callable[..., Any], inputs: tuple[int, ...], outputs: Sequence[str], scope: Scope
    ) -> None:
        try:
            with torch.no_grad():
                made = call(*(self._constants.get(slot) for slot in inputs))
        except FAILURES as error:
            raise Unsupported(str(error)) from error
        for value, output in zip(made if type(made) is tuple else (made,), outputs, strict=False):
            if output:
                self._bind(scope, output, self._constant(value))

    def _placed(
        self, inputs: tuple[int, ...], host: tuple[int, ...], block: Building
    ) -> tuple[tuple[int, ...], str, bool]:
        """Return the arguments at their places, the place of the results, and whether that is a guess."""
        free = {self._place[s] for i, s in enumerate(inputs) if i not in host and s != NOTHING}
        place = ANYWHERE if ANYWHERE in free else DEVICE if DEVICE in free else CPU
        wanted = [CPU if i in host else place for i in range(len(inputs))]
        if place == ANYWHERE or any(self._place[s] == ANYWHERE for s in inputs):
            # constants are left on the CPU: the step looks at the values it is given
            return inputs, place, True
        return tuple(self._at(s, w, block) for s, w in zip(inputs, wanted, strict=True)), place, False

    def _attributes(
        self, node: onnx.NodeProto, implementation: Implementation, scope: Scope
    ) -> tuple[dict[str, Any], dict[str, onnx.GraphProto]]:
        attributes: dict[str, Any] = {}
        graphs: dict[str, onnx.GraphProto] = {}
        for attribute in resolved(node.attribute, scope.given):
            if attribute.name not in implementation.attributes:
                raise Unsupported(f"attribute {attribute.name!r} is not supported")
            if attribute.type == AttributeProto.GRAPH:
                graphs[attribute.name] = attribute.g
            else:
                attributes[attribute.name] = value_of(attribute, widen=self.widen)
        missing = implementation.required - attributes.keys() - graphs.keys()
        if missing:
            raise Unsupported(f"attribute {sorted(missing)[0]!r} is missing")
        return attributes, graphs

    # -- subgraphs and functions ---------------------------------------------------------------------

    def _body(self, graph: onnx.GraphProto, outer: Scope, outer_block: Building) -> Block:
        scope = Scope({}, outer.opsets, outer, outer.given, outer.prefix, outer.depth + 1)
        block = Building(outer=outer_block)
        initializers = {t.name for t in graph.initializer}
        inputs = []
        for value in graph.input:
            if value.name not in initializers:
                scope.slots[value.name] = self._slot(ANYWHERE)
                inputs.append(scope.slots[value.name])
        block.made.update(inputs)
        for tensor in graph.initializer:
            scope.slots[tensor.name] = self._constant(torch_tensor(tensor, widen=self.widen))
        for sparse in graph.sparse_initializer:
            scope.slots[sparse.values.name] = self._constant(sparse_tensor(sparse, widen=self.widen))
        for node in graph.node:
            self._node(node, scope, block)
        outputs = []
        for value in graph.output:
            slot = scope.find(value.name)
            if slot is None:
                raise Unsupported(f"no node makes the output {value.name!r} of a subgraph")
            outputs.append(slot)
        self._free(block, tuple(outputs))
        return Block(
            tuple(inputs), tuple(outputs), block.steps, tuple(self._declared(v) for v in graph.output)
        )

    def _declared(self, value: onnx.ValueInfoProto) -> tuple[torch.dtype | None, int | None]:
        kind = value.type.tensor_type
        code = widened(kind.elem_type) if self.widen else kind.elem_type
        return DTYPES.get(code), len(kind.shape.dim) if kind.HasField("shape") else None

    def _function(
        self,
        node: onnx.NodeProto,
        function: onnx.FunctionProto,
        inputs: tuple[int, ...],
        outer: Scope,
        block: Building,
        name: str,
    ) -> None:
        """Expand a model-local function in place."""
        if function.domain == PACKED_DOMAIN:
            raise Unsupported(why_not(function.domain, function.name))
        if outer.depth >= MAX_DEPTH:
            raise Unsupported("its function calls itself, or functions are nested too deeply")
        given = {a.name: a for a in function.attribute_proto}
        given.update((a.name, a) for a in resolved(node.attribute, outer.given))
        slots = dict.fromkeys(function.input, NOTHING)
        slots.update(zip(function.input, inputs, strict=False))
        scope = Scope(slots, opsets(function.opset_import), None, given, f"{name}/", outer.depth + 1)
        for inner in function.node:
            self._node(inner, scope, block)
        for outside, inside in zip(node.output, function.output, strict=False):
            slot = scope.find(inside)
            if slot is None:
                raise Unsupported(f"no node makes the output {inside!r} of function {function.name!r}")
            if outside:
                self._bind(outer, outside, slot)

    # -- life times ----------------------------------------------------------------------------------

    def _free(self, block: Building, outputs: tuple[int, ...]) -> None:
        """Note at each step which values of this block nobody reads afterwards."""
        alive = set(outputs)
        for position in range(len(block.steps) - 1, -1, -1):
            step = block.steps[position]
            touched = set(step.inputs) | set(step.outputs)
            for _, body in step.bodies:
                touched |= _used(body)
            last = sorted((touched & block.made) - alive - {NOTHING})
            alive |= touched
            if last:
                block.steps[position] = _with_frees(step, tuple(last))


def _with_frees(step: Step, frees: tuple[int, ...]) -> Step:
    return Step(step.call, step.inputs, step.outputs, frees, step.bodies, step.align, step.host, step.where)


def _used(block: Block) -> set[int]:
    """All slots that a block and the blocks in it touch."""
    used = {*block.inputs, *block.outputs}
    for step in block.steps:
        used.update(step.inputs, step.outputs)
        for _, body in step.bodies:
            used |= _used(body)
    return used


def _host_positions(implementation: Implementation, count: int) -> tuple[int, ...]:
    return tuple(position for position in implementation.host if position < count)
