"""Attention in the forms that exporters write it, each with the answer in numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

from onnxprune.model import Model

BATCH, TOKENS, WIDTH, HEADS = 2, 5, 24, 3
SIZE = WIDTH // HEADS


@dataclass(frozen=True)
class Case:
    """One model with its feed and mask; ``P`` and ``context`` are what numpy says of its attention."""

    model: Model
    feed: dict[str, np.ndarray]
    mask: np.ndarray | None
    P: np.ndarray
    context: np.ndarray
    weights: dict[str, np.ndarray]


def softmax(scores: np.ndarray) -> np.ndarray:
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def heads(x: np.ndarray, size: int = SIZE) -> np.ndarray:
    """(batch, tokens, features) to (batch, heads, tokens, size)."""
    return x.reshape(*x.shape[:2], -1, size).swapaxes(1, 2)


# What stands between the projections q, k, v (batch, tokens, features) and the context c (likewise).
FORMS = {
    "scaled after": """
        q4 = Reshape(q, split) qh = Transpose<perm = [0, 2, 1, 3]>(q4)
        k4 = Reshape(k, split) kt = Transpose<perm = [0, 2, 3, 1]>(k4)
        v4 = Reshape(v, split) vh = Transpose<perm = [0, 2, 1, 3]>(v4)
        s = MatMul(qh, kt) scaled = Div(s, root) p = Softmax<axis = -1>(scaled) o = MatMul(p, vh)
        ot = Transpose<perm = [0, 2, 1, 3]>(o) c = Reshape(ot, merge)""",
    "scaled before, mask added": """
        q4 = Reshape(q, split) qh = Transpose<perm = [0, 2, 1, 3]>(q4) qs = Mul(qh, inverse)
        k4 = Reshape(k, split) kh = Transpose<perm = [0, 2, 1, 3]>(k4)
        kt = Transpose<perm = [0, 1, 3, 2]>(kh)
        v4 = Reshape(v, split) vh = Transpose<perm = [0, 2, 1, 3]>(v4)
        s = MatMul(qs, kt) masked = Add(s, added) p0 = Softmax<axis = 3>(masked) p = Dropout(p0)
        o = MatMul(p, vh) ot = Transpose<perm = [0, 2, 1, 3]>(o) c = Reshape(ot, merge)""",
    "clean-up of NaN, mask by Where": """
        q4 = Reshape(q, split) qh = Transpose<perm = [0, 2, 1, 3]>(q4) qs = Mul(qh, fourth)
        k4 = Reshape(k, split) kt = Transpose<perm = [0, 2, 3, 1]>(k4) ks = Mul(kt, fourth)
        v4 = Reshape(v, split) vh = Transpose<perm = [0, 2, 1, 3]>(v4)
        s = MatMul(qs, ks) masked = Where(real, s, low) p0 = Softmax<axis = -1>(masked)
        nan = IsNaN(p0) p = Where(nan, zero, p0) o = MatMul(p, vh)
        ot = Transpose<perm = [0, 2, 1, 3]>(o) c = Reshape(ot, merge)""",
    "batch and heads on one axis": """
        q4 = Reshape(q, split) qt = Transpose<perm = [0, 2, 1, 3]>(q4) qh = Reshape(qt, flat)
        k4 = Reshape(k, split) kp = Transpose<perm = [0, 2, 1, 3]>(k4) kf = Reshape(kp, flat)
        kt = Transpose<perm = [0, 2, 1]>(kf)
        v4 = Reshape(v, split) vp = Transpose<perm = [0, 2, 1, 3]>(v4) vh = Reshape(vp, flat)
        s = MatMul(qh, kt) scaled = Mul(s, inverse) p = Softmax<axis = 2>(scaled) o3 = MatMul(p, vh)
        o = Reshape(o3, back) ot = Transpose<perm = [0, 2, 1, 3]>(o) c = Reshape(ot, merge)""",
    "values from the left": """
        q4 = Reshape(q, split) qh = Transpose<perm = [0, 2, 1, 3]>(q4)
        k4 = Reshape(k, split) kt = Transpose<perm = [0, 2, 3, 1]>(k4)
        v4 = Reshape(v, split) vt = Transpose<perm = [0, 2, 3, 1]>(v4)
        s = MatMul(qh, kt) scaled = Div(s, root) p = Softmax<axis = -1>(scaled)
        pt = Transpose<perm = [0, 1, 3, 2]>(p) o = MatMul(vt, pt)
        ot = Transpose<perm = [0, 3, 1, 2]>(o) c = Reshape(ot, merge)""",
    "Einsum": """
        qh = Reshape(q, split) kh = Reshape(k, split) vh = Reshape(v, split)
        s = Einsum<equation = "bqhd,bkhd->bhqk">(qh, kh) scaled = Div(s, root)
        p = Softmax<axis = -1>(scaled) o = Einsum<equation = "bhqk,bkhd->bqhd">(p, vh)
        c = Reshape(o, merge)""",
}
# Keys and values of one head for all three.
SHARED = {
    "keys and values expanded": """
        q4 = Reshape(q, split) qh = Transpose<perm = [0, 2, 1, 3]>(q4)
        k4 = Reshape(k, split) kp = Transpose<perm = [0, 2, 1, 3]>(k4) kx = Expand(kp, groups)
        kt = Transpose<perm = [0, 1, 3, 2]>(kx)
        v4 = Reshape(v, split) vp = Transpose<perm = [0, 2, 1, 3]>(v4) vh = Expand(vp, groups)
        s = MatMul(qh, kt) scaled = Div(s, root) p = Softmax<axis = -1>(scaled) o = MatMul(p, vh)
        ot = Transpose<perm = [0, 2, 1, 3]>(o) c = Reshape(ot, merge)""",
    "keys and values tiled": """
        q4 = Reshape(q, split) qh = Transpose<perm = [0, 2, 1, 3]>(q4)
        k4 = Reshape(k, split) kp = Transpose<perm = [0, 2, 3, 1]>(k4) kt = Tile(kp, groups)
        v4 = Reshape(v, split) vp = Transpose<perm = [0, 2, 1, 3]>(v4) vh = Concat<axis = 1>(vp, vp, vp)
        s = MatMul(qh, kt) scaled = Div(s, root) p = Softmax<axis = -1>(scaled) o = MatMul(p, vh)
        ot = Transpose<perm = [0, 2, 1, 3]>(o) c = Reshape(ot, merge)""",
}
PLAIN = "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)"
SEPARATE = "q0 = MatMul(x, wq) q = Add(q0, bq) k = MatMul(x, wk) v = MatMul(x, wv)"
FUSED = {
    "fused, Split": "m = MatMul(x, wqkv) q, k, v = Split<axis = 2>(m, thirds)",
    "fused, Slice": """m = MatMul(x, wqkv) q = Slice(m, i0, i1, i2) k = Slice(m, i1, j2, i2)
        v = Slice(m, j2, j3, i2)""",
    "fused, Gather": """m = MatMul(x, wqkv) m4 = Reshape(m, five) t = Transpose<perm = [2, 0, 1, 3]>(m4)
        q = Gather<axis = 0>(t, n0) k = Gather<axis = 0>(t, n1) v = Gather<axis = 0>(t, n2)""",
}
OPERATORS = {
    "Attention, three axes": f"""
        c = Attention<q_num_heads = {HEADS}, kv_num_heads = {HEADS}>(q, k, v)""",
    "Attention, four axes and mask": """
        q4 = Reshape(q, split) qh = Transpose<perm = [0, 2, 1, 3]>(q4)
        k4 = Reshape(k, split) kh = Transpose<perm = [0, 2, 1, 3]>(k4)
        v4 = Reshape(v, split) vh = Transpose<perm = [0, 2, 1, 3]>(v4)
        o = Attention(qh, kh, vh, full) ot = Transpose<perm = [0, 2, 1, 3]>(o) c = Reshape(ot, merge)""",
    "MultiHeadAttention": f"c = com.microsoft.MultiHeadAttention<num_heads = {HEADS}>(q, k, v)",
    "MultiHeadAttention, bias and mask": f"""
        c = com.microsoft.MultiHeadAttention<num_heads = {HEADS}>(q, k, v, bqkv, keys)""",
    "GroupQueryAttention": f"""
        c, pk, pv = com.microsoft.GroupQueryAttention<num_heads = {HEADS}, kv_num_heads = 1>
            (q, k, v, , , last, total)""",
    "com.microsoft.Attention": f"c = com.microsoft.Attention<num_heads = {HEADS}>(x, wqkv, bqkv)",
    "com.microsoft.Attention, mask": f"c = com.microsoft.Attention<num_heads = {HEADS}>(x, wqkv, bqkv, keys)",
}
MASKED = {
    "scaled before, mask added",
    "clean-up of NaN, mask by Where",
    "Attention, four axes and mask",
    "MultiHeadAttention, bias and mask",
    "com.microsoft.Attention, mask",
}
NAMES = (*FORMS, *SHARED, *FUSED, *OPERATORS)


def make(name: str) -> Case:
    """Build the case called ``name``: one block with residual, ``y = x + W_O attention(x)``."""
    rng = np.random.default_rng(len(name))

    def noise(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    width = SIZE if name in SHARED or name == "GroupQueryAttention" else WIDTH
    body = {**FORMS, **SHARED, **OPERATORS}.get(name, FORMS["scaled after"])
    weights = {"wq": noise(WIDTH, WIDTH), "wk": noise(WIDTH, width), "wv": noise(WIDTH, width)}
    packed = np.concatenate([*weights.values()], 1)
    weights["wo"] = noise(WIDTH, WIDTH)
    bias = {
        "q": np.zeros(WIDTH, np.float32),
        "k": np.zeros(width, np.float32),
        "v": np.zeros(width, np.float32),
    }
    if "bqkv" in body:
        bias = {part: noise(WIDTH) for part in "qkv"}
        projections = "" if "wqkv" in body else PLAIN
    elif name in FUSED:
        projections = FUSED[name]
    else:
        bias["q"], projections = noise(WIDTH), SEPARATE
    mask = np.array([[1] * TOKENS, [1] * (TOKENS - 2) + [0, 0]], bool) if name in MASKED else None
    constants = {**_constants(mask), **weights, "wqkv": packed, "bq": bias["q"]}
    constants["bqkv"] = np.concatenate([*bias.values()])
    x = noise(BATCH, TOKENS, WIDTH)
    q, k, v = (x @ weights[f"w{part}"] + bias[part] for part in "qkv")
    P = softmax(_masked(heads(q) @ heads(k).swapaxes(2, 3) / np.sqrt(np.float32(SIZE)), mask, name))
    return Case(_parse(f"{projections} {body}", constants, name), {"x": x}, mask, P, P @ heads(v), weights)


def _masked(scores: np.ndarray, mask: np.ndarray | None, name: str) -> np.ndarray:
    if name == "GroupQueryAttention":  # causal
        return np.where(np.tri(TOKENS, dtype=bool), scores, -np.inf)
    return scores if mask is None else np.where(mask[:, None, None, :], scores, -np.inf)


def _constants(mask: np.ndarray | None) -> dict[str, np.ndarray]:
    real = np.ones((BATCH, TOKENS), bool) if mask is None else mask
    numbers = {
        "split": [0, 0, -1, SIZE], "merge": [0, 0, WIDTH], "flat": [-1, TOKENS, SIZE],
        "back": [-1, HEADS, TOKENS, SIZE], "groups": [1, HEADS, 1, 1], "thirds": [WIDTH] * 3,
        "i0": [0], "i1": [WIDTH], "i2": [2], "j2": [2 * WIDTH], "j3": [3 * WIDTH], "five": [0, 0, 3, WIDTH],
    }  # fmt: skip
    found: dict[str, np.ndarray] = {name: np.array(value, np.int64) for name, value in numbers.items()}
    found |= {f"n{i}": np.array(i, np.int64) for i in range(3)}
    root = np.sqrt(np.float32(SIZE))
    found |= {"root": root, "inverse": 1 / root, "fourth": np.sqrt(1 / root)}
    found |= {"zero": np.float32(0), "low": np.float32(-1e30)}
    found["added"] = np.where(real, 0, -1e30).astype(np.float32)[:, None, None, :]
    found["real"] = real[:, None, None, :]
    found["full"] = np.broadcast_to(real[:, None, None, :], (BATCH, 1, TOKENS, TOKENS)).copy()
    found["keys"] = real.astype(np.int32)
    found["last"], found["total"] = np.full(BATCH, TOKENS - 1, np.int32), np.array(TOKENS, np.int32)
    return {name: np.asarray(value) for name, value in found.items()}


def _parse(body: str, constants: dict[str, np.ndarray], name: str) -> Model:
    text = f"""<ir_version: 10, opset_import: ["": {23 if name.startswith("Attention") else 17},
        "com.microsoft": 1]>
        g (float[{BATCH}, {TOKENS}, {WIDTH}] x) => (float[{BATCH}, {TOKENS}, {WIDTH}] y) {{
        {body} r = MatMul(c, wo) y = Add(x, r) }}"""
    proto: onnx.ModelProto = onnx.parser.parse_model(text)
    read = {name for node in proto.graph.node for name in node.input}
    used = {key: value for key, value in constants.items() if key in read}
    proto.graph.initializer.extend(numpy_helper.from_array(value, key) for key, value in used.items())
    onnx.checker.check_model(proto)
    return Model(proto)
