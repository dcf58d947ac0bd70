"""One small graph for each way in which operators use units: text, weights, opset, and the groups in it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Case(NamedTuple):
    text: str
    weights: dict[str, Any]
    groups: list[tuple[str, int]]
    opset: int = 17


IMAGE = "(float[N, 3, H, W] x) => (float[N, C, P, Q] y)"
FLAT = "(float[N, 6] x) => (float[N, C] y)"
TOKENS = "(float[N, L, 6] x) => (float[N, L, C] y)"
FIRST = {"w0": (8, 3, 3, 3), "b0": (8,)}
LAST = {"w9": (5, 8, 1, 1)}
CONV = "a = Conv(x, w0, b0)"

CONVOLUTIONS = {
    "plain": Case(f"{IMAGE} {{ {CONV} y = Conv(a, w9) }}", FIRST | LAST, [("channel", 8)]),
    "batch norm and slope": Case(
        f"{IMAGE} {{ {CONV} b = BatchNormalization(a, g, h, m, var) c = PRelu(b, s) y = Conv(c, w9) }}",
        FIRST | LAST | {"g": (8,), "h": (8,), "m": (8,), "var": (8,), "s": (8, 1, 1)},
        [("channel", 8)],
    ),
    "scale, shift and one slope": Case(
        f"{IMAGE} {{ {CONV} b = Mul(s, a) c = Sub(b, t) d = PRelu(c, one) y = Conv(d, w9) }}",
        FIRST | LAST | {"s": (1, 8, 1, 1), "t": (8, 1, 1), "one": (1, 1, 1)},
        [("channel", 8)],
    ),
    "depthwise": Case(
        f"{IMAGE} {{ {CONV} b = Conv<group = 8>(a, d, e) y = Conv(b, w9) }}",
        FIRST | LAST | {"d": (8, 1, 3, 3), "e": (8,)},
        [("channel", 8)],
    ),
    "depthwise with two outputs each": Case(
        f"{IMAGE} {{ {CONV} b = Conv<group = 8>(a, d, e) y = Conv(b, w9) }}",
        FIRST | {"d": (16, 1, 3, 3), "e": (16,), "w9": (5, 16, 1, 1)},
        [("channel", 8)],
    ),
    "many small groups": Case(
        f"{IMAGE} {{ {CONV} b = Conv<group = 4>(a, d, e) c = Relu(b) y = Conv(c, w9) }}",
        FIRST | {"d": (12, 2, 3, 3), "e": (12,), "w9": (5, 12, 1, 1)},
        [("channel", 4)],
    ),
    "few large groups": Case(
        f"{IMAGE} {{ {CONV} b = Conv<group = 2>(a, d, e) y = Conv(b, w9) }}",
        FIRST | {"d": (12, 4, 3, 3), "e": (12,), "w9": (5, 12, 1, 1)},
        [("channel", 4), ("channel", 6)],
    ),
    "transposed": Case(
        f"{IMAGE} {{ a = ConvTranspose<strides = [2, 2]>(x, w0, b0) y = Conv(a, w9) }}",
        {"w0": (3, 8, 2, 2), "b0": (8,)} | LAST,
        [("channel", 8)],
    ),
    "transposed reads": Case(
        f"{IMAGE} {{ {CONV} y = ConvTranspose(a, w9) }}", FIRST | {"w9": (8, 5, 2, 2)}, [("channel", 8)]
    ),
    "transposed, depthwise": Case(
        f"{IMAGE} {{ {CONV} b = ConvTranspose<group = 8>(a, d, e) y = Conv(b, w9) }}",
        FIRST | {"d": (8, 2, 2, 2), "e": (16,), "w9": (5, 16, 1, 1)},
        [("channel", 8)],
    ),
    "transposed, few large groups": Case(
        f"{IMAGE} {{ {CONV} b = ConvTranspose<group = 2>(a, d, e) y = Conv(b, w9) }}",
        FIRST | {"d": (8, 3, 2, 2), "e": (6,), "w9": (5, 6, 1, 1)},
        [("channel", 3), ("channel", 4)],
    ),
    "one axis": Case(
        "(float[N, 3, L] x) => (float[N, C, P] y) { a = Conv(x, w0, b0) b = MaxPool<kernel_shape = [2]>(a)"
        " y = Conv(b, w9) }",
        {"w0": (8, 3, 2), "b0": (8,), "w9": (5, 8, 1)},
        [("channel", 8)],
    ),
    "three axes": Case(
        "(float[N, 2, L, 4, 4] x) => (float[N, C, P, Q, R] y) { a = Conv(x, w0, b0) y = Conv(a, w9) }",
        {"w0": (8, 2, 2, 2, 2), "b0": (8,), "w9": (5, 8, 1, 1, 1)},
        [("channel", 8)],
    ),
    "fused activation": Case(
        f'{IMAGE} {{ a = com.microsoft.FusedConv<activation = "Relu">(x, w0, b0) y = Conv(a, w9) }}',
        FIRST | LAST,
        [("channel", 8)],
    ),
}

PRODUCTS = {
    "MatMul": Case(
        f"{TOKENS} {{ a = MatMul(x, w0) b = Add(a, b0) c = Erf(b) y = MatMul(c, w1) }}",
        {"w0": (6, 8), "b0": (8,), "w1": (8, 4)},
        [("neuron", 8)],
    ),
    "Gemm": Case(
        f"{FLAT} {{ a = Gemm<transB = 1, alpha = 0.5>(x, w0, b0) b = Tanh(a) y = Gemm(b, w1) }}",
        {"w0": (8, 6), "b0": (1, 8), "w1": (8, 4)},
        [("neuron", 8)],
    ),
    "Gemm from the left": Case(
        "(float[6, N] x) => (float[C, N] y) { a = Gemm(w0, x, b0) b = Relu(a) y = Gemm<transA = 1>(w1, b) }",
        {"w0": (8, 6), "b0": (8, 1), "w1": (8, 4)},
        [("neuron", 8)],
    ),
    "MatMul from the left, mixing tokens": Case(
        "(float[N, 6, 5] x) => (float[N, C, D] y) { a = MatMul(w0, x) b = Relu(a) y = MatMul(w1, b) }",
        {"w0": (8, 6), "w1": (4, 8)},
        [("neuron", 8)],
    ),
    "a weight for each of three": Case(
        "(float[3, L, 6] x) => (float[3, L, C] y) { a = MatMul(x, w0) b = Relu(a) y = MatMul(b, w1) }",
        {"w0": (3, 6, 8), "w1": (3, 8, 4)},
        [("neuron", 8)],
    ),
    "vector": Case(
        f"(float[N, 6] x) => (float[N] y) {{ a = MatMul(x, w0) b = Relu(a) y = MatMul(b, w1) }}",
        {"w0": (6, 8), "w1": (8,)},
        [("neuron", 8)],
    ),
    "Einsum": Case(
        f'{TOKENS} {{ a = Einsum<equation = "nlk, mk -> nml">(x, w0) b = Relu(a)'
        ' y = Einsum<equation = "nml, mc -> nlc">(b, w1) }',
        {"w0": (8, 6), "w1": (8, 4)},
        [("neuron", 8)],
    ),
    "FusedMatMul": Case(
        f"{TOKENS} {{ a = com.microsoft.FusedMatMul<transB = 1>(x, w0) b = com.microsoft.BiasGelu(a, b0)"
        " y = MatMul(b, w1) }",
        {"w0": (8, 6), "b0": (8,), "w1": (8, 4)},
        [("neuron", 8)],
    ),
    "transposed constant": Case(
        f"{TOKENS} {{ t = Transpose<perm = [1, 0]>(w0) u = Cast<to = 1>(t) a = MatMul(x, u) y = MatMul(a, w1) }}",
        {"w0": (8, 6), "w1": (8, 4)},
        [("neuron", 8)],
    ),
    "gated": Case(
        f"{TOKENS} {{ a = MatMul(x, w0) b = MatMul(x, w1) s = Sigmoid(a) g = Mul(a, s) h = Mul(g, b)"
        " y = MatMul(h, w2) }",
        {"w0": (6, 8), "w1": (6, 8), "w2": (8, 4)},
        [("neuron", 8)],
    ),
    "gated, one weight": Case(
        f"{TOKENS} {{ m = MatMul(x, w0) a, b = Split<axis = -1>(m, parts) s = Sigmoid(a) h = Mul(s, b)"
        " y = MatMul(h, w2) }",
        {"w0": (6, 16), "parts": [8, 8], "w2": (8, 4)},
        [("neuron", 8)],
    ),
    "residual": Case(
        f"{TOKENS} {{ a = MatMul(x, w0) b = Relu(a) c = MatMul(b, w1) d = Add(a, c) y = MatMul(d, w2) }}",
        {"w0": (6, 8), "w1": (8, 8), "w2": (8, 4)},
        [("width", 8)],
    ),
    "embedding": Case(
        "(int64[N, L] ids) => (float[N, L, C] y) { a = Gather(table, ids) b = Add(a, places)"
        " y = MatMul(b, w1) }",
        {"table": (9, 8), "places": (5, 8), "w1": (8, 4)},
        [("width", 8)],
    ),
    "tied embedding": Case(
        "(int64[N, L] ids) => (float[N, L, C] y) { a = Gather(table, ids) b = MatMul(a, w0) c = Relu(b)"
        " d = Add(a, c) t = Transpose<perm = [1, 0]>(table) y = MatMul(d, t) }",
        {"table": (9, 8), "w0": (8, 8)},
        [("width", 8)],
    ),
}

NORMS = {
    "instance": Case(
        f"{IMAGE} {{ {CONV} b = InstanceNormalization(a, g, h) y = Conv(b, w9) }}",
        FIRST | LAST | {"g": (8,), "h": (8,)},
        [("channel", 8)],
    ),
    "groups, opset 18": Case(
        f"{IMAGE} {{ {CONV} b = GroupNormalization<num_groups = 4>(a, g, h) y = Conv(b, w9) }}",
        FIRST | LAST | {"g": (4,), "h": (4,)},
        [("channel", 4)],
        18,
    ),
    "groups, opset 21": Case(
        f"{IMAGE} {{ {CONV} b = GroupNormalization<num_groups = 4>(a, g, h) y = Conv(b, w9) }}",
        FIRST | LAST | {"g": (8,), "h": (8,)},
        [("channel", 4)],
        21,
    ),
    "groups, decomposed": Case(
        f"{IMAGE} {{ {CONV} r = Reshape(a, to) n = InstanceNormalization(r, g, h) s = Shape(a)"
        " b = Reshape(n, s) c = Mul(b, k) y = Conv(c, w9) }",
        FIRST | LAST | {"to": [0, 4, -1], "g": (4,), "h": (4,), "k": (8, 1, 1)},
        [("channel", 4)],
    ),
    "over positions": Case(
        f"{IMAGE} {{ {CONV} m = ReduceMean<axes = [2, 3]>(a) b = Sub(a, m) y = Conv(b, w9) }}",
        FIRST | LAST,
        [("channel", 8)],
    ),
    "softmax over positions": Case(
        f"{IMAGE} {{ {CONV} b = Softmax<axis = 2>(a) y = Conv(b, w9) }}", FIRST | LAST, [("channel", 8)]
    ),
}

SHAPES = {
    "flatten": Case(
        "(float[N, 3, 6, 7] x) => (float[N, C] y) { a = Conv(x, w0, b0) b = Flatten(a) y = Gemm(b, w1) }",
        FIRST | {"w1": (160, 4)},
        [("channel", 8)],
    ),
    "reshape to a constant": Case(
        "(float[N, 3, 6, 7] x) => (float[N, C] y) { a = Conv(x, w0, b0) b = Reshape(a, to) y = Gemm(b, w1) }",
        FIRST | {"w1": (160, 4), "to": [-1, 160]},
        [("channel", 8)],
    ),
    "reshape as a graph computes it": Case(
        f"{IMAGE} {{ {CONV} s = Shape(a) n = Gather(s, i) c = Unsqueeze(n, j) p = Mul(u, v)"
        " t = Concat<axis = 0>(c, eight, p) b = Reshape(a, t) d = Transpose<perm = [0, 2, 1]>(b)"
        " e = MatMul(d, w1) z = Unsqueeze(e, k) q = Unsqueeze(z, k) y = Squeeze(q, k) }",
        FIRST | {"i": np.array(0), "j": [0], "eight": [8], "u": [4], "v": [5], "w1": (8, 4), "k": [1]},
        [("channel", 8)],
    ),
    "shape of another value": Case(
        "(float[N, 6, 8] x) => (float[N, C, D] y) { s = Shape(x) a = MatMul(x, w0) b = Reshape(a, s)"
        " y = MatMul(b, w1) }",
        {"w0": (8, 8), "w1": (8, 4)},
        [("neuron", 8)],
    ),
    "pooled and squeezed": Case(
        "(float[N, 3, H, W] x) => (float[N, C] y) { a = Conv(x, w0, b0) p = GlobalAveragePool(a)"
        " q = Squeeze(p, at) y = Gemm(q, w1) }",
        FIRST | {"w1": (8, 4), "at": [2, 3]},
        [("channel", 8)],
    ),
    "squeeze and excite": Case(
        f"{IMAGE} {{ {CONV} p = ReduceMean<axes = [2, 3]>(a) q = Conv(p, w1) r = Relu(q) s = Conv(r, w2)"
        " t = HardSigmoid(s) b = Mul(a, t) y = Conv(b, w9) }",
        FIRST | LAST | {"w1": (4, 8, 1, 1), "w2": (8, 4, 1, 1)},
        [("channel", 4), ("channel", 8)],
    ),
    "channel shuffle": Case(
        f"{IMAGE} {{ {CONV} r = Reshape(a, to) t = Transpose<perm = [0, 2, 1, 3, 4]>(r) b = Reshape(t, back)"
        " c = Conv<group = 2>(b, w1) y = Conv(c, w9) }",
        FIRST | {"to": [0, 2, 4, 4, 5], "back": [0, 8, 4, 5], "w1": (6, 4, 1, 1), "w9": (5, 6, 1, 1)},
        [("channel", 2), ("channel", 3)],
    ),
    "concat": Case(
        f"{IMAGE} {{ {CONV} c = Conv(a, w1) b = Concat<axis = 1>(a, x9, c) y = Conv(b, w9) }}".replace(
            "x9", "a"
        ),
        FIRST | {"w1": (6, 8, 1, 1), "w9": (5, 22, 1, 1)},
        [("channel", 6), ("channel", 8)],
    ),
    "concat with the input": Case(
        "(float[N, 3, 4, 5] x) => (float[N, C, P, Q] y) { a = Conv(x, w0) b = Concat<axis = 1>(x, a)"
        " y = Conv(b, w9) }",
        {"w0": (8, 3, 1, 1), "w9": (5, 11, 1, 1)},
        [("channel", 8)],
    ),
    "split, sizes in an input": Case(
        f"{IMAGE} {{ {CONV} b, c = Split<axis = 1>(a, parts) d = Conv(b, w1) e = Conv(c, w2) y = Add(d, e) }}",
        FIRST | {"parts": [3, 5], "w1": (5, 3, 1, 1), "w2": (5, 5, 1, 1)},
        [("channel", 3), ("channel", 5)],
    ),
    "split, sizes in an attribute": Case(
        f"{IMAGE} {{ {CONV} b, c = Split<axis = 1, split = [3, 5]>(a) d = Conv(b, w1) e = Conv(c, w2)"
        " y = Add(d, e) }",
        FIRST | {"w1": (5, 3, 1, 1), "w2": (5, 5, 1, 1)},
        [("channel", 3), ("channel", 5)],
        11,
    ),
    "split in halves": Case(
        f"{IMAGE} {{ {CONV} b, c = Split<axis = 1, num_outputs = 2>(a) d = Conv(b, w1) e = Conv(c, w2)"
        " y = Add(d, e) }",
        FIRST | {"w1": (5, 4, 1, 1), "w2": (5, 4, 1, 1)},
        [("channel", 4), ("channel", 4)],
        18,
    ),
    "slices": Case(
        f"{IMAGE} {{ {CONV} b = Slice(a, i0, i3, i1) c = Slice(a, m5, big, i1) d = Conv(b, w1)"
        " e = Conv(c, w2) y = Add(d, e) }",
        FIRST | {"i0": [0], "i3": [3], "i1": [1], "m5": [-5], "big": [2**40], "w1": (5, 3, 1, 1), "w2": (5, 5, 1, 1)},
        [("channel", 3), ("channel", 5)],
    ),
    "slices that overlap and leave a gap": Case(
        f"{IMAGE} {{ {CONV} b = Slice<axes = [1], starts = [0], ends = [4]>(a)"
        " c = Slice<axes = [1], starts = [2], ends = [-1]>(a) d = Conv(b, w1) e = Conv(c, w2) y = Add(d, e) }",
        FIRST | {"w1": (5, 4, 1, 1), "w2": (5, 5, 1, 1)},
        [("channel", 2), ("channel", 2), ("channel", 3)],
        9,
    ),
    "padded channels": Case(
        f"{IMAGE} {{ {CONV} p = Pad(a, pads) c = Conv(a, w1) b = Add(p, c) y = Conv(b, w9) }}",
        FIRST | {"pads": [0, 2, 0, 0, 0, 3, 0, 0], "w1": (13, 8, 1, 1), "w9": (5, 13, 1, 1)},
        [("channel", 5), ("channel", 8)],
    ),
    "padded channels, in an attribute": Case(
        f"{IMAGE} {{ {CONV} p = Pad<pads = [0, 2, 0, 0, 0, 3, 0, 0]>(a) c = Conv(a, w1) b = Add(p, c)"
        " y = Conv(b, w9) }",
        FIRST | {"w1": (13, 8, 1, 1), "w9": (5, 13, 1, 1)},
        [("channel", 5), ("channel", 8)],
        10,
    ),
    "padded positions": Case(
        f'{IMAGE} {{ {CONV} p = Pad<mode = "reflect">(a, pads) y = Conv(p, w9) }}',
        FIRST | LAST | {"pads": [0, 0, 1, 1, 0, 0, 0, 2]},
        [("channel", 8)],
    ),
    "resized by scales": Case(
        f"{IMAGE} {{ {CONV} b = Resize(a, , scales) y = Conv(b, w9) }}",
        FIRST | LAST | {"scales": np.array([1, 1, 2, 1.5], np.float32)},
        [("channel", 8)],
    ),
    "resized to sizes": Case(
        "(float[2, 3, 6, 7] x) => (float[N, C, P, Q] y) { a = Conv(x, w0, b0) b = Resize(a, , , sizes)"
        " y = Conv(b, w9) }",
        FIRST | LAST | {"sizes": [2, 8, 9, 9]},
        [("channel", 8)],
    ),
    "pixels from channels": Case(
        f"{IMAGE} {{ {CONV} b = DepthToSpace<blocksize = 2>(a) y = Conv(b, w9) }}",
        FIRST | {"w9": (5, 2, 1, 1)},
        [("channel", 2)],
    ),
    "pixels from channels, CRD": Case(
        f'{IMAGE} {{ {CONV} b = DepthToSpace<blocksize = 2, mode = "CRD">(a) y = Conv(b, w9) }}',
        FIRST | {"w9": (5, 2, 1, 1)},
        [("channel", 2)],
    ),
    "channels from pixels": Case(
        "(float[N, 3, 6, 6] x) => (float[N, C, P, Q] y) { a = Conv(x, w0, b0) b = SpaceToDepth<blocksize = 2>(a)"
        " y = Conv(b, w9) }",
        FIRST | {"w9": (5, 32, 1, 1)},
        [("channel", 8)],
    ),
    "tiled": Case(
        f"{IMAGE} {{ {CONV} b = Tile(a, times) y = Conv(b, w9) }}",
        FIRST | {"times": [1, 2, 1, 1], "w9": (5, 16, 1, 1)},
        [("channel", 8)],
    ),
    "expanded": Case(
        f"{TOKENS} {{ a = MatMul(v, w0) b = Expand(a, to) c = MatMul(x, w1) d = Add(b, c) y = MatMul(d, w2) }}",
        {"v": (1, 6), "w0": (6, 8), "w1": (6, 8), "w2": (8, 4), "to": [2, 5, 8]},
        [("neuron", 8)],
    ),
    "zeros of a shape": Case(
        f"{TOKENS} {{ a = MatMul(x, w0) z = ConstantOfShape(to) b = Max(a, z) y = MatMul(b, w2) }}",
        {"w0": (6, 8), "w2": (8, 4), "to": [5, 8]},
        [("neuron", 8)],
    ),
}  # fmt: skip

RNN = "(float[L, N, 3] x) => (float[L, D, N, C] y)"
RECURRENT = {
    "LSTM": Case(
        f"{RNN} {{ a, h, c = LSTM<hidden_size = 6>(x, w, r, b) y = MatMul(a, w9) }}",
        {"w": (1, 24, 3), "r": (1, 24, 6), "b": (1, 48), "w9": (6, 4)},
        [("hidden", 6)],
    ),
    "LSTM, peepholes and states, last state": Case(
        "(float[L, N, 3] x) => (float[D, N, C] y) { a, h, c = LSTM<hidden_size = 6>(x, w, r, b, , h0, c0, p)"
        " s = Add(h, c) y = MatMul(s, w9) }",
        {"w": (1, 24, 3), "r": (1, 24, 6), "b": (1, 48), "w9": (6, 4), "h0": (1, 2, 6), "c0": (1, 2, 6), "p": (1, 18)},
        [("hidden", 6)],
    ),
    "LSTM, two directions and two layers": Case(
        """(float[L, N, 3] x) => (float[L, N, C] y) {
        a = LSTM<hidden_size = 6, direction = "bidirectional">(x, w, r, b)
        t = Transpose<perm = [0, 2, 1, 3]>(a) f = Reshape(t, to)
        a2 = LSTM<hidden_size = 6, direction = "bidirectional">(f, w2, r2, b2)
        t2 = Transpose<perm = [0, 2, 1, 3]>(a2) f2 = Reshape(t2, to2) y = MatMul(f2, w9) }""",
        {
            "w": (2, 24, 3), "r": (2, 24, 6), "b": (2, 48), "to": [0, 0, -1], "w9": (12, 4),
            "w2": (2, 24, 12), "r2": (2, 24, 6), "b2": (2, 48), "to2": [0, 0, 12],
        },
        [("hidden", 6), ("hidden", 6)],
    ),
    "GRU, zeros of a shape": Case(
        """(float[L, N, 3] x) => (float[L, N, C] y) { s = Shape(x) n = Gather(s, one)
        t = Concat<axis = 0>(dirs, n, six) h = ConstantOfShape(t)
        a = GRU<hidden_size = 6, linear_before_reset = 1>(x, w, r, b, , h) q = Squeeze(a, one)
        y = MatMul(q, w9) }""",
        {"w": (1, 18, 3), "r": (1, 18, 6), "b": (1, 36), "w9": (6, 4), "one": [1], "dirs": [1], "six": [6]},
        [("hidden", 6)],
    ),
    "RNN": Case(
        f"{RNN} {{ a = RNN<hidden_size = 6>(x, w, r) y = MatMul(a, w9) }}",
        {"w": (1, 6, 3), "r": (1, 6, 6), "w9": (6, 4)},
        [("hidden", 6)],
    ),
    "after a convolution": Case(
        "(float[N, 3, L] x) => (float[P, D, N, C] y) { v = Conv(x, wc) t = Transpose<perm = [2, 0, 1]>(v)"
        " a = GRU<hidden_size = 6>(t, w, r) y = MatMul(a, w9) }",
        {"wc": (8, 3, 2), "w": (1, 18, 8), "r": (1, 18, 6), "w9": (6, 4)},
        [("channel", 8), ("hidden", 6)],
    ),
}  # fmt: skip

QKV = "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)"
SHARED = {"wq": (6, 16), "wk": (6, 8), "wv": (6, 8), "wo": (16, 4)}
EQUAL = {"wq": (6, 12), "wk": (6, 12), "wv": (6, 12), "wo": (12, 4)}
ATTENTION = {
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
            "w": (6, 36), "bias": (36,), "to": [0, 0, 3, 3, 4], "back": [0, 0, -1], "wo": (12, 4),
            "i0": np.array(0), "i1": np.array(1), "i2": np.array(2),
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
        SHARED | {
            "to": [0, 0, 4, 4], "kto": [0, 0, 2, 4], "two": [2], "wide": [2, 2, 2, 5, 4],
            "flat": [0, 4, 5, 4], "back": [0, 0, 16],
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
        {"wq": (6, 32), "wk": (6, 16), "wv": (6, 16), "wo": (32, 4),
         "last": np.array([4, 4], np.int32), "total": np.array(5, np.int32)},
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
        f"""{TOKENS} {{ c = com.microsoft.Attention<num_heads = 3, qkv_hidden_sizes = [12, 12, 24]>(x, w, bias)
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
        f"""{TOKENS} {{ {QKV} qr = com.microsoft.RotaryEmbedding<num_heads = 3, rotary_embedding_dim = 4>(q, at, cosines, sines)
        kr = com.microsoft.RotaryEmbedding<num_heads = 3, rotary_embedding_dim = 4>(k, at, cosines, sines)
        c = com.microsoft.MultiHeadAttention<num_heads = 3>(qr, kr, v) y = MatMul(c, wo) }}""",
        EQUAL | {"cosines": (5, 2), "sines": (5, 2), "at": [0]},
        [("head", 3)],
    ),
}  # fmt: skip

FAMILIES: dict[str, dict[str, Case]] = {
    "convolution": CONVOLUTIONS,
    "products": PRODUCTS,
    "normalisation": NORMS,
    "shapes": SHAPES,
    "recurrent": RECURRENT,
    "attention": ATTENTION,
}
