"""Attributes and integer inputs that say how many units there are: one function an operator, in REWRITES."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from onnxprune.attributes import attribute, ints, number
from onnxprune.errors import ModelError
from onnxprune.model import Model, label
from onnxprune.structure.means import Scaled, made_up_for, scaled
from onnxprune.structure.parameters import Parameters
from onnxprune.structure.shrunk import Shrunk


@dataclass(frozen=True)
class Scene:
    """What a rewrite sees: the model, its new shapes, and how to change integer inputs.

    Attributes:
        model: as it is changed.
        shrunk: the new shapes.
        parameters: changes integer inputs.
        fixed: whether an axis of a value has the same size for every input of the model.
    """

    model: Model
    shrunk: Shrunk
    parameters: Parameters
    fixed: Callable[[str, int], bool]

    def old(self, name: str) -> tuple[int, ...]:
        """Return the shape before."""
        return self.shrunk.layout.sizes[name]

    def new(self, name: str) -> tuple[int, ...]:
        """Return the shape after."""
        return self.shrunk.shape(name)


def set_attribute(node: onnx.NodeProto, name: str, value: object) -> None:
    """Replace or add an attribute."""
    kept = [item for item in node.attribute if item.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, *([] if value is None else [helper.make_attribute(name, value)])])


def _group(scene: Scene, node: onnx.NodeProto, position: int) -> None:
    """``group`` of Conv and ConvTranspose follows from the channels and the weight."""
    if number(node, "group", 1) == 1:
        return
    side = node.output[0] if node.op_type == "ConvTranspose" else node.input[0]
    set_attribute(node, "group", scene.new(side)[1] // scene.new(node.input[1])[1])


def _hidden_size(scene: Scene, node: onnx.NodeProto, position: int) -> None:
    if attribute(node, "hidden_size") is not None:
        set_attribute(node, "hidden_size", scene.new(node.input[2])[2])


def _norm_groups(scene: Scene, node: onnx.NodeProto, position: int) -> None:
    each = scene.old(node.input[0])[1] // int(number(node, "num_groups", 1))
    set_attribute(node, "num_groups", scene.new(node.input[0])[1] // each)


def _split(scene: Scene, node: onnx.NodeProto, position: int) -> None:
    at = int(number(node, "axis", 0)) % len(scene.old(node.input[0]))
    if scene.new(node.input[0])[at] == scene.old(node.input[0])[at]:
        return
    sizes = [scene.new(name)[at] for name in node.output]
    if scene.model.opset < 13:
        set_attribute(node, "split", sizes)
        return
    set_attribute(node, "num_outputs", None)
    if len(node.input) > 1 and node.input[1]:
        scene.parameters.set(node, position, 1, sizes, [True] * len(sizes))
    else:
        scene.parameters.replace(node, 1, np.array(sizes, np.int64))


def _slice(scene: Scene, node: onnx.NodeProto, position: int) -> None:
    """Bounds count the positions that are left before them."""
    source, rank = node.input[0], len(scene.old(node.input[0]))
    inside = len(node.input) == 1
    if inside:
        starts, ends = list(ints(node, "starts", ())), list(ints(node, "ends", ()))
        axes = list(ints(node, "axes", tuple(range(len(starts)))))
    else:
        old = [_numbers(scene, name) for name in node.input[1:]]
        starts, ends = (array.ravel().tolist() for array in old[:2])
        axes = old[2].ravel().tolist() if len(old) > 2 and node.input[3] else list(range(len(starts)))
    wanted: tuple[list[int | None], list[int | None]] = ([None] * len(axes), [None] * len(axes))
    for place, axis in enumerate(axes):
        kept = scene.shrunk.kept(source, axis % rank)
        if kept is None:
            continue
        for side, bound in enumerate((starts[place], ends[place])):
            if not -len(kept) < bound < len(kept):
                wanted[side][place] = (
                    None if abs(bound) > len(kept) else int(np.sign(bound)) * int(kept.sum())
                )
            elif bound < 0:
                wanted[side][place] = -int(kept[bound:].sum()) or int(kept.sum())
            else:
                wanted[side][place] = int(kept[:bound].sum())
    for side, name in enumerate(("starts", "ends")):
        numbers = wanted[side]
        if all(n is None for n in numbers):
            continue
        if inside:
            before = (starts, ends)[side]
            set_attribute(node, name, [b if n is None else n for b, n in zip(before, numbers, strict=True)])
        else:
            fixed = [n is not None for n in numbers]
            scene.parameters.set(node, position, 1 + side, numbers, fixed)


def _numbers(scene: Scene, name: str) -> NDArray[np.int64]:
    """Return an integer input as it is in the sample run of the dense model."""
    if not name:
        return np.empty(0, np.int64)
    if scene.parameters.is_constant(name):
        return np.asarray(scene.model.array(name), np.int64)
    return np.asarray(scene.shrunk.layout.numbers[name], np.int64)


def _pad(scene: Scene, node: onnx.NodeProto, position: int) -> None:
    """Widths on an axis with labels count the padded positions that are left."""
    source, target = scene.old(node.input[0]), node.output[0]
    rank = len(source)
    if all(scene.shrunk.kept(target, axis) is None for axis in range(rank)) or scene.old(target) == source:
        return
    inside = len(node.input) == 1
    name = "pads" if attribute(node, "pads") is not None else "paddings"
    pads = list(ints(node, name, ())) if inside else _numbers(scene, node.input[1]).ravel().tolist()
    chosen = (
        _numbers(scene, node.input[3]).ravel().tolist() if len(node.input) > 3 and node.input[3] else None
    )
    axes = list(range(rank)) if chosen is None else [axis % rank for axis in chosen]
    dense, fixed = list(pads), [False] * len(pads)
    for place, axis in enumerate(axes):
        kept = scene.shrunk.kept(target, axis)
        before, after = pads[place], pads[place + len(axes)]
        if kept is not None:
            pads[place] = int(kept[:before].sum())
            pads[place + len(axes)] = int(kept[len(kept) - after :].sum())
            fixed[place] = fixed[place + len(axes)] = True  # the rule pins axes with other widths
    if inside:
        set_attribute(node, name, pads)
    elif scene.parameters.value(node.input[1]) is not None:
        scene.parameters.set(node, position, 1, pads, fixed)
    elif pads != dense:
        raise ModelError(f"the widths that {label(node)} reads cannot be followed")


def _reshape(scene: Scene, node: onnx.NodeProto, position: int) -> None:
    """The shape of Reshape, where -1 stays and 0 stays if it is right."""
    if len(node.input) < 2:  # before opset 5
        if scene.shrunk.changed(node.output[0]):
            raise ModelError(f"{label(node)} has its shape as an attribute")
        return
    source, target = scene.new(node.input[0]), scene.new(node.output[0])
    found = scene.parameters.value(node.input[1])
    wanted: list[int | None] = [*target]
    for place, value in enumerate([] if found is None else found.ravel().tolist()):
        if value == -1 or (value == 0 and place < len(source) and source[place] == target[place]):
            wanted[place] = None
    _set_shape(scene, node, position, 1, wanted)


def _shape(scene: Scene, node: onnx.NodeProto, position: int) -> None:
    """The shape of Expand (where 1 leaves an axis as it is) and of ConstantOfShape."""
    slot = 1 if node.op_type == "Expand" else 0
    found = scene.parameters.value(node.input[slot])
    target = scene.new(node.output[0])
    count = len(found.ravel()) if found is not None else len(target)
    wanted: list[int | None] = [*target[len(target) - count :]]
    if node.op_type == "Expand" and found is not None:
        wanted = [None if value == 1 else n for value, n in zip(found.ravel().tolist(), wanted, strict=True)]
    _set_shape(scene, node, position, slot, wanted)


def _set_shape(
    scene: Scene, node: onnx.NodeProto, position: int, slot: int, wanted: list[int | None]
) -> None:
    rank = len(scene.old(node.output[0]))
    fixed = [scene.fixed(node.output[0], axis) for axis in range(rank - len(wanted), rank)]
    scene.parameters.set(node, position, slot, wanted, fixed)


def _sizes(scene: Scene, node: onnx.NodeProto, position: int) -> None:
    """``sizes`` of Resize."""
    if len(node.input) > 3 and node.input[3] and not attribute(node, "axes"):
        _set_shape(scene, node, position, 3, [*scene.new(node.output[0])])


def _heads(scene: Scene, node: onnx.NodeProto, position: int) -> None:
    """``q_num_heads`` and ``kv_num_heads`` of Attention with three axes."""
    if len(scene.old(node.input[0])) == 3:
        for name, slot in (("q_num_heads", 0), ("kv_num_heads", 1)):
            _scale(scene, node, name, node.input[slot])


def _scale(scene: Scene, node: onnx.NodeProto, name: str, value: str, axis: int = 2) -> None:
    """Scale an attribute as an axis of a value shrinks."""
    before = int(number(node, name, 0))
    if before:
        set_attribute(node, name, before * scene.new(value)[axis] // scene.old(value)[axis])


def _microsoft_heads(scene: Scene, node: onnx.NodeProto, position: int) -> None:
    """MultiHeadAttention, GroupQueryAttention, RotaryEmbedding: heads share the features evenly."""
    if len(scene.old(node.input[0])) != 3:
        return
    _scale(scene, node, "num_heads", node.input[0])
    _scale(scene, node, "kv_num_heads", node.input[1] if node.input[1] else node.input[0])


def _microsoft_attention(scene: Scene, node: onnx.NodeProto, position: int) -> None:
    """Attention of com.microsoft: queries, keys and values have shares of one weight."""
    sizes = ints(node, "qkv_hidden_sizes", ())
    old, new = scene.old(node.input[1])[1], scene.new(node.input[1])[1]
    if sizes:
        set_attribute(node, "qkv_hidden_sizes", [size * new // old for size in sizes])
    _scale(scene, node, "num_heads", node.input[1], 1)


# Operator -> slot of the scale, and epsilon where the node does not say.
_MEAN_SQUARES = {
    "RMSNormalization": (1, 1e-5),
    "SimplifiedLayerNormalization": (1, 1e-5),
    "SkipSimplifiedLayerNormalization": (2, 1e-12),
}


def _mean_square(scene: Scene, node: onnx.NodeProto, position: int) -> None:
    """Scale and epsilon of RMS normalisations: the mean square is over fewer features."""
    slot, default = _MEAN_SQUARES[node.op_type]
    shape = scene.old(node.input[0])
    first = int(number(node, "axis", -1)) % len(shape)
    larger = math.prod(shape[first:]) / math.prod(scene.new(node.input[0])[first:])
    if larger > 1:
        set_attribute(node, "epsilon", number(node, "epsilon", default) * larger)
        _multiply(scene, node, scaled(scene.model, position, slot, 0.5), larger)


def _mean(scene: Scene, node: onnx.NodeProto, position: int) -> None:
    """What makes up for a mean over fewer units."""
    source, target = node.input[0], node.output[0]
    each = math.prod(scene.old(source)) // math.prod(scene.old(target))
    larger = each * math.prod(scene.new(target)) / math.prod(scene.new(source))
    for item in made_up_for(scene.model, target) if larger > 1 else ():
        _multiply(scene, scene.model.graph.node[item.node], item, larger)


def _multiply(scene: Scene, node: onnx.NodeProto, item: Scaled, larger: float) -> None:
    """Scale a stored tensor, or let the node read one of its own."""
    array = scene.model.array(item.tensor)
    wanted = np.asarray(array.astype(np.float64) * larger**item.power).astype(array.dtype)
    if item.own:
        scene.model.set_array(item.tensor, wanted)
    else:
        scene.parameters.replace(node, item.slot, wanted)


Rewrite = Callable[[Scene, onnx.NodeProto, int], None]
REWRITES: dict[tuple[str, str], Rewrite] = {
    ("", "Conv"): _group,
    ("", "ConvTranspose"): _group,
    ("com.microsoft", "FusedConv"): _group,
    **{("", op): _hidden_size for op in ("LSTM", "GRU", "RNN")},
    ("", "GroupNormalization"): _norm_groups,
    ("", "RMSNormalization"): _mean_square,
    ("", "SimplifiedLayerNormalization"): _mean_square,
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): _mean_square,
    ("", "ReduceMean"): _mean,
    ("", "Split"): _split,
    ("", "Slice"): _slice,
    ("", "Pad"): _pad,
    ("", "Reshape"): _reshape,
    ("", "Expand"): _shape,
    ("", "ConstantOfShape"): _shape,
    ("", "Resize"): _sizes,
    ("", "Attention"): _heads,
    ("", "RotaryEmbedding"): _microsoft_heads,
    ("com.microsoft", "RotaryEmbedding"): _microsoft_heads,
    ("com.microsoft", "MultiHeadAttention"): _microsoft_heads,
    ("com.microsoft", "GroupQueryAttention"): _microsoft_heads,
    ("com.microsoft", "Attention"): _microsoft_attention,
}
# Operator -> the integer inputs that its rewrite compares with what is wanted.
READS: dict[str, tuple[int, ...]] = {
    "Split": (1,), "Slice": (1, 2), "Pad": (1,), "Reshape": (1,), "Expand": (1,), "ConstantOfShape": (0,),
    "Resize": (3,),
}  # fmt: skip
