"""What a criterion may look at: one layer's weight, the statistics of its inputs, its gradients."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import UsageError

Floats = NDArray[np.float32]
Sums = NDArray[np.float64]


@dataclass(frozen=True)
class Slopes:
    """Gradients g of a loss with respect to a weight, means over samples (one gradient for each sample).

    Attributes:
        first: (groups, out_features, in_features) mean of g.
        second: the same shape, mean of g^2: the diagonal of the Fisher matrix.
        taylor: the same shape, mean of |w g|, w the dense weight.
    """

    first: Floats
    second: Floats
    taylor: Floats


@dataclass(frozen=True)
class Evidence:
    """What is known of one layer. Groups are those of a convolution or the batch of a batched MatMul.

    Attributes:
        W: (groups, out_features, in_features) weights to be pruned.
        H: (groups, in_features, in_features) second moments of the inputs per row, not centred.
        mean: (groups, in_features) mean of the inputs; None: taken for zero.
        slopes: gradients; None where nothing asked for them.
        alpha: how much activations count beside gradients, see :mod:`onnxprune.scoring.adaptive`.
    """

    W: Floats
    H: Sums
    mean: Sums | None = None
    slopes: Slopes | None = None
    alpha: float = 1.0

    @property
    def gradients(self) -> Slopes:
        """The gradients.

        Raises:
            UsageError: when there are none.
        """
        if self.slopes is None:
            raise UsageError("this criterion needs gradients of a loss, and none were collected")
        return self.slopes

    @property
    def input_norm(self) -> Sums:
        """Root mean square of each input feature: (groups, in_features)."""
        return np.asarray(np.sqrt(np.maximum(np.einsum("gii->gi", self.H), 0.0)))

    @property
    def output_norm(self) -> Sums:
        """Root mean square of each output feature, before the bias: (groups, out_features)."""
        W = self.W.astype(np.float64)
        return np.asarray(np.sqrt(np.maximum(np.einsum("goi,goi->go", W @ self.H, W), 0.0)))

    def columns(self, order: NDArray[np.int64]) -> Evidence:
        """Return the same with the input features in another order."""
        slopes = self.slopes
        if slopes is not None:
            slopes = Slopes(slopes.first[:, :, order], slopes.second[:, :, order], slopes.taylor[:, :, order])
        mean = None if self.mean is None else self.mean[:, order]
        return replace(self, W=self.W[:, :, order], H=self.H[:, order][:, :, order], mean=mean, slopes=slopes)
