"""onnxprune.distill: any pruned model, towards its dense one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import onnxprune
from onnxprune.errors import ModelError, UsageError
from onnxprune.io import load, save
from onnxprune.passes.unpack import unpack
from tests.unit.finetune.networks import images, magnitude_pruned, parse, residual_net

NAMES = ("w1", "w2", "w3", "w4")
OPTIONS = {"steps": 16, "lr": 0.01, "target_runtime": "stock", "cache": False, "threads": 1}


def test_models_from_memory(tmp_path: Path) -> None:
    dense = residual_net()
    pruned = magnitude_pruned(dense, NAMES)
    report = onnxprune.distill(pruned, dense, tmp_path / "o.onnx", data={"x": images(64)}, **OPTIONS)
    assert report.finetuning is not None
    assert report.finetuning["after"] < report.finetuning["before"]
    assert report.metric_before is None
    found = load(tmp_path / "o.onnx")
    unpack(found)
    for name in NAMES:
        assert np.array_equal(found.array(name) == 0, pruned.array(name) == 0)
    assert report.zeros == sum(int((pruned.array(name) == 0).sum()) for name in NAMES)


def test_a_floor_is_for_pruning(tmp_path: Path) -> None:
    dense = residual_net()
    with pytest.raises(UsageError, match="a floor is for pruning"):
        onnxprune.distill(dense, dense, tmp_path / "o.onnx", data={"x": images(8)}, min_agreement=0.9)


def test_a_metric_on_labels(tmp_path: Path) -> None:
    dense, x = residual_net(), images(64)
    (scores,) = onnxprune.session(dense.proto).run(None, {"x": x})
    values = scores.astype(np.float32)
    report = onnxprune.distill(
        magnitude_pruned(dense, NAMES), dense, tmp_path / "o.onnx", data={"x": x, "y": values},
        metric="rmse", labels="y", **OPTIONS,
    )  # fmt: skip
    assert report.metric == "rmse"
    assert report.metric_before is not None and report.metric_after is not None
    assert 0 < report.metric_after < report.metric_before


def test_labels_of_tokens_among_padding(tmp_path: Path) -> None:
    """Right ones beat wrong ones; what they say of the padding does not count."""
    text = """g (int64[N, T] ids, int64[N, T] attention_mask) => (float[N, T, 5] logits) {
        e = Gather(words, ids) h = MatMul(e, w) r = Relu(h) k = MatMul(r, v)
        m = Cast<to = 1>(attention_mask) u = Unsqueeze(m, axes) logits = Mul(k, u) }"""
    rng = np.random.default_rng(0)
    shapes = {"words": (40, 16), "w": (16, 32), "v": (32, 5)}
    weights = {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}
    dense = parse(text, weights | {"axes": np.array([2])})
    length = rng.integers(2, 12, 64)
    mask = (np.arange(30) < length[:, None]).astype(np.int64)
    ids = np.where(mask, rng.integers(1, 40, mask.shape), 0)
    share = {}
    for shift in (0, 1):
        label = np.where(mask, (ids + shift) % 5, 99)
        report = onnxprune.distill(
            magnitude_pruned(dense, ("w", "v")), dense, tmp_path / "o.onnx", force=True, labels="label",
            data={"ids": ids, "attention_mask": mask, "label": label}, **(OPTIONS | {"steps": 60}),
        )  # fmt: skip
        assert report.finetuning is not None
        assert report.finetuning["labels"]["output"] == "logits"
        assert report.finetuning["labels"]["count"] <= length.sum()
        session = onnxprune.session(tmp_path / "o.onnx")
        found = session.run(None, {"ids": ids, "attention_mask": mask})[0].argmax(-1)
        share[shift] = (found == ids % 5)[mask == 1].mean()
    assert share[0] > share[1] + 0.1


def test_zeros_of_weights_that_are_left_out_stay(tmp_path: Path) -> None:
    """Another tool pruned them, and they are excluded: the matrices of an LSTM and of what reads it."""
    text = """g (float[5, N, 8] x) => (float[N, 64] y) {
        all, h = LSTM<hidden_size = 8>(x, w, r) s = Squeeze(h, first) y = MatMul(s, v) }"""
    rng = np.random.default_rng(0)
    shapes = {"w": (1, 32, 8), "r": (1, 32, 8), "v": (8, 64)}
    weights = {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    dense = parse(text, weights | {"first": np.array([0])})
    pruned = magnitude_pruned(dense, ("w", "v"))
    feeds = [{"x": rng.normal(size=(5, 4, 8)).astype(np.float32)} for _ in range(8)]
    options = OPTIONS | {"exclude": ("v", "w"), "format": "dense", "steps": 60, "lr": 0.05}
    report = onnxprune.distill(pruned, dense, tmp_path / "o.onnx", data=feeds, **options)
    assert report.sparsity == 0  # of no layers
    assert not [text for text in report.warnings if "was wanted" in text]
    found = load(tmp_path / "o.onnx")
    for name in ("w", "v"):
        assert np.array_equal(found.array(name) == 0, pruned.array(name) == 0)
    assert not np.array_equal(found.array("r"), dense.array("r"))


def test_the_output_goes_beside_the_pruned_model(tmp_path: Path) -> None:
    dense = residual_net()
    save(magnitude_pruned(dense, NAMES), tmp_path / "small.onnx")
    report = onnxprune.distill(
        tmp_path / "small.onnx", dense, data={"x": images(32)}, format="dense", steps=4, lr=0.01, cache=False
    )
    assert report.output == str(tmp_path / "small.finetuned.onnx")
    assert (tmp_path / "small.finetuned.json").exists()


def test_a_model_with_smaller_shapes(tmp_path: Path) -> None:
    """As after structured pruning: the same inputs and outputs, fewer channels inside."""
    dense, small = residual_net(channels=12), residual_net(seed=3, channels=6)
    report = onnxprune.distill(small, dense, tmp_path / "o.onnx", data={"x": images(64)}, **OPTIONS)
    assert report.finetuning is not None
    assert report.finetuning["after"] < report.finetuning["before"]
    assert report.finetuning["features"] == []  # other shapes inside cannot be compared


def test_the_teacher_is_never_overwritten(tmp_path: Path) -> None:
    dense = residual_net()
    save(dense, tmp_path / "dense.onnx")
    before = (tmp_path / "dense.onnx").read_bytes()
    pruned = magnitude_pruned(dense, NAMES)
    for target in ({"output": tmp_path / "dense.onnx"},
                   {"output": tmp_path / "o.onnx", "report": tmp_path / "dense.onnx"}):  # fmt: skip
        with pytest.raises(UsageError, match="is the input, which is never changed"):
            onnxprune.distill(
                pruned, tmp_path / "dense.onnx", data={"x": images(8)}, force=True, **target, **OPTIONS
            )
    assert (tmp_path / "dense.onnx").read_bytes() == before


def test_the_report_compares_with_the_pruned_model(tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text("def score(s):\n    return float(len(s.get_inputs()))\n")
    dense = residual_net()
    pruned = magnitude_pruned(dense, NAMES, 0.5)
    report = onnxprune.distill(
        pruned,
        dense,
        tmp_path / "o.onnx",
        data={"x": images(32)},
        eval=f"{tmp_path / 'task.py'}:score",
        **OPTIONS,
    )
    assert (report.metric_before, report.metric_after) == (1, 1)
    assert [timing.stage for timing in report.timings].count("pruned model") == 1
    assert not [text for text in report.warnings if "was wanted" in text]


def test_refusals(tmp_path: Path) -> None:
    dense = residual_net()
    other = parse("g (float[N, 5] x) => (float[N, 10] logits) { logits = MatMul(x, w) }",
                  {"w": np.ones((5, 10), np.float32)})  # fmt: skip
    with pytest.raises(ModelError, match="is no pruned form of"):
        onnxprune.distill(dense, other, tmp_path / "o.onnx", data={"x": images(8)}, **OPTIONS)
    with pytest.raises(UsageError, match="--schedule cubic:2 prunes, finetune does not"):
        onnxprune.distill(dense, dense, tmp_path / "o.onnx", data={"x": images(8)}, schedule="cubic:2")
    assert not (tmp_path / "o.onnx").exists()
