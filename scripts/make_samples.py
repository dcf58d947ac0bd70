"""Train the two sample models and write ``samples/``: ONNX files, calibration inputs, test set.

The files in ``samples/`` were made with torch 2.13.0 (CPU), onnx 1.23.2, onnxscript 0.7.2 and
scikit-learn 1.9.1, in an environment of its own because nothing else here needs torch::

    python3 -m venv build/venv-samples
    build/venv-samples/bin/pip install torch==2.13.0 onnx onnxscript onnxruntime scikit-learn
    build/venv-samples/bin/python scripts/make_samples.py

Everything is seeded: the same machine gives the same bytes; another processor may round otherwise
and land a few tenths of a percent away.
"""

from __future__ import annotations

import argparse
import logging
import runpy
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

SAMPLES = Path(__file__).resolve().parent.parent / "samples"
SEED = 20
CLASSES = 10
TEST_IMAGES = 597
CALIBRATION_IMAGES = 512
BATCH = 32
OPSET = 18
# What samples/README.md promises; a model that misses it is not worth pruning in a demo.
WANTED_ACCURACY = 97.0
WANTED_BYTES = 2_000_000

EVAL = runpy.run_path(str(SAMPLES / "digits_eval.py"))
VOCABULARY: int = EVAL["VOCABULARY"]
TOKENS = 16


class Residual(nn.Module):
    """Two 3x3 convolutions around a skip connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to the same shape."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(x + self.norm2(self.conv2(y)))


class Separable(nn.Module):
    """A depthwise 3x3 convolution and a 1x1 convolution, as in MobileNet."""

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, out_channels, H / stride, W / stride)``."""
        y = F.relu(self.norm1(self.depthwise(x)))
        return F.relu(self.norm2(self.pointwise(y)))


class DigitsCNN(nn.Module):
    """Stem, residual block, separable, residual block, separable, pooling, two Gemm layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(32)
        self.block1 = Residual(32)
        self.down1 = Separable(32, 96, stride=2)
        self.block2 = Residual(96)
        self.down2 = Separable(96, 192, stride=2)
        self.hidden = nn.Linear(192, 96)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(96, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Map images ``(N, 1, 8, 8)`` to logits ``(N, 10)``."""
        x = F.relu(self.norm(self.stem(image)))
        x = self.down2(self.block2(self.down1(self.block1(x))))
        x = x.mean(dim=(2, 3))
        return self.head(self.dropout(F.relu(self.hidden(x))))


class Attention(nn.Module):
    """Multi-head self-attention spelt out, so that it exports as MatMul, Softmax, MatMul."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, tokens, width)`` to the same shape."""
        _, length, width = x.shape
        shape = (-1, length, self.heads, width // self.heads)
        q, k, v = (f(x).reshape(shape).transpose(1, 2) for f in (self.query, self.key, self.value))
        scores = q @ k.transpose(2, 3) / (width // self.heads) ** 0.5
        mixed = torch.softmax(scores, dim=-1) @ v
        return self.output(mixed.transpose(1, 2).reshape(-1, length, width))


class EncoderLayer(nn.Module):
    """Attention and a GELU feed-forward network, each normalised first and added to the stream."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, tokens, width)`` to the same shape."""
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.down(F.gelu(self.up(self.norm2(x)))))


class DigitsTransformer(nn.Module):
    """A two-layer encoder over 16 tokens, mean over the tokens, linear head."""

    def __init__(self, width: int = 96, heads: int = 4, dropout: float = 0.1) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.position = nn.Parameter(0.1 * torch.randn(TOKENS, width))
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.layer1 = EncoderLayer(width, heads, 4 * width, dropout)
        self.layer2 = EncoderLayer(width, heads, 4 * width, dropout)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map token ids ``(N, 16)`` to logits ``(N, 10)``."""
        x = self.embedding(tokens) + self.position
        return self.head(self.norm(self.layer2(self.layer1(x))).mean(dim=1))


def augment(image: Tensor, generator: torch.Generator) -> Tensor:
    """Turn, scale and shift each image a little, and shake its grey values."""
    n = len(image)

    def uniform(limit: float) -> Tensor:
        return (2 * torch.rand(n, generator=generator) - 1) * limit

    angle, scale = uniform(0.25), 1 + uniform(0.12)
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    rows = torch.stack([cos, -sin, uniform(0.15), sin, cos, uniform(0.15)], dim=1)
    grid = F.affine_grid(rows.reshape(n, 2, 3), list(image.shape), align_corners=False)
    moved = F.grid_sample(image, grid, align_corners=False)
    return (moved + 0.04 * torch.randn(moved.shape, generator=generator)).clamp(0, 1)


def tokenize(image: Tensor) -> Tensor:
    """Apply the evaluation's own tokenizer, so that training and test cannot differ."""
    return torch.from_numpy(EVAL["tokens"](image.numpy()))


@dataclass(frozen=True)
class Sample:
    """A model to make and how it is trained; ``prepare`` turns images into the model's input."""

    name: str
    title: str
    net_type: type[nn.Module]
    prepare: Callable[[Tensor], Tensor]
    epochs: int
    rate: float


ALL_SAMPLES = (
    Sample(
        "digits_cnn", "Digits CNN: residual and depthwise-separable blocks", DigitsCNN, Tensor.float, 40, 3e-3
    ),
    Sample(
        "digits_transformer", "Digits transformer: two encoder layers", DigitsTransformer, tokenize, 120, 2e-3
    ),
)


def train(sample: Sample, epochs: int, image: Tensor, label: Tensor) -> nn.Module:
    """Train with AdamW, a one-cycle schedule and label smoothing; the net comes back in eval mode."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    net = sample.net_type()
    steps = epochs * (len(image) // BATCH)
    optimizer = torch.optim.AdamW(net.parameters(), lr=sample.rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, sample.rate, total_steps=steps)
    for _ in range(epochs):
        order = torch.randperm(len(image), generator=generator)
        for start in range(0, len(image) - BATCH + 1, BATCH):
            rows = order[start : start + BATCH]
            logits = net(sample.prepare(augment(image[rows], generator)))
            loss = F.cross_entropy(logits, label[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def rename(proto: onnx.ModelProto) -> None:
    """Give weights and their nodes the names of their torch modules.

    The exporter calls a transposed Linear weight ``val_3`` and a folded BatchNorm ``x.weight_bias``;
    reports name weights, so the samples should read well.
    """
    graph = proto.graph
    constants = {t.name for t in graph.initializer}
    readers = {name: node for node in graph.node for name in node.input}
    new: dict[str, str] = {}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in constants:
            bias = next(i for i in readers[node.output[0]].input if i in constants)
            module = bias.removesuffix(".bias")
            new[node.input[1]] = f"{module}.weight"
        elif node.op_type in ("Conv", "Gemm", "Gather"):
            module = next(i for i in node.input if i.endswith(".weight")).removesuffix(".weight")
            if node.op_type == "Conv":
                new[node.input[2]] = f"{module}.bias"
        else:
            continue
        node.name = f"/{module.replace('.', '/')}/{node.op_type}"
    for tensor in graph.initializer:
        tensor.name = new.get(tensor.name, tensor.name)
    for value in graph.value_info:
        value.name = new.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [new.get(i, i) for i in node.input]


def export(net: nn.Module, sample: Sample, image: Tensor) -> Path:
    """Export to ONNX with a dynamic batch axis, without the exporter's traces of this machine."""
    path = SAMPLES / f"{sample.name}.onnx"
    example = sample.prepare(image)
    argument = "tokens" if example.dtype == torch.int64 else "image"
    program = torch.onnx.export(
        net,
        (example,),
        input_names=[argument],
        output_names=["logits"],
        dynamic_shapes={argument: {0: torch.export.Dim("batch")}},
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    proto = program.model_proto
    for item in [*proto.graph.node, *proto.graph.value_info, *proto.graph.input, *proto.graph.output]:
        del item.metadata_props[:]  # stack traces with local paths
    del proto.graph.metadata_props[:]
    rename(proto)
    proto.ir_version = 8  # any ONNX Runtime reads it; only what was deleted above needs a newer one
    proto.graph.name = sample.name
    proto.doc_string = sample.title
    onnx.helper.set_model_props(
        proto,
        {
            "title": sample.title,
            "dataset": "Optical Recognition of Handwritten Digits (UCI), CC BY 4.0",
            "license": "Apache-2.0",
            "classes": ",".join(map(str, range(CLASSES))),
            "made_by": "scripts/make_samples.py",
        },
    )
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)
    return path


def split() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return train images, train labels, test images, test labels; shuffled, seeded."""
    digits = load_digits()
    order = np.random.default_rng(SEED).permutation(len(digits.target))
    image = torch.from_numpy((digits.images[order] / 16).astype(np.float32)[:, None])
    label = torch.from_numpy(digits.target[order].astype(np.int64))
    return image[TEST_IMAGES:], label[TEST_IMAGES:], image[:TEST_IMAGES], label[:TEST_IMAGES]


def main() -> int:
    """Write everything in ``samples/``; return 1 when a model misses its accuracy or size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--epochs", type=int, help="for a quick look (default: each model's own)")
    parser.add_argument("--only", choices=[s.name for s in ALL_SAMPLES], help="train one model only")
    options = parser.parse_args()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # "torchvision is not installed", four times
    torch.set_num_threads(1)  # the order of sums must not depend on the machine's cores
    torch.use_deterministic_algorithms(True)

    train_image, train_label, test_image, test_label = split()
    calibration = train_image[:CALIBRATION_IMAGES].numpy()
    np.savez_compressed(SAMPLES / "digits.npz", image=calibration)
    np.savez_compressed(SAMPLES / "digits_tokens.npz", tokens=EVAL["tokens"](calibration))
    np.savez_compressed(SAMPLES / "digits_test.npz", image=test_image.numpy(), label=test_label.numpy())

    failed = False
    for sample in ALL_SAMPLES:
        if options.only not in (None, sample.name):
            continue
        start = time.perf_counter()
        net = train(sample, options.epochs or sample.epochs, train_image, train_label)
        path = export(net, sample, train_image[:2])
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        score, size = EVAL["accuracy"](session), path.stat().st_size
        weights = sum(p.numel() for p in net.parameters())
        seconds = time.perf_counter() - start
        print(f"{sample.name}: {weights} weights, {size} bytes, {score:.2f} %, {seconds:.0f} s")
        failed |= score < WANTED_ACCURACY or size > WANTED_BYTES
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
