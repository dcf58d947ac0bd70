"""Attributes that say how many units there are: one function an operator, for REWRITES."""

from __future__ import annotations

import onnx

from onnxprune.attributes import attribute, ints, number
from onnxprune.structure.scene import Scene, set_attribute


def group(scene: Scene, node: onnx.NodeProto, position: int) -> None:
    """``group`` of Conv and ConvTranspose follows from the channels and the weight."""
    if number(node, "group", 1) == 1:
        return
    side = node.output[0] if node.op_type == "ConvTranspose" else node.input[0]
    set_attribute(node, "group", scene.new(side)[1] // scene.new(node.input[1])[1])


def hidden_size(scene: Scene, node: onnx.NodeProto, position: int) -> None:
    """``hidden_size`` of recurrent layers, where it is given."""
    if attribute(node, "hidden_size") is not None:
        set_attribute(node, "hidden_size", scene.new(node.input[2])[2])


def norm_groups(scene: Scene, node: onnx.NodeProto, position: int) -> None:
    """``num_groups`` of GroupNormalization, whose groups keep their size."""
    each = scene.old(node.input[0])[1] // int(number(node, "num_groups", 1))
    set_attribute(node, "num_groups", scene.new(node.input[0])[1] // each)


def heads(scene: Scene, node: onnx.NodeProto, position: int) -> None:
    """``q_num_heads`` and ``kv_num_heads`` of Attention with three axes."""
    if len(scene.old(node.input[0])) == 3:
        for name, slot in (("q_num_heads", 0), ("kv_num_heads", 1)):
            _scale(scene, node, name, node.input[slot])


def _scale(scene: Scene, node: onnx.NodeProto, name: str, value: str, axis: int = 2) -> None:
    """Scale an attribute as an axis of a value shrinks."""
    before = int(number(node, name, 0))
    if before:
        set_attribute(node, name, before * scene.new(value)[axis] // scene.old(value)[axis])


def microsoft_heads(scene: Scene, node: onnx.NodeProto, position: int) -> None:
    """MultiHeadAttention, GroupQueryAttention, RotaryEmbedding: heads share the features evenly."""
    if len(scene.old(node.input[0])) != 3:
        return
    _scale(scene, node, "num_heads", node.input[0])
    _scale(scene, node, "kv_num_heads", node.input[1] if node.input[1] else node.input[0])


def microsoft_attention(scene: Scene, node: onnx.NodeProto, position: int) -> None:
    """Attention of com.microsoft: queries, keys and values have shares of one weight."""
    sizes = ints(node, "qkv_hidden_sizes", ())
    old, new = scene.old(node.input[1])[1], scene.new(node.input[1])[1]
    if sizes:
        set_attribute(node, "qkv_hidden_sizes", [size * new // old for size in sizes])
    _scale(scene, node, "num_heads", node.input[1], 1)
