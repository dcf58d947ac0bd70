from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.errors import UsageError
from onnxprune.recipe.mixture import CRITERIA, GRADIENT_CRITERIA, Mixture


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("obs", (("obs", 1.0),)),
        ("obs+fisher", (("obs", 1.0), ("fisher", 1.0))),
        ("0.7*wanda+0.3*fisher", (("wanda", 0.7), ("fisher", 0.3))),
        (" magnitude + 2 * taylor ", (("magnitude", 1.0), ("taylor", 2.0))),
        ("1e+2*obs+1e-2*fisher", (("obs", 100.0), ("fisher", 0.01))),
    ],
)
def test_reads_names_and_weights(text: str, terms: tuple[tuple[str, float], ...]) -> None:
    assert Mixture.parse(text).terms == terms


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "joined by"),
        ("vibes", "joined by"),
        ("obs+", "joined by"),
        ("obs fisher", "joined by"),
        ("OBS", "joined by"),
        ("obs+obs", "names obs twice"),
        ("0*obs", "no weight"),
        ("-1*obs", "no weight"),
        ("1e999*obs", "no weight"),
        ("1.2.3*obs", "no weight"),
    ],
)
def test_says_what_is_wrong(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Mixture.parse(text)


def test_knows_its_parts() -> None:
    mixture = Mixture.parse("obs+0.5*fisher+wanda")
    assert mixture.solves and not Mixture.parse("fisher").solves
    assert mixture.scores == (("fisher", 0.5), ("wanda", 1.0))
    assert mixture.gradients == ("fisher",)
    assert (mixture.weight("fisher"), mixture.weight("taylor")) == (0.5, 0.0)


@given(st.lists(st.sampled_from(CRITERIA), min_size=1, unique=True), st.data())
def test_what_is_written_is_read(names: list[str], data: st.DataObject) -> None:
    weights = [data.draw(st.floats(1e-6, 1e6)) for _ in names]
    text = "+".join(f"{weight!r}*{name}" for name, weight in zip(names, weights, strict=True))
    assert Mixture.parse(text).terms == tuple(zip(names, weights, strict=True))
    assert set(Mixture.parse(text).gradients) == set(names) & set(GRADIENT_CRITERIA)
