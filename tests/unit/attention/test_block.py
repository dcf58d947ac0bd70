from __future__ import annotations

from onnxprune.attention.block import AttentionBlock, Projections


def test_names_come_once_and_without_gaps() -> None:
    assert Projections("qkv", "qkv", "qkv", "o").names == ("qkv", "o")
    assert Projections(key="k").names == ("k",)
    assert Projections().names == ()


def test_fused_is_what_has_no_probabilities() -> None:
    assert AttentionBlock("a", "Attention", 3, "y").fused
    assert not AttentionBlock("a", "decomposed", 3, "y", "p").fused
