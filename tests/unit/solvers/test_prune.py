from __future__ import annotations

import numpy as np
import pytest

from onnxprune.scoring import fisher, mixed
from onnxprune.scoring.attention import sample_attention
from onnxprune.scoring.evidence import Evidence, Slopes
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


def seen(W: np.ndarray, H: np.ndarray) -> Evidence:
    g = np.random.default_rng(1).normal(size=W.shape).astype(np.float32)
    return Evidence(W, H, slopes=Slopes(0 * g, g**2, np.abs(W * g)))


@pytest.mark.parametrize("criterion", ["obs", "magnitude", "wanda", "wanda+magnitude", "obs+wanda"])
@pytest.mark.parametrize("solver", ["admm", "sweep"])
@pytest.mark.parametrize("refit", [True, False])
@pytest.mark.parametrize("text", ["unstructured", "2:4", "block:2x2", "neuron"])
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


@pytest.mark.parametrize("criterion", ["obs", "taylor", "obs+fisher", "attention"])
@pytest.mark.parametrize("text", ["unstructured", "2:4", "block:2x2", "neuron"])
def test_chance_keeps_every_promise_too(criterion: str, text: str) -> None:
    W, H = layer(2)
    pattern = Pattern.parse(text)
    zeros = pattern.zeros(W.shape, 0.5)
    masks = []
    for seed in (3, 3, 4):
        method = Method(criterion, pattern=pattern, seed=seed)
        pruned, mask = prune_matrix(W, H, zeros, method, evidence=seen(W, H))
        assert int((~mask).sum()) == zeros and pattern.holds(mask) and (pruned[~mask] == 0).all()
        masks.append(mask)
    np.testing.assert_array_equal(masks[0], masks[1])
    assert (masks[0] != masks[2]).any()


@pytest.mark.parametrize("solver", ["admm", "sweep"])
def test_another_criterion_moves_the_choice_of_the_solver(solver: str) -> None:
    """Weights that Fisher values survive more often than without it, and the layer's error is higher."""
    W, H = layer(1, 20, 24)
    known = seen(W, H)
    valued = known.gradients.second > np.median(known.gradients.second)
    (alone, mask), (mixture, moved) = (
        prune_matrix(W, H, 300, Method(text, solver), evidence=known) for text in ("obs", "obs+fisher")
    )
    assert moved[valued].sum() > mask[valued].sum()
    assert error(W, alone, H) < error(W, mixture, H) < 3 * error(W, alone, H)


def test_equal_emphasis_changes_nothing() -> None:
    W, H = layer()
    ones = np.ones_like(W)
    for solve in (admm.solve, sweep.solve):
        plain, same = (solve(W, H, Pattern(), 80, damping=0.01, emphasis=e) for e in (None, ones))
        np.testing.assert_array_equal(plain[1], same[1])
        np.testing.assert_array_equal(plain[0], same[0])


@pytest.mark.parametrize("solver", ["admm", "sweep"])
@pytest.mark.parametrize("text", ["2:4", "block:2x1", "block:2x1,adjacent"])
def test_emphasis_follows_the_rows_and_columns_of_patterns(solver: str, text: str) -> None:
    """What is emphasised beyond all measure is kept wherever the pattern puts it."""
    W, H = layer(1, 8, 16)
    dear = np.zeros(W.shape, bool)
    dear[0, ::2, ::4] = True
    dear[0, 1::2, ::4] = True
    slopes = Slopes(0 * W, np.where(dear, 1e6, 1e-6).astype(np.float32), 0 * W)
    known = Evidence(np.ones_like(W), H, slopes=slopes)
    assert mixed.emphasis(Method("obs+fisher").mixture, known) is not None
    _, mask = prune_matrix(
        W, H, W.size // 2, Method("0.000001*obs+fisher", solver, Pattern.parse(text)), evidence=known
    )
    assert mask[dear].all()


def test_scores_are_those_of_the_evidence() -> None:
    W, H = layer()
    known = seen(W, H)
    _, mask = prune_matrix(W, H, 70, Method("fisher", refit=False), evidence=known)
    np.testing.assert_array_equal(mask, Pattern().keep(fisher.saliency(known), 70))


def test_inattentive_rows_go_first() -> None:
    W, H = layer()
    method = Method("magnitude", refit=False, inattentive=0.9)
    low = sample_attention(Evidence(W, H))[0] < 0.9
    assert 1 < low.sum() < 9
    _, mask = prune_matrix(W, H, int(low.sum()) * 16 - 5, method)
    assert mask[0, ~low].all()
    kept = np.abs(W[0, low])[mask[0, low]]
    assert len(kept) == 5 and kept.min() >= np.abs(W[0, low])[~mask[0, low]].max()


def test_hybrid_takes_rows_and_then_weights() -> None:
    W, H = layer()
    for criterion in ("magnitude", "obs"):
        _, mask = prune_matrix(W, H, 90, Method(criterion, pattern=Pattern.parse("hybrid:0.6")))
        assert int((~mask).sum()) == 90
        assert int((~mask).all(-1).sum()) >= 3  # 54 zeros are 3 rows of 16
