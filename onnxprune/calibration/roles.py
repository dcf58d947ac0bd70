"""What an input is for, told by its name and shape: token ids, masks, positions, past keys and values."""

from __future__ import annotations

from enum import Enum

from onnxprune.calibration.inputs import InputSpec, is_float

# Names of the token ids when no table in the graph gives them away.
_ID_NAMES = ("input_ids", "ids", "tokens", "token_ids", "input_tokens", "input", "text", "input.1")


class Role(Enum):
    """How an input is filled from text, and with what when there is no data."""

    IDS = "token ids"
    MASK = "mask"
    TYPES = "token types"
    POSITIONS = "positions"
    PAST = "past keys and values"
    FLAG = "use-cache flag"
    OTHER = "other"


def role(spec: InputSpec) -> Role:
    """Return the role of an input; ``IDS`` for every integer input of rank 1 or 2 that nothing else claims.

    >>> import numpy as np
    >>> role(InputSpec("past_key_values.0.key", np.dtype("f4"), ("batch", 8, "past", 64))).name
    'PAST'
    """
    name = spec.name.lower()
    integer = spec.dtype.kind in "iu"
    if is_float(spec.dtype) and len(spec.shape) >= 3 and ("past" in name or "cache" in name):
        return Role.PAST
    if spec.dtype.kind == "b" and "cache" in name:
        return Role.FLAG
    if "mask" in name:
        return Role.MASK
    if integer and ("token_type" in name or "segment" in name):
        return Role.TYPES
    if integer and "position" in name:
        return Role.POSITIONS
    if integer and len(spec.shape) in (1, 2) and (name in _ID_NAMES or "ids" in name or "token" in name):
        return Role.IDS
    return Role.OTHER
