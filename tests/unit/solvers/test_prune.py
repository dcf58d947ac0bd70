from __future__ import annotations

import numpy as np
import pytest

from onnxprune.solvers import admm, sweep
from onnxprune.solvers.patterns import Pattern
from onnxprune.solvers.prune import Method, prune_matrix


def layer(groups: int = 1, rows: int = 10, n: int = 16) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(groups, 200, n)) @ (np.eye(n) + 0.4 * rng.normal(size=(n, n)))
    X *= np.exp(rng.normal(size=n))
    return rng.normal(size=(groups, rows, n)).astype(np.float32), X.swapaxes(1, 2) @ X / 200


def error(W: np.ndarray, pruned: np.ndarray, H: np.ndarray) -> float:
    D = (W - pruned).astype(np.float64)
    return float(((D @ H) * D).sum() / ((W @ H) * W).sum())


@pytest.mark.parametrize("criterion", ["obs", "magnitude", "wanda"])
@pytest.mark.parametrize("solver", ["admm", "sweep"])
@pytest.mark.parametrize("refit", [True, False])
@pytest.mark.parametrize("text", ["unstructured", "2:4", "block:2x2"])
def test_every_method_keeps_its_promises(criterion: str, solver: str, refit: bool, text: str) -> None:
    W, H = layer(2)
    pattern = Pattern.parse(text)
    zeros = pattern.zeros(W.shape, 0.5)
    pruned, mask = prune_matrix(W, H, zeros, Method(criterion, solver, pattern, refit=refit))
    assert int((~mask).sum()) == zeros and pattern.holds(mask)
    assert (pruned[~mask] == 0).all() and pruned.dtype == np.float32


def test_no_zeros_no_change() -> None:
    W, H = layer()
    for criterion in ("obs", "magnitude", "wanda"):
        pruned, mask = prune_matrix(W, H, 0, Method(criterion))
        assert mask.all()
        np.testing.assert_array_equal(pruned, W)


def test_obs_uses_the_solver_that_was_asked_for() -> None:
    W, H = layer()
    for name, solve in (("admm", admm.solve), ("sweep", sweep.solve)):
        found, _ = prune_matrix(W, H, 80, Method(solver=name, damping=0.02))
        np.testing.assert_array_equal(found, solve(W, H, Pattern(), 80, damping=0.02)[0])


def test_magnitude_ranks_the_whole_matrix() -> None:
    W, H = layer(2)
    W[0] += 100
    pruned, mask = prune_matrix(W, H, W[0].size, Method("magnitude", refit=False))
    assert mask[0].all() and not mask[1].any()
    np.testing.assert_array_equal(pruned, np.where(mask, W, 0))


@pytest.mark.parametrize("zeros", [1, 9, 20, 80, 83, 159, 160])
def test_wanda_drops_the_same_number_in_each_row(zeros: int) -> None:
    W, H = layer()
    W[0, 3] *= 1000  # rows are not compared with each other
    _, mask = prune_matrix(W, H, zeros, Method("wanda", refit=False))
    per_row = (~mask).sum(-1).ravel()
    assert per_row.sum() == zeros
    assert set(per_row) <= {zeros // 10, zeros // 10 + 1}
    score = np.abs(W) * np.sqrt(np.einsum("gii->gi", H))[:, None]
    for row in range(10):
        if 0 < per_row[row] < 16:
            assert score[0, row][~mask[0, row]].max() <= score[0, row][mask[0, row]].min()


def test_refit_lowers_the_error_of_the_same_mask() -> None:
    W, H = layer()
    for criterion in ("magnitude", "wanda"):
        plain, mask = prune_matrix(W, H, 80, Method(criterion, refit=False))
        repaired, same = prune_matrix(W, H, 80, Method(criterion))
        np.testing.assert_array_equal(mask, same)
        assert error(W, repaired, H) < 0.8 * error(W, plain, H)


def test_obs_is_better_than_the_others_with_refit() -> None:
    W, H = layer()
    errors = {c: error(W, prune_matrix(W, H, 100, Method(c))[0], H) for c in ("obs", "wanda", "magnitude")}
    assert errors["obs"] < min(errors["wanda"], errors["magnitude"])


def test_fewer_iterations_are_close() -> None:
    W, H = layer(1, 24, 40)
    errors = [error(W, prune_matrix(W, H, 600, Method(quick=quick))[0], H) for quick in (True, False)]
    assert errors[1] < errors[0] < 2 * errors[1]
