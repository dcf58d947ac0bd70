"""What each operator says about the labels of its inputs and outputs: a function, and its line in RULES."""

from __future__ import annotations

from collections.abc import Callable

import onnx

from onnxprune.layers.recurrent import GATES
from onnxprune.structure.labels import Labels
from onnxprune.structure.rules import (
    attention,
    convolution,
    elementwise,
    normalisation,
    parts,
    products,
    recurrent,
    reduction,
    shaping,
)

Rule = Callable[[Labels, onnx.NodeProto], None]
_COMMON: dict[str, Rule] = {
    **dict.fromkeys(elementwise.OPERATORS, elementwise.elementwise),
    "MatMul": products.product,
    "Gemm": products.gemm,
    "Einsum": products.product,
    "Conv": convolution.convolution,
    "ConvTranspose": convolution.convolution,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), shaping.reshape),
    "Transpose": shaping.transpose,
    "Expand": shaping.expand,
    "ConstantOfShape": shaping.constant_of_shape,
    "Tile": shaping.tile,
    "DepthToSpace": shaping.depth_to_space,
    "SpaceToDepth": shaping.space_to_depth,
    "Concat": parts.concat,
    "Split": parts.split,
    "Slice": parts.slices,
    "Gather": parts.gather,
    "Pad": parts.pad,
    "BatchNormalization": normalisation.by_channel,
    "InstanceNormalization": normalisation.by_channel,
    "GroupNormalization": normalisation.groups_of_channels,
    "LayerNormalization": normalisation.over_axes,
    "RMSNormalization": normalisation.mean_square,
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), normalisation.softmax),
    **dict.fromkeys(("CumSum", "LpNormalization"), normalisation.along_axis),
    **dict.fromkeys(("LRN", "MeanVarianceNormalization"), normalisation.lrn),
    **dict.fromkeys(
        ("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"),
        reduction.pool,
    ),
    **dict.fromkeys(("Resize", "Upsample"), reduction.resize),
    **dict.fromkeys(
        (
            "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
            "ReduceProd", "ReduceSum", "ReduceSumSquare",
        ),
        reduction.reduce,
    ),
    **dict.fromkeys(("ArgMax", "ArgMin", "TopK"), reduction.pick),
    **dict.fromkeys(GATES, recurrent.recurrent),
    "Attention": attention.attention,
    "RotaryEmbedding": attention.rotary,
    "SimplifiedLayerNormalization": normalisation.mean_square,  # ONNX Runtime keeps it in the default domain
}  # fmt: skip
_MICROSOFT: dict[str, Rule] = {
    **dict.fromkeys(("BiasGelu", "FastGelu", "Gelu", "QuickGelu"), elementwise.elementwise),
    "FusedMatMul": products.product,
    "FusedGemm": products.gemm,
    "FusedConv": convolution.convolution,
    **dict.fromkeys(("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"), normalisation.skip_norm),
    "Attention": attention.fused_projection,
    "MultiHeadAttention": attention.multi_head,
    "GroupQueryAttention": attention.grouped_query,
    "RotaryEmbedding": attention.rotary,
}
RULES: dict[tuple[str, str], Rule] = {
    **{("", op): rule for op, rule in _COMMON.items()},
    **{("com.microsoft", op): rule for op, rule in _MICROSOFT.items()},
}
# Operator -> the inputs that say what it does instead of being what it works on.
PARAMETERS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("Reshape", "Expand", "Squeeze", "Unsqueeze", "Split", "TopK", "CumSum"), (1,)),
    **dict.fromkeys(("Tile",), (1, 2)),
    "ConstantOfShape": (0,),
    "Slice": (1, 2, 3, 4),
    "Pad": (1, 2, 3),
    "Resize": (1, 2, 3),
    "Upsample": (1,),
    **{op: (1,) for op in _COMMON if op.startswith("Reduce")},
}
# These make values of their own: what they read, they do not pass on.
SOURCES = frozenset(("Shape", "Size", "Range", "RandomNormalLike", "RandomUniformLike", "EyeLike"))
