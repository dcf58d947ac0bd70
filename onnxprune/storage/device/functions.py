"""The ops of domain ``onnxprune`` with a CUDA kernel: names, inputs, attributes, bodies in standard ONNX.

Name = prefix of the layout + ``MatMul`` | ``Conv`` [+ ``Relu`` | ``Clip`` | ``Gelu`` | ``GeluTanh`` |
``Silu`` | ``HardSwish``]::

    BitmapTileMatMul(X, mask, offsets, values, B) -> Y                   Y = X W + B
    BitmapTileInt8MatMulGelu(X, mask, offsets, values, scales, B) -> Y   Y = gelu(X W + B)
    BlockSparseMatMul(X, slots, values, B), NMTileMatMul(X, meta, values, B)
    DeltaMatMul(X, starts, steps, values, B)
    BlockSparseConv(X, slots, values, B) -> Y                            Y = conv(X, W, B), 1x1

The activation is part of the name, as of the ops for CPUs, since the body of a function cannot depend on an
attribute. ``X`` (..., K) is float16 or bfloat16, and so are ``Y`` (..., N), ``B`` (N,), which is always
there, and the values; sums are float32. ``Conv`` has a kernel of ones, stride 1, one group and no padding:
``X`` is (B, K, pixels...) and ``Y`` (B, N, pixels...); all layouts but ``delta`` have it. Attributes:
``shape`` (ints) [K, N] of the dense weight; ``dtype`` (int) of X; ``trans`` (int) 1 when the weight was
stored (N, K), which only ``unpack`` asks for, of a Conv ``stored`` (ints) [N, K, 1...] instead;
``block_rows`` (int) of BlockSparse, else 0; those of the layout's ``extra``; ``low`` and ``high`` (float) of
``Clip``; ``many_rows`` (int) of NMTileMatMul, not always there: from so many rows of X on cuSPARSELt
multiplies where it is found, 0 for never.

ONNX Runtime with the CUDA provider and the libraries of ``ort_ops/`` runs the kernel; otherwise the body,
whose decoding it folds at load.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import onnx
from onnx import AttributeProto, TensorProto, helper

from onnxprune.errors import ModelError
from onnxprune.storage.device import LAYOUTS
from onnxprune.storage.device.layout import MIN_OPSET, Layout, cast_to_weight, node
from onnxprune.storage.form import DOMAIN, VERSION, Array
from onnxprune.storage.sparse_functions import ACTIVATIONS, activation_tail

PREFIXES = tuple(dict.fromkeys(layout.prefix for layout in LAYOUTS.values()))
IMAGES = tuple(prefix for prefix in PREFIXES if prefix != "Delta")  # kernels with a Conv
_NAME = re.compile(
    rf"(?P<prefix>{'|'.join(PREFIXES)})(?P<consumer>MatMul|Conv)(?P<activation>{'|'.join(ACTIVATIONS)})?"
)
_INTS = ("shape", "grid", "padded", "stored")


@dataclass(frozen=True)
class DeviceOp:
    """An op with a CUDA kernel.

    Attributes:
        prefix: of its layout.
        activation: one of ``ACTIVATIONS``, or empty.
        conv: whether it is a 1x1 convolution; ``prefix`` is in ``IMAGES`` then.
    """

    prefix: str
    activation: str = ""
    conv: bool = False

    @property
    def name(self) -> str:
        """Its ``op_type``."""
        return f"{self.prefix}{self.consumer}{self.activation}"

    @property
    def consumer(self) -> str:
        """The standard op that it stands for."""
        return "Conv" if self.conv else "MatMul"

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of its stored tensors."""
        return self._any_layout.inputs

    @property
    def _any_layout(self) -> Layout:
        return next(layout for layout in LAYOUTS.values() if layout.prefix == self.prefix)

    def function(self, opset: int) -> onnx.FunctionProto:
        """Return its function for models of this default opset (13 or newer)."""
        layout = self._any_layout
        names = ["shape", *layout.extra(1, 1), *["stored"] * self.conv]
        constants = [helper.make_node("Constant", [], [name]) for name in names]
        for made, name in zip(constants, names, strict=True):
            made.attribute.add(name="value_ints", ref_attr_name=name, type=AttributeProto.INTS)
        decoder = layout.body()
        if self.conv:
            decoder[-1].output[0] = "matrix"  # W (K, N)
            decoder += [node("Transpose", ["matrix"], "rows"), node("Reshape", ["rows", "stored"], "W")]
        nodes = [*constants, *decoder, *self.tail(opset)]
        others = ["low", "high"] * (self.activation == "Clip")
        others += ["trans", *["many_rows"] * (self.prefix == "NMTile")] * (not self.conv)
        function: onnx.FunctionProto = helper.make_function(
            DOMAIN,
            self.name,
            ["X", *layout.inputs, "B"],
            ["Y"],
            nodes,
            [helper.make_opsetid("", opset)],
            [*names, "dtype", "block_rows", *others],
        )
        function.doc_string = (
            f"{self.consumer} for CUDA, weight in layout {self.prefix}, version {VERSION}. By onnxprune."
        )
        return function

    def tail(self, opset: int, *, bias: bool = True, trans: bool = False) -> list[onnx.NodeProto]:
        """Return standard nodes from ``X``, the dense ``W`` and ``B`` to ``Y``; some refer to attributes.

        ``bias=False`` leaves ``B`` out. ``trans``: W is (N, K), else (K, N); of a Conv it is (N, K, 1...).
        """
        if self.conv:
            nodes = [node("Conv", ["X", "W", *["B"] * bias], "sum")]
        elif trans:
            nodes = [node("Gemm", ["X", "W", *["B"] * bias], "sum", transB=1)]
        else:
            nodes = [node("MatMul", ["X", "W"], "product" if bias else "sum")]
            nodes += [node("Add", ["product", "B"], "sum")] * bias
        if self.activation == "Relu":
            nodes.append(node("Relu", ["sum"], "Y"))
        elif self.activation:  # in float32, as in the kernel
            nodes.append(node("Cast", ["sum"], "wide_sum", to=TensorProto.FLOAT))
            nodes += activation_tail(self.activation, "wide_sum", "active", opset)
            nodes.append(cast_to_weight("active", "Y"))
        nodes[-1].output[0] = "Y"
        return nodes


def parse(op_type: str) -> DeviceOp | None:
    """Return the op with this name, None when it is none."""
    match = _NAME.fullmatch(op_type)
    if match is None or (match["consumer"] == "Conv" and match["prefix"] not in IMAGES):
        return None
    return DeviceOp(match["prefix"], match["activation"] or "", match["consumer"] == "Conv")


def device_op(given: onnx.NodeProto) -> DeviceOp | None:
    """Return which op with a CUDA kernel a node is, None when it is another one."""
    return parse(given.op_type) if given.domain == DOMAIN else None


def refusal(opset: int) -> str:
    """Return why a model of this opset cannot hold the ops, or an empty string."""
    return f"opset {opset}, wanted {MIN_OPSET}" if opset < MIN_OPSET else ""


def attributes(
    layout: Layout,
    rows: int,
    cols: int,
    data_type: int,
    trans: bool,
    many_rows: int | None = None,
    space: int = 0,
) -> list[AttributeProto]:
    """Return the attributes of a node whose weight is ``W (rows, cols)``.

    ``many_rows`` only of NMTile; ``space``: of a Conv, its number of spatial axes.
    """
    ints = {"shape": [cols, rows], **layout.extra(rows, cols)}
    if space:
        ints["stored"] = [rows, cols, *[1] * space]
    made = [helper.make_attribute(name, value) for name, value in ints.items()]
    numbers = {"dtype": data_type, "block_rows": layout.block_rows}
    if not space:
        numbers["trans"] = int(trans)
    if many_rows is not None and not space:
        numbers["many_rows"] = many_rows
    return made + [helper.make_attribute(name, value) for name, value in numbers.items()]


def layout_of(given: onnx.NodeProto) -> Layout:
    """Return the layout of a node with a CUDA kernel.

    Raises:
        ModelError: when its attribute ``block_rows`` names none.
    """
    op = device_op(given)
    assert op is not None
    rows = _number(given, "block_rows")
    for layout in LAYOUTS.values():
        if layout.prefix == op.prefix and layout.block_rows == rows:
            return layout
    raise ModelError(f"{DOMAIN}.{op.name} with block_rows {rows}, which this version does not know")


def decode(given: onnx.NodeProto, tensors: Sequence[Array], where: str) -> tuple[Array, bool]:
    """Return the dense weight of a node in its stored shape, and whether that is (N, K) or (N, K, 1...).

    Raises:
        ModelError: when attributes or tensors contradict each other.
    """
    layout = layout_of(given)
    found = {a.name: list(a.ints) for a in given.attribute if a.name in _INTS}
    shape, trans = found.get("shape", []), bool(_number(given, "trans"))
    if len(shape) != 2 or min(shape) < 1:
        raise ModelError(f"{where} has shape {shape}, wanted two sizes")
    weight = layout.decode(tensors, (shape[1], shape[0]), _number(given, "dtype"), where)
    for name, wanted in layout.extra(shape[1], shape[0]).items():
        if found.get(name) != wanted:
            raise ModelError(f"attribute {name!r} of {where} is {found.get(name)}, wanted {wanted}")
    op = device_op(given)
    if op is not None and op.conv:
        stored = found.get("stored", [])
        if len(stored) < 3 or stored != [shape[1], shape[0], *[1] * (len(stored) - 2)]:
            raise ModelError(f"attribute 'stored' of {where} is {stored}, wanted {shape[::-1]} and ones")
        return weight.reshape(stored), True
    return (weight if trans else weight.T.copy()), trans


def _number(given: onnx.NodeProto, name: str) -> int:
    return next((int(a.i) for a in given.attribute if a.name == name), 0)
