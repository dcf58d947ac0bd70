"""Operators of com.microsoft in models that generate text: attention over a cache, rotary positions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxprune.finetune.ops.attention import (
    attend,
    merge_heads,
    rotated,
    split_heads,
    visible,
)
from onnxprune.finetune.ops.microsoft import DOMAIN
from onnxprune.finetune.registry import Unsupported, op


@op(1, domain=DOMAIN, host=(6,))
def GroupQueryAttention(
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    past_key: Tensor | None,
    past_value: Tensor | None,
    seqlens_k: Tensor,
    total_sequence_length: Tensor,
    cos_cache: Tensor | None = None,
    sin_cache: Tensor | None = None,
    position_ids: Tensor | None = None,
    attention_bias: Tensor | None = None,
    head_sink: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    q_norm_weight: Tensor | None = None,
    k_norm_weight: Tensor | None = None,
    *,
    causal: int = 1,
    do_rotary: int = 0,
    k_quant_type: str = "NONE",
    kv_cache_bit_width: int = 0,
    kv_num_heads: int,
    local_window_size: int = -1,
    num_heads: int,
    qk_norm_epsilon: float = 1e-6,
    qk_output: int = 0,
    rotary_interleaved: int = 0,
    scale: float = 0.0,
    sliding_window_cache: int = 0,
    smooth_softmax: int = 0,
    softcap: float = 0.0,
    v_quant_type: str = "NONE",
) -> tuple[Tensor, ...]:
    if k_scale is not None or v_scale is not None or {k_quant_type, v_quant_type} != {"NONE"}:
        raise Unsupported("a quantised key/value cache is not supported")
    if sliding_window_cache or qk_output:
        raise Unsupported("sliding_window_cache and qk_output are not supported")
    Q, K, V = _projections(query, key, value, num_heads, kv_num_heads)
    if q_norm_weight is not None and k_norm_weight is not None:
        Q, K = (_normed(Q, q_norm_weight, qk_norm_epsilon), _normed(K, k_norm_weight, qk_norm_epsilon))
    length, total = Q.shape[2], int(total_sequence_length)
    ends = (seqlens_k.to(Q.device, torch.int64) + 1).view(-1, 1)
    first = torch.zeros_like(ends) if length == total else ends - length  # nothing is cached for a prompt
    places = first + torch.arange(length, device=Q.device)  # (batch, sequence)
    if do_rotary:
        where = places if position_ids is None or length == total else position_ids
        Q, K = _rotated(Q, K, cos_cache, sin_cache, where, rotary_interleaved)
    K, V = (_cached(p, x, places, total) for p, x in ((past_key, K), (past_value, V)))
    window = local_window_size - 1 if local_window_size > 0 else -1  # the query itself counts
    added = _mask(Q, first, ends, total, causal, window)
    added = added if attention_bias is None else added + attention_bias
    sink = Q.new_zeros(num_heads) if smooth_softmax and head_sink is None else head_sink
    scale = scale or 1 / math.sqrt(Q.shape[3])
    Y, _ = attend(Q, K[:, :, :total], V[:, :, :total], added, scale, softcap, sink=sink)
    return merge_heads(Y), K, V


def _projections(
    query: Tensor, key: Tensor | None, value: Tensor | None, heads: int, kv_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return Q, K, V as (batch, heads, sequence, size); without key and value the query holds all three."""
    if key is None or value is None:
        size = query.shape[2] // (heads + 2 * kv_heads)
        query, key, value = torch.split(query, [heads * size, *[kv_heads * size] * 2], 2)
    return split_heads(query, heads), split_heads(key, kv_heads), split_heads(value, kv_heads)


def _normed(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + epsilon).rsqrt() * weight


def _rotated(
    Q: Tensor,
    K: Tensor,
    cos_cache: Tensor | None,
    sin_cache: Tensor | None,
    where: Tensor,
    interleaved: int,
) -> tuple[Tensor, Tensor]:
    """Turn queries and keys by their positions ``where`` (batch, sequence)."""
    if cos_cache is None or sin_cache is None:
        raise Unsupported("do_rotary without cos_cache and sin_cache")
    cos, sin, size = cos_cache[where].unsqueeze(1), sin_cache[where].unsqueeze(1), 2 * cos_cache.shape[1]
    return rotated(Q, cos, sin, interleaved, size), rotated(K, cos, sin, interleaved, size)


def _cached(past: Tensor | None, new: Tensor, places: Tensor, total: int) -> Tensor:
    """Put the new rows behind those in use, in a buffer with room for ``total``; the rest of it is zero."""
    if past is None:
        return new
    room = max(total - past.shape[2], 0)
    buffer = F.pad(past, (0, 0, 0, room)) if room else past
    used = torch.arange(buffer.shape[2], device=new.device) < places[:, :1]
    buffer = torch.where(used[:, None, :, None], buffer, 0.0)
    return buffer.scatter(2, places[:, None, :, None].expand_as(new), new.to(buffer.dtype))


def _mask(Q: Tensor, first: Tensor, ends: Tensor, total: int, causal: int, window: int) -> Tensor:
    """What is added to the scores: -infinity where a key is of a later token, too far or beyond ``ends``.

    ``first`` and ``ends`` (batch, 1): place of the first query, and how many keys there are.
    """
    length = Q.shape[2]
    allowed = visible(length, total, first.view(-1, 1, 1, 1), Q, causal, window)
    if not causal or length > 1:  # rows of padding see the keys before them, so that they stay finite
        allowed = allowed & (torch.arange(total, device=Q.device) < ends.clamp(min=1).view(-1, 1, 1, 1))
    return Q.new_zeros(()).masked_fill(~allowed, -math.inf)


@op(1, domain=DOMAIN)
def RotaryEmbedding(
    x: Tensor,
    position_ids: Tensor,
    cos_cache: Tensor,
    sin_cache: Tensor,
    *,
    interleaved: int = 0,
    is_packed_batching: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
    scale: float = 1.0,
) -> Tensor:
    if is_packed_batching or scale != 1:
        raise Unsupported("is_packed_batching and a scale are not supported")
    size = 2 * cos_cache.shape[1]
    y = split_heads(x, num_heads or x.shape[2] // size) if x.ndim == 3 else x
    if position_ids.ndim == 1:  # one number: where all sequences start
        position_ids = position_ids[:1, None] + torch.arange(y.shape[2], device=position_ids.device)
    cos, sin = cos_cache[position_ids].unsqueeze(1), sin_cache[position_ids].unsqueeze(1)
    y = rotated(y, cos, sin, interleaved, size)
    return merge_heads(y) if x.ndim == 3 else y
