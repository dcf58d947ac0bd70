"""Storage forms ``gaps4`` and ``gaps8``: 4 or 8 bits for the way to the next weight, and the weights.

Version 1. The weight is read in the order of its stored tensor (row-major), as n elements. m entries
stand for its nonzeros in order; an entry is a step and a value:

``steps``
    uint8. gaps8: shape ``(1, 1, m)``, a byte for each entry. gaps4: shape ``(m / 2,)``, m is even; entry
    ``j < m / 2`` has the high half of byte ``j``, entry ``j >= m / 2`` the low half of byte ``j - m / 2``.
    Entry ``j`` is at position ``step[0] + ... + step[j]``.
``values``
    float32, or float16 when packed with ``values="fp16"``; shape ``(1, 1, m)``, as MaxUnpool wants it.
attribute ``shape`` (ints), ``dtype`` (int), ``shape_tensor`` (tensor, opsets 9 to 11 only)
    as in :mod:`onnxprune.storage.bitmap`. Never to be trusted over the sizes of the tensors.
attribute ``span`` (ints)
    ``[n - m + 1]``: the kernel with which MaxUnpool makes n elements of m.
attributes ``starts``, ``filler``, ``pieces``
    only in models of opsets 9 and 10: the sums of steps, see :mod:`onnxprune.storage.prefix_sum`.

Positions ascend. A way too long for one step is covered by entries with the longest step, 15 or 255,
and value 0. The last entry may be repeated with step 0; gaps4 does so where m would be odd. All zeros:
an entry at position 0 with value 0. -0.0 counts as zero and comes back as 0.0.

Share of dense float32 at 50, 70, 80, 90, 95 % random zeros: gaps4 0.563, 0.339, 0.234, 0.142, 0.105;
gaps8 0.625, 0.375, 0.250, 0.125, 0.063; bitmap 0.532, 0.331, 0.232, 0.131, 0.081.

Decoding in standard ONNX (``Gaps.body``) touches nothing but the entries until MaxUnpool writes all n
elements at once. ONNX Runtime folds no op whose output shape depends on data, but that of MaxUnpool
follows from its kernel. At 70 % zeros gaps4 leaves 14 bytes of intermediates a weight where bitmap
leaves 22, and takes half of its load time. ONNX Runtime has MaxUnpool for float32 only.

Opsets 9 and 10 have neither CumSum nor BitShift: 15 ns a weight instead of 6, and about twice the memory on
top of the dense model's (``scripts/bench_storage.py --form gaps4 --opset 10``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, TensorProto, helper

from onnxprune.errors import ModelError
from onnxprune.files.tensors import type_name
from onnxprune.storage import prefix_sum
from onnxprune.storage.body import constant, given, given_tensor
from onnxprune.storage.form import MAX_FOLDED_BYTES, Array, Packed, onnx_type, round_to_fp16


class Gaps:
    """The forms ``gaps4`` and ``gaps8``; the module's text is their specification."""

    inputs: tuple[str, ...] = ("steps", "values")
    attributes: tuple[str, ...] = ("span",)
    attributes_before_11: tuple[str, ...] = prefix_sum.ATTRIBUTES
    decoders: tuple[str, ...] = ("Decode",)
    min_opset = 9  # MaxUnpool

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.name = f"gaps{bits}"
        self.prefix = f"Gap{bits}"
        self.load_ns = {4: 10, 8: 7}[bits]
        self.longest = 2**bits - 1

    def refusal(self, shape: Sequence[int], data_type: int) -> str:
        """Return why a weight of this shape and type must stay dense, or an empty string."""
        if data_type != TensorProto.FLOAT:
            return f"holds {type_name(data_type)}, form {self.name} is for FLOAT"
        if math.prod(shape) * 8 > MAX_FOLDED_BYTES:  # positions are int64
            return "too large: ONNX Runtime folds no intermediate over 1 GiB"
        return ""

    def encode(self, array: Array, *, values: str = "same") -> Packed:
        """Pack ``array`` (float32, any shape).

        ``values="fp16"`` rounds to float16, unless a finite value would become infinite.
        """
        flat = array.reshape(-1)
        if values == "fp16":
            flat = round_to_fp16(flat)
        nonzero = np.flatnonzero(flat)
        ways = np.diff(nonzero, prepend=0)
        far = np.flatnonzero(ways > self.longest)
        fillers = (ways[far] - 1) // self.longest
        ways[far] -= self.longest * fillers
        before = np.repeat(far, fillers)  # the entry that each filler precedes
        steps = np.insert(ways.astype(np.uint8), before, self.longest)
        stored = np.insert(flat[nonzero], before, 0)
        if flat.size and not steps.size:
            steps, stored = np.zeros(1, np.uint8), np.zeros(1, flat.dtype)
        if self.bits == 4 and steps.size % 2:
            steps, stored = np.append(steps, np.uint8(0)), np.append(stored, stored[-1])
        return Packed((self._join(steps), stored.reshape(1, 1, -1)), array.shape, onnx_type(array.dtype))

    def _join(self, steps: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the stored tensor of the steps ``(m,)``."""
        if self.bits == 8:
            return steps.reshape(1, 1, -1)
        half = steps.size // 2
        return steps[:half] << np.uint8(4) | steps[half:]

    def _split(self, stored: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the steps ``(m,)`` of the stored tensor."""
        if self.bits == 8:
            return stored.reshape(-1)
        return np.concatenate([stored >> np.uint8(4), stored & np.uint8(15)])

    def extra(self, packed: Packed) -> dict[str, list[int]]:
        """Return the attribute ``span``."""
        return {"span": [math.prod(packed.shape) - packed.tensors[1].size + 1]}

    def extra_before_11(self, packed: Packed, opset: int) -> dict[str, list[int] | onnx.TensorProto]:
        """Return the sums of the steps."""
        return prefix_sum.values(self._split(packed.tensors[0]).reshape(8 // self.bits, -1), opset)

    def decode(self, packed: Packed, where: str = "the weight") -> Array:
        """Return the dense array of shape ``packed.shape``.

        Raises:
            ModelError: when sizes and types are wrong, or positions do not ascend within the shape.
        """
        positions, values = self._checked(packed, where)
        dense = np.zeros(math.prod(packed.shape), np.float32)
        dense[positions] = values
        return dense.reshape(packed.shape)

    def _checked(self, packed: Packed, where: str) -> tuple[NDArray[np.int64], Array]:
        """Return positions and values of the entries, known to fit the shape and each other."""
        if any(dim < 0 for dim in packed.shape):
            raise ModelError(f"{where} has shape {list(packed.shape)} with a negative dimension")
        reason = self.refusal(packed.shape, packed.data_type)
        if reason:  # a few bytes could ask for any amount of memory
            raise ModelError(f"{where} has dtype {packed.data_type}, shape {list(packed.shape)}: {reason}")
        stored, values = packed.tensors
        if values.dtype not in (np.float32, np.float16) or values.shape != (1, 1, values.size):
            raise ModelError(
                f"values of {where} are {values.dtype}{list(values.shape)}, "
                f"wanted float32 or float16[1, 1, {values.size}]"
            )
        wanted = (1, 1, values.size) if self.bits == 8 else (values.size // 2,)
        if stored.dtype != np.uint8 or stored.shape != wanted or (self.bits == 4 and values.size % 2):
            raise ModelError(
                f"steps of {where} are {stored.dtype}{list(stored.shape)}, "
                f"{values.size} values of {self.name} need uint8{list(wanted)}"
            )
        steps = self._split(stored)
        positions = np.cumsum(steps, dtype=np.int64)
        self._check_positions(packed.shape, steps, positions, values.reshape(-1), where)
        return positions, values.reshape(-1)

    def _check_positions(
        self,
        shape: tuple[int, ...],
        steps: NDArray[np.uint8],
        positions: NDArray[np.int64],
        values: Array,
        where: str,
    ) -> None:
        """Raise unless positions ascend within the shape, but for a last entry that is repeated."""
        count, last = math.prod(shape), steps.size - 1
        if bool(steps.size) != bool(count):
            raise ModelError(f"{where} has {steps.size} entries for shape {list(shape)}")
        if steps.size and positions[-1] >= count:
            raise ModelError(f"entries of {where} end at {positions[-1]}, shape {list(shape)} at {count - 1}")
        repeated = np.flatnonzero(steps[1:] == 0) + 1
        if (repeated != last).any() or (
            repeated.size and values[last].tobytes() != values[last - 1].tobytes()
        ):
            raise ModelError(f"entry {repeated[0]} of {where} is at the position of the one before")

    def fits_fused(self, shape: Sequence[int]) -> bool:
        """Any shape."""
        return True

    def decode_op(self, shape: Sequence[int]) -> str:
        """Return ``Decode``."""
        return "Decode"

    def body(self, suffix: str, opset: int, cast: bool, output: str) -> list[onnx.NodeProto]:
        """Return the decoding nodes; ``cast`` widens the values to the attribute ``dtype`` first."""
        node = helper.make_node
        old = opset < prefix_sum.CUMSUM_OPSET
        nodes = self._positions_before_11(opset) if old else self._positions(opset)
        if cast:
            nodes.append(given("Cast", ["values"], "wide", to=("dtype", AttributeProto.INT)))
        entries, span = ["wide" if cast else "values", "position"], ("span", AttributeProto.INTS)
        return [
            *nodes,
            given("MaxUnpool", entries, "weights", strides=[1], kernel_shape=span),
            node("Reshape", ["weights", "shape"], [output]),
        ]

    def _positions(self, opset: int) -> list[onnx.NodeProto]:
        """Return nodes from ``steps`` to ``position`` (int64, (1, 1, m)); from opset 11 on."""
        node = helper.make_node
        nodes = constant("axis", np.array(2, np.int32), opset)
        if self.bits == 4:
            nodes += [
                *constant("away", np.array([[0], [4]], np.uint8), opset),
                *constant("half", np.array(4, np.uint8), opset),
                *constant("row", np.array([1, 1, -1], np.int64), opset),
                node("BitShift", ["steps", "away"], ["shifted"], direction="LEFT"),  # (2, m / 2)
                node("BitShift", ["shifted", "half"], ["halves"], direction="RIGHT"),
                node("Reshape", ["halves", "row"], ["step"]),  # (1, 1, m)
            ]
        return [
            *nodes,
            node("Cast", ["steps" if self.bits == 8 else "step"], ["wide_step"], to=TensorProto.INT64),
            node("CumSum", ["wide_step", "axis"], ["position"]),
        ]

    def _positions_before_11(self, opset: int) -> list[onnx.NodeProto]:
        """Return the same for opsets 9 and 10."""
        node = helper.make_node
        nodes = [
            *constant("row", np.array([1, 1, -1], np.int64), opset),
            *given_tensor("starts", "starts_of_parts", np.int32, opset),
        ]
        if self.bits == 8:
            return [
                *nodes,
                *constant("flat", np.array([-1], np.int64), opset),
                node("Reshape", ["steps", "flat"], ["bytes"]),
                *prefix_sum.rows("bytes", "rows", opset),
                node("Cast", ["rows"], ["step"], to=TensorProto.FLOAT),
                *prefix_sum.sums("step", "starts_of_parts", "end", "row", axis=2),
                node("Cast", ["end"], ["position"], to=TensorProto.INT64),
            ]
        return [
            *nodes,
            *constant("shift", np.array(16, np.float32), opset),
            *prefix_sum.rows("steps", "rows", opset),
            node("Cast", ["rows"], ["byte"], to=TensorProto.FLOAT),
            node("Div", ["byte", "shift"], ["shifted"]),
            node("Floor", ["shifted"], ["high"]),
            node("Mul", ["high", "shift"], ["high_bits"]),
            node("Sub", ["byte", "high_bits"], ["low"]),
            node("Split", ["starts_of_parts"], ["starts_of_high", "starts_of_low"], axis=1, split=[1, 1]),
            *prefix_sum.sums("high", "starts_of_high", "end_of_high", "row", axis=2),
            *prefix_sum.sums("low", "starts_of_low", "end_of_low", "row", axis=2),
            node("Concat", ["end_of_high", "end_of_low"], ["end"], axis=2),
            node("Cast", ["end"], ["position"], to=TensorProto.INT64),
        ]
