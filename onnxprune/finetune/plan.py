"""What the view runs: steps over numbered values, in blocks (the main graph, bodies of If, Loop and Scan).

All blocks of a plan number their values in one table, so that a body reads the values around it like its
own. A step frees the values that no later step of its block reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

from onnxprune.errors import ModelError
from onnxprune.finetune.registry import Unsupported

Value: TypeAlias = Any  # a tensor, a sequence (list) of tensors, or None for what is left out
NOTHING = 0  # slot of an input that is left out: always None
HERE = 1  # slot of an empty tensor on the device of the view
FAILURES = (Unsupported, RuntimeError, ValueError, TypeError, IndexError)  # of an operator's function


@dataclass(frozen=True, slots=True)
class Step:
    """One call.

    Attributes:
        call: the operator's function with its attributes bound.
        inputs: slots of its arguments.
        outputs: slot of each result; :data:`NOTHING` when nobody reads it.
        frees: slots that are not read after this step.
        bodies: attribute name -> subgraph.
        align: whether the arguments' devices are only known at run time.
        host: positions of arguments that stay on the CPU; read only when ``align``.
        where: the node, for messages.
    """

    call: Callable[..., Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    frees: tuple[int, ...] = ()
    bodies: tuple[tuple[str, Block], ...] = ()
    align: bool = False
    host: tuple[int, ...] = ()
    where: str = ""


@dataclass(slots=True)
class Block:
    """A list of steps with its own inputs and outputs (slots).

    Attributes:
        inputs: slots that the caller fills.
        outputs: slots to return.
        steps: in order.
        types: per output its dtype and rank as far as the graph declares them, else None.
    """

    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    steps: list[Step] = field(default_factory=list)
    types: tuple[tuple[torch.dtype | None, int | None], ...] = ()


class Body:
    """A subgraph as a function: ``body(*inputs)`` returns the tuple of its outputs.

    It reads the values around it from the run that made it, and is of no use after that run.

    Attributes:
        inputs: number of inputs.
        outputs: number of outputs.
        types: per output ``(dtype, rank)`` as declared in the graph; None for what it does not say.
    """

    __slots__ = ("_block", "_values")

    def __init__(self, block: Block, values: list[Value]) -> None:
        self._block = block
        self._values = values

    @property
    def inputs(self) -> int:
        """Number of inputs."""
        return len(self._block.inputs)

    @property
    def outputs(self) -> int:
        """Number of outputs."""
        return len(self._block.outputs)

    @property
    def types(self) -> tuple[tuple[torch.dtype | None, int | None], ...]:
        """Declared dtype and rank of each output."""
        return self._block.types

    def __call__(self, *inputs: Value) -> tuple[Value, ...]:
        """Run the subgraph once."""
        block, values = self._block, self._values
        if len(inputs) != len(block.inputs):
            raise Unsupported(f"a subgraph with {len(block.inputs)} inputs is given {len(inputs)}")
        for slot, value in zip(block.inputs, inputs, strict=True):
            values[slot] = value
        run(block.steps, values)
        return tuple(values[slot] for slot in block.outputs)


@dataclass(frozen=True)
class Plan:
    """Everything that a view needs to run, apart from its weights.

    Attributes:
        block: the main graph; its inputs stand in the order of ``feeds``.
        feeds: names of what ``forward`` must be given.
        results: names of what it returns.
        slots: length of the table of values.
        constants: slot -> tensor that stays on the CPU.
        buffers: slot -> constant that lives on the view's device.
        weights: slot -> name of the weight.
    """

    block: Block
    feeds: tuple[str, ...]
    results: tuple[str, ...]
    slots: int
    constants: dict[int, Value]
    buffers: dict[int, torch.Tensor]
    weights: dict[int, str]

    def __deepcopy__(self, memo: dict[int, Any]) -> Plan:
        """Share it: nothing in it changes."""
        return self


def run(steps: Sequence[Step], values: list[Value]) -> None:
    """Run ``steps`` on the table ``values``.

    Raises:
        ModelError: when a node cannot be run on these values; the node is named.
    """
    for step in steps:
        arguments = [values[slot] for slot in step.inputs]
        try:
            if step.align:
                _align(arguments, step.host)
            if step.bodies:
                bodies = {name: Body(block, values) for name, block in step.bodies}
                result = step.call(*arguments, **bodies)
            else:
                result = step.call(*arguments)
        except torch.OutOfMemoryError:
            raise
        except FAILURES as error:
            raise ModelError(f"{step.where}: {error}", hint=_HINT) from error
        del arguments
        if type(result) is tuple:
            for slot, value in zip(step.outputs, result, strict=False):
                if slot:
                    values[slot] = value
        elif step.outputs[0]:
            values[step.outputs[0]] = result
        for slot in step.frees:
            values[slot] = None


_HINT = "pruning itself works without fine-tuning"


def to_host(value: Value) -> Value:
    """Bring a value to the CPU (a no-op when it is there)."""
    return [to_host(item) for item in value] if isinstance(value, list) else value.cpu()


def to_device(value: Value, here: torch.Tensor) -> Value:
    """Bring a value to the device of ``here`` (a no-op when it is there)."""
    if isinstance(value, list):
        return [to_device(item, here) for item in value]
    return value.to(here.device, non_blocking=True)


def _align(arguments: list[Value], host: Sequence[int]) -> None:
    device = next((a.device for a in arguments if isinstance(a, torch.Tensor) and not a.is_cpu), None)
    for position, value in enumerate(arguments):
        if not isinstance(value, torch.Tensor):
            continue
        if position in host:
            arguments[position] = value.cpu()
        elif device is not None and value.is_cpu:
            arguments[position] = value.to(device)
