from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from onnxprune.calibration.sources import Request, synthetic
from onnxprune.errors import DataError

Ask = Callable[..., Request]


def first(request: Request) -> dict[str, np.ndarray]:
    return synthetic.load(request).samples[0]


def test_an_encoder(ask: Ask) -> None:
    request = ask(
        "int64[batch, seq] input_ids, int64[batch, seq] attention_mask, int64[batch, seq] token_type_ids, "
        "int64[batch, seq] position_ids",
        "a = Gather(words, input_ids) b = Gather(places, position_ids) c = Add(a, b) "
        "m = Cast<to = 1>(attention_mask) t = Cast<to = 1>(token_type_ids) n = Mul(m, t) "
        "o = Constant<value = int64[1] {2}>() p = Unsqueeze(n, o) y = Add(c, p)",
        {"words": np.zeros((30, 4), np.float32), "places": np.zeros((64, 4), np.float32)},
        samples=20,
    )
    loaded = synthetic.load(request)
    assert len(loaded.samples) == 20 and loaded.samples[0]["input_ids"].shape == (1, 64)
    ids = np.concatenate([s["input_ids"] for s in loaded.samples])
    assert ids.min() >= 0 and ids.max() < 30 and np.unique(ids).size == 30
    sample = loaded.samples[0]
    assert (sample["attention_mask"] == 1).all() and (sample["token_type_ids"] == 0).all()
    assert sample["position_ids"].tolist() == [list(range(64))]


def test_positions_stay_inside_their_table(ask: Ask) -> None:
    request = ask("int64[batch, 8] position_ids", "y = Gather(t, position_ids)", {"t": np.zeros((5, 2))})
    assert first(request)["position_ids"].max() == 4


def test_images_are_standard_normal(ask: Ask) -> None:
    request = ask("float[N, c, h, w] image", "y = Conv(image, k)", {"k": np.zeros((2, 3, 3, 3), np.float32)})
    image = first(request)["image"]
    assert image.shape == (1, 3, 224, 224) and image.dtype == np.float32
    assert abs(image.mean()) < 0.02 and abs(image.std() - 1) < 0.02


def test_channels_last(ask: Ask) -> None:
    request = ask(
        "float[N, ?, ?, ?] image",
        "t = Transpose<perm = [0, 3, 1, 2]>(image) y = Conv(t, k)",
        {"k": np.zeros((2, 1, 3, 3), np.float32)},
    )
    assert first(request)["image"].shape == (1, 224, 224, 1)


def test_features_of_a_table_model(ask: Ask) -> None:
    request = ask("float[N, d] x", "y = MatMul(x, w)", {"w": np.zeros((13, 2), np.float32)})
    assert first(request)["x"].shape == (1, 13)


def test_sizes_are_tried_until_the_model_runs(ask: Ask) -> None:
    # A 4x4 kernel with stride 4 on 48 rows leaves 12; the reshape inside wants just that.
    request = ask(
        "float[N, 1, h, w] image",
        "a = Conv<strides = [4, 4]>(image, k) s = Constant<value = int64[3] {0, 12, 80}>() "
        "o = Constant<value = int64[1] {1}>() b = Squeeze(a, o) y = Reshape(b, s)",
        {"k": np.zeros((1, 1, 4, 4), np.float32)},
    )
    assert first(request)["image"].shape == (1, 1, 48, 320)


def test_a_batch_that_is_free_in_name_only(ask: Ask) -> None:
    request = ask(
        "float[N, d] x",
        "a = MatMul(x, w) s = Constant<value = int64[2] {1, 2}>() y = Reshape(a, s)",
        {"w": np.zeros((3, 2), np.float32)},
    )
    loaded = synthetic.load(request)
    assert loaded.limit == 1


def test_no_size_fits(ask: Ask) -> None:
    request = ask(
        "float[N, 7, d] x",
        "s = Constant<value = int64[2] {-1, 11}>() y = Reshape(x, s)",
    )
    with pytest.raises(DataError, match="none of the sizes tried") as caught:
        synthetic.load(request)
    assert "--data" in caught.value.hint


def test_a_model_that_ort_refuses_is_reported_later(ask: Ask) -> None:
    assert first(ask("float[N, d] x", "y = NoSuchOp(x)"))["x"].shape == (1, 64)


def test_a_decoder_has_an_empty_past(ask: Ask) -> None:
    sample = first(
        ask(
            "int64[batch, sequence_length] input_ids, int64[batch, total_sequence_length] attention_mask, "
            "float[batch, 2, past_sequence_length, 8] past_key_values_0_key, bool[1] use_cache_branch"
        )
    )
    assert sample["past_key_values_0_key"].shape == (1, 2, 0, 8)
    assert sample["input_ids"].shape == sample["attention_mask"].shape == (1, 64)
    assert sample["use_cache_branch"].tolist() == [False]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("past_sequence_length", 5),
        ("past_sequence_length + 1", 69),
        ("past_sequence_length + sequence_length", 69),
        ("total_sequence_length", 69),
        ("encoder_sequence_length", 64),
        ("height", 224),
        ("W", 224),
        ("num_samples", 16000),
        ("batch_size", 1),
        ("foo", None),
    ],
)
def test_names_of_dimensions(name: str, wanted: int | None) -> None:
    assert synthetic._by_name(name.lower(), synthetic.Sizes(past=5)) == wanted


def test_inputs_that_describe_others(ask: Ask) -> None:
    sample = first(
        ask(
            "float[N, 80, T] mel, int64[N] mel_lengths, int64 sr, float[N, 2] scale_factor, "
            "float[N, 3, 32, 48] image, int64[N, 2] orig_target_sizes"
        )
    )
    assert sample["mel"].shape == (1, 80, 64)
    assert int(sample["sr"]) == 16000 and (sample["scale_factor"] == 1).all()
    assert sample["orig_target_sizes"].tolist() == [[32, 48]]


def test_other_types(ask: Ask) -> None:
    sample = first(
        ask("bool[N, 5] b, uint8[N, 3, 8, 8] pixels, int32[N, 5] n, double[N, 2] d, string[N, 1] s")
    )
    assert sample["b"].dtype == bool and sample["pixels"].max() > 200
    assert set(np.unique(sample["n"])) <= {0, 1} and sample["d"].dtype == np.float64
    assert sample["s"].tolist() == [["text"]]


def test_fixed_batch_and_no_batch_axis(ask: Ask) -> None:
    loaded = synthetic.load(ask("float[4, 3] x", samples=10))
    assert [s["x"].shape for s in loaded.samples] == [(4, 3)] * 2 and loaded.total == 8
    loaded = synthetic.load(ask("float[seq, batch, 3] x, float[2, batch, 5] h", samples=3))
    assert [(s["x"].shape, s["h"].shape) for s in loaded.samples] == [((64, 1, 3), (2, 1, 5))] * 3
    assert not np.array_equal(loaded.samples[0]["x"], loaded.samples[1]["x"])


def test_same_seed_same_inputs(ask: Ask) -> None:
    a, b, c = (first(ask("float[N, 9] x", seed=s))["x"] for s in (0, 0, 1))
    assert np.array_equal(a, b) and not np.array_equal(a, c)


def test_huge_inputs_are_fewer(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "MAX_BYTES", 4000)
    assert len(synthetic.load(ask("float[N, 100] x")).samples) == 10
