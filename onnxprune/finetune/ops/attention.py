"""Attention and RotaryEmbedding of the default domain, and what com.microsoft shares with them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxprune.finetune.dtypes import torch_dtype
from onnxprune.finetune.ops.common import NARROW
from onnxprune.finetune.registry import Unsupported, op

BEFORE_SOFTCAP, AFTER_SOFTCAP, WITH_BIAS, PROBABILITIES = range(4)  # values of qk_matmul_output_mode


@op(23)
def Attention(
    Q: Tensor,
    K: Tensor,
    V: Tensor,
    attn_mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    nonpad_kv_seqlen: Tensor | None = None,
    *,
    is_causal: int = 0,
    kv_num_heads: int | None = None,
    left_window_size: int = -1,
    q_num_heads: int | None = None,
    qk_matmul_output_mode: int = 0,
    right_window_size: int = -1,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: int | None = None,
    outputs: tuple[bool, ...] = (True,),
) -> tuple[Tensor, ...]:
    flat = Q.ndim == 3
    if flat:
        if not q_num_heads or not kv_num_heads:
            raise Unsupported("q_num_heads and kv_num_heads are needed for inputs of three dimensions")
        Q, K, V = split_heads(Q, q_num_heads), split_heads(K, kv_num_heads), split_heads(V, kv_num_heads)
    if (past_key is None) != (past_value is None):
        raise Unsupported("past_key and past_value are wanted together")
    if past_key is not None and past_value is not None:
        K, V = torch.cat([past_key, K], 2), torch.cat([past_value, V], 2)
    queries, keys = Q.shape[2], K.shape[2]
    bias = None if attn_mask is None else _additive(attn_mask, keys, Q.dtype)
    if is_causal or left_window_size >= 0 or right_window_size >= 0 or nonpad_kv_seqlen is not None:
        ends = None if nonpad_kv_seqlen is None else nonpad_kv_seqlen.to(Q.device).reshape(-1, 1, 1, 1)
        first: Tensor | int = 0 if past_key is None else past_key.shape[2]  # position of the first query
        if ends is not None and past_key is None:
            first = ends - queries
        allowed = visible(queries, keys, first, Q, is_causal, left_window_size, right_window_size)
        if ends is not None:
            allowed = allowed & (torch.arange(keys, device=Q.device) < ends)
        barred = torch.zeros((), dtype=Q.dtype, device=Q.device).masked_fill(~allowed, -math.inf)
        bias = barred if bias is None else bias + barred
    mode = qk_matmul_output_mode if len(outputs) > 3 and outputs[3] else None
    precision = None if softmax_precision is None else torch_dtype(softmax_precision)
    scale = 1 / math.sqrt(Q.shape[3]) if scale is None else scale
    Y, shown = attend(Q, K, V, bias, scale, softcap, precision=precision, mode=mode)
    Y = merge_heads(Y) if flat else Y
    return Y, K, V, *(() if shown is None else (shown,))


def attend(
    Q: Tensor,
    K: Tensor,
    V: Tensor,
    bias: Tensor | None,
    scale: float,
    softcap: float = 0.0,
    *,
    precision: torch.dtype | None = None,
    mode: int | None = None,
    sink: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Softmax of the scores, times V. A query that ``bias`` leaves no key gives zeros.

    Args:
        Q: (batch, heads, queries, size).
        K: (batch, heads that divide those of Q, keys, size).
        V: (batch, likewise, keys, size of the result).
        bias: added to the scores after the softcap; -inf bars a key.
        scale: factor of the scores.
        softcap: bound of the scores; 0: none.
        precision: of the softmax; default: as Q.
        mode: which scores to return as second result, a ``qk_matmul_output_mode``; None: none.
        sink: (heads,), the score of a further key whose value is zero.
    """
    root = math.sqrt(scale)
    if Q.dtype in NARROW:
        root = float(torch.tensor(root, dtype=Q.dtype))  # rounded like the inputs
    shown = scores = (Q * root) @ (shared(K, Q.shape[1]) * root).transpose(-1, -2)
    if softcap > 0:
        scores = torch.tanh(scores / softcap) * softcap
        shown = scores if mode == AFTER_SOFTCAP else shown
    nothing = None
    if bias is not None:
        scores = scores + bias
        nothing = bias.amax(-1, keepdim=True) == -math.inf
    shown = scores if mode == WITH_BIAS else shown
    work = scores if precision is None else scores.to(precision)
    if nothing is not None:  # before and after: softmax of such a row, and its gradient, are not a number
        work = work.masked_fill(nothing, 0.0)
    if sink is not None:
        work = torch.cat([work, sink.view(1, -1, 1, 1).expand(*work.shape[:3], 1).to(work.dtype)], -1)
    weights = work.softmax(-1)
    weights = weights if sink is None else weights[..., :-1]
    if nothing is not None:
        weights = weights.masked_fill(nothing, 0.0)
    weights = weights.to(Q.dtype)
    shown = weights if mode == PROBABILITIES else shown
    return weights @ shared(V, Q.shape[1]), None if mode is None else shown


def _additive(mask: Tensor, keys: int, dtype: torch.dtype) -> Tensor:
    """A mask as numbers to add to the scores; a short one bars the keys behind its end."""
    if mask.dtype == torch.bool:
        mask = torch.zeros((), dtype=dtype, device=mask.device).masked_fill(~mask, -math.inf)
    return F.pad(mask, (0, keys - mask.shape[-1]), value=-math.inf) if mask.shape[-1] < keys else mask


def visible(
    queries: int, keys: int, first: Tensor | int, like: Tensor, causal: int, left: int = -1, right: int = -1
) -> Tensor:
    """Which key each query may look at: bool, broadcastable to (batch, heads, queries, keys).

    Args:
        queries: their number.
        keys: their number.
        first: position of the first query among the keys, per batch if it is a tensor (batch, 1, 1, 1).
        like: a tensor on the wanted device.
        causal: no key after the query.
        left: how many keys before the query it sees; -1: all.
        right: how many after it; -1: all.
    """
    ahead = (
        torch.arange(keys, device=like.device) - torch.arange(queries, device=like.device)[:, None] - first
    )
    allowed = torch.ones_like(ahead, dtype=torch.bool)
    if causal:
        allowed = allowed & (ahead <= 0)
    if left >= 0:
        allowed = allowed & (ahead >= -left)
    return allowed & (ahead <= right) if right >= 0 else allowed


def shared(x: Tensor, heads: int) -> Tensor:
    """Repeat each key or value head for its group of query heads."""
    own = x.shape[1]
    if own == heads:
        return x
    if heads % own:
        raise ValueError(f"{heads} query heads cannot share {own} heads")
    return x.repeat_interleave(heads // own, 1)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(batch, sequence, heads * size) to (batch, heads, sequence, size)."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(batch, heads, sequence, size) to (batch, sequence, heads * size)."""
    return x.transpose(1, 2).flatten(2)


@op(23)
def RotaryEmbedding(
    X: Tensor,
    cos_cache: Tensor,
    sin_cache: Tensor,
    position_ids: Tensor | None = None,
    *,
    interleaved: int = 0,
    num_heads: int | None = None,
    rotary_embedding_dim: int = 0,
) -> Tensor:
    flat = X.ndim == 3
    if flat and not num_heads:
        raise Unsupported("num_heads is needed for an input of three dimensions")
    x = split_heads(X, num_heads or 1) if flat else X
    if position_ids is not None:
        cos_cache, sin_cache = cos_cache[position_ids], sin_cache[position_ids]
    y = rotated(x, cos_cache.unsqueeze(1), sin_cache.unsqueeze(1), interleaved, rotary_embedding_dim)
    return merge_heads(y) if flat else y


def rotated(x: Tensor, cos: Tensor, sin: Tensor, interleaved: int, size: int = 0) -> Tensor:
    """Turn pairs of the first ``size`` features (0: of all).

    Args:
        x: (batch, heads, sequence, features).
        cos: broadcastable to (batch, heads, sequence, size / 2).
        sin: likewise.
        interleaved: whether the pairs are neighbours; else one half against the other.
        size: number of features that turn.
    """
    size = size or x.shape[-1]
    turning, rest = x[..., :size], x[..., size:]
    if interleaved:
        a, b = turning[..., 0::2], turning[..., 1::2]
        turned = torch.stack([cos * a - sin * b, sin * a + cos * b], -1).flatten(-2)
    else:
        a, b = turning.chunk(2, -1)
        turned = torch.cat([cos * a - sin * b, sin * a + cos * b], -1)
    return torch.cat([turned, rest], -1) if rest.shape[-1] else turned
