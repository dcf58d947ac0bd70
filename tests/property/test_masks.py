"""Laws of masks, for any shape, saliency and number of zeros: counts are exact and patterns hold."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from onnxprune.allocation.threshold import is_below
from onnxprune.recipe.threshold import Threshold
from onnxprune.solvers.choose import choose
from onnxprune.solvers.patterns import Pattern, lowest

# Few distinct values, so that ties are the rule; wide ones too, since float32 sums round.
VALUES = st.one_of(
    st.integers(0, 3).map(float), st.floats(0, 2.0**60, width=32), st.just(float(np.float32(1e-40)))
)
SALIENCIES = npst.array_shapes(min_dims=3, max_dims=3, max_side=6).flatmap(
    lambda shape: npst.arrays(np.float32, shape, elements=VALUES)
)
BLOCKS = st.builds(Pattern, st.just("block"), st.integers(1, 5), st.integers(1, 5))
FREE = st.builds(Pattern, st.just("block"), st.integers(2, 5), st.integers(1, 3), st.just(True))
ROWS = st.one_of(st.just(1.0), st.floats(0.05, 0.95)).map(lambda share: Pattern("rows", share=share))
NM = st.tuples(st.integers(1, 4), st.integers(1, 4)).map(lambda p: Pattern("nm", p[0], p[0] + p[1]))


def dropped(mask: np.ndarray) -> int:
    return int((~mask).sum())


@given(SALIENCIES, st.integers(-3, 230))
def test_unstructured_counts_are_exact(saliency: np.ndarray, zeros: int) -> None:
    mask = Pattern().keep(saliency, zeros)
    assert dropped(mask) == min(max(zeros, 0), saliency.size)
    if not mask.all() and mask.any():
        assert saliency[~mask].max() <= saliency[mask].min()
    assert Pattern().holds(mask)


@given(SALIENCIES, st.integers(0, 230))
def test_ties_go_by_index(saliency: np.ndarray, zeros: int) -> None:
    order = np.argsort(saliency.ravel(), kind="stable")[:zeros]
    wanted = np.zeros(saliency.size, bool)
    wanted[order] = True
    np.testing.assert_array_equal(lowest(saliency, zeros).ravel(), wanted)


@given(SALIENCIES, NM, st.integers(1, 230))
def test_n_of_m_in_every_group(saliency: np.ndarray, pattern: Pattern, zeros: int) -> None:
    mask = pattern.keep(saliency, zeros)
    whole = saliency.shape[2] // pattern.columns * pattern.columns
    parts = mask[:, :, :whole].reshape(-1, pattern.columns)
    scores = saliency[:, :, :whole].reshape(-1, pattern.columns)
    assert (parts.sum(1) == pattern.rows).all()
    for part, score in zip(parts, scores, strict=True):
        order = np.argsort(score, kind="stable")
        assert not part[order[: pattern.columns - pattern.rows]].any()
    assert mask[:, :, whole:].all()  # an incomplete group stays dense
    assert pattern.holds(mask)
    assert dropped(mask) == pattern.zeros(saliency.shape, 0.5)
    if whole:
        broken = mask.copy()
        broken[0, 0, : pattern.columns] = True
        assert not pattern.holds(broken)


@given(SALIENCIES, BLOCKS, st.integers(0, 230))
def test_blocks_come_whole_and_near_the_count(saliency: np.ndarray, pattern: Pattern, zeros: int) -> None:
    mask = pattern.keep(saliency, zeros)
    groups, rows, columns = saliency.shape
    kept, gone = [], []
    for group in range(groups):
        for row in range(0, rows, pattern.rows):
            for column in range(0, columns, pattern.columns):
                at = (group, slice(row, row + pattern.rows), slice(column, column + pattern.columns))
                block = mask[at]
                assert block.all() or not block.any()
                (kept if block.all() else gone).append(float(saliency[at].mean(dtype=np.float64)))
    assert pattern.holds(mask)
    largest = min(pattern.rows, rows) * min(pattern.columns, columns)
    assert abs(dropped(mask) - min(zeros, saliency.size)) <= largest / 2
    if kept and gone:
        assert max(gone) <= min(kept) * (1 + 1e-6) + 1e-30


@given(SALIENCIES, BLOCKS, st.data())
def test_blocks_notice_a_changed_weight(saliency: np.ndarray, pattern: Pattern, data: st.DataObject) -> None:
    mask = pattern.keep(saliency, saliency.size // 2)
    at = tuple(data.draw(st.integers(0, side - 1)) for side in mask.shape)
    mask[at] = ~mask[at]
    group, row, column = at
    row, column = row // pattern.rows * pattern.rows, column // pattern.columns * pattern.columns
    alone = mask[group, row : row + pattern.rows, column : column + pattern.columns].size == 1
    assert pattern.holds(mask) == alone


@given(SALIENCIES, FREE, st.integers(0, 230))
def test_free_blocks_come_whole_and_near_the_count(
    saliency: np.ndarray, pattern: Pattern, zeros: int
) -> None:
    mask = pattern.keep(saliency, zeros)
    assert pattern.holds(mask)
    size = min(pattern.rows, saliency.shape[1]) * min(pattern.columns, saliency.shape[2])
    assert abs(dropped(mask) - min(zeros, saliency.size)) <= size / 2
    np.testing.assert_array_equal(mask, pattern.keep(saliency.copy(), zeros))


@given(SALIENCIES, FREE, st.data())
def test_every_block_has_its_rows(saliency: np.ndarray, pattern: Pattern, data: st.DataObject) -> None:
    """Rows of one support come in multiples of R, but for those that are left over."""
    mask = pattern.keep(saliency, data.draw(st.integers(0, saliency.size)))
    for part in mask:
        _, counts = np.unique(part, axis=0, return_counts=True)
        assert sum(counts % pattern.rows) <= len(part) % pattern.rows or len(part) < pattern.rows
        if len(part) < pattern.rows:
            assert len(counts) == 1


@given(SALIENCIES, FREE, st.floats(0, 1))
def test_free_rows_keep_at_least_what_neighbours_keep(
    saliency: np.ndarray, pattern: Pattern, share: float
) -> None:
    saliency = np.minimum(saliency, 2.0**20)
    zeros = round(share * saliency.size)
    order = pattern.row_order(saliency, zeros)
    for part in order:
        np.testing.assert_array_equal(np.sort(part), np.arange(saliency.shape[1]))
    if saliency.shape[0] == 1 and saliency.shape[1] % pattern.rows == 0 and pattern.columns == 1:
        free, adjacent = pattern.keep(saliency, zeros), pattern.adjacent.keep(saliency, zeros)
        if dropped(free) == dropped(adjacent):
            assert saliency[free].sum(dtype=np.float64) >= saliency[adjacent].sum(dtype=np.float64) * (
                1 - 1e-5
            )


@given(SALIENCIES, st.one_of(st.just(Pattern()), NM, BLOCKS, FREE), st.integers(0, 230))
def test_masks_do_not_depend_on_memory_layout(saliency: np.ndarray, pattern: Pattern, zeros: int) -> None:
    strange = np.asfortranarray(saliency)
    np.testing.assert_array_equal(pattern.keep(saliency, zeros), pattern.keep(strange, zeros))


@given(
    st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)),
    st.one_of(st.just(Pattern()), NM, BLOCKS, FREE),
    st.floats(0, 1),
)
def test_zeros_can_be_reached(shape: tuple[int, int, int], pattern: Pattern, sparsity: float) -> None:
    zeros = pattern.zeros(shape, sparsity)
    total = int(np.prod(shape))
    assert 0 <= zeros <= total
    if pattern.kind != "nm":
        assert abs(zeros - sparsity * total) <= 0.5
    if pattern.kind != "block":
        assert dropped(pattern.keep(np.ones(shape, np.float32), zeros)) == zeros


@given(SALIENCIES, st.integers(0, 230))
def test_neurons_go_whole_and_near_the_count(saliency: np.ndarray, zeros: int) -> None:
    pattern = Pattern.parse("neuron")
    mask = pattern.keep(saliency, zeros)
    rows = mask.reshape(-1, mask.shape[2])
    assert (rows.all(1) | ~rows.any(1)).all() and pattern.holds(mask)
    if zeros < saliency.size:
        assert rows.any()  # one is always left
    count = int(rows.any(1).sum())
    if zeros >= saliency.size or count > 1:
        assert abs(dropped(mask) - min(zeros, saliency.size)) <= mask.shape[2] / 2
    score = saliency.reshape(rows.shape).sum(1, dtype=np.float64)
    if 0 < count < len(rows):
        assert score[~rows.any(1)].max() <= score[rows.any(1)].min()


@given(SALIENCIES, ROWS, st.integers(0, 230))
def test_hybrid_counts_are_exact(saliency: np.ndarray, pattern: Pattern, zeros: int) -> None:
    if pattern.share == 1:
        return
    mask = pattern.keep(saliency, zeros)
    assert dropped(mask) == min(zeros, saliency.size)
    whole = int(pattern.share * zeros / mask.shape[2])
    assert int((~mask).all(2).sum()) >= min(whole, mask.shape[0] * mask.shape[1] - 1)


@given(SALIENCIES, st.one_of(st.just(Pattern()), ROWS), st.integers(0, 115), st.integers(0, 115))
def test_more_zeros_keep_the_zeros_that_were(
    saliency: np.ndarray, pattern: Pattern, zeros: int, more: int
) -> None:
    if pattern.kind == "rows" and pattern.share < 1:
        return  # another row may take the place of weights
    fewer, many = pattern.keep(saliency, zeros), pattern.keep(saliency, zeros + more)
    assert not (many & ~fewer).any()


@given(
    SALIENCIES,
    st.one_of(st.just(Pattern()), st.just(Pattern.parse("neuron")), NM, BLOCKS, FREE),
    st.integers(0, 230),
    st.integers(0, 2**32),
)
def test_chance_drops_as_many_as_rank(saliency: np.ndarray, pattern: Pattern, zeros: int, seed: int) -> None:
    mask = choose(saliency, zeros, pattern, seed=seed)
    assert pattern.holds(mask)
    np.testing.assert_array_equal(mask, choose(saliency, zeros, pattern, seed=seed))
    even = saliency.shape[1] % pattern.rows == 0 and saliency.shape[2] % pattern.columns == 0
    if pattern.kind != "block" or even:
        assert dropped(mask) == dropped(pattern.keep(saliency, zeros))


@given(SALIENCIES, st.sampled_from(["abs", "rel"]), st.floats(1e-3, 1e3), st.floats(1, 100))
def test_higher_thresholds_take_more(saliency: np.ndarray, kind: str, value: float, factor: float) -> None:
    low, high = (is_below(saliency, Threshold(kind, v)) for v in (value, value * factor))  # type: ignore[arg-type]
    assert not (low & ~high).any()
    if low.any() and not low.all():
        assert saliency[low].max() < saliency[~low].min()
    np.testing.assert_array_equal(low, ~Pattern().keep(saliency, int(low.sum())))


@given(ROWS)
def test_granularity_is_written_as_it_is_read(pattern: Pattern) -> None:
    again = Pattern.parse(str(pattern))
    assert again.kind == "rows" and abs(again.share - pattern.share) < 1e-6
