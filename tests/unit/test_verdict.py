"""The words that stand between a broken model and production."""

from __future__ import annotations

from dataclasses import replace

import pytest

from onnxprune.agreement import Agreement
from onnxprune.outputs import EXACT, FEATURES, LOGITS, NONE, OutputKind
from onnxprune.verdict import BROKEN, DEGRADED, OK, share_that_agrees, verdict


def classes(kappa: float | None, top1: float = 0.9, **more) -> Agreement:
    return Agreement("logits", OutputKind(LOGITS, 1), rows=100, kl=0.1, top1=top1, kappa=kappa, **more)


def features(correlation: float | None, cosine: float = 0.9, **more) -> Agreement:
    return Agreement(
        "hidden",
        OutputKind(FEATURES),
        rows=100,
        cosine=cosine,
        correlation=correlation,
        relative_error=0.3,
        **more,
    )


def spoken_for(correlation: float | None, **more) -> Agreement:
    """Features beside classes that depend on all of the same weights."""
    found = features(correlation, **more)
    return replace(found, kind=replace(found.kind, counts=False))


def exact(equal: float) -> Agreement:
    return Agreement("ids", OutputKind(EXACT), rows=100, equal=equal)


@pytest.mark.parametrize(
    ("item", "level"),
    [
        (classes(0.97), OK),
        (classes(0.7), DEGRADED),
        (classes(0.3), BROKEN),
        (classes(0.0, top1=0.8), BROKEN),
        (classes(None, top1=1.0), OK),
        (classes(None, top1=0.2), BROKEN),
        (classes(None, top1=1.0, correlation=0.9), OK),
        (classes(None, top1=1.0, correlation=0.03), DEGRADED),
        (features(0.95), OK),
        (features(0.6), DEGRADED),
        (features(0.1, cosine=0.99), BROKEN),
        (features(None, cosine=0.99), OK),
        (exact(1.0), OK),
        (exact(0.7), DEGRADED),
        (exact(0.0), BROKEN),
    ],
)
def test_levels(item: Agreement, level: str) -> None:
    found = verdict([item])
    assert found.level == level
    assert repr(item.name) in found.sentence
    assert ("PROBABLY BROKEN" in found.sentence) == (level == BROKEN)
    assert ("--sparsity" in found.sentence) == (level != OK)


def test_broken_says_what_to_try() -> None:
    sentence = verdict([classes(0.1, top1=0.12)]).sentence
    assert "12.0%" in sentence and "--pattern" in sentence and "--data" in sentence


def test_not_finite_is_broken_whatever_else_agrees() -> None:
    found = verdict([classes(1.0), features(1.0, finite=False)])
    assert found.level == BROKEN and "'hidden' has NaN or infinity" in found.sentence


def test_the_worst_output_decides() -> None:
    found = verdict([classes(0.99), exact(0.6), features(0.9)])
    assert found.level == DEGRADED and "'ids'" in found.sentence


def test_features_that_classes_speak_for_do_not_break() -> None:
    found = verdict([spoken_for(0.1), classes(0.95)])
    assert found.level == DEGRADED and "'hidden'" in found.sentence
    assert verdict([spoken_for(0.1), classes(0.6)]).sentence.startswith("Output 'logits'")
    assert verdict([features(0.1), classes(0.95)]).level == BROKEN  # boxes beside scores
    unlike = Agreement("logits", OutputKind(LOGITS, 1), note="shape differs")  # nothing speaks
    assert verdict([spoken_for(0.1), unlike]).level == BROKEN
    assert share_that_agrees([spoken_for(0.1, cosine=0.3), unlike]) == 0.3


def test_few_rows_and_one_class_are_said() -> None:
    few = Agreement("logits", OutputKind(LOGITS, 1), rows=5, kl=0.0, top1=1.0, kappa=None)
    assert "only 5 rows" in verdict([few]).sentence and "one class" in verdict([few]).sentence


def test_one_class_says_nothing_of_probabilities_that_moved() -> None:
    moved = Agreement("p", OutputKind(LOGITS, 1), rows=99, kl=0.3, top1=1.0, kappa=None, correlation=0.1)
    assert "only one class" in verdict([moved]).sentence and verdict([moved]).level == DEGRADED
    hardly = Agreement("p", OutputKind(LOGITS, 1), rows=99, kl=0.003, top1=1.0, kappa=None, correlation=0.1)
    assert verdict([hardly]).level == OK


def test_notes_are_passed_on() -> None:
    sentence = verdict([classes(1.0), features(1.0, note="shape differs in 1 of 2 batches")]).sentence
    assert sentence.endswith("Note on 'hidden': shape differs in 1 of 2 batches.")


def test_nothing_compared_is_no_all_clear() -> None:
    blind = Agreement("seq", OutputKind(NONE, reason="a list, not a tensor"), note="seq(...) is no tensor")
    found = verdict([blind])
    assert (
        found.level == DEGRADED
        and "'seq' (seq(...) is no tensor)" in found.sentence
        and "--eval" in found.sentence
    )
    assert "none in common" in verdict([]).sentence
    assert "Not compared: 'seq'" in verdict([blind, classes(1.0)]).sentence


@pytest.mark.parametrize(
    ("items", "share"),
    [
        ([], None),
        ([Agreement("x", OutputKind(NONE))], None),
        ([features(0.5, cosine=0.9)], 0.9),
        ([features(0.5, cosine=-0.2)], 0.0),
        ([spoken_for(0.5, cosine=0.1), classes(0.5, top1=0.95)], 0.95),
        ([features(0.5, cosine=0.1), classes(0.5, top1=0.95)], 0.1),
        ([classes(0.5, top1=0.95), classes(0.5, top1=0.7)], 0.7),
        ([exact(0.6), features(0.5, cosine=0.8)], 0.6),
        ([classes(0.9, top1=1.0), features(0.9, finite=False)], 0.0),
    ],
)
def test_agreement_as_one_number(items: list[Agreement], share: float | None) -> None:
    assert share_that_agrees(items) == share
