from __future__ import annotations

import numpy as np
import pytest

from onnxprune.calibration.mask import apply_row_mask, row_mask

MASK = np.array([[1, 1, 0], [1, 1, 1]])


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.bool_, np.float32])
@pytest.mark.parametrize("name", ["attention_mask", "input_mask", "mask", "text_mask", "Attention_Mask"])
def test_masks_of_any_type_and_name(name: str, dtype: type) -> None:
    found = row_mask({"input_ids": MASK + 5, name: MASK.astype(dtype)})
    assert found is not None and found.dtype == np.bool_
    np.testing.assert_array_equal(found, MASK.astype(bool))


@pytest.mark.parametrize(
    "batch",
    [
        {"input_ids": MASK},  # no mask
        {"attention_mask": MASK * 2},  # other values than 0 and 1
        {"attention_mask": np.where(MASK, 0, -np.inf)},  # additive
        {"attention_mask": MASK[:, None]},  # not 2-D
        {"attention_mask": MASK[:0]},
        {"masked_lm_positions": MASK},
        {"bool_masked_pos": MASK},
        {"head_mask": MASK},
        {"mask": MASK.astype(str).astype(object)},
    ],
)
def test_what_is_no_row_mask(batch: dict[str, np.ndarray]) -> None:
    assert row_mask(batch) is None


def test_the_attention_mask_wins_over_others() -> None:
    batch = {"a_mask": np.ones((2, 3)), "attention_mask": MASK, "decoder_attention_mask": np.ones((2, 5))}
    np.testing.assert_array_equal(row_mask(batch), MASK.astype(bool))


def test_a_padding_mask_means_the_opposite() -> None:
    np.testing.assert_array_equal(row_mask({"src_key_padding_mask": 1 - MASK}), MASK.astype(bool))
    np.testing.assert_array_equal(row_mask({"padding_mask": np.zeros((2, 3), bool)}), np.ones((2, 3), bool))


def test_a_padding_mask_that_cannot_mean_the_opposite() -> None:
    # Read as padding, the second sample would have no token at all.
    np.testing.assert_array_equal(row_mask({"padding_mask": MASK}), MASK.astype(bool))


@pytest.mark.parametrize(
    ("shape", "repeat"),
    [((2, 3, 4), 1), ((2, 3, 5, 4), 5), ((6, 4), 1), ((6, 5, 4), 5)],
)
def test_rows_of_real_tokens(shape: tuple[int, ...], repeat: int) -> None:
    value = np.zeros(shape)
    rows = apply_row_mask(value, MASK.astype(bool))
    assert rows is not None and rows.shape == (value.reshape(-1, shape[-1]).shape[0],)
    np.testing.assert_array_equal(rows, np.repeat(MASK.ravel().astype(bool), repeat))


@pytest.mark.parametrize("shape", [(), (2,), (2, 3), (2, 4), (2, 12, 3, 4), (3, 2, 4), (5, 4), (2, 1, 3)])
def test_other_activations_have_no_token_rows(shape: tuple[int, ...]) -> None:
    assert apply_row_mask(np.zeros(shape), MASK.astype(bool)) is None


def test_the_vector_picks_exactly_the_real_rows() -> None:
    value = np.arange(2 * 3 * 2).reshape(2, 3, 2)
    rows = apply_row_mask(value, MASK.astype(bool))
    assert rows is not None
    np.testing.assert_array_equal(value.reshape(-1, 2)[rows], value[MASK.astype(bool)])
