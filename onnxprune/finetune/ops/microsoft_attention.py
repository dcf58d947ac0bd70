"""Attention operators of com.microsoft. Their masks add numbers to the scores, as in ONNX Runtime."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxprune.finetune.ops.attention import (
    WITH_BIAS,
    attend,
    merge_heads,
    rotated,
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
    if key is None or value is None:
        size = query.shape[2] // (num_heads + 2 * kv_num_heads)
        query, key, value = torch.split(query, [num_heads * size, *[kv_num_heads * size] * 2], 2)
    Q, K, V = split_heads(query, num_heads), split_heads(key, kv_num_heads), split_heads(value, kv_num_heads)
    if q_norm_weight is not None and k_norm_weight is not None:
        Q, K = (_normed(Q, q_norm_weight, qk_norm_epsilon), _normed(K, k_norm_weight, qk_norm_epsilon))
    length, total = Q.shape[2], int(total_sequence_length)
    ends = (seqlens_k.to(Q.device, torch.int64) + 1).view(-1, 1)
    first = torch.zeros_like(ends) if length == total else ends - length  # nothing is cached for a prompt
    places = first + torch.arange(length, device=Q.device)  # (batch, sequence)
    if do_rotary:
        if cos_cache is None or sin_cache is None:
            raise Unsupported("do_rotary without cos_cache and sin_cache")
        where = places if position_ids is None or length == total else position_ids
        cos, sin = cos_cache[where].unsqueeze(1), sin_cache[where].unsqueeze(1)
        Q, K = (rotated(x, cos, sin, rotary_interleaved, 2 * cos_cache.shape[1]) for x in (Q, K))
    K, V = (_cached(p, x, places, total) for p, x in ((past_key, K), (past_value, V)))
    window = local_window_size - 1 if local_window_size > 0 else -1  # the query itself counts
    allowed = visible(length, total, first.view(-1, 1, 1, 1), Q, causal, window)
    if not causal or length > 1:  # rows of padding see the keys before them, so that they stay finite
        allowed = allowed & (torch.arange(total, device=Q.device) < ends.clamp(min=1).view(-1, 1, 1, 1))
    added = Q.new_zeros(()).masked_fill(~allowed, -math.inf)
    added = added if attention_bias is None else added + attention_bias
    sink = Q.new_zeros(num_heads) if smooth_softmax and head_sink is None else head_sink
    Y, _ = attend(Q, K[:, :, :total], V[:, :, :total], added, _scale(scale, Q), softcap, sink=sink)
    return merge_heads(Y), K, V


def _normed(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + epsilon).rsqrt() * weight


def _cached(past: Tensor | None, new: Tensor, places: Tensor, total: int) -> Tensor:
    """Put the new rows behind those in use, in a buffer with room for ``total``; the rest of it is zero."""
    if past is None:
        return new
    room = max(total - past.shape[2], 0)
    buffer = F.pad(past, (0, 0, 0, room)) if room else past
    used = torch.arange(buffer.shape[2], device=new.device) < places[:, :1]
    buffer = torch.where(used[:, None, :, None], buffer, 0.0)
    return buffer.scatter(2, places[:, None, :, None].expand_as(new), new.to(buffer.dtype))


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
