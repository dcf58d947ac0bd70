"""The operators that the torch view runs, by family; importing this fills the registry."""

from __future__ import annotations

from onnxprune.finetune.ops import (  # noqa: F401
    activation,
    attention,
    cast,
    control,
    conv,
    elementwise,
    fused,
    index,
    matmul,
    microsoft,
    microsoft_attention,
    microsoft_decoder,
    norm,
    pool,
    quantize,
    random,
    reduce,
    resize,
    rnn,
    sequence,
    shape,
    signal,
    spatial,
)
