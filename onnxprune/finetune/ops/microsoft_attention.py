"""Attention and MultiHeadAttention of com.microsoft. Masks add numbers to the scores, as in ONNX Runtime."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from onnxprune.finetune.ops.attention import (
    WITH_BIAS,
    attend,
    merge_heads,
    split_heads,
    visible,
)
from onnxprune.finetune.ops.microsoft import DOMAIN
from onnxprune.finetune.registry import Unsupported, op

MASKED = -10000.0


@op(1, domain=DOMAIN)
def Attention(
    x: Tensor,
    weights: Tensor,
    bias: Tensor | None = None,
    mask_index: Tensor | None = None,
    past: Tensor | None = None,
    attention_bias: Tensor | None = None,
    past_sequence_length: Tensor | None = None,
    *,
    do_rotary: int = 0,
    mask_filter_value: float = MASKED,
    num_heads: int,
    past_present_share_buffer: int = 0,
    qkv_hidden_sizes: Sequence[int] = (),
    rotary_embedding_dim: int = 0,
    scale: float = 0.0,
    unidirectional: int = 0,
    outputs: tuple[bool, ...] = (True,),
) -> tuple[Tensor, ...]:
    if do_rotary:
        raise Unsupported("do_rotary is not supported")
    if past_present_share_buffer or past_sequence_length is not None:
        raise Unsupported("a key/value buffer shared by past and present is not supported")
    projected = x @ weights if bias is None else torch.addmm(bias, x.flatten(0, 1), weights)
    projected = projected.view(*x.shape[:2], -1)
    sizes = list(qkv_hidden_sizes) or [projected.shape[2] // 3] * 3
    Q, K, V = (split_heads(part, num_heads) for part in torch.split(projected, sizes, 2))
    if past is not None:
        K, V = torch.cat([past[0], K], 2), torch.cat([past[1], V], 2)
    added = _mask(mask_index, Q, K, past, unidirectional, mask_filter_value, attention_bias)
    Y, _ = attend(Q, K, V, added, _scale(scale, Q))
    if not any(outputs[1:]):
        return (merge_heads(Y),)
    if K.shape != V.shape:
        raise Unsupported("the present state is asked for, but keys and values differ in size")
    return merge_heads(Y), torch.stack([K, V])


@op(1, domain=DOMAIN)
def MultiHeadAttention(
    query: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    bias: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    attention_bias: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    past_sequence_length: Tensor | None = None,
    cache_indirection: Tensor | None = None,
    *,
    mask_filter_value: float = MASKED,
    num_heads: int,
    scale: float = 0.0,
    unidirectional: int = 0,
    outputs: tuple[bool, ...] = (True,),
) -> tuple[Tensor, ...]:
    if past_sequence_length is not None or cache_indirection is not None:
        raise Unsupported("a key/value buffer shared by past and present is not supported")
    Q, K, V = _projections(query, key, value, bias, num_heads)
    if past_key is not None and past_value is not None:
        K, V = torch.cat([past_key, K], 2), torch.cat([past_value, V], 2)
    added = _mask(key_padding_mask, Q, K, past_key, unidirectional, mask_filter_value, attention_bias)
    mode = WITH_BIAS if len(outputs) > 3 and outputs[3] else None
    Y, shown = attend(Q, K, V, added, _scale(scale, Q), mode=mode)
    return merge_heads(Y), K, V, *(() if shown is None else (shown,))


def _projections(
    query: Tensor, key: Tensor | None, value: Tensor | None, bias: Tensor | None, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return Q, K, V as (batch, heads, sequence, size) from any of the layouts, bias added."""
    if query.ndim == 5:  # (batch, sequence, heads, 3, size)
        Q, K, V = query.permute(3, 0, 2, 1, 4).unbind(0)
    else:
        Q = split_heads(query, heads)
        if key is None:
            raise Unsupported("no key, and a query that is not packed")
        if key.ndim == 5:  # (batch, sequence, heads, 2, size)
            K, V = key.permute(3, 0, 2, 1, 4).unbind(0)
        elif value is None:
            raise Unsupported("no value, and a key that is not packed")
        elif key.ndim == 4:  # of another sequence, projected before: they have their bias already
            width = Q.shape[1] * Q.shape[3]
            Q = Q if bias is None else Q + bias[:width].view(1, heads, 1, -1)
            return Q, key, value
        else:
            K, V = split_heads(key, heads), split_heads(value, heads)
    if bias is None:
        return Q, K, V
    sizes = [heads * x.shape[3] for x in (Q, K, V)]
    q, k, v = (part.view(1, heads, 1, -1) for part in torch.split(bias, sizes))
    return Q + q, K + k, V + v


def _scale(given: float, Q: Tensor) -> float:
    return given or 1 / math.sqrt(Q.shape[3])


def _mask(
    mask: Tensor | None,
    Q: Tensor,
    K: Tensor,
    past: Tensor | None,
    causal: int,
    fill: float,
    bias: Tensor | None,
) -> Tensor | None:
    """Sum of all that is added to the scores, or None."""
    batch, _, queries, _ = Q.shape
    keys = K.shape[2]
    added = None if mask is None else _padding(mask, batch, keys, fill, Q.dtype)
    if causal and queries > 1:
        first = 0 if past is None else past.shape[-2]
        if keys != first + queries:  # ONNX Runtime on the CPU lets the last query see all keys then
            raise Unsupported(
                "unidirectional with keys of another length than the queries: runtimes disagree"
            )
        later = ~visible(queries, keys, first, Q, 1)
        least = torch.finfo(Q.dtype).min
        added = Q.new_zeros(()) if added is None else added
        added = added.masked_fill(later, least)
    if bias is None:
        return added
    return bias if added is None else added + bias


def _padding(mask: Tensor, batch: int, keys: int, fill: float, dtype: torch.dtype) -> Tensor:
    """``fill`` where a mask bars keys: (batch, 1, 1 or queries, keys)."""
    if mask.ndim == 1:
        at = torch.arange(keys, device=mask.device)
        if mask.shape[0] not in (batch, 2 * batch):
            raise Unsupported(f"a mask of shape {tuple(mask.shape)} is not supported")
        barred = at >= mask[:batch, None]
        if mask.shape[0] == 2 * batch:  # ends, then starts
            barred = barred | (at < mask[batch:, None])
        barred = barred[:, None, None]
    elif mask.ndim == 2:
        barred = (mask <= 0)[:, None, None]
    elif mask.ndim == 3:
        barred = (mask <= 0)[:, None]
    else:
        raise Unsupported(f"a mask of {mask.ndim} dimensions is not supported")
    return torch.zeros((), dtype=dtype, device=mask.device).masked_fill(barred, fill)
