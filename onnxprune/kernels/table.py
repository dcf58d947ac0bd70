"""Break-even without a measurement: what the kernels gain over ONNX Runtime's dense ones, by pattern.

For machines on which the library is not there to be measured. The figures are of AVX2 with one thread, the
lowest of several shapes each (MatMul with 128 rows and more; 1x1 convolutions without, 3x3 with im2col),
and a node is only switched where they leave a margin.
"""

from __future__ import annotations

from itertools import pairwise

MARGIN = 1.15  # expected gain from which a node is switched unmeasured

# (kind, rows of a group) -> density -> gain
GAINS: dict[tuple[str, int], dict[float, float]] = {
    ("matmul", 1): {0.5: 1.3, 0.3: 2.1, 0.2: 3.0, 0.1: 5.1, 0.05: 7.9},
    ("matmul", 2): {0.5: 1.7, 0.3: 2.6, 0.2: 3.9, 0.1: 6.7, 0.05: 10.0},
    ("matmul", 4): {0.6: 1.4, 0.5: 1.7, 0.3: 2.6, 0.2: 4.1, 0.1: 6.7, 0.05: 12.0},
    ("matmul", 8): {0.6: 1.4, 0.5: 1.7, 0.3: 2.7, 0.2: 4.2, 0.1: 7.8, 0.05: 12.0},
    ("matmul", 16): {0.6: 1.6, 0.5: 2.0, 0.3: 3.2, 0.2: 4.7, 0.1: 5.8, 0.05: 12.0},
    ("conv1x1", 1): {0.4: 1.1, 0.3: 1.5, 0.2: 2.1, 0.1: 3.2},
    ("conv1x1", 2): {0.5: 1.4, 0.3: 2.4, 0.2: 2.5, 0.1: 3.7},
    ("conv1x1", 4): {0.6: 1.3, 0.5: 1.7, 0.3: 2.5, 0.2: 2.9, 0.1: 3.6, 0.05: 4.7},
    ("conv", 1): {0.3: 1.2, 0.2: 1.6, 0.1: 2.5},
    ("conv", 2): {0.3: 1.5, 0.2: 1.7, 0.1: 2.3},
    ("conv", 4): {0.6: 1.2, 0.5: 1.3, 0.3: 2.0, 0.2: 2.9, 0.1: 5.1, 0.05: 7.0},
}


def kind_of(consumer: str, shape: tuple[int, ...]) -> str:
    """Return the kind of a product: ``matmul``, ``conv1x1`` or ``conv``."""
    if consumer != "Conv":
        return "matmul"
    return "conv1x1" if all(side == 1 for side in shape[2:]) else "conv"


def expected_gain(kind: str, group: int, density: float) -> float:
    """Return the gain to expect: interpolated between the entries, 0 where it is below the table."""
    groups = [g for k, g in GAINS if k == kind and g <= group]
    points = sorted(GAINS[kind, max(groups)].items())
    if density > points[-1][0]:
        return 0.0
    if density <= points[0][0]:
        return points[0][1]
    for (sparse, high), (dense, low) in pairwise(points):
        if density <= dense:
            # Times, not gains, are linear in the number of weights.
            share = (density - sparse) / (dense - sparse)
            return 1 / ((1 - share) / high + share / low)
    raise AssertionError("the last point is the densest")
