"""What attention says of the layers: by hand, and in a whole run on the sample."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from onnxprune.attention.block import AttentionBlock, Projections
from onnxprune.attention.guide import (
    LEAST,
    NOTHING,
    Guide,
    block_costs,
    block_of,
    head_weights,
    make_guide,
    normalised,
    token_weights,
)
from onnxprune.attention.statistics import Attention, BlockStatistics
from onnxprune.calibration.data import from_iterable
from onnxprune.io import load
from onnxprune.layers import Layer, find_layers
from onnxprune.pipeline import prune
from onnxprune.recipe import Recipe


@pytest.fixture(scope="module")
def layers(digits_transformer: Path) -> tuple[Layer, ...]:
    return find_layers(load(digits_transformer))[0]


def block(
    number: int, effect: list[float], output: float = 1.0, names: str = "layer{}.attention.{}.weight"
) -> Attention:
    projections = Projections(*(names.format(number, part) for part in ("query", "key", "value", "output")))
    found = AttentionBlock(
        f"block{number}", "decomposed", (17, 50)[number - 1], "c", "p", weights=projections
    )
    zeros, effects = np.zeros(len(effect)), np.array(effect)
    sums = BlockStatistics(1, zeros, zeros, np.ones(len(effect)), effects**2, output, 1.0)
    return Attention(found, sums, (np.array([[1, 3, 0]], np.float32),))


def test_off_costs_nothing(digits_transformer: Path, layers: tuple[Layer, ...]) -> None:
    model = load(digits_transformer)
    data = from_iterable(model, [{"tokens": np.zeros((2, 16), np.int64)}], Recipe())
    assert make_guide(model, layers, data, Recipe()) is NOTHING


def test_layers_take_the_weights_of_their_block(layers: tuple[Layer, ...]) -> None:
    """Also those behind it, up to the next block."""
    found = [block(1, [1, 1, 1, 1]), block(2, [1, 1, 1, 1])]
    blocks = {layer.name: block_of(layer, found).block.name for layer in layers}
    for name in ("attention.query", "attention.output", "up", "down"):
        assert blocks[f"layer1.{name}.weight"] == "block1"
        assert blocks[f"layer2.{name}.weight"] == "block2"
    assert blocks["head.weight"] == "block2" and blocks["embedding.weight"] == "block1"
    weights = token_weights(layers, found, [None])
    assert set(weights) == {layer.name for layer in layers} - {"embedding.weight"}
    np.testing.assert_allclose(weights["layer1.up.weight"][0], [[3 / 4, 9 / 4, 0]], rtol=1e-6)


def test_mean_of_the_real_tokens_is_one() -> None:
    received = np.array([[1, 3, 8], [0, 0, 5]], np.float32)
    mask = np.array([[1, 1, 0], [1, 1, 0]], bool)
    np.testing.assert_allclose(normalised(received, mask), [[0.5, 1.5, 0], [1, 1, 0]])
    np.testing.assert_allclose(normalised(received, mask[:, :2])[0], received[0] / 4, rtol=1e-6)


def test_heads_weigh_their_outputs(layers: tuple[Layer, ...]) -> None:
    weights = head_weights(layers, [block(1, [0, 1, 1, 2])])
    assert set(weights) == {f"layer1.attention.{part}.weight" for part in ("query", "key", "value")}
    rows = weights["layer1.attention.key.weight"]
    assert rows.shape == (1, 96) and rows.mean() == pytest.approx(1)
    heads = rows.reshape(4, 24)
    assert (heads == heads[:, :1]).all()
    root = np.sqrt(6 / 4)  # of the mean of the squared effects
    raw = np.array([LEAST, 1 / root, 1 / root, 2 / root])
    np.testing.assert_allclose(heads[:, 0], raw / raw.mean(), rtol=1e-5)


def test_shared_keys_count_for_all_their_heads(layers: tuple[Layer, ...]) -> None:
    """Eight query heads, four of keys: the projection of the keys is as wide as half of the heads."""
    item = block(1, [1, 1, 0, 2, 3, 3, 0, 0])
    weights = Projections(
        "layer1.up.weight", "layer1.attention.key.weight", "layer1.attention.value.weight", None
    )  # 384 outputs, 8 heads of 48; 96 are two of them
    found = Attention(AttentionBlock("b", "decomposed", 17, "c", "p", weights=weights), item.sums, ())
    rows = head_weights(layers, [found])["layer1.attention.key.weight"]
    squares = np.array([(1 + 1 + 0 + 4) / 4, (9 + 9) / 4])
    raw = np.sqrt(squares)
    np.testing.assert_allclose(rows[0, ::48], raw / raw.mean(), rtol=1e-5)


def test_no_weights_for_what_is_fused_or_unknown(layers: tuple[Layer, ...]) -> None:
    fused = Projections("layer1.up.weight", "layer1.up.weight", "layer1.up.weight", "layer1.down.weight")
    item = block(1, [1, 1, 1, 1])
    other = Attention(AttentionBlock("b", "decomposed", 17, "c", "p", weights=fused), item.sums, ())
    assert head_weights(layers, [other, block(2, [0, 0, 0, 0])]) == {}
    assert head_weights((), [item]) == {}


def test_blocks_cost_what_they_add() -> None:
    costs = block_costs([block(1, [1], output=4.0), block(2, [1], output=1.0)])
    assert costs["layer1.attention.query.weight"] == pytest.approx(np.sqrt(2))
    assert costs["layer2.attention.output.weight"] == pytest.approx(1 / np.sqrt(2))
    assert block_costs([block(1, [1], output=0.0)]) == {}


def test_table_is_plain() -> None:
    (entry,) = Guide(blocks=(block(1, [1, 2]),)).table()
    assert json.loads(json.dumps(entry)) == entry
    assert entry["effect"] == [1.0, 2.0] and entry["contribution"] == 1.0


@pytest.mark.parametrize("levels", [("token",), ("head",), ("layer",), ("token", "head", "layer")])
def test_whole_run(
    digits_transformer: Path, calibration_tokens_npz: Path, tmp_path: Path, levels: tuple[str, ...]
) -> None:
    """Each level changes the model; zeros stay exact and the report tells the heads."""
    data = {"tokens": np.load(calibration_tokens_npz)["tokens"][:32]}
    options = {"allocation": "uniform" if "layer" not in levels else "error", "target_runtime": "stock"}
    options["include"] = ("*attention*",)  # the smaller layers: a quarter of the time

    def run(name: str, attention: tuple[str, ...]) -> tuple[bytes, object]:
        target = tmp_path / f"{name}.onnx"
        made = prune(
            digits_transformer, target, data=data["tokens"], sparsity=0.7, attention=attention, cache=False,
            format="dense", **options,
        )  # fmt: skip
        return target.read_bytes(), made

    plain, _ = run("plain", ("off",))
    found, report = run("found", levels)
    assert found != plain
    if len(levels) > 1:
        assert run("again", levels)[0] == found
    assert report.sparsity == pytest.approx(0.7, abs=1e-4) and not report.warnings  # type: ignore[attr-defined]
    assert len(report.attention) == 2 and len(report.attention[0]["effect"]) == 4  # type: ignore[attr-defined]


def test_a_convolutional_model_has_places_only(
    digits_cnn: Path, calibration_npz: Path, tmp_path: Path
) -> None:
    """They change its statistics; for heads and layers there is nothing, which the report says."""
    images, made = np.load(calibration_npz)["image"][:32], {}
    for level in ("off", "token", "head"):
        path = tmp_path / f"{level}.onnx"
        report = prune(
            digits_cnn, path, data=images, attention=(level,), allocation="uniform", format="dense",
            target_runtime="stock", cache=False, exclude=("head*",),
        )  # fmt: skip
        made[level] = path.read_bytes()
        told = any("--attention head changed nothing" in line for line in report.warnings)
        assert told == (level == "head")
    assert made["off"] == made["head"] != made["token"]


def test_depthwise_convolutions_keep_equal_places(digits_cnn: Path) -> None:
    model = load(digits_cnn)
    layers = find_layers(model)[0]
    data = from_iterable(model, [{"image": np.ones((2, 1, 8, 8), np.float32)}], Recipe())
    places = make_guide(model, layers, data, Recipe(attention=("token",))).places
    assert places == {layer.name for layer in layers if layer.kind == "conv" and not layer.depthwise}
    assert make_guide(model, layers, data, Recipe(attention=("layer",))).empty
