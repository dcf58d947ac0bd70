from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxprune.calibration.sources import Request, text
from onnxprune.errors import DataError, ResourceError, UsageError

tokenizers = pytest.importorskip("tokenizers")
Ask = Callable[..., Request]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "d"]
BERT = "int64[b, s] input_ids, int64[b, s] attention_mask, int64[b, s] token_type_ids"


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    """Words a to d are ids 4 to 7, between [CLS] = 2 and [SEP] = 3."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    path = tmp_path / "tokenizer.json"
    made.save(str(path))
    return str(path)


def edit(path: str, **changes: Any) -> None:
    content = json.loads(Path(path).read_text())
    Path(path).write_text(json.dumps({**content, **changes}))


def write(tmp_path: Path, content: str, name: str = "t.txt") -> str:
    (tmp_path / name).write_text(content, encoding="utf8")
    return str(tmp_path / name)


def test_every_input_of_an_encoder(tmp_path: Path, tokenizer: str, ask: Ask) -> None:
    path = write(tmp_path, "a b\n\n   \nc\n")
    request = ask(BERT + ", int32[b, s] position_ids", tokenizer=tokenizer)
    loaded = text.load(path, request)
    assert loaded.total == 2
    first = {n: a.tolist() for n, a in loaded.samples[0].items()}
    assert first == {
        "input_ids": [[2, 4, 5, 3]],
        "attention_mask": [[1, 1, 1, 1]],
        "token_type_ids": [[0, 0, 0, 0]],
        "position_ids": [[0, 1, 2, 3]],
    }
    assert loaded.samples[0]["position_ids"].dtype == np.int32
    assert loaded.padding == {n: 0 for n in first}


def test_without_a_mask_nothing_may_be_padded(tmp_path: Path, tokenizer: str, ask: Ask) -> None:
    loaded = text.load(write(tmp_path, "a b\nc"), ask("int64[b, s] input_ids", tokenizer=tokenizer))
    assert loaded.padding == {}


def test_pad_id_from_the_tokenizer(tmp_path: Path, tokenizer: str, ask: Ask) -> None:
    pad = {"strategy": "BatchLongest", "direction": "Left", "pad_to_multiple_of": None, "pad_id": 7}
    edit(tokenizer, padding={**pad, "pad_type_id": 1, "pad_token": "d"})
    loaded = text.load(write(tmp_path, "a b\nc"), ask(BERT, tokenizer=tokenizer))
    assert loaded.padding == {"input_ids": 7, "attention_mask": 0, "token_type_ids": 1}
    assert [s["input_ids"].shape for s in loaded.samples] == [(1, 4), (1, 3)]  # not padded by the tokenizer


def test_truncation(tmp_path: Path, tokenizer: str, ask: Ask) -> None:
    path = write(tmp_path, "a b c d a b c d")
    (sample,) = text.load(path, ask(BERT, tokenizer=tokenizer, max_length=5)).samples
    assert sample["input_ids"].tolist() == [[2, 4, 5, 6, 3]]
    with pytest.raises(UsageError, match="--max-length 2 leaves no room"):
        text.load(path, ask(BERT, tokenizer=tokenizer, max_length=2))


def test_a_fixed_length_is_filled(tmp_path: Path, tokenizer: str, ask: Ask) -> None:
    path = write(tmp_path, "a\na b c d a b c d")
    loaded = text.load(path, ask(BERT.replace(", s]", ", 5]"), tokenizer=tokenizer))
    assert [s["input_ids"].tolist() for s in loaded.samples] == [[[2, 4, 3, 0, 0]], [[2, 4, 5, 6, 3]]]
    assert loaded.samples[0]["attention_mask"].tolist() == [[1, 1, 1, 0, 0]]


def test_a_decoder_starts_with_an_empty_past(tmp_path: Path, tokenizer: str, ask: Ask) -> None:
    inputs = (
        "int64[b, s] input_ids, float[b, t] attention_mask, bool[1] use_cache_branch, "
        "float[b, 2, past, 8] past_key_values_0_key, float[b, 2, past, 8] past_key_values_0_value"
    )
    (sample,) = text.load(write(tmp_path, "a b"), ask(inputs, tokenizer=tokenizer)).samples
    assert sample["past_key_values_0_key"].shape == (1, 2, 0, 8)
    assert sample["attention_mask"].dtype == np.float32
    assert sample["use_cache_branch"].tolist() == [False]


def test_ids_are_found_by_the_table_they_index(tmp_path: Path, tokenizer: str, ask: Ask) -> None:
    request = ask("int64[b, s] words", "y = Gather(t, words)", {"t": np.zeros((8, 2))}, tokenizer=tokenizer)
    assert text.load(write(tmp_path, "a"), request).samples[0]["words"].tolist() == [[2, 4, 3]]


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        ('{"text": "a", "other": "b"}', [4]),
        ('{"sentence": "b", "label": 3}', [5]),
        ('"c"', [6]),
        ('{"text": "a"}\r\n{"text": "d"}\r\n', [4, 7]),
    ],
)
def test_jsonl_fields(tmp_path: Path, tokenizer: str, ask: Ask, lines: str, wanted: list[int]) -> None:
    loaded = text.load(write(tmp_path, lines, "t.jsonl"), ask(BERT, tokenizer=tokenizer))
    assert [int(s["input_ids"][0, 1]) for s in loaded.samples] == wanted


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ('{"text": "a"}\n{"text"', "line 2 is not JSON"),
        (
            '{"question": "a", "answer": "b"}',
            r"line 1 has no field 'text' and 2 other text fields \(question, answer",
        ),
        ('{"text": 3}', "line 1 has no field 'text'"),
        ("[1, 2]", "line 1 is list"),
        ("[" * 100000, "is not JSON"),
    ],
)
def test_jsonl_that_is_wrong(tmp_path: Path, tokenizer: str, ask: Ask, lines: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        text.load(write(tmp_path, lines, "t.jsonl"), ask(BERT, tokenizer=tokenizer))


def test_byte_order_mark_and_spread_choice(tmp_path: Path, tokenizer: str, ask: Ask) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(b"\xef\xbb\xbf" + b"a\n" * 50 + b"b\n" * 50)
    loaded = text.load(str(path), ask(BERT, tokenizer=tokenizer, samples=10))
    assert [int(s["input_ids"][0, 1]) for s in loaded.samples] == [4] * 5 + [5] * 5
    assert loaded.total == 100


def test_lines_without_tokens_are_left_out_and_noted(tmp_path: Path, tokenizer: str, ask: Ask) -> None:
    edit(tokenizer, post_processor=None)
    path = write(tmp_path, '{"text": "a"}\n{"text": "  "}', "t.jsonl")
    loaded = text.load(path, ask(BERT, tokenizer=tokenizer))
    assert len(loaded.samples) == 1 and loaded.notes == ("1 without tokens left out",)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no text"),
        (b"\n \n", "no text"),
        (b"\xff\xfe\x00a", "not UTF-8"),
        (b"ok\n\x80\x81", "not UTF-8"),
    ],
)
def test_files_that_are_no_text(tmp_path: Path, tokenizer: str, ask: Ask, content: bytes, says: str) -> None:
    (tmp_path / "t.txt").write_bytes(content)
    with pytest.raises(DataError, match=says):
        text.load(str(tmp_path / "t.txt"), ask(BERT, tokenizer=tokenizer))


def test_a_tokenizer_is_needed(tmp_path: Path, ask: Ask) -> None:
    with pytest.raises(UsageError, match=r"t\.txt is text and needs a tokenizer"):
        text.load(write(tmp_path, "a"), ask(BERT))


def test_tokenizers_that_are_none(tmp_path: Path, ask: Ask) -> None:
    path = write(tmp_path, "a")
    with pytest.raises(DataError, match="no file"):
        text.load(path, ask(BERT, tokenizer=str(tmp_path / "none.json")))
    with pytest.raises(DataError, match="is not a tokenizer"):
        text.load(path, ask(BERT, tokenizer=path))


def test_a_folder_with_a_tokenizer(tmp_path: Path, tokenizer: str, ask: Ask) -> None:
    assert text.load(write(tmp_path, "a"), ask(BERT, tokenizer=str(tmp_path))).total == 1


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ("float[b, 3, 8, 8] x", "text fills one input of token ids"),
        ("int64[b, s] input_ids, float[b, 3, 8, 8] pixel_values", "text cannot fill input pixel_values"),
        ("int64[b, s] input_ids, int64[b, s] decoder_input_ids", "one input of token ids"),
        ("int64[b, s] input_ids, bool[b, 1, s, s] mask", "text cannot fill input mask"),
        ("int64[b, s] input_ids, float[b, 2, 64, 8] past_0", "text cannot fill input past_0"),
    ],
)
def test_models_that_text_cannot_feed(
    tmp_path: Path, tokenizer: str, ask: Ask, inputs: str, says: str
) -> None:
    with pytest.raises(DataError, match=says) as caught:
        text.load(write(tmp_path, "a"), ask(inputs, tokenizer=tokenizer))
    assert "FILE.py:function" in caught.value.hint


def test_without_the_package(tmp_path: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ResourceError, match="tokenizers") as caught:
        text.load(write(tmp_path, "a"), ask(BERT, tokenizer="t.json"))
    assert "pip install tokenizers" in caught.value.hint
