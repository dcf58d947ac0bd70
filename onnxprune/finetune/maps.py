"""Attention maps as something to learn from: where the dense model looks, the smaller one should look.

Source: Wang et al., "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained
Transformers" (2020): KL divergence between the rows of the attention maps, per head.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from onnxprune.attention.find import find_attention
from onnxprune.model import Model

_TINY = 1e-20  # a probability that has underflowed
MOST = 2**22  # bytes a sample: maps grow with the square of the tokens, and all samples' are kept
RANK = 4  # (batch, heads, queries, keys): with the heads in the batch a sample would have many rows


def attention_maps(model: Model) -> tuple[str, ...]:
    """Return the values that hold attention probabilities, in order; operators that hide them have none."""
    blocks, _ = find_attention(model)
    return tuple(dict.fromkeys(block.probabilities for block in blocks if not block.fused))


def affordable(sizes: Mapping[str, int]) -> tuple[str, ...]:
    """Return the last of the maps that take at most :data:`MOST` bytes together, in their order.

    The last one alone teaches nearly as much as all (Wang et al.).

    Args:
        sizes: bytes that one sample's map takes, in graph order.
    """
    kept: list[str] = []
    total = 0
    for name, size in reversed(tuple(sizes.items())):
        total += size
        if total > MOST:
            break
        kept.insert(0, name)
    return tuple(kept)


def map_divergence(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mean over heads and queries of KL(teacher || student) over the keys, in nats.

    Args:
        student: (batch, heads, queries, keys) float, non-negative, rows that sum to 1.
        teacher: the same of the dense model.
        mask: (batch, tokens), True where a token is real: queries of padding do not count. It is left aside
            where the queries are not the tokens that it speaks of.
    """
    p, q = teacher.float(), student.float()
    rows = (p * (p.clamp_min(_TINY).log() - q.clamp_min(_TINY).log())).sum(-1).mean(1)
    if mask is None or mask.shape != rows.shape:
        return rows.mean()
    return rows[mask].mean()
