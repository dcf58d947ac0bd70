from __future__ import annotations

import numpy as np
import pytest

from onnxprune.calibration import batching
from onnxprune.calibration.batching import assemble, batch_rows, check_memory, choose, pad_end
from onnxprune.calibration.inputs import Feed, Inputs
from onnxprune.errors import DataError, ResourceError, UsageError

FREE = Inputs((), frozenset(["x"]), None)


def rows(*lengths: int) -> list[Feed]:
    """One row each, filled with its number."""
    return [{"x": np.full((1, length), i)} for i, length in enumerate(lengths)]


def test_choice_draws_one_from_each_equal_part() -> None:
    chosen = choose(1000, 10, seed=3)
    assert (chosen // 100).tolist() == list(range(10))
    assert chosen.tolist() != choose(1000, 10, seed=4).tolist()
    assert chosen.tolist() == choose(1000, 10, seed=3).tolist()
    assert (
        chosen.tolist() != (np.arange(10) * 100).tolist()
    )  # no fixed stride that a periodic file could match


def test_choice_of_everything() -> None:
    assert choose(3, 10, 0).tolist() == [0, 1, 2]
    assert choose(0, 10, 0).tolist() == []


def test_equal_shapes_share_a_batch() -> None:
    batches = assemble(rows(2, 3, 2, 3, 2), FREE, 2, {}, "a")
    assert [b["x"].tolist() for b in batches] == [[[0, 0], [2, 2]], [[4, 4]], [[1] * 3, [3] * 3]]


def test_padding_sorts_by_length_and_fills_the_end() -> None:
    batches = assemble(rows(5, 1, 4, 2), FREE, 2, {"x": -1}, "a")
    assert [b["x"].tolist() for b in batches] == [
        [[1, -1], [3, 3]],
        [[2, 2, 2, 2, -1], [0, 0, 0, 0, 0]],
    ]


def test_a_fixed_batch_is_filled_exactly_and_the_rest_dropped() -> None:
    fixed = Inputs((), frozenset(["x"]), 2)
    batches = assemble(rows(2, 2, 2, 3), fixed, 2, {}, "a")
    assert [b["x"].tolist() for b in batches] == [[[0, 0], [1, 1]]]
    with pytest.raises(DataError, match="fixed at 2"):
        assemble(rows(2, 3), fixed, 2, {}, "a")


def test_shared_inputs_must_be_equal_within_a_batch() -> None:
    samples = [{"x": np.ones((1, 2)), "s": np.array([v])} for v in (1, 2, 1)]
    batches = assemble(samples, FREE, 4, {}, "a")
    assert [(len(b["x"]), b["s"].tolist()) for b in batches] == [(2, [1]), (1, [2])]


def test_whole_feeds_stay_whole() -> None:
    samples = rows(2, 2)
    assert assemble(samples, Inputs((), frozenset(), None), 8, {}, "a") == tuple(samples)


def test_automatic_batch_is_small_for_large_inputs() -> None:
    assert batch_rows(rows(10), FREE, None) == batching.AUTO_BATCH_ROWS
    assert batch_rows([{"x": np.zeros((1, 2**18), np.float32)}], FREE, None) == 4
    assert batch_rows([{"x": np.zeros((1, 2**23), np.float32)}], FREE, None) == 1
    assert batch_rows(rows(10), FREE, 100) == 100


def test_a_batch_size_against_the_models() -> None:
    fixed = Inputs((), frozenset(["x"]), 4)
    assert batch_rows(rows(1), fixed, None) == batch_rows(rows(1), fixed, 4) == 4
    with pytest.raises(UsageError, match="--batch-size is 8, the model's batch is fixed at 4"):
        batch_rows(rows(1), fixed, 8)


def test_too_much_data_is_a_resource_error() -> None:
    check_memory(batching.MAX_DATA_BYTES, "a")
    with pytest.raises(ResourceError, match="GiB") as caught:
        check_memory(batching.MAX_DATA_BYTES + 1, "a")
    assert "--samples" in caught.value.hint


def test_padding_leaves_what_is_long_enough() -> None:
    array = np.ones((1, 3, 2))
    assert pad_end(array, 2, 0) is array
    assert pad_end(array, 5, 7)[0, 3:].tolist() == [[7, 7], [7, 7]]
