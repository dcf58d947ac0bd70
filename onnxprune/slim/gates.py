"""How far the model's output moves when a residual branch is gone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from onnxprune.answers import output_kinds
from onnxprune.calibration.streams import run
from onnxprune.divergence import total_divergence
from onnxprune.inmemory import session_of
from onnxprune.model import Model


def branch_effects(
    model: Model,
    gates: Mapping[str, str],
    batches: Sequence[Mapping[str, Any]],
    masks: Sequence[NDArray[np.bool_] | None],
    threads: int | None = None,
) -> dict[str, float]:
    """Return branch name -> divergence of the output without it, mean per row (as of layers).

    Args:
        model: with gates, all open.
        gates: branch name -> the gate's constant.
        batches: that outputs are compared on.
        masks: per batch, which tokens are real.
        threads: of ONNX Runtime.
    """
    session = session_of(_with_inputs(model, set(gates.values())), threads=threads, name=model.name)
    names = list(model.index.outputs)
    gone = {branch: 0.0 for branch in gates}
    inputs = {item.name for item in session.get_inputs()}
    open_gates = {gate: model.array(gate) for gate in gates.values()}
    fed = [{n: value for n, value in batch.items() if n in inputs} | open_gates for batch in batches]
    wanted = [dict(zip(names, run(session, names, feeds), strict=True)) for feeds in fed]
    more = zip(wanted[1:], masks[1:], strict=True)
    kinds = list(output_kinds(wanted[0], model, mask=masks[0], more=more).values())
    rows = 0
    for feeds, right, mask in zip(fed, wanted, masks, strict=True):
        values = list(right.values())
        rows += len(values[0]) if values[0].ndim else 1
        for branch, gate in gates.items():
            found = run(session, names, feeds | {gate: np.zeros_like(feeds[gate])})
            gone[branch] += total_divergence(kinds, values, found, mask)
    return {branch: distance / max(rows, 1) for branch, distance in gone.items()}


def _with_inputs(model: Model, names: set[str]) -> Model:
    """Return a copy in which some constants are inputs."""
    result = model.copy()
    kept = [tensor for tensor in result.graph.initializer if tensor.name not in names]
    for tensor in result.graph.initializer:
        if tensor.name in names:
            value = helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            result.graph.input.append(onnx.ValueInfoProto.FromString(value.SerializeToString()))
    del result.graph.initializer[:]
    result.graph.initializer.extend(kept)
    result.reindex()
    return result
