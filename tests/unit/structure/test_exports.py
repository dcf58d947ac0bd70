"""Removal equals masking on graphs that torch's two exporters write, with fixed and with free sizes."""

from __future__ import annotations

import io
import logging
import warnings

import numpy as np
import onnx
import pytest
import torch

from onnxprune.errors import ModelError
from onnxprune.model import Model
from onnxprune.passes.own_parameters import own_parameters
from onnxprune.structure.sample import sample
from tests.unit.structure.graphs import assert_removal_is_masking
from tests.unit.structure.networks import ALL, NETWORKS

pytest.importorskip("onnxscript")  # both exporters need it

TOKENS = (
    "bert",
    "llama",
    "decoder",
    "decoder_normed_heads",
    "encoder",
)  # the second axis of the inputs is a length
# The kinds of groups, and how many there are, from both exporters.
FOUND = {
    "resnet": "channel 4",
    "mobilenet": "channel 3",
    "densenet": "channel 3",
    "shufflenet": "channel 1",
    "unet": "channel 3",
    "pyramid": "channel 1",
    "pixel_shuffle": "channel 1",
    "conv1d": "channel 1",
    "conv3d": "channel 1",
    "vit": "head 1, neuron 1",
    "bert": "head 1, neuron 1",
    "llama": "head 1, neuron 1, width 1",
    "encoder": "head 1, neuron 1",  # torch copies the first layer, the exporters keep one of equal weights
    "lstm": "hidden 2",
    "gru": "hidden 1",
    "rnn": "hidden 1",
    "resnext": "channel 2",
    "wide_groups": "channel 3",
    "se_resnet": "channel 4",
    "group_norm_resnet": "channel 2",
    "efficientnet": "channel 10",
    "densenet_transition": "channel 10",
    "shufflenet_v2": "channel 8",
    "unet_levels": "channel 7",
    "inception": "channel 5",
    "mixer": "neuron 2",
    "convnext": "neuron 2",
    "swin": "head 1",
    "decoder": "head 2, neuron 2, width 1",
    "cross_attention": "head 3, neuron 2",
    "crnn": "channel 1, hidden 2",
    "gru_stack": "channel 1, hidden 2",
    "mlp": "neuron 2",
    "conv_to_flat": "channel 1, neuron 1",
    "conv3d_residual": "channel 2",
    "decoder_normed_heads": "head 2, neuron 2, width 1",
    "convnext_v2": "width 1",
    "res_mlp": "neuron 2, width 1",
    "generator": "channel 1, neuron 1",
    "cosine_classifier": "channel 1, neuron 1",
}


def exported(
    name: str, opset: int, dynamo: bool, free: bool = False, images: bool = False
) -> tuple[Model, dict[str, np.ndarray]]:
    """Return the model and its inputs; with ``free`` the batch (and the tokens) may have any size.

    ``images``: height and width may as well.
    """
    torch.manual_seed(0)
    module, inputs = ALL[name]()
    file = io.BytesIO()
    names = [f"in{i}" for i in range(len(inputs))]
    axes = {0: "batch", 1: "tokens"} if name in TOKENS else {0: "batch"}
    axes |= {2: "height", 3: "width"} if images else {}
    more: dict[str, object] = {}
    if free and dynamo:
        more = {"dynamic_shapes": [axes] * len(inputs)}
    elif free:
        more = {"dynamic_axes": dict.fromkeys(names, axes)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            torch.onnx.export(
                module.eval(), inputs, file, input_names=names, opset_version=opset, dynamo=dynamo,
                verbose=False, **more,
            )  # fmt: skip
        finally:
            logging.disable(logging.NOTSET)
    model = Model(onnx.load_from_string(file.getvalue()))
    own_parameters(model)
    return model, {n: x.numpy() for n, x in zip(names, inputs, strict=True)}


def others(name: str, model: Model, feeds: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Return feeds of other sizes that the model takes: an exporter may have fixed what was to be free."""
    wanted = [{k: np.concatenate([x, x[:1]]) for k, x in feeds.items()}]
    if name in TOKENS:
        wanted.append({k: x[:, :-1] for k, x in feeds.items()})
    runs = []
    for feed in wanted:
        try:
            sample(model, feed, 1)
        except ModelError:
            continue
        runs.append(feed)
    assert runs, "the model runs at no other size"
    return runs


def check(name: str, opset: int, dynamo: bool, free: bool = False) -> None:
    model, feeds = exported(name, opset, dynamo, free)
    structure = assert_removal_is_masking(
        model, feeds, others=others(name, model, feeds) if free else [], seed=opset
    )
    kinds = [group.kind for group in structure.groups]
    found = ", ".join(f"{kind} {kinds.count(kind)}" for kind in sorted(set(kinds)))
    wanted = "width 1" if name == "rnn" and dynamo else FOUND[name]  # that exporter unrolls RNN
    assert found == wanted


@pytest.mark.parametrize("name", ["resnext", "unet_levels", "shufflenet_v2", "se_resnet"])
def test_export_with_images_of_any_size(name: str) -> None:
    model, feeds = exported(name, 17, False, True, True)
    (image,) = feeds
    others = [{image: np.tile(feeds[image], (2, 1, 2, 3))}, {image: np.repeat(feeds[image], 2, 3)[:1]}]
    structure = assert_removal_is_masking(model, feeds, others=others)
    assert f"channel {len(structure.groups)}" == FOUND[name]


SLOWER = (
    "efficientnet", "densenet_transition", "se_resnet", "inception", "group_norm_resnet", "unet_levels",
    "cross_attention", "mixer", "wide_groups", "conv_to_flat", "decoder", "crnn",
    "decoder_normed_heads", "convnext_v2", "res_mlp", "generator", "cosine_classifier",
)  # fmt: skip
QUICK = [n for n in FOUND if (n in NETWORKS and n not in SLOWER) or n in ("vit", "bert", "lstm")]
FORMS = [
    *((opset, False, False) for opset in (11, 13, 17)),
    *((opset, True, False) for opset in (18, 20, 23)),
    (17, False, True),
    (20, True, True),
]


@pytest.mark.parametrize("name", QUICK)
def test_export(name: str) -> None:
    check(name, 17, False)


@pytest.mark.parametrize("name", ["decoder", "crnn"])
def test_export_with_free_sizes(name: str) -> None:
    check(name, 17, False, True)


def test_export_by_dynamo() -> None:
    check("mlp", 20, True)


@pytest.mark.slow
@pytest.mark.parametrize(("opset", "dynamo", "free"), FORMS)
@pytest.mark.parametrize("name", FOUND)
def test_every_export(name: str, opset: int, dynamo: bool, free: bool) -> None:
    try:
        check(name, opset, dynamo, free)
    except torch.onnx.errors.UnsupportedOperatorError as error:
        pytest.skip(str(error))
