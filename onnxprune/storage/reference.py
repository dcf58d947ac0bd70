"""The ops of domain ``onnxprune`` that have a kernel, in numpy: what every implementation must compute.

Computes in float64 and is slow; kernels agree within 1e-5 of the largest output.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.errors import ModelError
from onnxprune.storage.domain import BY_PREFIX, sparse_op
from onnxprune.storage.form import DOMAIN, Array, Packed

Wide = NDArray[np.float64]


def run(node: onnx.NodeProto, inputs: Sequence[Array]) -> Array:
    """Return the output of ``node`` as float32.

    Args:
        node: of domain ``onnxprune``, an op with a kernel.
        inputs: arrays in the order of its inputs.

    Raises:
        ModelError: when it is another op, or the packed weight is broken.
    """
    op = sparse_op(node)
    if op is None:
        raise ModelError(f"{DOMAIN}.{node.op_type} has no kernel")
    given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    form = BY_PREFIX.get(op.prefix)
    if form is None:
        weight, rest = inputs[1], list(inputs[2:])
    else:
        count = 1 + len(form.inputs)
        packed = Packed(tuple(inputs[1:count]), tuple(given["shape"]), given["dtype"])
        weight, rest = form.decode(packed, "the weight"), list(inputs[count:])
    named = dict(zip(op.tail_inputs(), (np.asarray(a, np.float64) for a in rest), strict=True))
    x, w = np.asarray(inputs[0], np.float64), np.asarray(weight, np.float64)
    if op.consumer == "Conv":
        y = convolve(x, w, given) + named["B"].reshape(-1, *[1] * (w.ndim - 2))
    else:
        y = x @ (w.T if given.get("transB") else w) + named["B"]
    if op.epilogue.residual:
        y = y + named["R"]
    if op.epilogue.activation == "Clip":
        y = np.clip(y, given["low"], given["high"])
    elif op.epilogue.activation:
        y = ACTIVATIONS[op.epilogue.activation](y)
    if op.epilogue.norm:
        y = normalise(y, given["epsilon"]) * named["gamma"] + named["beta"]
    return y.astype(np.float32)


def normalise(y: Wide, epsilon: float) -> Wide:
    """Return ``y`` with mean 0 and variance 1 over its last axis."""
    centred = y - y.mean(axis=-1, keepdims=True)
    spread: Wide = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + epsilon)
    return np.asarray(centred / spread)


_erf = np.vectorize(math.erf, otypes=[np.float64])

ACTIVATIONS: dict[str, Callable[[Wide], Wide]] = {
    "Relu": lambda x: np.maximum(x, 0),
    "Gelu": lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2))),
    "GeluTanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    # tanh does not overflow where exp(-x) does
    "Silu": lambda x: 0.5 * x * (1 + np.tanh(0.5 * x)),
    "HardSwish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
}


def convolve(x: Any, w: Any, given: dict[str, Any]) -> Wide:
    """Return the convolution of ``x (N, C, ...)`` with ``w (M, C / group, ...)``, as ONNX defines Conv."""
    space = w.ndim - 2
    pads, group = given["pads"], given["group"]
    strides, dilations = given["strides"], given["dilations"]
    around = list(zip(pads[:space], pads[space:], strict=True))
    x = np.pad(x, [(0, 0), (0, 0), *around])
    reach = [d * (k - 1) + 1 for d, k in zip(dilations, w.shape[2:], strict=True)]
    sizes = [(n - r) // s + 1 for n, r, s in zip(x.shape[2:], reach, strides, strict=True)]
    y = np.zeros((x.shape[0], w.shape[0], *sizes))
    inner, outer = w.shape[1], w.shape[0] // group
    for offset in itertools.product(*map(range, w.shape[2:])):
        window = tuple(
            slice(o * d, o * d + s * (n - 1) + 1, s)
            for o, d, s, n in zip(offset, dilations, strides, sizes, strict=True)
        )
        for g in range(group):
            part = x[:, g * inner : (g + 1) * inner][(..., *window)]
            weight = w[g * outer : (g + 1) * outer][(..., *offset)]
            y[:, g * outer : (g + 1) * outer] += np.einsum("nc...,mc->nm...", part, weight)
    return y
