"""What the agreement of two models means for a user: fine, check it, or broken; and what to try."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from onnxprune.outputs import EXACT, FEATURES

if TYPE_CHECKING:
    from onnxprune.agreement import Agreement

OK, DEGRADED, BROKEN = "ok", "degraded", "broken"
LEVELS = (BROKEN, DEGRADED, OK)

# (ok from here, broken below) for the score of an output: kappa of classes, correlation of features, share
# of equal exact values. Measured on real models, pruned by magnitude or disturbed with noise, 96 samples.
# Classes (ResNet-20, EfficientNet-Lite0, a CTC text recogniser): kappa of 0.85 and more left at least 90 %
# of the task metric, 0.58 to 0.81 left 70 to 96 %, below 0.5 at most 45 %. Features (MiniLM sentence
# encoder): correlation 0.80 left 98 % of Spearman's rho, 0.69 94 %, 0.48 87 %, 0.40 76 %, and 0.01
# (random weights) 68 %.
_CLASSES = (0.85, 0.5)
_FEATURES = (0.75, 0.4)
_EXACT = (0.85, 0.5)
_MOVED = 0.05  # nats of KL: such as a probability of 0.9 that becomes 0.78
_FEW_ROWS = 30  # below this the standard error of a share reaches 0.09

_REMEDY = "Try a lower --sparsity, another --pattern, --exclude for the worst layers, or more --data."


class Verdict(NamedTuple):
    """Level (ok, degraded or broken), and a sentence for the user that says what it rests on."""

    level: str
    sentence: str


def verdict(agreements: Sequence[Agreement]) -> Verdict:
    """Judge in words whether the second model can still stand in for the first.

    The worst output decides. Features that class outputs speak for lower the verdict to "degraded" at most:
    hidden states move long before the answers do. NaN or infinity is always "broken".
    """
    lost = [item.name for item in agreements if not item.finite]
    if lost:
        return Verdict(BROKEN, f"Output {lost[0]!r} has NaN or infinity: THE RESULT IS BROKEN. {_REMEDY}")
    judged = [item for item in agreements if _score(item) is not None]
    blind = [f"{item.name!r} ({item.note or item.kind.reason})" for item in agreements if item not in judged]
    if not judged:
        what = ", ".join(blind) or "they have none in common"
        return Verdict(DEGRADED, f"No output could be compared: {what}. Measure the task itself with --eval.")
    answers = any(item.kind.classes for item in judged)
    level, worst = min(((_level(item, answers), item) for item in judged), key=lambda pair: _rank(*pair))
    words = {
        OK: "the models agree.",
        DEGRADED: "some answers change. Measure the task with --eval, or lower --sparsity.",
        BROKEN: f"THE RESULT IS PROBABLY BROKEN. {_REMEDY}",
    }[level]
    if level == DEGRADED and _one_class_that_moved(worst):
        words = "the samples have only one class, and how likely it is follows something else. "
        words += "Measure the task with --eval, give more varied --data, or lower --sparsity."
    few = f" (only {worst.rows} rows: little evidence)" if worst.rows < _FEW_ROWS else ""
    unseen = f" Not compared: {', '.join(blind)}." if blind else ""
    unseen += "".join(f" Note on {item.name!r}: {item.note}." for item in judged if item.note)
    return Verdict(level, f"Output {worst.name!r}: {_evidence(worst)}{few}: {words}{unseen}")


def share_that_agrees(agreements: Sequence[Agreement]) -> float | None:
    """Return how far two models agree as one number, 0 to 1: that of the worst output.

    Rows with the same best class, the share of equal values, or the mean cosine; outputs that classes speak
    for do not count. None when nothing can be compared, 0 for NaN or infinity.
    """
    if any(not item.finite for item in agreements):
        return 0.0
    answers = any(item.top1 is not None for item in agreements)
    counted = [item for item in agreements if item.kind.counts or not answers]
    found = [(item.top1, item.equal, item.cosine) for item in counted]
    shares = [next((share for share in each if share is not None), None) for each in found]
    return min((max(share, 0.0) for share in shares if share is not None), default=None)


def _score(item: Agreement) -> float | None:
    """The one number an output is judged by; None when it was not compared."""
    if item.kind.family == EXACT:
        return item.equal
    if item.kind.classes:
        return item.kappa if item.kappa is not None else item.top1
    return item.correlation if item.correlation is not None else item.cosine


def _level(item: Agreement, answers: bool) -> str:
    score = _score(item)
    assert score is not None
    good, bad = _EXACT if item.kind.family == EXACT else _CLASSES if item.kind.classes else _FEATURES
    level = OK if score >= good else DEGRADED if score >= bad else BROKEN
    if level == OK and _one_class_that_moved(item):
        return DEGRADED
    spoken_for = answers and not item.kind.counts and item.kind.family == FEATURES
    return DEGRADED if level == BROKEN and spoken_for else level


def _one_class_that_moved(item: Agreement) -> bool:
    """Whether the best class is always the same, so that it says nothing, and the probabilities differ."""
    if not item.kind.classes or item.kappa is not None or item.correlation is None:
        return False
    return (item.kl or 0.0) > _MOVED and item.correlation < _FEATURES[0]


def _rank(level: str, item: Agreement) -> tuple[int, bool, float]:
    # Of equal levels, classes speak first: people know what top-1 means.
    return LEVELS.index(level), not item.kind.classes, _score(item) or 0.0


def _evidence(item: Agreement) -> str:
    if item.kind.family == EXACT:
        return f"{item.equal or 0:.1%} of the values are equal"
    if item.kind.classes:
        kl = f", KL {item.kl:.3g} nats" if item.kl is not None else ""
        kappa = f" ({item.kappa:.2f} beyond chance)" if item.kappa is not None else " (always one class)"
        return f"the same top-1 class in {item.top1 or 0:.1%} of {item.rows} rows{kappa}{kl}"
    error = f", relative error {item.relative_error:.2g}" if item.relative_error is not None else ""
    name = "correlation" if item.correlation is not None else "cosine"
    return f"{name} {_score(item) or 0:.3f} over {item.rows} rows{error}"
