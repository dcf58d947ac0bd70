"""``.txt`` (one sample a line) or ``.jsonl`` (field ``text``, or the only text field), with ``--tokenizer``.

Fills token ids, attention mask, token types and positions, as far as the model has them; past keys and
values are empty. Samples are cut at ``--max-length`` (or at the model's fixed length), sorted by length
and padded at the end with the tokenizer's pad id and mask 0.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune.calibration.batching import choose, pad_end
from onnxprune.calibration.checks import cast
from onnxprune.calibration.hints import id_range
from onnxprune.calibration.inputs import Array, Feed, Inputs, InputSpec, is_float
from onnxprune.calibration.roles import Role, role
from onnxprune.calibration.sources import Loaded, Request
from onnxprune.errors import DataError, ResourceError, UsageError
from onnxprune.model import Model

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SUFFIXES = (".txt", ".jsonl")
_PAD_TOKENS = ("[PAD]", "<pad>", "<|padding|>", "<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>")
# Longer lines are cut before tokenization: no tokenizer makes tokens of that many characters on average.
_CHARACTERS_PER_TOKEN = 64


def matches(reference: str) -> bool:
    """Whether ``reference`` is named like a text file."""
    path = Path(reference).expanduser()
    return path.suffix.lower() in SUFFIXES and path.is_file()


def load(reference: str, request: Request) -> Loaded:
    """Tokenize the chosen lines.

    Raises:
        DataError: when the file is no UTF-8 text, a line is no JSON, the tokenizer is not the model's,
            or the model has inputs that text cannot fill.
        ResourceError: when the ``tokenizers`` package is missing.
        UsageError: without --tokenizer.
    """
    path = Path(reference).expanduser()
    recipe, inputs = request.recipe, request.inputs
    if recipe.tokenizer is None:
        raise UsageError(
            f"--data {path.name} is text and needs a tokenizer", "give --tokenizer tokenizer.json"
        )
    plan = _roles(request.model, inputs)
    tokenizer = _load_tokenizer(Path(recipe.tokenizer).expanduser())
    fixed = _fixed_length(plan)
    length, special = (
        min(recipe.max_length, fixed or recipe.max_length),
        tokenizer.num_special_tokens_to_add(False),
    )
    if length <= special:
        raise UsageError(
            f"--max-length {length} leaves no room for text beside the tokenizer's {special} special tokens",
            "give a larger --max-length",
        )
    padding = _padding(tokenizer, plan)
    tokenizer.no_padding()
    tokenizer.enable_truncation(length)
    total = sum(1 for _ in _lines(path))
    if total == 0:
        raise DataError(f"{path.name}: there is no text in it")
    chosen = set(choose(total, request.pieces * inputs.rows, recipe.seed).tolist())
    limit = recipe.max_length * _CHARACTERS_PER_TOKEN
    texts = [
        _text(path, number, line)[:limit] for i, (number, line) in enumerate(_lines(path)) if i in chosen
    ]
    samples = [_feed(e, plan, padding, fixed) for e in _encode(tokenizer, texts, recipe.tokenizer) if e.ids]
    if not samples:
        raise DataError(f"{path.name}: the tokenizer finds no tokens in it")
    notes = (f"{len(texts) - len(samples)} without tokens left out",) if len(samples) < len(texts) else ()
    # With a fixed length all are padded already; without a mask padding would count as text.
    masked = Role.MASK in plan.values()
    return Loaded(samples, total, notes, padding if masked and not fixed else {})


def _roles(model: Model, inputs: Inputs) -> dict[InputSpec, Role]:
    """Return the role of each input, or say which one text cannot fill."""
    plan = {s: role(s) for s in inputs.specs}
    if Role.IDS not in plan.values():  # an unusual name: the one input that indexes a table
        other = [s for s, r in plan.items() if r is Role.OTHER and id_range(model, s.name) is not None]
        if len(other) == 1:
            plan[other[0]] = Role.IDS
    ids = [s for s, r in plan.items() if r is Role.IDS]
    if len(ids) != 1 or len(ids[0].shape) != 2 or ids[0].name not in inputs.batched:
        raise DataError(
            f"text fills one input of token ids [batch, length], the model has {inputs}",
            "write a function that yields all inputs: --data FILE.py:function",
        )
    bad = [s for s, r in plan.items() if not _fillable(s, r, s.name in inputs.batched)]
    if bad:
        raise DataError(
            f"text cannot fill input {', '.join(map(str, bad))}",
            "write a function that yields all inputs: --data FILE.py:function",
        )
    return plan


def _fillable(spec: InputSpec, use: Role, batched: bool) -> bool:
    if use is Role.PAST:  # an empty past: exactly one free dimension besides the batch
        return batched and sum(not isinstance(d, int) for d in spec.shape[1:]) == 1
    if use is Role.FLAG:
        return True
    return use is not Role.OTHER and batched and len(spec.shape) == 2


def _fixed_length(plan: dict[InputSpec, Role]) -> int | None:
    ids = next(s for s, r in plan.items() if r is Role.IDS)
    return ids.shape[1] if isinstance(ids.shape[1], int) else None


def _load_tokenizer(path: Path) -> Tokenizer:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ResourceError(
            "reading text needs the tokenizers package, which is not installed",
            "pip install tokenizers",
        ) from error
    if path.is_dir():
        path = path / "tokenizer.json"
    if not path.is_file():
        raise DataError(f"--tokenizer: no file {path}", "give the tokenizer.json that belongs to the model")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception for everything
        raise DataError(
            f"--tokenizer: {path} is not a tokenizer: {error}",
            "give the tokenizer.json that belongs to the model",
        ) from error


def _encode(tokenizer: Tokenizer, texts: list[str], name: str) -> list[Any]:
    try:
        return list(tokenizer.encode_batch(texts))
    except Exception as error:  # as above
        raise DataError(f"--tokenizer: {name} cannot tokenize the text: {error}") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, text) of the lines that are not blank."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line.strip()
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name} is not UTF-8 text: {error.reason}", "convert it to UTF-8") from error
    except OSError as error:
        raise DataError(f"{path.name} cannot be read: {error}") from error


def _text(path: Path, number: int, line: str) -> str:
    if path.suffix.lower() != ".jsonl":
        return line
    where = f"{path.name}, line {number}"
    try:
        row: Any = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {error}") from error
    if isinstance(row, str):
        return row
    if not isinstance(row, dict):
        raise DataError(f"{where} is {type(row).__name__}, wanted an object with a field 'text'")
    fields = {k: v for k, v in row.items() if isinstance(v, str)}
    if "text" in fields:
        return fields["text"]
    if len(fields) == 1:
        return next(iter(fields.values()))
    raise DataError(
        f"{where} has no field 'text' and {len(fields)} other text fields ({', '.join(row) or 'none'})",
        "name the field with the samples 'text'",
    )


def _padding(tokenizer: Tokenizer, plan: dict[InputSpec, Role]) -> dict[str, float]:
    """Return the value that fills each input behind the end of a sample."""
    settings = tokenizer.padding or {}
    known = (tokenizer.token_to_id(t) for t in _PAD_TOKENS)
    pad = settings.get("pad_id", next((i for i in known if i is not None), 0))
    values = {Role.IDS: pad, Role.MASK: 0, Role.TYPES: settings.get("pad_type_id", 0), Role.POSITIONS: 0}
    return {s.name: values[r] for s, r in plan.items() if r in values}


def _feed(encoding: Any, plan: dict[InputSpec, Role], padding: dict[str, float], fixed: int | None) -> Feed:
    """Return one sample with a batch axis of 1."""
    length = len(encoding.ids)
    feed: Feed = {}
    for spec, use in plan.items():
        if use in (Role.PAST, Role.FLAG):
            free = 0 if use is Role.PAST else 1
            shape = [d if isinstance(d, int) else free for d in spec.shape]
            feed[spec.name] = np.zeros((1, *shape[1:]) if use is Role.PAST else shape, spec.dtype)
            continue
        values = {
            Role.IDS: encoding.ids,
            Role.MASK: np.ones(length, np.int64),
            Role.TYPES: encoding.type_ids,
            Role.POSITIONS: np.arange(length),
        }[use]
        row: Array = np.asarray(values, np.int64)[None]
        if fixed:
            row = pad_end(row, fixed, padding[spec.name])
        # A mask may be float: 0 and 1 mean the same there.
        exact = use is Role.MASK and is_float(spec.dtype)
        feed[spec.name] = (
            row.astype(spec.dtype) if exact else cast(row, spec.dtype, f"input {spec.name!r} from text")
        )
    return feed
