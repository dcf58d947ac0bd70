"""Attention masks of a batch: padding must never enter the statistics."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.inputs import Array

Scalar = TypeVar("Scalar", bound=np.generic)

# Masks that select something else than real tokens: masked-language-model and masked-image inputs.
_OTHER = re.compile(r"masked|loss|mlm|span|indices|position|causal|head_mask|mask_time|label")
_FIRST = ("attention_mask", "input_mask", "encoder_attention_mask")


def row_mask(batch: Mapping[str, Array]) -> NDArray[np.bool_] | None:
    """Return which tokens of ``batch`` are real: (B, T), True = real; None when there is no such mask.

    Recognised: an input with ``mask`` in its name (``attention_mask`` and ``input_mask`` before others),
    2-D, bool, integer or float, that holds only 0 and 1. Names with ``masked``, ``mlm``, ``loss``,
    ``span``, ``indices``, ``position``, ``causal``, ``head_mask`` mean something else and are passed
    over. 1 means real, except in names with ``padding_mask`` or ``pad_mask``: there 1 means padding, as in
    torch's ``key_padding_mask``, unless that reading leaves a sample without any token.
    """
    names = sorted(
        (n for n in batch if "mask" in n.lower() and not _OTHER.search(n.lower())),
        key=lambda n: _FIRST.index(n) if n in _FIRST else len(_FIRST),
    )
    for name in names:
        array = batch[name]
        if (
            array.ndim != 2
            or array.dtype.hasobject
            or not array.size
            or not bool(((array == 0) | (array == 1)).all())
        ):
            continue
        real: NDArray[np.bool_] = array != 0
        if re.search(r"pad(ding)?_?mask", name.lower()) and not bool(real.all(axis=1).all()):
            inverted = ~real
            real = inverted if bool(inverted.any(axis=1).all()) else real
        return real
    return None


def apply_row_mask(value: Array, mask: NDArray[Scalar]) -> NDArray[Scalar] | None:
    """Return which rows of an activation belong to real tokens, or any number of each token for its rows.

    Args:
        value: an activation; its rows are all dimensions but the last, flattened.
        mask: (B, T), True = real (or numbers), of the same batch.

    Returns:
        A vector over the rows when ``value`` is (B, T, ..., D) or (B*T, ..., D), else None. Only
        the leading dimensions are compared: (B, heads, T, D) with heads == T would be read as (B, T, ..., D).
    """
    batch, tokens = mask.shape
    shape = value.shape
    if len(shape) >= 3 and shape[:2] == (batch, tokens):
        repeat = int(np.prod(shape[2:-1], dtype=np.int64))
    elif len(shape) >= 2 and shape[0] == batch * tokens:
        repeat = int(np.prod(shape[1:-1], dtype=np.int64))
    else:
        return None
    return np.repeat(mask.ravel(), repeat)
