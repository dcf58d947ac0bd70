"""Attention, decomposed and in one operator: what is joined, what is pinned, and that removal"
" equals masking."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.structure.graphs import (
    TOKENS,
    Case,
    check,
    pinned,
)

QKV = "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)"
SHARED = {"wq": (6, 16), "wk": (6, 8), "wv": (6, 8), "wo": (16, 4)}
EQUAL = {"wq": (6, 12), "wk": (6, 12), "wv": (6, 12), "wo": (12, 4)}
CASES: dict[str, Case] = {
    "decomposed": Case(
        f"""{TOKENS} {{ {QKV} q4 = Reshape(q, to) k4 = Reshape(k, to) v4 = Reshape(v, to)
        qt = Transpose<perm = [0, 2, 1, 3]>(q4) kt = Transpose<perm = [0, 2, 3, 1]>(k4)
        vt = Transpose<perm = [0, 2, 1, 3]>(v4) s = MatMul(qt, kt) p = Softmax<axis = -1>(s) o = MatMul(p, vt)
        t = Transpose<perm = [0, 2, 1, 3]>(o) c = Reshape(t, back) y = MatMul(c, wo) }}""",
        EQUAL | {"to": [0, 0, 3, 4], "back": [0, 0, 12]},
        [("head", 3)],
    ),
    "one weight, three axes": Case(
        f"""{TOKENS} {{ m = MatMul(x, w) b = Add(m, bias) r = Reshape(b, to)
        t = Transpose<perm = [2, 0, 3, 1, 4]>(r) q = Gather(t, i0) k = Gather(t, i1) v = Gather(t, i2)
        kt = Transpose<perm = [0, 1, 3, 2]>(k) s = MatMul(q, kt) p = Softmax(s) o = MatMul(p, v)
        u = Transpose<perm = [0, 2, 1, 3]>(o) c = Reshape(u, back) y = MatMul(c, wo) }}""",
        {
            "w": (6, 36),
            "bias": (36,),
            "to": [0, 0, 3, 3, 4],
            "back": [0, 0, -1],
            "wo": (12, 4),
            "i0": np.array(0),
            "i1": np.array(1),
            "i2": np.array(2),
        },
        [("head", 3)],
    ),
    "heads by batch, Einsum": Case(
        f"""{TOKENS} {{ {QKV} q4 = Reshape(q, to) k4 = Reshape(k, to) v4 = Reshape(v, to)
        s = Einsum<equation = "bqhd,bkhd->bhqk">(q4, k4) p = Softmax(s)
        o = Einsum<equation = "bhqk,bkhd->bqhd">(p, v4) c = Reshape(o, back) y = MatMul(c, wo) }}""",
        EQUAL | {"to": [0, 0, 3, 4], "back": [0, 0, -1]},
        [("head", 3)],
    ),
    "shared keys, Expand": Case(
        f"""{TOKENS} {{ {QKV} q4 = Reshape(q, to) k4 = Reshape(k, kto) v4 = Reshape(v, kto)
        qt = Transpose<perm = [0, 2, 1, 3]>(q4) k5 = Transpose<perm = [0, 2, 1, 3]>(k4)
        v5 = Transpose<perm = [0, 2, 1, 3]>(v4) k6 = Unsqueeze(k5, two) v6 = Unsqueeze(v5, two)
        k7 = Expand(k6, wide) v7 = Expand(v6, wide) k8 = Reshape(k7, flat) v8 = Reshape(v7, flat)
        kt = Transpose<perm = [0, 1, 3, 2]>(k8) s = MatMul(qt, kt) p = Softmax<axis = -1>(s)
        o = MatMul(p, v8) t = Transpose<perm = [0, 2, 1, 3]>(o) c = Reshape(t, back) y = MatMul(c, wo) }}""",
        SHARED
        | {
            "to": [0, 0, 4, 4],
            "kto": [0, 0, 2, 4],
            "two": [2],
            "wide": [2, 2, 2, 5, 4],
            "flat": [0, 4, 5, 4],
            "back": [0, 0, 16],
        },
        [("head", 2)],
    ),
    "one head": Case(
        f"""{TOKENS} {{ {QKV} kt = Transpose<perm = [0, 2, 1]>(k) s = MatMul(q, kt) p = Softmax(s)
        o = MatMul(p, v) y = MatMul(o, wo) }}""",
        EQUAL,
        [("neuron", 12)],
    ),
    "Attention, three axes": Case(
        f"{TOKENS} {{ {QKV} c = Attention<q_num_heads = 4, kv_num_heads = 2>(q, k, v) y = MatMul(c, wo) }}",
        SHARED,
        [("head", 2)],
        23,
    ),
    "Attention, four axes and a bias for each head": Case(
        f"""{TOKENS} {{ {QKV} q4 = Reshape(q, to) k4 = Reshape(k, to) v4 = Reshape(v, to)
        qt = Transpose<perm = [0, 2, 1, 3]>(q4) kt = Transpose<perm = [0, 2, 1, 3]>(k4)
        vt = Transpose<perm = [0, 2, 1, 3]>(v4) o = Attention(qt, kt, vt, bias)
        t = Transpose<perm = [0, 2, 1, 3]>(o) c = Reshape(t, back) y = MatMul(c, wo) }}""",
        EQUAL | {"to": [0, 0, 3, 4], "back": [0, 0, 12], "bias": (1, 3, 5, 5)},
        [("head", 3)],
        23,
    ),
    "MultiHeadAttention": Case(
        f"""{TOKENS} {{ {QKV} c = com.microsoft.MultiHeadAttention<num_heads = 3>(q, k, v, bias, , near)
        y = MatMul(c, wo) }}""",
        EQUAL | {"bias": (36,), "near": (1, 3, 5, 5)},
        [("head", 3)],
    ),
    "GroupQueryAttention": Case(
        f"""{TOKENS} {{ {QKV} c, pk, pv = com.microsoft.GroupQueryAttention<num_heads = 4, kv_num_heads = 2>
        (q, k, v, , , last, total) y = MatMul(c, wo) }}""",
        {
            "wq": (6, 32),
            "wk": (6, 16),
            "wv": (6, 16),
            "wo": (32, 4),
            "last": np.array([4, 4], np.int32),
            "total": np.array(5, np.int32),
        },
        [("head", 2)],
    ),
    "GroupQueryAttention, one input": Case(
        f"""{TOKENS} {{ m = MatMul(x, w)
        c, pk, pv = com.microsoft.GroupQueryAttention<num_heads = 4, kv_num_heads = 2>
        (m, , , , , last, total) y = MatMul(c, wo) }}""",
        {"w": (6, 64), "wo": (32, 4), "last": np.array([4, 4], np.int32), "total": np.array(5, np.int32)},
        [("head", 2)],
    ),
    "com.microsoft.Attention": Case(
        f"{TOKENS} {{ c = com.microsoft.Attention<num_heads = 3>(x, w, bias) y = MatMul(c, wo) }}",
        {"w": (6, 36), "bias": (36,), "wo": (12, 4)},
        [("head", 3)],
    ),
    "com.microsoft.Attention, narrow queries": Case(
        f"""{TOKENS} {{ 
        c = com.microsoft.Attention<num_heads = 3, qkv_hidden_sizes = [12, 12, 24]>(x, w, bias)
        y = MatMul(c, wo) }}""",
        {"w": (6, 48), "bias": (48,), "wo": (24, 4)},
        [("head", 3)],
    ),
    "rotary": Case(
        f"""{TOKENS} {{ {QKV} qr = RotaryEmbedding<num_heads = 3>(q, cosines, sines)
        kr = RotaryEmbedding<num_heads = 3>(k, cosines, sines)
        c = Attention<q_num_heads = 3, kv_num_heads = 3>(qr, kr, v) y = MatMul(c, wo) }}""",
        EQUAL | {"cosines": (2, 5, 2), "sines": (2, 5, 2)},
        [("head", 3)],
        23,
    ),
    "rotary, com.microsoft": Case(
        f"""{TOKENS} {{ {QKV} 
        qr = com.microsoft.RotaryEmbedding<num_heads = 3, rotary_embedding_dim = 4>(q, at, cosines, sines)
        kr = com.microsoft.RotaryEmbedding<num_heads = 3, rotary_embedding_dim = 4>(k, at, cosines, sines)
        c = com.microsoft.MultiHeadAttention<num_heads = 3>(qr, kr, v) y = MatMul(c, wo) }}""",
        EQUAL | {"cosines": (5, 2), "sines": (5, 2), "at": [0]},
        [("head", 3)],
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_removal_is_masking(case: Case) -> None:
    check(case)


def test_past_keys_of_the_caller_pin_heads() -> None:
    text = """(float[N, L, 6] x, float[N, 3, 2, 4] past_k, float[N, 3, 2, 4] past_v) => (float[N, L, C] y) {
        q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
        c, pk, pv = Attention<q_num_heads = 3, kv_num_heads = 3>(q, k, v, , past_k, past_v)
        y = MatMul(c, wo) }"""
    assert "graph input 'past_k'" in pinned(text, EQUAL, 23)


def test_past_states_inside_the_operator_are_not_followed() -> None:
    text = """(float[N, L, 6] x, float[2, N, 3, 2, 4] past) => (float[N, L, C] y) {
        a = MatMul(x, w0) c, present = com.microsoft.Attention<num_heads = 3>(a, w, b, , past)
        y = MatMul(c, wo) }"""
    weights = {"w0": (6, 8), "w": (8, 36), "b": (36,), "wo": (12, 4)}
    assert "has past states" in pinned(text, weights)
