"""What to rewrite where units go: attributes, integer inputs and weights that depend on their number."""

from __future__ import annotations

from collections.abc import Callable

import onnx

from onnxprune.structure import averages, bounds, counts
from onnxprune.structure.scene import Scene

Rewrite = Callable[[Scene, onnx.NodeProto, int], None]
REWRITES: dict[tuple[str, str], Rewrite] = {
    ("", "Conv"): counts.group,
    ("", "ConvTranspose"): counts.group,
    ("com.microsoft", "FusedConv"): counts.group,
    **{("", op): counts.hidden_size for op in ("LSTM", "GRU", "RNN")},
    ("", "GroupNormalization"): counts.norm_groups,
    ("", "RMSNormalization"): averages.mean_square,
    ("", "SimplifiedLayerNormalization"): averages.mean_square,
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): averages.mean_square,
    ("", "ReduceMean"): averages.mean,
    ("", "Split"): bounds.split,
    ("", "Slice"): bounds.slices,
    ("", "Pad"): bounds.pad,
    ("", "Reshape"): bounds.reshape,
    ("", "Expand"): bounds.shape,
    ("", "ConstantOfShape"): bounds.shape,
    ("", "Resize"): bounds.sizes,
    ("", "Attention"): counts.heads,
    ("", "RotaryEmbedding"): counts.microsoft_heads,
    ("com.microsoft", "RotaryEmbedding"): counts.microsoft_heads,
    ("com.microsoft", "MultiHeadAttention"): counts.microsoft_heads,
    ("com.microsoft", "GroupQueryAttention"): counts.microsoft_heads,
    ("com.microsoft", "Attention"): counts.microsoft_attention,
}
# Operator -> the integer inputs that its rewrite compares with what is wanted.
READS: dict[str, tuple[int, ...]] = {
    "Split": (1,), "Slice": (1, 2), "Pad": (1,), "Reshape": (1,), "Expand": (1,), "ConstantOfShape": (0,),
    "Resize": (3,),
}  # fmt: skip
