"""What became of each weight when kernels were chosen, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from onnxprune.kernels.nodes import Gain
from onnxprune.kernels.whole import ENOUGH
from onnxprune.model import Model
from onnxprune.passes.chains import Chain


@dataclass(frozen=True)
class Decision:
    """What became of one weight.

    Attributes:
        weight: its name.
        op: name of the op with a kernel, empty when its node stays as it was; several, with spaces between,
            when nodes that share the weight became unlike ones.
        gain: how many times faster an op is (or would be) than the nodes it replaces, as measured or
            expected; None when it is not known.
        reason: why the node stays, or what the gain rests on.
        dense_readers: how many nodes read the weight dense besides those with an op.
    """

    weight: str
    op: str = ""
    gain: float | None = None
    reason: str = ""
    dense_readers: int = 0


@dataclass(frozen=True)
class Selection:
    """Result of :func:`onnxprune.kernels.select.select`.

    Attributes:
        decisions: weight -> what became of it.
        speed: threads -> how many times faster the whole model is than without ops; empty unless measured.
        method: ``measured``, ``table``, or ``none`` when the model has nothing to replace.
        note: one sentence for the report.
    """

    decisions: dict[str, Decision]
    speed: dict[int, float] = field(default_factory=dict)
    method: str = "none"
    note: str = ""

    @property
    def switched(self) -> int:
        """Number of weights whose node is an op with a kernel."""
        return sum(bool(d.op) for d in self.decisions.values())


def refused(refusals: Mapping[str, str]) -> dict[str, Decision]:
    """Return the decisions about weights that no kernel can take, from the reasons."""
    return {name: Decision(name, reason=reason) for name, reason in refusals.items()}


def measured(gains: Sequence[Gain], chosen: Sequence[Chain], dense: Model) -> dict[str, Decision]:
    """Return what became of each weight whose nodes were measured; ``chosen`` became ops."""
    switched = {chain.output for chain in chosen}
    return by_weight([_decision(gain, gain.chain.output in switched) for gain in gains], dense)


def _decision(gain: Gain, switched: bool) -> Decision:
    """What became of one node."""
    name = gain.chain.product.weight
    if switched:
        return Decision(name, gain.chain.op_type, gain.ratio, "measured alone")
    if gain.ratio <= 0:
        return Decision(name, reason="the library has no kernel for it, or one that fails or is off")
    if gain.ratio <= ENOUGH:
        return Decision(name, gain=gain.ratio, reason="a kernel is no faster")
    return Decision(name, gain=gain.ratio, reason="a kernel is faster alone, but not in this model")


def by_weight(nodes: Sequence[Decision], dense: Model) -> dict[str, Decision]:
    """Put together what became of the nodes that read each weight."""
    found: dict[str, list[Decision]] = {}
    for decision in nodes:
        found.setdefault(decision.weight, []).append(decision)
    return {weight: _of_weight(decisions, dense) for weight, decisions in found.items()}


def _of_weight(decisions: Sequence[Decision], dense: Model) -> Decision:
    weight = decisions[0].weight
    readers = len({use.index for use in dense.index.uses[weight]}) + (weight in dense.index.outputs)
    switched = [decision for decision in decisions if decision.op]
    if not switched:
        return max(decisions, key=lambda decision: decision.gain or 0.0)
    if readers == 1:
        return switched[0]
    ops = " ".join(dict.fromkeys(decision.op for decision in switched))
    gain, rest = min(decision.gain or 0.0 for decision in switched), readers - len(switched)
    reason = f"{switched[0].reason}, {len(switched)} of the {readers} nodes that read the weight"
    twice = "; for the others it is in memory once more, dense" if rest else ""
    return Decision(weight, ops, gain, reason + twice, rest)
