"""The loss against formulas written out in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from onnxprune.calibration.labels import LABELS
from onnxprune.divergence import divergence as reference_divergence
from onnxprune.errors import DataError, UsageError
from onnxprune.finetune.losses import Loss, divergence, relative_error
from onnxprune.finetune.maps import map_divergence
from onnxprune.finetune.task import Task
from onnxprune.outputs import EXACT, FEATURES, LOGITS, PROBABILITIES, OutputKind


def pair(*shape: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    return tuple(torch.from_numpy(rng.normal(size=shape).astype(np.float32)) for _ in range(2))  # type: ignore[return-value]


@pytest.mark.parametrize(("shape", "axis"), [((5, 7), 1), ((2, 6, 4, 4), 1), ((3, 4, 9), -1)])
@pytest.mark.parametrize("family", [LOGITS, PROBABILITIES])
def test_divergence_is_that_of_the_report(shape: tuple[int, ...], axis: int, family: str) -> None:
    student, teacher = pair(*shape)
    if family == PROBABILITIES:
        student, teacher = student.softmax(axis), teacher.softmax(axis)
    kind = OutputKind(family, axis)
    rows = student.numel() // student.shape[axis]
    wanted = reference_divergence(teacher.numpy(), student.numpy(), kind) / rows
    assert float(divergence(student, teacher, kind)) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("family", [LOGITS, PROBABILITIES])
def test_sharpened_outputs_are_the_softmax_of_larger_logits(family: str) -> None:
    logits, other = pair(3, 5, 4)
    kinds = {"y": OutputKind(family, 1), "z": OutputKind(FEATURES)}
    values = {"y": logits.softmax(1) if family == PROBABILITIES else logits, "z": other}
    found = Loss(kinds).sharpened(values, 2.0)
    chances = found["y"] if family == PROBABILITIES else found["y"].softmax(1)
    torch.testing.assert_close(chances, (2 * logits).softmax(1))
    assert found["z"] is other and Loss(kinds).has_confidence
    assert not Loss(kinds, task=Task("y", kinds["y"])).has_confidence  # labels say how sure to be
    for loss in (Loss(kinds, form="mse"), Loss(kinds, custom=lambda *values: other.sum())):
        assert not loss.has_confidence and loss.sharpened(values, 2.0)["y"] is values["y"]


def test_padded_tokens_do_not_count() -> None:
    student, teacher = pair(2, 3, 5)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    wanted = float(divergence(student[mask], teacher[mask], OutputKind(LOGITS, -1)))
    assert float(divergence(student, teacher, OutputKind(LOGITS, -1), mask)) == pytest.approx(wanted)
    error = float(relative_error(student, teacher, mask))
    assert error == pytest.approx(float(relative_error(student[mask], teacher[mask])))
    assert float(relative_error(student.reshape(6, 5), teacher.reshape(6, 5), mask)) == pytest.approx(error)


def test_relative_error_does_not_depend_on_scale_or_offset() -> None:
    student, teacher = pair(50, 4)
    plain = float(relative_error(student, teacher))
    a, b = student.numpy(), teacher.numpy()
    assert plain == pytest.approx(((a - b) ** 2).mean() / b.var(), rel=1e-5)
    assert float(relative_error(100 * student + 7, 100 * teacher + 7)) == pytest.approx(plain, rel=1e-3)


def test_relative_error_of_constants() -> None:
    three, four = torch.full((4, 2), 3.0), torch.full((4, 2), 4.0)
    assert float(relative_error(four, three)) == pytest.approx(1 / 9)
    assert float(relative_error(torch.zeros(2, 2), torch.zeros(2, 2))) == 0


def test_gradient_leads_to_the_teacher() -> None:
    student, teacher = pair(6, 5)
    kind = OutputKind(PROBABILITIES, -1)
    logits = student.clone().requires_grad_()
    for _ in range(300):
        loss = divergence(logits.softmax(-1), teacher.softmax(-1), kind)
        (gradient,) = torch.autograd.grad(loss, logits)
        logits = (logits - 5 * gradient).detach().requires_grad_()
    assert float(loss.detach()) < 1e-4


KINDS = {
    "scores": OutputKind(LOGITS, -1),
    "state": OutputKind(FEATURES, counts=False),
    "ids": OutputKind(EXACT, counts=False),
}


def test_classes_speak_for_the_model() -> None:
    assert Loss(KINDS).names == ("scores",)
    assert Loss(KINDS, form="mse").names == ("scores", "state")
    assert Loss(KINDS, ("state", "inner")).names == ("scores", "state", "inner")
    assert Loss({"state": KINDS["state"], "ids": KINDS["ids"]}).names == ("state",)


def test_boxes_beside_scores_are_learnt_too() -> None:
    (a, b), (c, d) = pair(4, 5), pair(4, 3, seed=1)
    kinds = {"scores": OutputKind(LOGITS, -1, information=0.3), "boxes": OutputKind(FEATURES)}
    loss = Loss(kinds)
    assert loss.names == ("scores", "boxes")
    wanted = (float(divergence(a, b, kinds["scores"])) + 0.3 * float(relative_error(c, d))) / 2
    assert float(loss({"scores": a, "boxes": c}, {"scores": b, "boxes": d}, {})) == pytest.approx(wanted)
    selected = {"scores": a, "boxes": c[:2]}  # as many boxes as there are: not an error, nor compared
    alone = pytest.approx(float(divergence(a, b, kinds["scores"])))
    assert float(loss(selected, {"scores": b, "boxes": d}, {})) == alone
    lost = torch.where(d > 1, torch.inf, d)
    assert float(loss({"scores": a, "boxes": c}, {"scores": b, "boxes": lost}, {})) == alone
    assert Loss(kinds, form="kl").names == ("scores",)
    squares = float(Loss(kinds, form="mse")({"scores": a, "boxes": c}, {"scores": b, "boxes": d}, {}))
    assert squares == pytest.approx(float(relative_error(a, b) + relative_error(c, d)) / 2)


def test_features_are_weighed_against_the_outputs() -> None:
    (a, b), (c, d) = pair(4, 5), pair(4, 5, seed=1)
    student, teacher = {"scores": a, "inner": c}, {"scores": b, "inner": d}
    found = float(Loss(KINDS, ("inner",), weight=0.25)(student, teacher, {}))
    wanted = float(divergence(a, b, KINDS["scores"])) + 0.25 * float(relative_error(c, d))
    assert found == pytest.approx(wanted)


def test_the_part_of_the_outputs() -> None:
    torch.manual_seed(0)
    teacher = {"scores": torch.randn(4, 3), "inside": torch.randn(4, 5)}
    student = {name: value + torch.randn_like(value) for name, value in teacher.items()}
    whole = Loss({"scores": KINDS["scores"]}, features=("inside",))
    outputs, inside = whole.of_outputs(), relative_error(student["inside"], teacher["inside"])
    assert outputs.names == ("scores",)
    assert outputs(student, teacher, {}) == pytest.approx(
        float(whole(student, teacher, {}) - inside), rel=1e-5
    )
    no_outputs = Loss({}, features=("inside",))  # a block's
    assert no_outputs.of_outputs().names == ("inside",)
    own = Loss({"ids": KINDS["ids"]}, features=("inside",), custom=lambda s, t, f: s["ids"].sum())
    assert own.of_outputs().custom is own.custom and own.of_outputs().features == ()


def test_attention_maps_are_added() -> None:
    (a, b), (c, d) = pair(4, 5), (value.softmax(-1) for value in pair(4, 2, 3, 3, seed=1))
    student, teacher = {"scores": a, "map": c}, {"scores": b, "map": d}
    loss = Loss(KINDS, maps=("map",))
    assert loss.names == ("scores", "map")
    wanted = float(divergence(a, b, KINDS["scores"])) + float(map_divergence(c, d))
    assert float(loss(student, teacher, {})) == pytest.approx(wanted)


def test_a_loss_of_the_users_own() -> None:
    a, b = pair(4, 5)

    def custom(student: dict, teacher: dict, feeds: dict) -> torch.Tensor:  # type: ignore[type-arg]
        return (student["scores"] - teacher["scores"]).abs().sum() * feeds["x"]

    loss = Loss(KINDS, custom=custom)
    assert set(loss.names) == set(KINDS)
    a.requires_grad_()
    values = {"scores": a, "state": a, "ids": a}
    found = loss(values, {**values, "scores": b}, {"x": torch.tensor(2.0)})
    assert float(found.detach()) == pytest.approx(2 * float((a - b).detach().abs().sum()))


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (1.5, "--loss returned a float, wanted one float as a torch tensor"),
        (None, "--loss returned a NoneType"),
        (torch.zeros(3, requires_grad=True), r"--loss returned a Tensor of shape \[3\]"),
        (torch.tensor(2), r"--loss returned a Tensor of shape \[\], torch.int64"),
        (torch.tensor(1.0), "has no gradient"),
    ],
)
def test_what_is_no_loss(value: object, wanted: str) -> None:
    a, b = pair(4, 5)
    loss = Loss(KINDS, custom=lambda student, teacher, feeds: value)  # type: ignore[arg-type, return-value]
    values = {"scores": a, "state": a, "ids": a}
    with pytest.raises(DataError, match=wanted):
        loss(values, {**values, "scores": b}, {})


def test_refusals() -> None:
    with pytest.raises(UsageError, match="--loss kl needs an output with classes"):
        Loss({"state": KINDS["state"]}, form="kl")
    with pytest.raises(UsageError, match="nothing to fine-tune towards"):
        Loss({"ids": KINDS["ids"]})
    a, b = pair(4, 5)
    with pytest.raises(DataError, match=r"value 'scores' is \[4, 5\], the teacher's \[2, 5\]"):
        Loss(KINDS)({"scores": a}, {"scores": b[:2]}, {})


class TestLabels:
    """They come with the teacher's values, and their loss is added."""

    TASK = Task("scores", KINDS["scores"], count=4)

    def test_the_loss_on_them_is_added(self) -> None:
        a, b = pair(4, 5)
        labels = torch.tensor([0, -100, 4, 2])
        found = Loss(KINDS, task=self.TASK)({"scores": a}, {"scores": b, LABELS: labels}, {})
        wanted = divergence(a, b, KINDS["scores"]) + self.TASK(a, labels)
        assert float(found) == pytest.approx(float(wanted))
        assert float(Loss(KINDS)({"scores": a}, {"scores": b}, {})) < float(found)

    def test_their_output_is_read(self) -> None:
        assert Loss(KINDS, ("inner",), task=Task("state", KINDS["state"])).names == (
            "scores",
            "state",
            "inner",
        )
        assert Loss(KINDS, task=self.TASK).names == ("scores",)

    def test_a_loss_of_the_users_own_gets_them_among_the_feeds(self) -> None:
        a, b = pair(4, 5)
        a.requires_grad_()

        def custom(student: dict, teacher: dict, feeds: dict) -> torch.Tensor:  # type: ignore[type-arg]
            assert set(teacher) == set(KINDS) and set(feeds) == {"x", "label"}
            return F.cross_entropy(student["scores"], feeds["label"])

        values, labels, feeds = {"scores": a, "state": a, "ids": a}, torch.arange(4), {"x": b}
        teacher = {**values, "scores": b, LABELS: labels}
        found = Loss(KINDS, custom=custom, key="label")(values, teacher, feeds)
        assert float(found.detach()) == pytest.approx(float(F.cross_entropy(a, labels).detach()))
        assert set(feeds) == {"x"}


def test_parts_of_another_scale_count_alike() -> None:
    student, teacher = pair(6, 4)
    scale = torch.tensor([1000.0, 1000.0, 1.0, 1.0])
    kinds = {"y": OutputKind(FEATURES, axis=1, cuts=(2,))}
    found = float(Loss(kinds)({"y": student * scale}, {"y": teacher * scale}, {}))
    wanted = [float(relative_error(student[:, part], teacher[:, part])) for part in (slice(2), slice(2, 4))]
    assert found == pytest.approx(np.mean(wanted), rel=1e-4)


def test_a_part_with_nothing_in_it_does_not_count_for_all() -> None:
    teacher = torch.tensor([[100.0, 200.0, 1e-7, 2e-7]])
    student = teacher + torch.tensor([[0.0, 0.0, 1e-4, 1e-4]])
    kinds = {"y": OutputKind(FEATURES, axis=1, cuts=(2,), squares=(1e4, 0.25))}
    assert float(Loss(kinds)({"y": student}, {"y": teacher}, {})) < 1e-6
