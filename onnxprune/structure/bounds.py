"""Integer inputs that hold shapes, sizes and bounds: one function an operator, for REWRITES."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.attributes import attribute, ints, number
from onnxprune.errors import ModelError
from onnxprune.model import label
from onnxprune.structure.scene import Scene, set_attribute


def split(scene: Scene, node: onnx.NodeProto, position: int) -> None:
    """The sizes of the outputs of Split."""
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


def slices(scene: Scene, node: onnx.NodeProto, position: int) -> None:
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


def pad(scene: Scene, node: onnx.NodeProto, position: int) -> None:
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


def reshape(scene: Scene, node: onnx.NodeProto, position: int) -> None:
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


def shape(scene: Scene, node: onnx.NodeProto, position: int) -> None:
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


def sizes(scene: Scene, node: onnx.NodeProto, position: int) -> None:
    """``sizes`` of Resize."""
    if len(node.input) > 3 and node.input[3] and not attribute(node, "axes"):
        _set_shape(scene, node, position, 3, [*scene.new(node.output[0])])
