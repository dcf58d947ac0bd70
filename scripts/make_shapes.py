"""Models with the shapes of known networks and random weights: their speed does not depend on the values.

    python scripts/make_shapes.py FOLDER [bert-base] [resnet-50]

writes FOLDER/bert-base.onnx (four of the twelve layers, one text of 128 tokens) and FOLDER/resnet-50.onnx
(one image of 224x224, batch normalisation folded), opset 17. Needs torch.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

TOKENS, HIDDEN, HEADS, LAYERS, WORDS = 128, 768, 12, 4, 1000


class Attention(nn.Module):
    """Self-attention as exporters write it: four products, heads by reshape."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(HIDDEN, HIDDEN) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, T, HIDDEN)."""
        n, t, _ = x.shape
        q, k, v = (f(x).view(n, t, HEADS, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        scores = torch.softmax(q @ k.transpose(2, 3) / (HIDDEN // HEADS) ** 0.5, -1)
        return self.out((scores @ v).transpose(1, 2).reshape(n, t, HIDDEN))


class Layer(nn.Module):
    """A layer of BERT."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm = Attention(), nn.LayerNorm(HIDDEN)
        self.wide, self.narrow, self.last = (
            nn.Linear(HIDDEN, 4 * HIDDEN),
            nn.Linear(4 * HIDDEN, HIDDEN),
            nn.LayerNorm(HIDDEN),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, T, HIDDEN)."""
        x = self.norm(x + self.attention(x))
        return self.last(x + self.narrow(nn.functional.gelu(self.wide(x))))


class Bert(nn.Module):
    """An embedding table and layers."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.norm = nn.Embedding(WORDS, HIDDEN), nn.LayerNorm(HIDDEN)
        self.layers = nn.Sequential(*(Layer() for _ in range(LAYERS)))

    def forward(self, ids: Tensor) -> Tensor:
        """Return (N, T, HIDDEN)."""
        return self.layers(self.norm(self.words(ids)))


def convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Sequential:
    """Convolution and batch normalisation; the exporter folds the second into the first."""
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Bottleneck(nn.Module):
    """Three convolutions around a residual connection."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.first, self.middle = convolution(inputs, width, 1), convolution(width, width, 3, stride)
        self.last = convolution(width, 4 * width, 1)
        same = stride == 1 and inputs == 4 * width
        self.skip = nn.Identity() if same else convolution(inputs, 4 * width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, 4 width, H / stride, W / stride)."""
        y = torch.relu(self.middle(torch.relu(self.first(x))))
        return torch.relu(self.last(y) + self.skip(x))


def resnet() -> nn.Module:
    """Return ResNet-50 (He et al., "Deep Residual Learning for Image Recognition", 2015)."""
    blocks: list[nn.Module] = [convolution(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for stage, count in enumerate((3, 4, 6, 3)):
        width = 64 << stage
        for number in range(count):
            blocks.append(Bottleneck(inputs, width, 2 if stage and not number else 1))
            inputs = 4 * width
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000))


def main() -> None:
    """Write the models."""
    folder, names = Path(sys.argv[1]), sys.argv[2:] or ["bert-base", "resnet-50"]
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    for name in names:
        if name == "bert-base":
            model, feed = Bert(), torch.randint(WORDS, (1, TOKENS))
        else:
            model, feed = resnet(), torch.randn(1, 3, 224, 224)
        torch.onnx.export(
            model.eval(),
            (feed,),
            str(folder / f"{name}.onnx"),
            dynamo=False,
            opset_version=17,
            input_names=["ids" if name == "bert-base" else "image"],
            output_names=["y"],
        )


if __name__ == "__main__":
    main()
