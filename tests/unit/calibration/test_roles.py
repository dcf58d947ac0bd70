from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxprune.calibration.inputs import InputSpec
from onnxprune.calibration.roles import Role, role


@pytest.mark.parametrize(
    ("name", "dtype", "shape", "wanted"),
    [
        ("input_ids", "i8", ("b", "s"), Role.IDS),
        ("decoder_input_ids", "i8", ("b", "s"), Role.IDS),
        ("tokens", "i4", ("b", 32), Role.IDS),
        ("attention_mask", "i8", ("b", "s"), Role.MASK),
        ("attention_mask", "f4", ("b", "s"), Role.MASK),
        ("mask", "?", ("b", "s"), Role.MASK),
        ("token_type_ids", "i8", ("b", "s"), Role.TYPES),
        ("segment_ids", "i8", ("b", "s"), Role.TYPES),
        ("position_ids", "i8", ("b", "s"), Role.POSITIONS),
        ("past_key_values.0.key", "f4", ("b", 8, "past", 64), Role.PAST),
        ("past_key_values.0.value", "f2", ("b", 8, "past", 64), Role.PAST),
        ("use_cache_branch", "?", (1,), Role.FLAG),
        ("pixel_values", "f4", ("b", 3, 224, 224), Role.OTHER),
        ("image", "i8", ("b", 3, 224, 224), Role.OTHER),
        ("cache_position", "i8", ("s",), Role.POSITIONS),
    ],
)
def test_role(name: str, dtype: Any, shape: tuple[int | str, ...], wanted: Role) -> None:
    assert role(InputSpec(name, np.dtype(dtype), shape)) is wanted
