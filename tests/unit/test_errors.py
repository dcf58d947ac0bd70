"""Every failure has an exit code, one line, and room for the way out."""

from __future__ import annotations

import pytest

from onnxprune import errors
from onnxprune.errors import (
    DataError,
    FloorError,
    ModelError,
    OnnxPruneError,
    ResourceError,
    UsageError,
    VerificationError,
)

CODES = {
    OnnxPruneError: 1,
    VerificationError: 1,
    FloorError: 1,
    UsageError: 2,
    ModelError: 3,
    DataError: 3,
    ResourceError: 4,
}


@pytest.mark.parametrize(("kind", "code"), CODES.items())
def test_exit_codes(kind: type[OnnxPruneError], code: int) -> None:
    assert kind.exit_code == code
    with pytest.raises(OnnxPruneError) as caught:
        raise kind("weight 'w' is broken")
    assert caught.value.exit_code == code


def test_no_class_is_forgotten() -> None:
    found = {v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, Exception)}
    assert found == set(CODES)


def test_message_and_hint_are_one_line_each() -> None:
    error = ModelError("node 'a'\n  at\tline 3:\r\n bad ", "try\n\n  --exclude 'a'\n")
    assert str(error) == "node 'a' at line 3: bad"
    assert error.hint == "try --exclude 'a'"


def test_no_hint() -> None:
    assert UsageError("no").hint == ""
