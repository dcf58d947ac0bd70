"""The ONNX graph as a ``torch.nn.Module``, for training only."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from onnxprune.errors import DataError, ModelError, UsageError
from onnxprune.finetune import ops  # noqa: F401 - fills the registry
from onnxprune.finetune.compiler import Compiler
from onnxprune.finetune.dtypes import STORED, sparse_tensor
from onnxprune.finetune.fuse import fuse
from onnxprune.finetune.gaps import Gap
from onnxprune.finetune.parameters import (
    constant_of,
    float_weights,
    never_trained,
    onnx_name,
    tensor_of,
    torch_name,
    trained_by_default,
)
from onnxprune.finetune.plan import HERE, Plan, Value, run
from onnxprune.model import Model, needed_nodes

NAMED = 3  # gaps that a message lists


class TorchView(nn.Module):
    """Runs the nodes that ``outputs`` need, with the model's float constants as parameters.

    Half-precision models are held and computed in float32. Expressions of constants that are not trained
    are computed once, here: a weight with ``requires_grad`` off must not be changed afterwards. Constants
    inside the bodies of If, Loop and Scan and inside functions are no weights.

    Attributes:
        inputs: names that :meth:`forward` must be given.
        outputs: names that it returns.

    Args:
        model: not changed, not referred to afterwards.
        feeds_from: values where the graph is cut; what lies before them is not run.
        outputs: values to return; default: the graph's outputs. Any value of the main graph will do.
        trainable: names of the weights to train. Default: those with more than one element that the
            outputs depend on smoothly, without masks and tables. Statistics of BatchNormalization and
            quantisation scales are never trained.
        widen: False computes half precision as such, to compare single operators.

    Raises:
        UsageError: for a name in ``feeds_from``, ``outputs`` or ``trainable`` that the model does not have.
        ModelError: when a node cannot be run; all of them are counted, the first three named.
    """

    here: Tensor

    def __init__(
        self,
        model: Model,
        *,
        feeds_from: Sequence[str] = (),
        outputs: Sequence[str] | None = None,
        trainable: Collection[str] | None = None,
        widen: bool = True,
    ) -> None:
        super().__init__()
        compiler, plan, weights = _compile(model, feeds_from, outputs, trainable, widen)
        if compiler.gaps:
            raise _refusal(model, compiler.gaps)
        self.inputs = plan.feeds
        self.outputs = plan.results
        self._plan = plan
        self._widen = widen
        self._parameter_slots = tuple((slot, torch_name(name)) for slot, name in plan.weights.items())
        for name, (tensor, trained) in weights.items():
            self.register_parameter(
                torch_name(name), nn.Parameter(tensor, requires_grad=trained and name not in compiler.held)
            )
        self._buffer_slots = tuple((slot, f"constant:{slot}") for slot in plan.buffers)
        for slot, tensor in plan.buffers.items():
            self.register_buffer(f"constant:{slot}", tensor, persistent=False)
        self.register_buffer("here", torch.empty(0), persistent=False)
        self._template: list[Value] = [plan.constants.get(slot) for slot in range(plan.slots)]

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """The parameters by their ONNX names, in the order of the model."""
        return {onnx_name(name): weight for name, weight in self.named_parameters()}

    def forward(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run the graph.

        Args:
            feeds: one tensor for each name in :attr:`inputs`; others are not looked at.

        Returns:
            One tensor for each name in :attr:`outputs`.

        Raises:
            DataError: when a feed is missing.
            ModelError: when a node fails on these values.
        """
        values = self._template.copy()
        here = self.here
        values[HERE] = here
        for slot, name in self._parameter_slots:
            values[slot] = self._parameters[name]
        for slot, name in self._buffer_slots:
            values[slot] = self._buffers[name]
        block = self._plan.block
        for slot, name in zip(block.inputs, self.inputs, strict=True):
            if name not in feeds:
                raise DataError(f"no value for {name!r}, wanted: {', '.join(self.inputs)}")
            values[slot] = self._feed(feeds[name], here)
        run(block.steps, values)
        return {name: values[slot] for name, slot in zip(self.outputs, block.outputs, strict=True)}

    def _feed(self, value: Value, here: Tensor) -> Value:
        if value is None:  # an empty optional
            return None
        if not isinstance(value, Tensor):  # a sequence
            return [self._feed(item, here) for item in value]
        if self._widen and value.dtype in (torch.float16, torch.bfloat16):
            return value.to(here.device, torch.float32)
        return value.to(here.device)


def unsupported(
    model: Model, *, feeds_from: Sequence[str] = (), outputs: Sequence[str] | None = None
) -> tuple[Gap, ...]:
    """Return the nodes that :class:`TorchView` cannot run; nodes that only depend on those are not listed.

    Raises:
        UsageError: for a name in ``feeds_from`` or ``outputs`` that the model does not have.
    """
    compiler, _, _ = _compile(model, feeds_from, outputs, (), True)
    return tuple(compiler.gaps)


def _compile(
    model: Model,
    feeds_from: Sequence[str],
    outputs: Sequence[str] | None,
    trainable: Collection[str] | None,
    widen: bool,
) -> tuple[Compiler, Plan, dict[str, tuple[Tensor, bool]]]:
    index = model.index
    results = tuple(outputs) if outputs is not None else tuple(index.outputs)
    sparse = {s.values.name: s for s in model.graph.sparse_initializer}
    known = index.producer.keys() | index.inputs.keys() | index.tensors.keys() | sparse.keys()
    for what, names in (("cut the graph at", feeds_from), ("return", results), ("train", trainable or ())):
        unknown = [name for name in names if name not in known]
        if unknown:
            raise UsageError(f"{model.name} has no value {unknown[0]!r} to {what}")
    positions, reads = needed_nodes(model, set(feeds_from), results)
    cuts = [name for name in dict.fromkeys(feeds_from) if name in reads]
    reads -= set(cuts)
    names = float_weights(model, reads)
    if trainable is None:
        trained = trained_by_default(model, positions, results, names)
    else:
        trained = set(trainable) - never_trained(model, positions)
    weights = {name: (tensor_of(model, name, widen=widen), name in trained) for name in names}
    constants = {
        name: constant_of(model, name, widen=widen)
        for name in index.tensors
        if name in reads and name not in weights
    }
    constants.update((n, sparse_tensor(s, widen=widen)) for n, s in sparse.items() if n in reads)
    inputs = [name for name in index.inputs if name in reads]
    compiler = Compiler(model.proto, widen=widen)
    nodes = [
        model.graph.node[p] for p in positions if not set(model.graph.node[p].output) <= index.tensors.keys()
    ]
    feeds = (*cuts, *inputs)
    nodes = fuse(nodes, results, functools.partial(_scalar, weights, constants))
    for name in reads:
        if _element_type(model, name) in STORED:
            compiler.narrow.add(name)
    return compiler, compiler.compile(nodes, feeds, results, weights, constants), weights


def _scalar(
    weights: Mapping[str, tuple[Tensor, bool]], constants: Mapping[str, Tensor | None], name: str
) -> float | None:
    """Return the number of a constant with one element that is not trained."""
    value, trained = weights[name] if name in weights else (constants.get(name), False)
    return None if value is None or trained or value.numel() != 1 else float(value)


def _element_type(model: Model, name: str) -> int:
    index = model.index
    if name in index.inputs:
        return index.inputs[name].type.tensor_type.elem_type
    return index.tensors[name].data_type if name in index.tensors else 0


def _refusal(model: Model, gaps: Sequence[Gap]) -> ModelError:
    listed = "; ".join(str(gap) for gap in gaps[:NAMED])
    more = f"; and {len(gaps) - NAMED} more" if len(gaps) > NAMED else ""
    return ModelError(
        f"{model.name} cannot be fine-tuned as a whole: {listed}{more}",
        hint="fine-tune the part behind these nodes, or prune without fine-tuning",
    )
